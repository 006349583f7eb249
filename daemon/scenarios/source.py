"""The mixture that cycles draw from: packs, general tasks, dreams and imported data; and the probes' held-out items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from daemon.config.sections import ScenariosConfig
from daemon.domain.errors import DreamdError, PackError
from daemon.domain.records import Adjustments, Draw, ImportedSource, Refusal, Scenario, SourceRead, WriteRequest
from daemon.domain.states import ImportKind, Side, Source
from daemon.ports import Catalogue, Misfit, Write
from daemon.scenarios import general
from daemon.scenarios.basket import Basket
from daemon.scenarios.draw import generator, shuffled
from daemon.scenarios.dreams.dreamer import Dreamer
from daemon.scenarios.held_out import HeldOut
from daemon.scenarios.imports import ImportedReader, ReadResult
from daemon.scenarios.mixture import Entry, Plan, balanced, entries_of, num_of_share, plan_of, quotas
from daemon.scenarios.pack import Pack, load_builtin, load_pack
from daemon.scenarios.templates import Event, Templates

_BEHAVIOURAL = (Side.ACCEPT, Side.PUSH_BACK)

GENERAL: tuple[Entry, ...] = tuple(
    Entry(general.PACK, family, template, partial(general.draw, family, template))
    for family, makers in general.MAKERS.items()
    for template in makers
)


class Reader(Protocol):
    """Reads imported sources; `imports.ImportedReader`."""

    def read(self, source: ImportedSource, want: int, fresh: Callable[[Scenario], Refusal | None]) -> ReadResult:
        """Up to `want` scenarios that `fresh` does not refuse, from where the source was left."""


class Dreams(Protocol):
    """Asks the policy for scenarios; `dreams.Dreamer`."""

    def plan(self, cycle_number: int, seed: int, sides: Mapping[Side, int]) -> Sequence[Any]:
        """What to ask for, to get so many of each side."""

    def requests(self, plans: Sequence[Any]) -> Sequence[WriteRequest]:
        """The plans as the policy reads them."""

    def read(self, plan: Any, text: str) -> Scenario | Refusal:
        """What the policy wrote, as a scenario."""


def build_source(config: ScenariosConfig, special_tokens: Sequence[str] = ()) -> MixtureSource:
    """The source that the configuration describes.

    Args:
        special_tokens: the model's own, which no imported or dreamt text may hold.

    Raises:
        PackError: a pack is malformed, or no pack has templates for one of the two sides.
    """
    packs = [load_builtin(name) for name in config.builtin]
    packs += [load_pack(path) for path in config.packs]
    return MixtureSource(packs, GENERAL, config, ImportedReader(special_tokens), Dreamer(config, special_tokens))


class MixtureSource:
    """Draws fresh scenarios by quota (`ports.ScenarioSource`); the same arguments and data, the same scenarios."""

    def __init__(
        self,
        packs: Sequence[Pack],
        general: Sequence[Entry],
        config: ScenariosConfig,
        reader: Reader,
        dreamer: Dreams,
    ) -> None:
        _require_different_names(packs)
        self._config = config
        trainable = {side: entries_of(packs, side, held_out=False) for side in Side}
        trainable[Side.GENERAL] += general
        for number, side in enumerate(_BEHAVIOURAL, start=1):
            if not trainable[side] and quotas(config.per_cycle, config.general_fraction, number)[side]:
                raise PackError(
                    f"no pack has templates for the side {side.value}; add some, "
                    'or put "listening" into scenarios.builtin'
                )
        self._templates = Templates(trainable)
        self._held_out = HeldOut(packs)
        self._reader, self._dreamer = reader, dreamer

    def sample(
        self,
        cycle_number: int,
        seed: int,
        catalogue: Catalogue,
        write: Write,
        misfit: Misfit,
        adjustments: Adjustments,
    ) -> Draw:
        """This cycle's scenarios in a random order; a source that gives too few is made up for by templates.

        Raises:
            DreamdError: nothing at all is left that was not trained before.
        """
        plan = plan_of(self._config, adjustments, cycle_number, seed)
        strikes = catalogue.resting(cycle_number)
        most = plan.per_cycle
        while True:
            basket = Basket(catalogue, misfit)
            reads, events = self._import(plan, catalogue, basket, most)
            events += self._dream(plan, basket, write)
            events += self._templates.fill(plan, basket, strikes)
            scenarios = _balanced(basket, plan)
            kept = {scenario.content_hash for scenario in scenarios}
            conversations = [s.content_hash in kept for s in basket.scenarios if s.source is Source.CONVERSATION]
            if all(conversations):
                break
            # Templates of a side are dry. A line that is read is used up, so read only as many as there is room for.
            most = sum(conversations)
        if not scenarios:
            raise DreamdError(
                "no template has anything left that was not trained before, or that is not nearly the same; "
                "add a pack with larger lists under scenarios.packs, or import data of your own"
            )
        ordered = tuple(shuffled(generator("order", seed), scenarios))
        return Draw(ordered, basket.refusals, tuple(reads), tuple(events))

    def held_out_probes(self) -> tuple[str, ...]:
        """The probes that have held-out items here: `accept`, `push_back`, and one for each pack with such tasks."""
        return self._held_out.probes

    def held_out_pool(self, probe: str) -> tuple[Scenario, ...]:
        """A probe's items to rotate through, at most `MAX_HELD_OUT`: the same for every run, spread over templates.

        Raises:
            KeyError: there is no such probe.
            PackError: a rule cannot be judged by, with the values drawn.
        """
        return self._held_out.pools(probe)[0]

    def held_out_reserve(self, probe: str) -> tuple[Scenario, ...]:
        """Likewise a probe's fresh items: none is in its pool, nor nearly the same where its templates give others."""
        return self._held_out.pools(probe)[1]

    def all_held_out(self) -> tuple[Scenario, ...]:
        """Every pool and reserve: these must never be trained, nor anything nearly the same."""
        return self._held_out.all()

    def held_out_hashes(self) -> frozenset[str]:
        """Content hashes of `all_held_out`."""
        return frozenset(scenario.content_hash for scenario in self.all_held_out())

    def _import(
        self, plan: Plan, catalogue: Catalogue, basket: Basket, most: int
    ) -> tuple[list[SourceRead], list[Event]]:
        """Take what approved sources give, up to their shares; at most `most` conversations."""
        config, wanted = self._config, plan.wanted
        behavioural = sum(wanted[side] for side in _BEHAVIOURAL)
        shares = {
            # An import may be all of one side, and the sides must stay balanced.
            ImportKind.CONVERSATION: min(
                most,
                _share(plan.cycle_number, behavioural, config.conversation_fraction),
                *(wanted[side] for side in _BEHAVIOURAL),
            ),
            ImportKind.REPLAY: min(
                _share(plan.cycle_number, wanted[Side.GENERAL], config.replay_fraction),
                wanted[Side.GENERAL] - self._templates.num_favoured(plan),
            ),
        }
        reads: list[SourceRead] = []
        events: list[Event] = []
        sources = catalogue.sources()
        for source in shuffled(generator("imports", plan.cycle_number), sources):
            count = min(shares[source.kind], config.max_per_source)
            if count:
                shares[source.kind] -= self._read(source, count, basket, reads, events)
        return reads, events

    def _read(
        self, source: ImportedSource, count: int, basket: Basket, reads: list[SourceRead], events: list[Event]
    ) -> int:
        """Read up to `count` scenarios of one source into the basket; returns how many there were."""
        result = self._reader.read(source, count, basket.take)
        basket.record(*result.refusals)
        if result.read is not None:
            reads.append(result.read)
        if result.problem is not None:
            events.append(("source_unreadable", {"source": source.name, "problem": result.problem}))
        elif result.exhausted and result.read is not None:
            events.append(("source_dry", {"source": source.name, "used_up_lines": result.read.line}))
        return len(result.scenarios)

    def _dream(self, plan: Plan, basket: Basket, write: Write) -> list[Event]:
        """Have the policy write its share of the behavioural scenarios, and take those that make sense and are new."""
        wanted = plan.wanted
        missing = {side: wanted[side] - basket.count(side) for side in _BEHAVIOURAL}
        behavioural = sum(wanted[side] for side in _BEHAVIOURAL)
        first, last = (
            num_of_share(number, behavioural, self._config.dream_fraction)
            for number in (plan.cycle_number - 1, plan.cycle_number)
        )
        turns = Counter(_BEHAVIOURAL[turn % 2] for turn in range(first, last))
        sides = {side: min(turns[side], missing[side]) for side in _BEHAVIOURAL}
        if not any(sides.values()):
            return []
        plans = self._dreamer.plan(plan.cycle_number, plan.seed, sides)
        refused: list[Refusal] = []
        used: Counter[Side] = Counter()
        texts = write(self._dreamer.requests(plans), plan.seed)
        for asked, text in zip(plans, texts, strict=True):
            dreamt = self._dreamer.read(asked, text)
            if isinstance(dreamt, Refusal):
                refused.append(dreamt)
            elif used[dreamt.side] < sides[dreamt.side]:
                refusal = basket.take(dreamt)
                if refusal is None:
                    used[dreamt.side] += 1
                else:
                    refused.append(refusal)
        basket.record(*refused)
        reasons = Counter(refusal.reason.value for refusal in refused)
        payload = {
            "wanted": sum(sides.values()),
            "written": len(texts),
            "used": used.total(),
            "refused": dict(sorted(reasons.items())),
        }
        return [("dreamed", payload)]


def _balanced(basket: Basket, plan: Plan) -> list[Scenario]:
    """The basket, less what would put the sides out of balance: the last taken go first, templates' therefore."""
    counts = balanced({side: basket.count(side) for side in Side}, plan.wanted, plan.general_fraction)
    by_side = {side: [scenario for scenario in basket.scenarios if scenario.side is side] for side in counts}
    return [scenario for side, count in counts.items() for scenario in by_side[side][:count]]


def _share(cycle_number: int, per_cycle: int, fraction: float) -> int:
    """A source's scenarios in one cycle."""
    return num_of_share(cycle_number, per_cycle, fraction) - num_of_share(cycle_number - 1, per_cycle, fraction)


def _require_different_names(packs: Sequence[Pack]) -> None:
    names = [pack.name for pack in packs]
    for name in names:
        if names.count(name) > 1 or name in ("general", "dream"):
            raise PackError(f"two packs are called {name!r}; give each its own `pack:` name")

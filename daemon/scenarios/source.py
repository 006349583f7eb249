"""The mixture that cycles draw from: packs, general tasks, dreams and imported data; and the probes' held-out items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any, Protocol

from daemon.config.checks import parse_rule
from daemon.config.sections import ScenariosConfig
from daemon.domain.errors import DreamdError, PackError
from daemon.domain.records import Draw, ImportedSource, Refusal, Scenario, SourceRead, WriteRequest
from daemon.domain.states import ImportKind, Side, Source
from daemon.ports import Catalogue, Misfit, Write
from daemon.scenarios import general
from daemon.scenarios.basket import Basket
from daemon.scenarios.draw import generator, shuffled
from daemon.scenarios.dreams.dreamer import Dreamer
from daemon.scenarios.imports import ImportedReader, ReadResult
from daemon.scenarios.mixture import Entry, Rotation, balanced, num_before, num_of_share, quotas
from daemon.scenarios.pack import Pack, load_builtin, load_pack

MAX_HELD_OUT = 400
"""Most held-out scenarios per side: what the probes may ask for and the ledger keeps from training."""

_TRIES = 64
"""Expansions tried of one template before the next template of the same side is tried."""

_HELD_OUT_TRIES = 40

_BEHAVIOURAL = (Side.ACCEPT, Side.PUSH_BACK)

GENERAL: tuple[Entry, ...] = tuple(
    Entry(general.PACK, family, template, partial(general.draw, family, template))
    for family, makers in general.MAKERS.items()
    for template in makers
)

Event = tuple[str, Mapping[str, Any]]


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
        trainable = {side: _entries(packs, side, held_out=False) for side in Side}
        trainable[Side.GENERAL] += general
        for number, side in enumerate(_BEHAVIOURAL, start=1):
            if not trainable[side] and quotas(config.per_cycle, config.general_fraction, number)[side]:
                raise PackError(
                    f"no pack has templates for the side {side.value}; add some, "
                    'or put "listening" into scenarios.builtin'
                )
        self._rotations = {side: Rotation(entries, side.value) for side, entries in trainable.items()}
        self._held_out = {side: _held_out(_entries(packs, side, held_out=True)) for side in _BEHAVIOURAL}
        for side, items in self._held_out.items():
            if not items:
                raise PackError(
                    f"no pack has held-out templates for the side {side.value}, so nobody would see it get worse; "
                    'add some with held_out: true, or put "listening" into scenarios.builtin'
                )
        self._reader, self._dreamer = reader, dreamer

    def sample(self, cycle_number: int, seed: int, catalogue: Catalogue, write: Write, misfit: Misfit) -> Draw:
        """This cycle's scenarios in a random order; a source that gives too few is made up for by templates.

        Raises:
            DreamdError: nothing at all is left that was not trained before.
        """
        wanted = quotas(self._config.per_cycle, self._config.general_fraction, cycle_number)
        most = self._config.per_cycle
        while True:
            basket = Basket(catalogue, misfit, self.held_out_hashes())
            reads, events = self._import(cycle_number, catalogue, basket, wanted, most)
            events += self._dream(cycle_number, seed, basket, wanted, write)
            events += self._expand(cycle_number, seed, basket, wanted)
            scenarios = self._balanced(basket, wanted)
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

    def held_out(self, side: Side, count: int) -> tuple[Scenario, ...]:
        """The first `count` held-out scenarios of a side: the same for every run, spread over templates, distinct.

        Fewer when the packs have no more; a larger `count` begins with those of a smaller one.

        Raises:
            PackError: a rule cannot be judged by, with the values drawn.
        """
        items = self._held_out.get(side, ())[:count]
        for item in items:
            try:
                parse_rule(item.rule)
            except ValueError as error:
                raise PackError(
                    f"pack {item.pack!r}, template {item.template!r}: an impossible rule: {error}"
                ) from None
        return items

    def all_held_out(self) -> tuple[Scenario, ...]:
        """Everything `held_out` can return: these must never be trained, nor anything nearly the same."""
        return tuple(scenario for items in self._held_out.values() for scenario in items)

    def held_out_hashes(self) -> frozenset[str]:
        """Content hashes of `all_held_out`."""
        return frozenset(scenario.content_hash for scenario in self.all_held_out())

    def _import(
        self, cycle_number: int, catalogue: Catalogue, basket: Basket, wanted: Mapping[Side, int], most: int
    ) -> tuple[list[SourceRead], list[Event]]:
        """Take what approved sources give, up to their shares; at most `most` conversations."""
        config = self._config
        behavioural = sum(wanted[side] for side in _BEHAVIOURAL)
        shares = {
            # An import may be all of one side, and the sides must stay balanced.
            ImportKind.CONVERSATION: min(
                most,
                _share(cycle_number, behavioural, config.conversation_fraction),
                *(wanted[side] for side in _BEHAVIOURAL),
            ),
            ImportKind.REPLAY: _share(cycle_number, wanted[Side.GENERAL], config.replay_fraction),
        }
        reads: list[SourceRead] = []
        events: list[Event] = []
        sources = catalogue.sources()
        for source in shuffled(generator("imports", cycle_number), sources):
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

    def _dream(
        self, cycle_number: int, seed: int, basket: Basket, wanted: Mapping[Side, int], write: Write
    ) -> list[Event]:
        """Have the policy write its share of the behavioural scenarios, and take those that make sense and are new."""
        missing = {side: wanted[side] - basket.count(side) for side in _BEHAVIOURAL}
        behavioural = sum(wanted[side] for side in _BEHAVIOURAL)
        first, last = (
            num_of_share(number, behavioural, self._config.dream_fraction)
            for number in (cycle_number - 1, cycle_number)
        )
        turns = Counter(_BEHAVIOURAL[turn % 2] for turn in range(first, last))
        sides = {side: min(turns[side], missing[side]) for side in _BEHAVIOURAL}
        if not any(sides.values()):
            return []
        plans = self._dreamer.plan(cycle_number, seed, sides)
        refused: list[Refusal] = []
        used: Counter[Side] = Counter()
        texts = write(self._dreamer.requests(plans), seed)
        for plan, text in zip(plans, texts, strict=True):
            dreamt = self._dreamer.read(plan, text)
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

    def _expand(self, cycle_number: int, seed: int, basket: Basket, wanted: Mapping[Side, int]) -> list[Event]:
        """Fill every side up from templates, in rotation."""
        config = self._config
        events: list[Event] = []
        for side, count in wanted.items():
            first = num_before(config.per_cycle, config.general_fraction, cycle_number, side)
            for turn in range(first, first + count - basket.count(side)):
                if not self._take_expansion(side, turn, seed, basket):
                    payload = {"source": Source.TEMPLATE.value, "side": side.value}
                    events.append(("source_dry", payload | {"missing": count - basket.count(side)}))
                    break
        return events

    def _take_expansion(self, side: Side, turn: int, seed: int, basket: Basket) -> bool:
        """Take a fresh expansion of the template whose turn it is, or else of any other of the side."""
        for entry in self._rotations[side].others(turn):
            rng = generator("scenario", seed, side.value, turn, entry.pack, entry.template)
            # Few at first: nearly always the first is fresh, and each one asked for is a database look-up.
            for num_tries in (4, _TRIES):
                if basket.take_first([entry.draw(rng) for _ in range(num_tries)]):
                    return True
        return False

    def _balanced(self, basket: Basket, wanted: Mapping[Side, int]) -> list[Scenario]:
        """The basket, less what would put the sides out of balance: the last taken go first, templates' therefore."""
        counts = balanced({side: basket.count(side) for side in Side}, wanted, self._config.general_fraction)
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


def _entries(packs: Sequence[Pack], side: Side, *, held_out: bool) -> list[Entry]:
    return [
        Entry(pack.name, template.family, template.id, partial(pack.expand, template, checked=not held_out))
        for pack in packs
        for template in pack.templates
        if template.side == side and template.held_out is held_out
    ]


def _held_out(entries: Sequence[Entry]) -> tuple[Scenario, ...]:
    """Up to `MAX_HELD_OUT` distinct expansions, one of each template in turn; the seed belongs to no run."""
    generators = {id(entry): generator("held out", entry.pack, entry.template) for entry in entries}
    # Families first, then a second template of each: a short prefix already covers every family.
    ordered = _by_family(entries)
    found: dict[str, Scenario] = {}
    while ordered and len(found) < MAX_HELD_OUT:
        ordered = [entry for entry in ordered if _add_new(entry, generators[id(entry)], found)]
    return tuple(found.values())[:MAX_HELD_OUT]


def _by_family(entries: Sequence[Entry]) -> list[Entry]:
    seen: dict[tuple[str, str], int] = {}
    ranked = []
    for entry in entries:
        key = (entry.pack, entry.family)
        seen[key] = seen.get(key, -1) + 1
        ranked.append((seen[key], entry))
    return [entry for _, entry in sorted(ranked, key=lambda pair: pair[0])]


def _add_new(entry: Entry, rng: Random, found: dict[str, Scenario]) -> bool:
    """Add one expansion of `entry` that is not there yet; whether there was one."""
    for _ in range(_HELD_OUT_TRIES):
        scenario = entry.draw(rng)
        if scenario.content_hash not in found:
            found[scenario.content_hash] = scenario
            return True
    return False

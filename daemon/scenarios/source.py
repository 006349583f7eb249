"""The mixture of packs and general scenarios that cycles draw from, and the held-out items that probes use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from random import Random

from daemon.config.sections import ScenariosConfig
from daemon.domain.errors import DreamdError, PackError
from daemon.domain.records import Scenario
from daemon.domain.states import Side
from daemon.scenarios import general
from daemon.scenarios.draw import generator, shuffled
from daemon.scenarios.mixture import Entry, Rotation, num_before, quotas
from daemon.scenarios.pack import Pack, load_builtin, load_pack

MAX_HELD_OUT = 400
"""Most held-out scenarios per side: what the probes may ask for and the ledger keeps from training."""

_TRIES = 64
"""Expansions tried of one template before the next template of the same side is tried."""

_HELD_OUT_TRIES = 40

GENERAL: tuple[Entry, ...] = tuple(
    Entry(general.PACK, family, template, partial(general.draw, family, template))
    for family, makers in general.MAKERS.items()
    for template in makers
)

Spent = Callable[[Iterable[str]], frozenset[str]]


def build_source(config: ScenariosConfig) -> MixtureSource:
    """The source that the configuration describes.

    Raises:
        PackError: a pack is malformed, or no pack has templates for one of the two sides.
    """
    packs = [load_builtin("listening")] if config.builtin_listening else []
    packs += [load_pack(path) for path in config.packs]
    return MixtureSource(packs, GENERAL, config.per_cycle, config.general_fraction)


class MixtureSource:
    """Draws fresh scenarios by quota (`ports.ScenarioSource`); the same arguments, the same scenarios."""

    def __init__(
        self, packs: Sequence[Pack], general: Sequence[Entry], per_cycle: int, general_fraction: float
    ) -> None:
        names = [pack.name for pack in packs]
        for name in names:
            if names.count(name) > 1 or name == "general":
                raise PackError(f"two packs are called {name!r}; give each its own `pack:` name")
        self._per_cycle, self._general_fraction = per_cycle, general_fraction
        sides = (Side.ACCEPT, Side.PUSH_BACK)
        trainable = {side: _entries(packs, side, held_out=False) for side in sides}
        for side in sides:
            if not trainable[side] and quotas(per_cycle, general_fraction, 1 if side is Side.ACCEPT else 2)[side]:
                raise PackError(
                    f"no pack has templates for the side {side.value}; add some, "
                    "or set scenarios.builtin_listening = true"
                )
        self._rotations = {side: Rotation(entries, side.value) for side, entries in trainable.items()}
        self._rotations[Side.GENERAL] = Rotation(general, Side.GENERAL.value)
        self._held_out = {side: _held_out(_entries(packs, side, held_out=True)) for side in sides}

    def sample(self, cycle_number: int, seed: int, spent: Spent) -> tuple[Scenario, ...]:
        """This cycle's scenarios in a random order: by quota, templates in rotation, none of them spent or held out.

        Raises:
            DreamdError: a side's templates have nothing left that is not spent.
        """
        drawn: list[Scenario] = []
        taken = set(self.held_out_hashes())
        for side, count in quotas(self._per_cycle, self._general_fraction, cycle_number).items():
            first = num_before(self._per_cycle, self._general_fraction, cycle_number, side)
            for turn in range(first, first + count):
                scenario = self._fresh(side, turn, seed, taken, spent)
                taken.add(scenario.content_hash)
                drawn.append(scenario)
        return tuple(shuffled(generator("order", seed), drawn))

    def held_out(self, side: Side, count: int) -> tuple[Scenario, ...]:
        """The first `count` held-out scenarios of a side: the same for every run, spread over templates, distinct.

        Fewer when the packs have no more; a larger `count` begins with those of a smaller one.
        """
        return self._held_out.get(side, ())[:count]

    def held_out_hashes(self) -> frozenset[str]:
        """Content hashes of everything `held_out` can return: these must never be trained."""
        return frozenset(scenario.content_hash for items in self._held_out.values() for scenario in items)

    def _fresh(self, side: Side, turn: int, seed: int, taken: set[str], spent: Spent) -> Scenario:
        rotation = self._rotations[side]
        for entry in rotation.others(turn):
            rng = generator("scenario", seed, side.value, turn, entry.pack, entry.template)
            # Few at first: nearly always the first is fresh, and every hash asked for is a database look-up.
            for num_tries in (4, _TRIES):
                candidates = [entry.draw(rng) for _ in range(num_tries)]
                used = spent([candidate.content_hash for candidate in candidates]) | taken
                for candidate in candidates:
                    if candidate.content_hash not in used:
                        return candidate
        packs = ", ".join(sorted({entry.pack for entry in rotation.others(turn)}))
        raise DreamdError(
            f"the {side.value} templates of pack {packs} have nothing left that was not trained before "
            f"({rotation.num_entries} templates, {_TRIES} tries each); "
            "add a pack with larger lists under scenarios.packs"
        )


def _entries(packs: Sequence[Pack], side: Side, *, held_out: bool) -> list[Entry]:
    return [
        Entry(pack.name, template.family, template.id, partial(pack.expand, template))
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

"""What the probes may ask: of each, a pool to rotate through and a reserve of fresh ones; the same in every run."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.domain.errors import PackError
from daemon.domain.novelty import NEAR_DUPLICATE, jaccard, scenario_shingles
from daemon.domain.records import Scenario
from daemon.domain.states import Side
from daemon.scenarios.draw import generator
from daemon.scenarios.mixture import Entry, entries_of
from daemon.scenarios.pack import Pack

MAX_HELD_OUT = 400
"""Most scenarios of a probe's pool, and of its reserve."""

_TRIES = 40
"""Expansions tried of a template before it counts as used up."""

_UNLIKE_TRIES = 6
"""Expansions tried for one that is unlike every one of the other part."""

_BEHAVIOURAL = (Side.ACCEPT, Side.PUSH_BACK)
_PROBES = {"coding": "code"}
_OF_POLICY = ("nll", "chosen_logp", "sycophancy", "style", "kl", "direction_influence", "attention_shift", "steering")
_TAKEN = frozenset(("accept", "push_back", "code", *_OF_POLICY))
"""Probes that no pack can give its name to."""

Pools = tuple[tuple[Scenario, ...], tuple[Scenario, ...]]
"""Pool and reserve."""


class HeldOut:
    """The held-out scenarios of packs, by the probe that asks them; made when they are first asked for."""

    def __init__(self, packs: Sequence[Pack]) -> None:
        """
        Raises:
            PackError: a side has no held-out template, or a pack's tasks would have the name of another probe.
        """
        self._entries = {side.value: entries_of(packs, side, held_out=True) for side in _BEHAVIOURAL} | _tasks(packs)
        self._made: dict[str, Pools] = {}
        for side in _BEHAVIOURAL:
            if not self._entries[side.value]:
                raise PackError(
                    f"no pack has held-out templates for the side {side.value}, so nobody would see it get worse; "
                    'add some with held_out: true, or put "listening" into scenarios.builtin'
                )

    @property
    def probes(self) -> tuple[str, ...]:
        """`accept`, `push_back`, and one for each pack with held-out general templates."""
        return tuple(self._entries)

    def pools(self, probe: str) -> Pools:
        """The pool and the reserve of a probe, each spread over its templates; a longer part begins with a shorter.

        Raises:
            KeyError: there is no such probe.
            PackError: a rule cannot be judged by, with the values drawn.
        """
        if probe not in self._made:
            self._made[probe] = _divided(self._entries[probe])
        return self._made[probe]

    def all(self) -> tuple[Scenario, ...]:
        """Every pool and every reserve."""
        return tuple(scenario for probe in self.probes for part in self.pools(probe) for scenario in part)


def capability(pack: str) -> str:
    """The probe that asks a pack's held-out general tasks."""
    return _PROBES.get(pack, pack)


def _tasks(packs: Sequence[Pack]) -> dict[str, list[Entry]]:
    found = {}
    for pack in packs:
        entries = entries_of([pack], Side.GENERAL, held_out=True)
        if entries and pack.name in _TAKEN:
            raise PackError(
                f"pack {pack.name!r}: its held-out general templates would be measured under its name, which another "
                "probe has; give the pack another `pack:` name"
            )
        if entries:
            found[capability(pack.name)] = entries
    return found


def _divided(entries: Sequence[Entry]) -> Pools:
    """Pool and reserve: each round takes one of every template for either, so both are mixed alike."""
    taken: set[str] = set()
    templates = [_Template(entry) for entry in _by_family(entries)]
    parts: tuple[list[Scenario], list[Scenario]] = ([], [])
    while templates and any(len(part) < MAX_HELD_OUT for part in parts):
        for number, part in enumerate(parts):
            drawn = [(template, template.draw(number, taken)) for template in templates]
            part += [scenario for _, scenario in drawn if scenario is not None]
            templates = [template for template, scenario in drawn if scenario is not None]
    pool, reserve = (tuple(part[:MAX_HELD_OUT]) for part in parts)
    return pool, reserve


def _by_family(entries: Sequence[Entry]) -> list[Entry]:
    """Families first, then a second template of each: a short prefix already covers every family."""
    seen: dict[tuple[str, str], int] = {}
    ranked = []
    for entry in entries:
        key = (entry.pack, entry.family)
        seen[key] = seen.get(key, -1) + 1
        ranked.append((seen[key], entry))
    return [entry for _, entry in sorted(ranked, key=lambda pair: pair[0])]


class _Template:
    """Draws the expansions of one template for the two parts; the seed belongs to no run."""

    def __init__(self, entry: Entry) -> None:
        self._draw = entry.draw
        self._rng = generator("held out", entry.pack, entry.template)
        self._given: tuple[list[frozenset[int]], list[frozenset[int]]] = ([], [])

    def draw(self, part: int, taken: set[str]) -> Scenario | None:
        """One that is not in `taken`, where it can be also unlike those of the other part; it is taken then."""
        spare: tuple[Scenario, frozenset[int]] | None = None
        for number in range(_TRIES):
            if spare is not None and number >= _UNLIKE_TRIES:
                break  # A small template: a near-duplicate keeps the two parts mixed alike.
            scenario = self._draw(self._rng)
            if scenario.content_hash in taken:
                continue
            own = scenario_shingles(scenario)
            alike = any(jaccard(own, other) >= NEAR_DUPLICATE for other in self._given[1 - part])
            spare = (scenario, own) if spare is None or not alike else spare
            if not alike:
                break
        if spare is None:
            return None
        taken.add(spare[0].content_hash)
        self._given[part].append(spare[1])
        return spare[0]

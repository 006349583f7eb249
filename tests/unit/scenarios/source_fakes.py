"""Fakes of what a scenario source meets: the catalogue, the reader of imported data, the dreamer, the policy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from daemon.domain.hashing import scenario_hash
from daemon.domain.novelty import NEAR_DUPLICATE, jaccard, scenario_shingles
from daemon.domain.records import ImportedSource, Message, Refusal, Scenario, SourceRead, WriteRequest
from daemon.domain.states import ImportKind, ImportState, RefusalReason, Side, Source
from daemon.scenarios.imports import ReadResult


class FakeCatalogue:
    """Mirrors the `Catalogue` port: remembers what was spent, whole, and compares with all that shares a shingle."""

    def __init__(self, *sources: ImportedSource) -> None:
        self.spent: dict[str, frozenset[int]] = {}
        self._holders: dict[int, set[str]] = defaultdict(set)
        self.imported = sources
        self.strikes: dict[tuple[str, str], int] = {}

    def spend(self, scenarios: Sequence[Scenario]) -> None:
        for scenario in scenarios:
            found = self.spent[scenario.content_hash] = scenario_shingles(scenario)
            for shingle in found:
                self._holders[shingle].add(scenario.content_hash)

    def refuse(self, scenarios: Sequence[Scenario]) -> Mapping[str, Refusal]:
        return {s.content_hash: refusal for s in scenarios if (refusal := self._refusal(s)) is not None}

    def sources(self) -> tuple[ImportedSource, ...]:
        return self.imported

    def resting(self, cycle_number: int) -> Mapping[tuple[str, str], int]:
        return self.strikes

    def _refusal(self, scenario: Scenario) -> Refusal | None:
        exact = scenario.content_hash in self.spent
        own = scenario_shingles(scenario)
        near = {name for shingle in own for name in self._holders.get(shingle, ())}
        if not exact and all(jaccard(own, self.spent[name]) < NEAR_DUPLICATE for name in near):
            return None
        reason = RefusalReason.REPEATED if exact else RefusalReason.NEAR_DUPLICATE
        return Refusal(scenario.source, scenario.pack, reason, "spent before")


def imported_source(name: str, kind: ImportKind) -> ImportedSource:
    return ImportedSource(name, kind, f"/data/{name}.jsonl", ImportState.APPROVED)


def scenario_from(source: Source, side: Side, pack: str, text: str) -> Scenario:
    """A scenario that is unlike any other with another text of one word."""
    return Scenario(
        content_hash=scenario_hash([("user", text)]),
        side=side,
        family="from_outside",
        pack=pack,
        template=source.value,
        messages=(Message("user", text),),
        target="An answer.",
        source=source,
        provenance=f"{pack}:{text}",
    )


@dataclass
class FakeReader:
    """Mirrors `ImportedReader`: gives numbered scenarios until a source's items are used up."""

    left: dict[str, int]
    side: Side = Side.ACCEPT
    asked: list[tuple[str, int]] = field(default_factory=list)

    def read(self, source: ImportedSource, want: int, fresh: Callable[[Scenario], Refusal | None]) -> ReadResult:
        self.asked.append((source.name, want))
        number = min(want, self.left[source.name])
        general = source.kind is ImportKind.REPLAY
        found: list[Scenario] = []
        for _ in range(number):
            self.left[source.name] -= 1
            text = f"{source.name}{self.left[source.name]}"
            origin, side = (Source.GENERAL, Side.GENERAL) if general else (Source.CONVERSATION, self.side)
            scenario = scenario_from(origin, side, source.name, text)
            assert fresh(scenario) is None
            found.append(scenario)
        read = SourceRead(source.name, 0, number, number, "", {"used": number}) if number else None
        return ReadResult(tuple(found), (), read, self.left[source.name] == 0, None)


@dataclass
class FakeDreamer:
    """Mirrors `Dreamer`: a dream succeeds with some probability."""

    probability: float = 1.0
    wanted: list[dict[Side, int]] = field(default_factory=list)

    def plan(self, cycle_number: int, seed: int, sides: Mapping[Side, int]) -> Sequence[Any]:
        self.wanted.append(dict(sides))
        return [(side, f"dream{cycle_number}x{number}{side}") for side in sides for number in range(sides[side] * 2)]

    def requests(self, plans: Sequence[Any]) -> Sequence[WriteRequest]:
        return [WriteRequest((Message("user", text),), {}, 1.0, 16) for _, text in plans]

    def read(self, plan: Any, text: str) -> Scenario | Refusal:
        side, name = plan
        if Random(name).random() >= self.probability:
            return Refusal(Source.DREAM, "dream", RefusalReason.SENSELESS, "made no sense")
        return scenario_from(Source.DREAM, side, "dream", name)


def anything_fits(scenario: Scenario) -> None:
    """A policy that can answer everything."""


def write_nothing(requests: Sequence[WriteRequest], seed: int) -> Sequence[str]:
    """A policy that writes empty texts."""
    return ["" for _ in requests]

"""Read an imported source on from where the last cycle stopped, until there are enough scenarios."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from daemon.domain.records import ImportedSource, Refusal, Scenario, SourceRead
from daemon.scenarios.imports.items import ItemMaker
from daemon.scenarios.imports.limits import Limits
from daemon.scenarios.imports.stream import Line, read_lines, rewritten, tail_digest

Fresh = Callable[[Scenario], Refusal | None]

MAX_LINES = 500
"""Read in one call at most: a file without anything usable must not hold up a cycle."""
MAX_BYTES = 8 << 20
"""Likewise, apart from the line that reaches it."""
MAX_REFUSED_TEXT = 200
"""Characters kept of a scenario that was refused as a repetition."""
USED = "used"


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What one call read."""

    scenarios: tuple[Scenario, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    read: SourceRead | None = None
    """How far; None when no line was used up."""
    exhausted: bool = False
    """There is no complete line left; the file may still grow."""
    problem: str | None = None
    """The file cannot be read, or was rewritten: for a person, with the fix. Nothing was read then."""


class ImportedReader:
    """Turns lines of imported files into scenarios. Holds no state: the place is in the source."""

    def __init__(self, special_tokens: Sequence[str] = (), limits: Limits | None = None) -> None:
        """Args: special_tokens: the base model's, taken out wherever they stand; limits: lengths, else the default."""
        self._items = ItemMaker(special_tokens, limits)

    def read(self, source: ImportedSource, want: int, fresh: Fresh) -> ReadResult:
        """Read on from `source.position` until `want` scenarios are found that `fresh` does not refuse.

        Reads at most 500 lines and about 8 MiB, and stops right after the last scenario: split into several calls in
        any way, the scenarios are the same.
        """
        path = Path(source.path)
        if not path.is_file():
            return ReadResult(problem=f"{path} is no file any more; put it back where it was")
        try:
            with path.open("rb") as file:
                problem = rewritten(file, path, source.position, source.line, source.tail_digest)
                if problem is not None:
                    return ReadResult(problem=problem)
                result = self._take(source, read_lines(file, source.position, source.line), want, fresh)
                if result.read is None:
                    return result
                return replace(result, read=replace(result.read, tail_digest=tail_digest(file, result.read.position)))
        except OSError as error:
            return ReadResult(problem=f"{path} cannot be read ({error.strerror or error}); make it readable")

    def _take(self, source: ImportedSource, lines: Iterator[Line], want: int, fresh: Fresh) -> ReadResult:
        scenarios: list[Scenario] = []
        refusals: list[Refusal] = []
        counts: Counter[str] = Counter()
        position, number = source.position, source.line
        line = next(lines, None)
        while line is not None and len(scenarios) < want and number - source.line < MAX_LINES:
            if position - source.position >= MAX_BYTES:
                break
            position, number = line.end, line.number
            item = self._items.make(line, source.name, source.kind, Path(source.path).name)
            if isinstance(item, Scenario):
                item = _unless_refused(item, fresh(item))
            match item:
                case Scenario():
                    scenarios.append(item)
                    counts[USED] += 1
                case Refusal():
                    refusals.append(item)
                    counts[item.reason.value] += 1
                case passed:
                    counts[passed.value] += 1
            try:
                line = next(lines, None)
            except OSError:
                break  # what was read before it counts; the next call meets the error first
        exhausted = line is None
        read = SourceRead(source.name, source.position, position, number, "", dict(counts))
        return ReadResult(tuple(scenarios), tuple(refusals), read if number > source.line else None, exhausted)


def _unless_refused(scenario: Scenario, refusal: Refusal | None) -> Scenario | Refusal:
    if refusal is None:
        return scenario
    text = refusal.text or scenario.messages[-1].content
    return replace(refusal, provenance=scenario.provenance, text=text[:MAX_REFUSED_TEXT])

"""Look at a whole file before it is imported: what is in it, and what is wrong with it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from daemon.domain.errors import ConfigError, UsageError
from daemon.domain.records import Refusal, Scenario
from daemon.domain.states import ImportKind, RefusalReason
from daemon.scenarios.imports.items import ItemMaker
from daemon.scenarios.imports.limits import Limits
from daemon.scenarios.imports.stream import read_lines, unfinished

MAX_PROBLEMS = 20
MAX_REMEMBERED = 1_000_000
"""Scenarios in which repetitions are noticed; beyond, the database still refuses them when they are drawn."""
USABLE = "usable"
_HEAD_BYTES = 1 << 16
_MESSAGE_KEYS = (b"role", b"from", b"content", b"value")


@dataclass(frozen=True, slots=True)
class ScanReport:
    """What a file holds."""

    num_lines: int
    counts: dict[str, int]
    """Lines that are "usable", "blank" or have "no_correction", and refusals by reason. Near-duplicates and what the
    run has seen before are known only when a scenario is drawn."""
    problems: tuple[str, ...]
    """The first 20 refusals: `FILE:LINE: reason: what was found`."""
    unfinished: bool
    """The last line has no newline, so it is taken for one that is still being written."""

    @property
    def num_usable(self) -> int:
        return self.counts.get(USABLE, 0)

    @property
    def num_refused(self) -> int:
        return sum(count for reason, count in self.counts.items() if reason in set(RefusalReason))


def scan(path: Path, kind: ImportKind, special_tokens: Sequence[str] = (), limits: Limits | None = None) -> ScanReport:
    """Read `path` once from beginning to end, in bounded memory.

    Raises:
        UsageError: there is no such file, it cannot be read, or its name is not UTF-8.
        ConfigError: it is one JSON document, not one per line.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; name a JSONL file")
    if not str(path.resolve()).isprintable():  # it is recorded with every scenario
        raise UsageError(f"{str(path)!a}: the name holds control characters or is not UTF-8; rename it")
    try:
        with path.open("rb") as file:
            _refuse_one_document(file, path)
            return _report(file, path, kind, ItemMaker(special_tokens, limits))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}); name a JSONL file") from None


def _report(file: BinaryIO, path: Path, kind: ImportKind, items: ItemMaker) -> ScanReport:
    counts: Counter[str] = Counter()
    problems: list[str] = []
    seen: dict[int, int] = {}
    num_lines = 0
    for line in read_lines(file, 0, 0):
        num_lines = line.number
        item = items.make(line, path.name, kind, path.name)
        if isinstance(item, Scenario):
            item = _unless_seen(item, seen, line.number)
        match item:
            case Scenario():
                counts[USABLE] += 1
            case Refusal():
                counts[item.reason.value] += 1
                if len(problems) < MAX_PROBLEMS:
                    problems.append(f"{item.provenance}: {item.reason.value}: {item.detail}")
            case passed:
                counts[passed.value] += 1
    return ScanReport(num_lines, dict(counts), tuple(problems), unfinished(file))


def _unless_seen(scenario: Scenario, seen: dict[int, int], line: int) -> Scenario | Refusal:
    key = int(scenario.content_hash[:16], 16)
    first = seen.get(key)
    if first is not None:
        detail = f"the same prompt as in line {first}"
        return Refusal(scenario.source, scenario.pack, RefusalReason.REPEATED, detail, scenario.provenance)
    if len(seen) < MAX_REMEMBERED:
        seen[key] = line
    return scenario


def _refuse_one_document(file: BinaryIO, path: Path) -> None:
    """An array of records, or one object over several lines, would give an error for each of its lines."""
    head = file.read(_HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    first_line = head.split(b"\n", 1)[0].strip()
    into = f"{path.name} > {path.stem}-lines.jsonl"
    if first_line == b"[" or _is_array_of_records(first_line):
        raise ConfigError(f"{path}:1: one JSON array; write one record per line: jq -c '.[]' {into}")
    if first_line == b"{":
        raise ConfigError(f"{path}:1: a record over several lines; write one record per line: jq -c . {into}")


def _is_array_of_records(line: bytes) -> bool:
    """A list of messages is a record by itself; a list of anything else is not."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # longer than what was read, or not JSON
        key = re.match(rb'\[\s*(?:\[|\{\s*"([^"]*)")', line)
        return key is not None and key[1] not in _MESSAGE_KEYS
    if not isinstance(value, list) or not value:
        return False
    return isinstance(value[0], list) or (isinstance(value[0], dict) and not {"role", "from"} & set(value[0]))

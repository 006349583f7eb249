"""What became of a sabotaged run, read from its database and its files, as Markdown."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from safetensors.torch import load_file

from daemon.checkpoints.store import DirectoryStore
from daemon.config import Loaded
from daemon.domain.records import Checkpoint, PolicyDigests
from daemon.storage.database import open_database, reading
from daemon.storage.ledger import SqlLedger
from daemon.storage.runs import load_run
from daemon.storage.tables import cycles
from daemon.storage.watching_tables import rollbacks, verdicts
from daemon.training.digest import tensors_digest
from daemon.training.snapshot import OPTIMIZER_FILE, WEIGHTS_FILE

PROBE_STAGES = ("probe", "confirm")
ENDED = ("rolled_back", "failed", "lost")
"""Outcomes after which a sabotage is over."""
_REFUSED = re.compile(r"the gradient norm is (nan|inf); the optimizer did not move$")


class Kind(StrEnum):
    """How a sabotage ended."""

    ROLLED_BACK = "rolled back"
    REFUSED = "refused"
    """Its step was: the gradient was not finite, and nothing moved."""
    CRASHED = "crashed"


@dataclass(frozen=True)
class CycleRow:
    """One finished cycle."""

    number: int
    outcome: str
    reason: str
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Ending:
    """How the watchdog, a check before it, or a crash ended a sabotage."""

    kind: Kind
    cycle: CycleRow
    by: tuple[str, ...] = ()
    """Rules that were broken, the one that decided first."""
    restored_to: str = ""
    equal: str = ""


@dataclass(frozen=True)
class Row:
    """One part, as far as it ran."""

    name: str
    what: str
    after: int
    """The last cycle before it."""
    cycles: Sequence[CycleRow]
    """Those under it."""
    ending: Ending | None
    most_cycles: int
    is_control: bool = False

    @property
    def caught(self) -> str:
        if self.ending is None:
            if len(self.cycles) < self.most_cycles:
                return "not finished"
            return "not rolled back" if self.is_control else "no"
        if self.ending.kind is Kind.CRASHED:
            return "crashed"
        return "ROLLED BACK" if self.is_control else "yes"

    @property
    def counts(self) -> bool:
        """Whether the row says anything of the watchdog: it ran to its end, and the control was left alone."""
        return self.caught in (("not rolled back",) if self.is_control else ("yes", "no"))


def finished(loaded: Loaded, after: int = 0) -> list[CycleRow]:
    """The finished cycles after number `after`, oldest first; none where there is no run yet."""
    if not loaded.config.run.url.startswith("postgresql") and not _sqlite(loaded).is_file():
        return []
    query = (
        sa.select(cycles.c.number, cycles.c.outcome, cycles.c.reason, cycles.c.seconds)
        .where(cycles.c.outcome.is_not(None), cycles.c.number > after)
        .order_by(cycles.c.number)
    )
    rows = _read(loaded, query)
    return [CycleRow(row["number"], str(row["outcome"]), row["reason"] or "", row["seconds"] or {}) for row in rows]


def ending(loaded: Loaded, after: int, live: Mapping[str, str] | None, *, step_refused: bool = False) -> Ending | None:
    """How the run ended after cycle `after`; None when nothing ended it.

    Args:
        live: version and digests of the policy as it was in memory at the end.
        step_refused: as in `Sabotage`.
    """
    found = next((row for row in finished(loaded, after) if row.outcome in ENDED), None)
    if found is None:
        return None
    kind = kind_of(found, step_refused=step_refused)
    if kind is Kind.CRASHED:
        return Ending(kind, found)
    head = _head(loaded)
    parent = _read(loaded, sa.select(cycles.c.parent_version).where(cycles.c.number == found.number))[0]
    of_cycle = _read(loaded, sa.select(rollbacks).where(rollbacks.c.cycle == found.number))
    restored = of_cycle[0] if of_cycle else None
    evidence = _read(loaded, sa.select(verdicts.c.evidence).where(verdicts.c.cycle == found.number))
    findings = evidence[0]["evidence"]["findings"] if evidence else ()
    by = tuple(f"{finding['rule']} {finding['name']}" for finding in findings) or ("step refused",)
    equal = comparison(_recorded(head), _on_disk(loaded, head), live, restored, parent["parent_version"])
    return Ending(kind, found, by, head.version, equal)


def kind_of(row: CycleRow, *, step_refused: bool) -> Kind:
    """What an outcome in `ENDED` means.

    Args:
        step_refused: as in `Sabotage`; without it, a failed cycle is a crash whatever its reason.
    """
    if row.outcome == "rolled_back":
        return Kind.ROLLED_BACK
    refused = step_refused and row.outcome == "failed" and _REFUSED.search(row.reason)
    return Kind.REFUSED if refused else Kind.CRASHED


def sabotage_table(rows: Sequence[Row]) -> str:
    """One line per part; of one that nothing ended: how many cycles it ran, and what the last of them said."""
    head = ("sabotage", "caught", "after cycles", "by", "sentence", "restored to", "equal")
    lines = []
    for row in rows:
        what, end = f"{row.name}: {row.what}", row.ending
        if end is None:
            said = row.cycles[-1].reason if row.cycles else ""
            lines.append((what, row.caught, f"({len(row.cycles)})", "", said, "", ""))
            continue
        by = ", ".join(dict.fromkeys(end.by))
        number = str(end.cycle.number - row.after)
        lines.append((what, row.caught, number, by, end.cycle.reason, end.restored_to, end.equal))
    return _markdown(head, lines)


def clean_summary(rows: Sequence[CycleRow]) -> str:
    """Outcomes of the clean run, and what share of its time the probes took, in sentences."""
    counts = Counter(row.outcome for row in rows)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    stepped = [row.seconds for row in rows if any(stage in row.seconds for stage in PROBE_STAGES)]
    total = sum(sum(seconds.values()) for seconds in stepped)
    probing = sum(seconds.get(stage, 0.0) for seconds in stepped for stage in PROBE_STAGES)
    if not total:
        return f"Clean run: {len(rows)} cycles ({outcomes or 'none'})."
    return (
        f"Clean run: {len(rows)} cycles ({outcomes}). Probes took {probing:.0f} of {total:.0f} s, "
        f"{probing / total:.1%} of the {len(stepped)} cycles that stepped."
    )


def read_live(file: Path) -> dict[str, str] | None:
    """What `write_live` wrote, if it did."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def write_live(file: Path, version: str, digests: PolicyDigests) -> None:
    """Keep what was live in memory when a run ended."""
    live = {"version": version, "weights": digests.weights, "optimizer": digests.optimizer}
    file.write_text(json.dumps(live), encoding="utf-8")


def comparison(
    recorded: Mapping[str, str],
    on_disk: Mapping[str, str],
    live: Mapping[str, str] | None,
    rollback: Mapping[str, Any] | None,
    parent: str,
) -> str:
    """Whether a head is, on disk and in memory, what was recorded when it was published.

    Args:
        recorded: version and digests, as the other two have them.
        live: None: not known, so nothing can be said to be equal.
        rollback: the row of the rollback to it; None: nothing was restored.
        parent: the head before the cycle that was ended.
    """
    found = {"on disk": on_disk, "in memory": recorded if live is None else live}
    wrong = [where for where, what in found.items() if what != recorded]
    if rollback is not None and (rollback["verified_at"] is None or rollback["to_version"] != recorded["version"]):
        wrong.append("the rollback's own verification")
    if rollback is None and recorded["version"] != parent:
        wrong.append(f"it was {parent}")
    unchanged = "head unchanged: " if rollback is None else ""
    if wrong:
        return f"{unchanged}NO: {', '.join(wrong)}"
    if live is None:
        return f"{unchanged}not known: equal on disk, what was in memory was not written down"
    if rollback is None:
        return f"{unchanged}equal"
    documents = rollback["verification"] or {}
    measured = f", {documents['nll_items_equal']} NLLs" if "nll_items_equal" in documents else ""
    return f"yes: weights and optimizer on disk and in memory{measured}"


def _head(loaded: Loaded) -> Checkpoint:
    engine = open_database(loaded.config.run.url, readonly=True)
    try:
        run = load_run(engine, loaded.config.run.name)
        return SqlLedger(engine, run.id, run.name, -1).head()
    finally:
        engine.dispose()


def _recorded(head: Checkpoint) -> dict[str, str]:
    return {"version": head.version, "weights": head.weights_digest, "optimizer": head.optimizer_digest}


def _on_disk(loaded: Loaded, head: Checkpoint) -> dict[str, str]:
    directory = DirectoryStore(loaded.config.run.state_dir / "checkpoints").path(head.version)
    return {
        "version": head.version,
        "weights": tensors_digest(load_file(directory / WEIGHTS_FILE)),
        "optimizer": tensors_digest(load_file(directory / OPTIMIZER_FILE)),
    }


def _read(loaded: Loaded, query: sa.Select[Any]) -> list[dict[str, Any]]:
    engine = open_database(loaded.config.run.url, readonly=True)
    try:
        with reading(engine) as connection:
            return [dict(row) for row in connection.execute(query).mappings()]
    finally:
        engine.dispose()


def _sqlite(loaded: Loaded) -> Path:
    return Path(loaded.config.run.url.removeprefix("sqlite:///"))


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)

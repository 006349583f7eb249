"""What became of a sabotaged run, read from its database and its files, as Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from daemon.training.policy import OPTIMIZER_FILE, WEIGHTS_FILE

PROBE_STAGES = ("probe", "confirm")
CAUGHT = ("rolled_back", "failed")


@dataclass(frozen=True)
class CycleRow:
    """One finished cycle."""

    number: int
    outcome: str
    reason: str
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Catch:
    """How the watchdog, or a check before it, ended a sabotage."""

    cycle: CycleRow
    by: tuple[str, ...]
    """Rules that were broken, the one that decided first."""
    restored_to: str
    equal: str


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


def catch(loaded: Loaded, after: int, live: Mapping[str, str] | None) -> Catch | None:
    """The first rollback or failure after cycle `after`; None when there is none.

    Args:
        live: version and digests of the policy as it was in memory at the end.
    """
    found = next((row for row in finished(loaded, after) if row.outcome in CAUGHT), None)
    if found is None:
        return None
    engine = open_database(loaded.config.run.url, readonly=True)
    try:
        run = load_run(engine, loaded.config.run.name)
        head = SqlLedger(engine, run.id, run.name, -1).head()
    finally:
        engine.dispose()
    of_cycle = _read(loaded, sa.select(rollbacks).where(rollbacks.c.cycle == found.number))
    evidence = _read(loaded, sa.select(verdicts.c.evidence).where(verdicts.c.cycle == found.number))
    by = (
        tuple(f"{f['rule']} {f['name']}" for f in evidence[0]["evidence"]["findings"])
        if evidence
        else ("step refused",)
    )
    return Catch(found, by, head.version, _equality(loaded, head, of_cycle[0] if of_cycle else None, live))


@dataclass(frozen=True)
class Row:
    """One sabotage, as far as it ran."""

    name: str
    what: str
    after: int
    """The last cycle before it."""
    cycles: Sequence[CycleRow]
    """Those under it."""
    caught: Catch | None


def sabotage_table(rows: Sequence[Row]) -> str:
    """One line per sabotage; of one that was not caught: how many cycles it ran, and what the last of them said."""
    head = ("sabotage", "caught", "after cycles", "by", "sentence", "restored to", "equal")
    lines = []
    for row in rows:
        what, caught = f"{row.name}: {row.what}", row.caught
        if caught is None:
            said = row.cycles[-1].reason if row.cycles else ""
            lines.append((what, "no", f"({len(row.cycles)})", "", said, "", ""))
            continue
        by = ", ".join(dict.fromkeys(caught.by))
        number = str(caught.cycle.number - row.after)
        lines.append((what, "yes", number, by, caught.cycle.reason, caught.restored_to, caught.equal))
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


def _equality(
    loaded: Loaded, head: Checkpoint, rollback: Mapping[str, Any] | None, live: Mapping[str, str] | None
) -> str:
    """ "yes" with what was compared, or "NO" with what differs."""
    recorded = {"version": head.version, "weights": head.weights_digest, "optimizer": head.optimizer_digest}
    directory = DirectoryStore(loaded.config.run.state_dir / "checkpoints").path(head.version)
    on_disk = {
        "version": head.version,
        "weights": tensors_digest(load_file(directory / WEIGHTS_FILE)),
        "optimizer": tensors_digest(load_file(directory / OPTIMIZER_FILE)),
    }
    wrong = [name for name, found in (("on disk", on_disk), ("in memory", live or recorded)) if found != recorded]
    if rollback is not None and (rollback["verified_at"] is None or rollback["to_version"] != head.version):
        wrong.append("the rollback's own verification")
    if wrong:
        return f"NO: {', '.join(wrong)}"
    documents = (rollback or {}).get("verification") or {}
    measured = f", {documents['nll_items_equal']} NLLs" if "nll_items_equal" in documents else ""
    return f"yes: weights and optimizer on disk{' and in memory' if live else ''}{measured}"


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

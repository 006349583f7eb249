"""Imported sources: registered, approved by a person, and used up line by line with the cycles that claim."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from daemon.domain.errors import DreamdError, UsageError
from daemon.domain.records import ImportedSource
from daemon.domain.states import ImportKind, ImportState
from daemon.storage import rows
from daemon.storage.database import reading, writing
from daemon.storage.runs import find_run, lock_run
from daemon.storage.tables import source_reads, sources

Counts = Mapping[str, int]


def register_source(engine: Engine, run_name: str, source: ImportedSource, counts: Counts) -> ImportedSource:
    """Remember a file to import, pending until a person approves it; the same file again changes nothing.

    Args:
        counts: what a first look at the whole file found: scenarios, and refusals by reason.

    Returns:
        The source as it is stored.

    Raises:
        UsageError: the name is taken by another file, or there is no such run.
    """
    with writing(engine) as connection:
        run_id = lock_run(connection, run_name)
        stored = _find(connection, run_id, source.name)
        if stored is None:
            values = {
                "run_id": run_id,
                "name": source.name,
                "kind": source.kind,
                "path": source.path,
                "state": ImportState.PENDING,
                "position": 0,
                "line": 0,
                "tail_digest": "",
                "found": counts,
                "counts": {},
                "registered_at": rows.now(),
            }
            connection.execute(sa.insert(sources).values(values))
            stored = _find(connection, run_id, source.name)
            assert stored is not None
        elif (stored.path, stored.kind) != (source.path, source.kind):
            raise UsageError(
                f"source {source.name} is {stored.path} ({stored.kind}) already; choose another name for {source.path}"
            )
    return stored


def approve_source(engine: Engine, run_name: str, name: str) -> ImportedSource:
    """Allow scenarios to be drawn from a source; approving it again changes nothing.

    Raises:
        UsageError: there is no such source or run; says which there are.
    """
    with writing(engine) as connection:
        run_id = lock_run(connection, run_name)
        pending = sources.c.state == ImportState.PENDING
        values = {"state": ImportState.APPROVED, "approved_at": rows.now()}
        connection.execute(sa.update(sources).where(_of(run_id, name), pending).values(values))
        stored = _find(connection, run_id, name)
        if stored is None:
            known = connection.scalars(sa.select(sources.c.name).where(sources.c.run_id == run_id)).all()
            hint = f"there are: {', '.join(sorted(known))}" if known else "none is imported yet"
            raise UsageError(f"no source {name}; {hint}")
    return stored


def list_sources(engine: Engine, run_name: str) -> list[dict[str, Any]]:
    """Every source by name, as plain values: `found` in the whole file, `counts` of what is used up.

    Raises:
        UsageError: there is no such run.
    """
    with reading(engine) as connection:
        run_id = find_run(connection, run_name).id
        found = connection.execute(sa.select(sources).where(sources.c.run_id == run_id)).mappings()
        records = [{key: value for key, value in row.items() if key != "run_id"} for row in found]
    for record in records:
        for moment in ("registered_at", "approved_at"):
            record[moment] = None if record[moment] is None else record[moment].isoformat()
    return sorted(records, key=lambda record: str(record["name"]))


def approved(connection: Connection, run_id: int) -> tuple[ImportedSource, ...]:
    """The sources that may be drawn from, by name."""
    found = connection.execute(
        sa.select(sources).where(sources.c.run_id == run_id, sources.c.state == ImportState.APPROVED)
    )
    # Sorted here: the two databases order text differently.
    return tuple(sorted((_source_of(row) for row in found), key=lambda source: source.name))


def use_reads(connection: Connection, run_id: int, cycle: int) -> None:
    """What a cycle read is used up: its sources go on behind it, whatever happens to the cycle.

    Raises:
        DreamdError: a source is elsewhere than where the cycle began to read.
    """
    of_cycle = sa.and_(source_reads.c.run_id == run_id, source_reads.c.cycle == cycle)
    reads = connection.execute(sa.select(source_reads).where(of_cycle).order_by(source_reads.c.name)).all()
    for read in reads:
        stored = connection.execute(sa.select(sources).where(_of(run_id, read.name))).one()
        if stored.position != read.from_position:
            raise DreamdError(
                f"cycle {cycle} read source {read.name} from byte {read.from_position}, but it is used up to "
                f"{stored.position}: its lines cannot be claimed twice"
            )
        counts = {key: stored.counts.get(key, 0) + read.counts.get(key, 0) for key in stored.counts | read.counts}
        values = {"position": read.position, "line": read.line, "tail_digest": read.tail_digest, "counts": counts}
        connection.execute(sa.update(sources).where(_of(run_id, read.name)).values(values))
    if reads:
        connection.execute(sa.update(source_reads).where(of_cycle).values(used=True))


def _find(connection: Connection, run_id: int, name: str) -> ImportedSource | None:
    row = connection.execute(sa.select(sources).where(_of(run_id, name))).first()
    return None if row is None else _source_of(row)


def _of(run_id: int, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(sources.c.run_id == run_id, sources.c.name == name)


def _source_of(row: rows.AnyRow) -> ImportedSource:
    return ImportedSource(
        name=row.name,
        kind=ImportKind(row.kind),
        path=row.path,
        state=ImportState(row.state),
        position=row.position,
        line=row.line,
        tail_digest=row.tail_digest,
    )

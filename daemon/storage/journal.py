"""The claims journal beside the checkpoints, compared with the database: an older backup is detected, not obeyed.

A database that is restored from a backup forgets what was trained since. The journal does not: a claim is in it
before the optimizer moves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from daemon.domain.errors import RestoredBackupError
from daemon.domain.hashing import derive_seed
from daemon.domain.states import CycleState, Outcome
from daemon.storage import history, rows
from daemon.storage.chunks import chunks
from daemon.storage.claims import claimed, insert_claims
from daemon.storage.database import reading, writing
from daemon.storage.journal_file import Entry, append, append_entries, cut_torn_end, entries, require_owner
from daemon.storage.kinds import ClaimKind
from daemon.storage.runs import find_run, lock_run
from daemon.storage.tables import claims, cycles, runs
from daemon.storage.writes import Writes

__all__ = ["adopt_journal", "append", "complete", "entries", "require_newer_database", "require_owner", "spent_by"]

_ADOPTED = "known from the claims journal alone: its rows were not in the restored database"


def require_newer_database(engine: Engine, run_name: str, journal: Path) -> None:
    """Refuse a database that does not know what the journal knows: it is an older backup. Nothing is changed.

    Raises:
        ConfigError: the journal is another run's.
        RestoredBackupError: names the file, how many claims are missing, and the ways out.
    """
    require_owner(journal, run_name)
    with reading(engine) as connection:
        run_id = find_run(connection, run_name).id
        last = history.next_cycle_number(connection, run_id) - 1
        missing, newest = _missing(connection, run_id, journal)
    if missing or newest > last:
        raise RestoredBackupError(
            f"{journal}: {len(missing)} claims are not in the database, which ends at cycle {last}, the journal at "
            f"cycle {newest}: an older backup of the database was restored. Restore a newer one, or run "
            "`dreamd db adopt-journal`: it marks these claims as spent and goes on after the journal's last cycle "
            "(a new run needs a run.name and a run.state_dir of its own)"
        )


def complete(engine: Engine, run_name: str, journal: Path) -> None:
    """Append what the database knows and the journal does not: the run is older, or a crash came between the two.

    Raises:
        DiskError: it cannot be written.
        RestoredBackupError: a line of it is damaged.
    """
    cut_torn_end(journal)
    noted = Counter(number for number, _, _ in entries(journal))
    added: list[Entry] = []
    with reading(engine) as connection:
        run_id = find_run(connection, run_name).id
        for number, times in _claims_by_cycle(connection, run_id):
            if times != noted[number]:
                known = {name for cycle, _, name in entries(journal) if cycle == number} if noted[number] else set()
                spent = spent_by(connection, run_id, number)
                added += [(number, kind, name) for kind, name in spent if name not in known]
    append_entries(journal, run_name, added)


def spent_by(connection: Connection, run_id: int, number: int) -> list[tuple[ClaimKind, str]]:
    """What a cycle claimed: scenarios, then examples."""
    found = connection.execute(
        sa.select(claims.c.kind, claims.c.content_hash)
        .where(claims.c.run_id == run_id, claims.c.cycle == number)
        .order_by(claims.c.kind.desc(), claims.c.content_hash)
    )
    return [(ClaimKind(row.kind), row.content_hash) for row in found]


def adopt_journal(engine: Engine, run_name: str, journal: Path) -> int:
    """Spend what only the journal knows, and go on after its last cycle; returns how many claims were missing.

    Cycles that the database does not know, or knows as unfinished, end as lost. What is nearly the same as their
    scenarios is not refused: the texts went with the rows. Ledgers acquired earlier are fenced. The caller holds the
    `RunLock`.

    Raises:
        UsageError: there is no such run.
        ConfigError: the journal is another run's; nothing was committed.
        RestoredBackupError: a line of it is damaged; nothing was committed.
        DatabaseError: nothing was committed.
    """
    require_owner(journal, run_name)
    with writing(engine) as connection:
        writes = Writes(connection, lock_run(connection, run_name))
        last = history.next_cycle_number(connection, writes.run_id) - 1
        missing, newest = _missing(connection, writes.run_id, journal)
        if not missing and newest <= last:
            return 0
        # The newest too, though all of its claims may be known, as held out: no later cycle may have its number.
        _end_as_lost(writes, sorted({number for number, _, _ in missing} | ({newest} if newest > last else set())))
        for (number, kind), hashes in _grouped(missing).items():
            insert_claims(connection, writes.run_id, kind, number, hashes)
        # The next start fingerprints those of which the database still has the text.
        writes.update_run(epoch=runs.c.epoch + 1, fingerprinted=False)
        payload = {"journal": str(journal), "num_claims": len(missing), "last_cycle": newest}
        writes.event("journal_adopted", "warning", None, payload)
    return len(missing)


def _missing(connection: Connection, run_id: int, journal: Path) -> tuple[list[Entry], int]:
    """Entries whose hash the database does not have, each hash once; and the journal's highest cycle, 0 without one."""
    missing: dict[str, Entry] = {}
    newest = 0
    for chunk in chunks(entries(journal)):
        newest = max(newest, *(number for number, _, _ in chunk))
        taken = claimed(connection, run_id, [name for _, _, name in chunk])
        for entry in chunk:
            if entry[2] not in taken:
                missing.setdefault(entry[2], entry)
    return list(missing.values()), newest


def _end_as_lost(writes: Writes, numbers: Sequence[int]) -> None:
    """Make the rows of cycles that are not known; end those that are not finished."""
    of_run = sa.select(cycles.c.number, cycles.c.state).where(cycles.c.run_id == writes.run_id)
    known = {row.number: row.state for row in writes.connection.execute(of_run)}
    run = writes.connection.execute(sa.select(runs).where(runs.c.id == writes.run_id)).one()
    values = {
        "state": CycleState.PLANNED,
        "parent_version": history.head_version(writes.connection, writes.run_id),
        "epoch": run.epoch,
        "config": {},
        "seconds": {},
        "started_at": rows.now(),
    }
    for number in numbers:
        if number not in known:
            writes.insert(cycles, values | {"number": number, "seed": derive_seed("cycle", run.seed, number)})
        if known.get(number) != CycleState.FINISHED:
            writes.finish(number, Outcome.LOST, _ADOPTED)


def _grouped(missing: Iterable[Entry]) -> dict[tuple[int, ClaimKind], list[str]]:
    groups: dict[tuple[int, ClaimKind], list[str]] = {}
    for number, kind, name in missing:
        groups.setdefault((number, kind), []).append(name)
    return groups


def _claims_by_cycle(connection: Connection, run_id: int) -> list[tuple[int, int]]:
    found = connection.execute(
        sa.select(claims.c.cycle, sa.func.count())
        .where(claims.c.run_id == run_id, claims.c.cycle.is_not(None))
        .group_by(claims.c.cycle)
        .order_by(claims.c.cycle)
    )
    return [(int(number), int(times)) for number, times in found]

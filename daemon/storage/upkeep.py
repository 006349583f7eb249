"""What the ledger does between cycles: lossy and pinned checkpoints, the mirror's queue, scrubs, rehearsals."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection, Engine

from daemon.domain.errors import DreamdError, UsageError
from daemon.domain.records import Checkpoint
from daemon.domain.states import CheckpointKind, CheckpointState, CycleState
from daemon.domain.upkeep import MirrorTask, Rehearsal, ScrubResult
from daemon.storage import history, rows
from daemon.storage.database import writing
from daemon.storage.kinds import MirrorState
from daemon.storage.runs import lock_run
from daemon.storage.tables import checkpoints, cycles, mirror_tasks, rehearsals, rollbacks, scrubs
from daemon.storage.writes import Writes


def pin_checkpoint(engine: Engine, run_name: str, version: str, reason: str) -> None:
    """`pin`, for an operator while the daemon runs: its retention waits, and then sees it.

    Raises:
        UsageError: there is no such run or checkpoint, or its exact state is gone.
    """
    with writing(engine) as connection:
        pin(Writes(connection, lock_run(connection, run_name)), version, reason)


def unpin_checkpoint(engine: Engine, run_name: str, version: str) -> None:
    """`unpin`, for an operator while the daemon runs.

    Raises:
        UsageError: there is no such run or checkpoint.
    """
    with writing(engine) as connection:
        unpin(Writes(connection, lock_run(connection, run_name)), version)


def pin(writes: Writes, version: str, reason: str) -> None:
    """Keep a checkpoint with its exact state; pinned again, it has the new reason.

    Raises:
        UsageError: there is no such checkpoint, or its exact state is gone.
    """
    stored = _known(writes, version)
    if stored.state is CheckpointState.PRUNED:
        raise UsageError(f"checkpoint {version} was pruned: its files are gone, so it cannot be pinned")
    if not stored.exact:
        raise UsageError(
            f"checkpoint {version} is lossy: its exact state is gone, so it cannot be pinned; "
            f"`dreamd checkpoints export {version} DIR` keeps its image"
        )
    _update(writes, version, pinned_at=rows.now(), pin_reason=reason)
    if not stored.pinned:
        _mirror_again(writes, version)  # its exact state goes there now
    writes.event("pinned", "info", stored.cycle_number, {"version": version, "reason": reason})


def unpin(writes: Writes, version: str) -> None:
    """Let retention decide about a checkpoint again; nothing when it is not pinned.

    Raises:
        UsageError: there is no such checkpoint.
    """
    stored = _known(writes, version)
    if stored.pinned:
        _update(writes, version, pinned_at=None, pin_reason=None)
        writes.event("unpinned", "info", stored.cycle_number, {"version": version})


def made_lossy(writes: Writes, version: str) -> None:
    """A checkpoint has only its image from now on, and so has the mirror; nothing when that is so already.

    Raises:
        DreamdError: its exact state must stay, or it has no image, or no files at all.
    """
    stored = history.checkpoint(writes.connection, writes.run_id, version)
    _require_no_need(writes, stored, "its exact state must stay")
    if stored.state is CheckpointState.PRUNED:
        raise DreamdError(f"checkpoint {version} is pruned: it has no files")
    if stored.kind is CheckpointKind.FULL:
        raise DreamdError(f"checkpoint {version} has no image but its exact weights: these must stay, or all of it go")
    if stored.exact:
        _update(writes, version, exact=False, lossy_after=writes.last_finished())
        _mirror_again(writes, version)  # its exact state goes away there


def pruned(writes: Writes, version: str) -> None:
    """A checkpoint's files are gone.

    Raises:
        DreamdError: they must stay.
    """
    stored = history.checkpoint(writes.connection, writes.run_id, version)
    _require_no_need(writes, stored, "its files must stay")
    _update(writes, version, state=CheckpointState.PRUNED, pruned_after=writes.last_finished())


def rollback_sides(connection: Connection, run_id: int, num_cycles: int) -> frozenset[str]:
    """Versions that a rollback left or went to in the last `num_cycles` finished cycles, or just after one of them."""
    newest = connection.scalars(
        sa.select(cycles.c.number)
        .where(cycles.c.run_id == run_id, cycles.c.state == CycleState.FINISHED)
        .order_by(cycles.c.number.desc())
        .limit(num_cycles)
    ).all()
    if not newest:
        return frozenset()
    first = newest[-1] if len(newest) == num_cycles else 0
    found = connection.execute(
        sa.select(rollbacks.c.from_version, rollbacks.c.to_version).where(
            rollbacks.c.run_id == run_id, rollbacks.c.after_cycle >= first
        )
    )
    return frozenset(version for row in found for version in row)


def enqueue_mirror(writes: Writes, version: str) -> None:
    """The mirror must get a checkpoint; nothing when it is queued or there."""
    history.checkpoint(writes.connection, writes.run_id, version)
    known = sa.select(mirror_tasks.c.state).where(_task(writes.run_id, version))
    if writes.connection.scalar(known) is None:
        writes.insert(mirror_tasks, {"version": version, **_queued_anew()})


def queued(connection: Connection, run_id: int) -> tuple[MirrorTask, ...]:
    """What the mirror has not got and still can get, oldest checkpoint first."""
    of_checkpoint = (checkpoints.c.run_id == mirror_tasks.c.run_id) & (checkpoints.c.version == mirror_tasks.c.version)
    found = connection.execute(
        sa.select(mirror_tasks)
        .join(checkpoints, of_checkpoint)
        .where(mirror_tasks.c.run_id == run_id, mirror_tasks.c.state == MirrorState.QUEUED)
        .where(checkpoints.c.state != CheckpointState.PRUNED)
        .order_by(sa.func.coalesce(checkpoints.c.cycle, 0), checkpoints.c.version)
    )
    return tuple(MirrorTask(row.version, row.attempts, row.next_try_at, row.last_error) for row in found)


def mirrored(writes: Writes, version: str) -> None:
    """The mirror has it.

    Raises:
        DreamdError: it was never queued.
    """
    values = {"state": MirrorState.MIRRORED, "mirrored_at": rows.now(), "last_error": None}
    _update_task(writes, version, values)


def mirror_failed(writes: Writes, version: str, error: str, next_try_at: datetime) -> None:
    """It stays queued, or is queued again when it turns out not to be there.

    Raises:
        DreamdError: it was never queued.
    """
    values = {
        "state": MirrorState.QUEUED,
        "mirrored_at": None,
        "attempts": mirror_tasks.c.attempts + 1,
        "last_error": error,
        "next_try_at": next_try_at,
    }
    _update_task(writes, version, values)


def wake_mirror(writes: Writes, anew: bool) -> None:
    """What is queued may be tried at once; `anew`: all that ever was is queued, as if it had never been tried."""
    of_run = mirror_tasks.c.run_id == writes.run_id
    waiting = sa.and_(of_run, mirror_tasks.c.state == MirrorState.QUEUED)
    values = _queued_anew() if anew else {"next_try_at": rows.now()}
    writes.connection.execute(sa.update(mirror_tasks).where(of_run if anew else waiting).values(values))


def last_config(connection: Connection, run_id: int) -> Mapping[str, Any] | None:
    """The configuration of the newest cycle; None: there was none."""
    newest = sa.select(cycles.c.config).where(cycles.c.run_id == run_id).order_by(cycles.c.number.desc()).limit(1)
    found: Mapping[str, Any] | None = connection.scalar(newest)
    return found


def scrub_order(connection: Connection, run_id: int) -> tuple[str, ...]:
    """Versions whose files should be there, the one that was not scrubbed for longest first."""
    newest = (
        sa.select(scrubs.c.version, sa.func.max(scrubs.c.id).label("id"))
        .where(scrubs.c.run_id == run_id)
        .group_by(scrubs.c.version)
        .subquery()
    )
    # By row, not by time: the clock may have been set back.
    found = connection.scalars(
        sa.select(checkpoints.c.version)
        .outerjoin(newest, newest.c.version == checkpoints.c.version)
        .where(checkpoints.c.run_id == run_id, checkpoints.c.state != CheckpointState.PRUNED)
        .order_by(sa.func.coalesce(newest.c.id, 0), sa.func.coalesce(checkpoints.c.cycle, 0), checkpoints.c.version)
    )
    return tuple(found)


def record_scrub(writes: Writes, result: ScrubResult) -> None:
    values = {"version": result.version, "sound": result.sound, "num_bytes": result.num_bytes}
    writes.insert(scrubs, values | {"detail": result.detail, "at": rows.now()})


def record_rehearsal(writes: Writes, rehearsal: Rehearsal) -> None:
    values = {"version": rehearsal.version, "passed": rehearsal.passed, "seconds": rehearsal.seconds}
    writes.insert(rehearsals, values | {"detail": rehearsal.detail, "at": rows.now()})


def last_rehearsal_at(connection: Connection, run_id: int, passed: bool) -> datetime | None:
    """When the newest rehearsal ended, passed or not, or the newest that passed; None: there was none."""
    newest = sa.select(rehearsals.c.at).where(rehearsals.c.run_id == run_id).order_by(rehearsals.c.id.desc())
    if passed:
        newest = newest.where(rehearsals.c.passed)
    return connection.scalar(newest.limit(1))


def _known(writes: Writes, version: str) -> Checkpoint:
    for checkpoint in history.all_checkpoints(writes.connection, writes.run_id):
        if checkpoint.version == version:
            return checkpoint
    raise UsageError(f"no checkpoint {version}; `dreamd checkpoints` lists those there are")


def _require_no_need(writes: Writes, stored: Checkpoint, what: str) -> None:
    if stored.version == history.head_version(writes.connection, writes.run_id):
        raise DreamdError(f"checkpoint {stored.version} is the head: {what}")
    if stored.state in (CheckpointState.BASE, CheckpointState.CANDIDATE):
        raise DreamdError(f"checkpoint {stored.version} is {stored.state}: {what}")
    if stored.pinned:
        raise DreamdError(f"checkpoint {stored.version} is pinned: {what}")


def _update(writes: Writes, version: str, **values: object) -> None:
    of_version = sa.and_(checkpoints.c.run_id == writes.run_id, checkpoints.c.version == version)
    writes.connection.execute(sa.update(checkpoints).where(of_version).values(values))


def _update_task(writes: Writes, version: str, values: Mapping[str, object]) -> None:
    changed = writes.connection.execute(sa.update(mirror_tasks).where(_task(writes.run_id, version)).values(values))
    if changed.rowcount != 1:
        raise DreamdError(f"checkpoint {version} is not in the mirror's queue")


def _mirror_again(writes: Writes, version: str) -> None:
    """What the mirror has is not what it should have any more."""
    there = sa.and_(_task(writes.run_id, version), mirror_tasks.c.state == MirrorState.MIRRORED)
    writes.connection.execute(sa.update(mirror_tasks).where(there).values(_queued_anew()))


def _queued_anew() -> dict[str, object]:
    """As if it had never been tried."""
    nothing_said = {"mirrored_at": None, "attempts": 0, "last_error": None}
    return {"state": MirrorState.QUEUED, "next_try_at": rows.now(), **nothing_said}


def _task(run_id: int, version: str) -> ColumnElement[bool]:
    return sa.and_(mirror_tasks.c.run_id == run_id, mirror_tasks.c.version == version)

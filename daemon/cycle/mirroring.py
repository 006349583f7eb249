"""Send checkpoints to the mirror, patiently: what fails stays queued, and waits longer each time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from daemon.cycle.mending import mend
from daemon.cycle.stages import Stages
from daemon.domain.errors import CheckpointError, MirrorError
from daemon.domain.lineage import ancestors_kept
from daemon.domain.retention import retained
from daemon.domain.states import CheckpointState
from daemon.domain.upkeep import MirrorTask
from daemon.ports import Mirror

FIRST_BACKOFF = timedelta(minutes=1)
MAX_BACKOFF = timedelta(hours=6)
TASKS_AT_ONCE = 8
SECONDS_AT_ONCE = 60.0
"""After so long nothing further is sent before the next cycle; a file that is being sent is sent to its end."""
_DAMAGED_HERE = "damaged here: "
"""Begins the error of a task that is no fault of the mirror."""


def queue_all(stages: Stages) -> None:
    """Queue every checkpoint that has files, to be tried at once: the mirror may be new.

    At another URL it has nothing of what the last one took.
    """
    if stages.mirror is not None:
        before = stages.ledger.last_config()
        stages.ledger.wake_mirror(anew=before is not None and _url(before) != _url(stages.config))
        for checkpoint in stages.ledger.checkpoints():
            if checkpoint.state is not CheckpointState.PRUNED:
                stages.ledger.enqueue_mirror(checkpoint.version)


def refuse_older_journal(mirror: Mirror, journal: Path) -> None:
    """Compare the claims journal with the mirror's before anything is done; one that does not answer is told of later.

    Raises:
        RestoredBackupError: the mirror's has claims that this one lacks.
    """
    with contextlib.suppress(MirrorError):
        mirror.push_journal(journal)


def send_due(stages: Stages, now: datetime) -> None:
    """Send the claims journal, queue the head, and send a few of what is queued.

    A failure makes the whole mirror rest, 1 minute at first, 6 hours at most: it is hardly ever about one checkpoint.

    Raises:
        RestoredBackupError: the mirror's journal has claims that the one here lacks.
    """
    mirror, ledger = stages.mirror, stages.ledger
    if mirror is None:
        return
    ledger.enqueue_mirror(ledger.head().version)
    tasks = ledger.mirror_tasks()
    failed = [task for task in tasks if task.attempts and not _is_local(task)]
    if any(_waits(task, now) for task in failed):
        return
    # Those that failed come last: if it was about one of them, the others do not wait for it.
    due = sorted((task for task in tasks if not _waits(task, now)), key=lambda task: task.attempts)[:TASKS_AT_ONCE]
    until, sent = time.monotonic() + SECONDS_AT_ONCE, set[str]()
    try:
        if stages.claims_log is not None:
            mirror.push_journal(stages.claims_log)
    except CheckpointError as error:  # damaged here: no reason for the checkpoints to wait
        stages.tell("upkeep_failed", None, level="error", part="send_journal", reason=str(error))
    except MirrorError as error:
        return _failed(stages, mirror, MirrorTask(ledger.head().version, 0, now), failed, now, error)
    for task in due:
        stages.observer.check_stop()
        seconds = until - time.monotonic()
        if seconds < 0:
            break
        try:
            whole = _send(stages, mirror, task, seconds, now)
        except MirrorError as error:
            return _failed(stages, mirror, task, failed, now, error)
        if not whole:  # it stays queued, and is no failure
            break
        sent.add(task.version)
    if failed and all(task.version in sent for task in failed):
        stages.tell("mirror_recovered", None, level="info", url=mirror.url, left=len(tasks) - len(sent))
    if sent:
        _forget_pruned(stages, mirror)


def send_again(stages: Stages, version: str, reason: str, now: datetime) -> None:
    """Queue what the mirror should have, and does not have or not right."""
    stages.ledger.enqueue_mirror(version)
    if version not in {task.version for task in stages.ledger.mirror_tasks()}:  # it was taken for mirrored
        stages.ledger.mirror_failed(version, reason, now)


def _url(config: Mapping[str, Any]) -> str | None:
    """The mirror's, without a password, as it is recorded."""
    found: str | None = config.get("checkpoints", {}).get("mirror_url")
    return found


def _send(stages: Stages, mirror: Mirror, task: MirrorTask, seconds: float, now: datetime) -> bool:
    """Whether it is done with; False: the time was up."""
    checkpoint = stages.ledger.checkpoint(task.version)
    # Not of each newest one: it is many times the image, and sending it would set the pace of training.
    exact = checkpoint.pinned or task.version in ancestors_kept(stages.ledger.lineage(), stages.baked_after)
    started = time.monotonic()
    try:
        num_bytes = mirror.push(stages.store.path(task.version), exact=exact, seconds=seconds)
    except CheckpointError as error:  # not the mirror's fault, and no reason for others to wait
        next_try_at = now + backoff(task.attempts + 1)
        stages.ledger.mirror_failed(task.version, f"{_DAMAGED_HERE}{error}", next_try_at)
        mend(stages, checkpoint, str(error))
        return True
    took = round(time.monotonic() - started, 3)
    if num_bytes is None:
        stages.observer.log("mirroring_goes_on", version=task.version, seconds=took)
        return False
    stages.ledger.mirrored(task.version)
    stages.observer.log("checkpoint_mirrored", version=task.version, num_bytes=num_bytes, seconds=took)
    return True


def _failed(
    stages: Stages, mirror: Mirror, task: MirrorTask, failed: Sequence[MirrorTask], now: datetime, error: MirrorError
) -> None:
    """Queue it again, and tell of the first failure and then of one a day."""
    num_failures = 1 + sum(earlier.attempts for earlier in failed)
    next_try_at = now + backoff(num_failures)
    stages.ledger.mirror_failed(task.version, str(error), next_try_at)
    told = {"url": mirror.url, "version": task.version, "reason": str(error), "num_failures": num_failures}
    if num_failures == 1 or _days_out(num_failures) > _days_out(num_failures - 1):
        stages.tell("mirror_unreachable", None, level="error", next_try_at=next_try_at.isoformat(), **told)
    else:
        stages.observer.log("mirror_failed", level="warning", **told)


def _forget_pruned(stages: Stages, mirror: Mirror) -> None:
    """Retention counts there as well; what this run does not know is left alone, and so is what retention would keep.

    That was pruned because its files here were damaged: the mirror's may be the only ones.
    """
    ledger, settings, rows = stages.ledger, stages.retention, stages.ledger.checkpoints()
    wanted = retained(rows, ledger.lineage(), ledger.rollback_sides(settings.keep_rollbacks), settings).images
    pruned = {c.version: c.root_hash for c in rows if c.state is CheckpointState.PRUNED and c.version not in wanted}
    for version in sorted(pruned.keys() & mirror.versions()):
        stages.observer.check_stop()
        mirror.delete(version, pruned[version])


def backoff(num_failures: int) -> timedelta:
    """How long the mirror rests after so many failures in a row."""
    return min(MAX_BACKOFF, FIRST_BACKOFF * (1 << min(num_failures - 1, 30)))


def _days_out(num_failures: int) -> int:
    """Whole days that the mirror was out before the last of so many failures; by arithmetic, so a restart knows it."""
    return sum((backoff(number) for number in range(1, num_failures)), timedelta()).days


def _waits(task: MirrorTask, now: datetime) -> bool:
    """Whether its time has not come; a time further away than any back-off is a clock that was set back."""
    return bool(task.attempts) and now < task.next_try_at <= now + MAX_BACKOFF


def _is_local(task: MirrorTask) -> bool:
    return (task.last_error or "").startswith(_DAMAGED_HERE)

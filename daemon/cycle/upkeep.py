"""Between two cycles: mirror what is new, read a little of what is old, practise a restore once a week.

None of it may stop training, so each part stands alone: what fails is an event and a log line, and is tried again. The
one exception is a head that is damaged and cannot be brought back.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from daemon.cycle.guard import Pause
from daemon.cycle.mending import HeadDamagedError, mend
from daemon.cycle.mirroring import send_again, send_due
from daemon.cycle.stages import Stages
from daemon.domain.errors import (
    CheckpointError,
    DatabaseError,
    DiskError,
    MirrorError,
    RestoredBackupError,
    StopRequested,
)
from daemon.domain.lineage import baked
from daemon.domain.records import Checkpoint
from daemon.domain.retention import LOSSY_MARKER, links
from daemon.domain.states import CheckpointState
from daemon.domain.upkeep import Rehearsal

RETRY_AFTER = timedelta(days=1)
"""After a rehearsal that failed."""
PAUSED_EVERY_S = 600.0
"""Between two upkeeps while no cycle runs."""
SCRUBBED_AT_ONCE = 8
"""Checkpoints, at most: each is a row, and images are so small that the bytes alone would allow hundreds."""


def maintain(stages: Stages, now: datetime | None = None) -> None:
    """Do what is due for the checkpoints.

    Raises:
        StopRequested: the daemon must stop; what is left is due the next time.
        HeadDamagedError: the head's files are damaged, and there is no other copy.
        DatabaseError: nothing can be recorded.
        RestoredBackupError: the mirror's claims journal has claims that the one here lacks.
    """
    moment = now or datetime.now(UTC)
    for part in (send_due, _scrub, _rehearse):
        stages.observer.check_stop()
        _alone(stages, part, moment)


@dataclass
class PausedUpkeep:
    """Upkeep while the breaker is open, which may be for days; pauses are short, so not in each of them."""

    _last: float = -math.inf

    def run(self, stages: Stages, pause: Pause) -> None:
        """`maintain`, if it was not done for a while; raises what that raises."""
        if pause.error is DiskError:  # no row may be written: the database may be on the same disk
            return
        if time.monotonic() - self._last >= PAUSED_EVERY_S:
            maintain(stages)
            self._last = time.monotonic()


def _alone(stages: Stages, part: Callable[[Stages, datetime], None], now: datetime) -> None:
    try:
        part(stages, now)
    except (StopRequested, HeadDamagedError, DatabaseError, RestoredBackupError):
        raise
    except Exception as error:  # noqa: BLE001 - recorded; the next part, and training, must go on
        reason = f"{type(error).__name__}: {error}"
        stages.tell("upkeep_failed", None, level="error", part=part.__name__.strip("_"), reason=reason)


def _scrub(stages: Stages, _now: datetime) -> None:
    if stages.scrubber is None or not stages.scrub_bytes:
        return
    ledger = stages.ledger
    by_version = {checkpoint.version: checkpoint for checkpoint in ledger.checkpoints()}
    order = [by_version[version] for version in ledger.scrub_order() if version in by_version]
    for result in stages.scrubber.scrub(order[:SCRUBBED_AT_ONCE], stages.scrub_bytes):
        if not result.sound:
            try:
                became = mend(stages, by_version[result.version], result.detail or "it does not verify")
            except HeadDamagedError as error:
                ledger.record_scrub(replace(result, detail=str(error)))
                raise
            result = replace(result, detail=f"{result.detail}; {became}")  # noqa: PLW2901
        ledger.record_scrub(result)
        stages.observer.check_stop()


def _rehearse(stages: Stages, now: datetime) -> None:
    """Restore the anchor that a rollback would go to, and the image with the longest chain, both without using them.

    Recorded when both were tried, those that failed last: one that a stop broke off did not happen, and a failed one
    is tried again after a day.
    """
    if not _rehearsal_is_due(stages, now):
        return
    _read_mirrored_journal(stages)
    images = [c for c in stages.ledger.checkpoints() if not c.exact and c.state is not CheckpointState.PRUNED]
    images.sort(key=lambda checkpoint: (checkpoint.chain_length, checkpoint.cycle_number or 0))
    done, head_error = [], None
    for checkpoint in (baked(stages.ledger.lineage(), stages.baked_after), *images[-1:]):
        stages.observer.check_stop()
        rehearsal = _practise(stages, checkpoint, now)
        if not rehearsal.passed:
            try:
                _mend_what_it_needs(stages, checkpoint)
            except HeadDamagedError as error:
                head_error = error
        done.append(rehearsal)
    for rehearsal in sorted(done, key=lambda rehearsal: not rehearsal.passed):
        stages.ledger.record_rehearsal(rehearsal)
        name, level = ("rehearsal_passed", "info") if rehearsal.passed else ("rehearsal_failed", "error")
        told = {"version": rehearsal.version, "seconds": rehearsal.seconds, "detail": rehearsal.detail}
        stages.tell(name, None, level=level, **told)
    if head_error is not None:
        raise head_error


def _read_mirrored_journal(stages: Stages) -> None:
    """Read all of the claims journal at the mirror; what is damaged there is sent again."""
    if stages.mirror is None or stages.claims_log is None:
        return
    try:
        stages.mirror.push_journal(stages.claims_log, thorough=True)
    except (MirrorError, CheckpointError) as error:
        stages.tell("rehearsal_failed", None, level="error", version=None, seconds=None, detail=str(error))


def _rehearsal_is_due(stages: Stages, now: datetime) -> bool:
    every, last = stages.rehearse_every, stages.ledger.last_rehearsal_at()
    if every is None or last is None:
        return every is not None
    if last != stages.ledger.last_rehearsal_at(passed=True):
        every = min(every, RETRY_AFTER)
    return not timedelta() <= now - last < every  # below 0: the clock was set back


def _mend_what_it_needs(stages: Stages, checkpoint: Checkpoint) -> None:
    """Mend what is damaged here, of the checkpoint or of its chain; nothing when it was the mirror's."""
    by_version = {found.version: found for found in stages.ledger.checkpoints()}
    for version in tuple(links(checkpoint.version, by_version))[::-1]:
        if by_version[version].state is CheckpointState.PRUNED:
            continue
        try:
            stages.store.check(by_version[version])
        except (CheckpointError, OSError) as error:
            mend(stages, by_version[version], str(error))


def _practise(stages: Stages, checkpoint: Checkpoint, now: datetime) -> Rehearsal:
    """Everything that a restore reads, here and at the mirror; the live policy is not touched."""
    started = time.monotonic()
    try:
        stages.store.check(checkpoint)
        stages.store.image(checkpoint)
        passed, detail = True, f"files and image are sound; {_practise_fetch(stages, checkpoint, now)}"
    except (CheckpointError, MirrorError, DiskError, OSError) as error:
        passed, detail = False, str(error)
    return Rehearsal(checkpoint.version, passed, round(time.monotonic() - started, 3), detail)


def _practise_fetch(stages: Stages, checkpoint: Checkpoint, now: datetime) -> str:
    """Fetch the mirror's copy into a scratch directory; what was found. What is not right there is sent again.

    Raises:
        MirrorError: the mirror has it, and it is not right.
    """
    mirror, version = stages.mirror, checkpoint.version
    if mirror is None:
        return "there is no mirror"
    try:
        if version not in mirror.versions():
            send_again(stages, version, "it is not there", now)
            return "the mirror does not have it yet"
    except MirrorError as error:  # told by mirroring already
        return f"the mirror could not be asked ({error})"
    try:
        stages.store.check_room(checkpoint)
    except DiskError as error:
        return f"the mirror's copy was not fetched ({error})"
    scratch = stages.store.path(f".tmp-rehearsal-{version}")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        mirror.fetch(version, checkpoint.root_hash, scratch)
        image_alone = checkpoint.exact and (scratch / LOSSY_MARKER).exists()
    except MirrorError as error:
        send_again(stages, version, str(error), now)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return "the mirror's copy came back right" + (", its image alone" if image_alone else "")

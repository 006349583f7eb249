"""Delete what no rollback and nobody else needs any more; the rows stay."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.cycle.stages import Stages
from daemon.domain.errors import CheckpointError, DatabaseError, DreamdError
from daemon.domain.records import Checkpoint
from daemon.domain.retention import Retention, removals, retained
from daemon.domain.states import CheckpointState
from daemon.ports import CheckpointStore, Ledger


def retain(stages: Stages) -> None:
    """Delete the files of checkpoints, or their exact state; what cannot be deleted is told, and tried again.

    Raises:
        DatabaseError: nothing can be recorded.
    """
    for checkpoint, whole in due(stages.ledger, stages.retention):
        try:
            remove(stages.ledger, stages.store, checkpoint, whole)
        except DatabaseError:
            raise
        except (DreamdError, OSError) as error:  # pinned a moment ago; rotten; the disk is full or gives up
            _tell_once(stages, checkpoint, str(error))


def due(ledger: Ledger, settings: Retention) -> Sequence[tuple[Checkpoint, bool]]:
    """Checkpoints to remove: their exact state, or (True) all of their files."""
    present = [c for c in ledger.checkpoints() if c.state is not CheckpointState.PRUNED]
    keep = retained(present, ledger.lineage(), ledger.rollback_sides(settings.keep_rollbacks), settings)
    return list(removals(present, keep))


def remove(ledger: Ledger, store: CheckpointStore, checkpoint: Checkpoint, whole: bool) -> None:
    """Delete a checkpoint's files, or its exact state; the row says so first: what is missing is missing on purpose.

    Raises:
        CheckpointError: its image cannot be built, so that its exact state is all there is of it; nothing is deleted.
        DreamdError: it must stay.
        OSError: not all of it could be deleted; the next start does it.
    """
    if whole:
        ledger.pruned(checkpoint.version)
        store.prune(checkpoint.version)
    else:
        _prove_image(store, checkpoint)
        ledger.made_lossy(checkpoint.version)
        store.make_lossy(checkpoint.version)


def _prove_image(store: CheckpointStore, checkpoint: Checkpoint) -> None:
    """Build it once while its exact state is there: nothing else shows that the chain gives what was trained."""
    try:
        store.image(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"its exact state is kept, because its image cannot be built: {error}") from error


def _tell_once(stages: Stages, checkpoint: Checkpoint, reason: str) -> None:
    """An event the first time, else a log line: it is tried after every cycle."""
    if checkpoint.version in stages.not_removed:
        stages.observer.log("not_removed", version=checkpoint.version, reason=reason)
    else:
        stages.not_removed.add(checkpoint.version)
        stages.tell("not_removed", None, version=checkpoint.version, reason=reason)

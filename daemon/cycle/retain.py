"""Delete what no rollback and nobody else needs any more; the rows stay."""

from __future__ import annotations

from daemon.cycle.stages import Stages
from daemon.domain.errors import DatabaseError, DreamdError
from daemon.domain.records import Checkpoint
from daemon.domain.retention import removals, retained
from daemon.domain.states import CheckpointState


def retain(stages: Stages) -> None:
    """Delete the files of checkpoints, or their exact state; each is said in the database first."""
    ledger, settings = stages.ledger, stages.retention
    present = [c for c in ledger.checkpoints() if c.state is not CheckpointState.PRUNED]
    keep = retained(present, ledger.lineage(), ledger.rollback_sides(settings.keep_rollbacks), settings)
    for checkpoint, whole in removals(present, keep):
        try:
            _remove(stages, checkpoint, whole)
        except DatabaseError:
            raise
        except DreamdError as error:  # pinned a moment ago
            stages.observer.log("not_removed", version=checkpoint.version, reason=str(error))


def _remove(stages: Stages, checkpoint: Checkpoint, whole: bool) -> None:
    if whole:
        stages.ledger.pruned(checkpoint.version)
        stages.store.prune(checkpoint.version)
    else:
        stages.ledger.made_lossy(checkpoint.version)
        stages.store.make_lossy(checkpoint.version)

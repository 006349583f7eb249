"""Delete what no rollback and nobody else needs any more; the rows stay."""

from __future__ import annotations

from daemon.cycle.stages import Stages
from daemon.domain.retention import Kept, retained
from daemon.domain.states import CheckpointKind, CheckpointState


def plan(stages: Stages) -> Kept:
    """What retention would keep now."""
    ledger, settings = stages.ledger, stages.retention
    present = [c for c in ledger.checkpoints() if c.state is not CheckpointState.PRUNED]
    return retained(present, ledger.lineage(), ledger.rollback_sides(settings.keep_rollbacks), settings)


def retain(stages: Stages) -> None:
    """Delete the files of checkpoints, or their exact state; each is said in the database first."""
    ledger, store, keep = stages.ledger, stages.store, plan(stages)
    for checkpoint in ledger.checkpoints():
        if checkpoint.state is CheckpointState.PRUNED:
            continue
        # Without its exact state a full one has nothing left; it goes as a whole.
        only_exact = checkpoint.kind is CheckpointKind.FULL
        if checkpoint.version not in keep.images or (only_exact and checkpoint.version not in keep.exact):
            ledger.pruned(checkpoint.version)
            store.prune(checkpoint.version)
        elif checkpoint.exact and checkpoint.version not in keep.exact:
            ledger.made_lossy(checkpoint.version)
            store.make_lossy(checkpoint.version)

"""Which checkpoints of a lineage are anchors."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.domain.records import Checkpoint
from daemon.domain.states import CheckpointState
from daemon.domain.verdicts import Anchor


def baked(lineage: Sequence[Checkpoint], baked_after: int) -> Checkpoint:
    """A1: the newest ancestor that has stood the test of `baked_after` later promoted steps and has its files.

    Only every `baked_after`-th checkpoint is a candidate, so that few anchors need to be kept on disk. The base, at
    last. It is always the first of `anchors`.

    Args:
        lineage: the head and its ancestors, head first, base last.
    """
    return _baked(lineage, baked_after)[0][1]


def anchors(lineage: Sequence[Checkpoint], baked_after: int) -> tuple[Anchor, ...]:
    """Every baked ancestor whose files are kept, newest first; the base is the last.

    Args:
        lineage: the head and its ancestors, head first, base last.
    """
    return tuple(
        Anchor(checkpoint.version, checkpoint.cycle_number or 0, depth)
        for depth, checkpoint in _baked(lineage, baked_after)
    )


def ancestors_kept(lineage: Sequence[Checkpoint], baked_after: int) -> frozenset[str]:
    """Versions of a lineage that rollbacks need with their exact state: the base, and four anchors.

    These are the next A1, A1, and the two before A1: a regression that began before A1 goes back to the first of
    these, and the last is A1 of the lineage that goes on from there.
    """
    depth_of_head = len(lineage) - 1
    next_anchor = depth_of_head // baked_after * baked_after
    depths = {max(0, next_anchor - back * baked_after) for back in range(4)}
    ancestors = (lineage[-1], *(lineage[depth_of_head - depth] for depth in depths))
    return frozenset(checkpoint.version for checkpoint in ancestors)


def kept(lineage: Sequence[Checkpoint], baked_after: int, keep_last: int) -> frozenset[str]:
    """`ancestors_kept`, and the newest ones."""
    return ancestors_kept(lineage, baked_after) | {checkpoint.version for checkpoint in lineage[:keep_last]}


def _baked(lineage: Sequence[Checkpoint], baked_after: int) -> list[tuple[int, Checkpoint]]:
    """(depth, checkpoint) of every baked ancestor that has its exact state, newest first; the base always has."""
    depth_of_head = len(lineage) - 1
    newest = max(0, depth_of_head // baked_after - 1) * baked_after
    found = [(depth, lineage[depth_of_head - depth]) for depth in range(newest, -1, -baked_after)]
    return [(depth, found_at) for depth, found_at in found if not depth or _is_exact(found_at)]


def _is_exact(checkpoint: Checkpoint) -> bool:
    return checkpoint.exact and checkpoint.state is not CheckpointState.PRUNED

"""Which checkpoints of a lineage are anchors."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.domain.records import Checkpoint


def baked(lineage: Sequence[Checkpoint], baked_after: int) -> Checkpoint:
    """A1: the newest ancestor that has stood the test of `baked_after` later promoted steps, or the base.

    Only every `baked_after`-th checkpoint is a candidate, so that few anchors need to be kept on disk.

    Args:
        lineage: the head and its ancestors, head first, base last.
    """
    depth_of_head = len(lineage) - 1
    depth = max(0, depth_of_head // baked_after - 1) * baked_after
    return lineage[depth_of_head - depth]


def kept(lineage: Sequence[Checkpoint], baked_after: int, keep_last: int) -> frozenset[str]:
    """Versions of a lineage whose files must stay: the newest ones, the base, A1 and the next A1."""
    depth_of_head = len(lineage) - 1
    next_anchor = depth_of_head // baked_after * baked_after
    anchors = (lineage[-1], baked(lineage, baked_after), lineage[depth_of_head - next_anchor])
    return frozenset(checkpoint.version for checkpoint in (*lineage[:keep_last], *anchors))

"""Which checkpoints are anchors, and which files must stay."""

from __future__ import annotations

from builders import make_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.lineage import baked, kept
from daemon.domain.records import Checkpoint


def lineage(length: int) -> list[Checkpoint]:
    """Head first; the checkpoint at depth d is called str(d), the base "0"."""
    return [make_checkpoint(version=str(depth)) for depth in reversed(range(length))]


def test_a1_by_hand() -> None:
    """With 10 clean later cycles wanted: the base up to head 19, then 10, and 20 from head 30 on."""
    found = {head: baked(lineage(head + 1), 10).version for head in (0, 9, 10, 19, 20, 29, 30)}
    assert found == {0: "0", 9: "0", 10: "0", 19: "0", 20: "10", 29: "10", 30: "20"}


@given(st.integers(0, 80), st.integers(1, 12), st.integers(2, 6))
def test_what_is_kept_suffices_for_every_later_anchor(head: int, after: int, last: int) -> None:
    """A1 has its clean later cycles or is the base; and whatever becomes A1 later was kept at every head before."""
    anchor = int(baked(lineage(head + 1), after).version)
    assert anchor == 0 or head - anchor >= after
    for earlier in range(anchor, head + 1):
        assert str(anchor) in kept(lineage(earlier + 1), after, last)
    assert {"0", str(head)} <= kept(lineage(head + 1), after, last)
    assert len(kept(lineage(head + 1), after, last)) <= last + 3

"""Which checkpoints are anchors, and which files must stay."""

from __future__ import annotations

from dataclasses import replace

from builders import make_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.domain.lineage import anchors, baked, kept
from daemon.domain.records import Checkpoint
from daemon.domain.states import CheckpointState


def lineage(length: int) -> list[Checkpoint]:
    """Head first; the checkpoint at depth d is called str(d), the base "0"."""
    return [make_checkpoint(version=str(depth)) for depth in reversed(range(length))]


def test_a1_by_hand() -> None:
    """With 10 clean later cycles wanted: the base up to head 19, then 10, and 20 from head 30 on."""
    found = {head: baked(lineage(head + 1), 10).version for head in (0, 9, 10, 19, 20, 29, 30)}
    assert found == {0: "0", 9: "0", 10: "0", 19: "0", 20: "10", 29: "10", 30: "20"}


@settings(deadline=None)
@given(st.integers(0, 80), st.integers(1, 12), st.integers(2, 6))
def test_what_is_kept_suffices_for_every_later_anchor(head: int, after: int, last: int) -> None:
    """A1 has its clean later cycles or is the base; and whatever becomes A1 later was kept at every head before."""
    anchor = int(baked(lineage(head + 1), after).version)
    assert anchor == 0 or head - anchor >= after
    for earlier in range(anchor, head + 1):
        assert str(anchor) in kept(lineage(earlier + 1), after, last)
    assert {"0", str(head)} <= kept(lineage(head + 1), after, last)
    assert len(kept(lineage(head + 1), after, last)) <= last + 5


def pruned(found: list[Checkpoint], after: int, last: int) -> list[Checkpoint]:
    """`found` as it is once everything that need not be kept is deleted."""
    keep = kept(found, after, last)
    return [one if one.version in keep else replace(one, state=CheckpointState.PRUNED) for one in found]


def test_the_lineage_that_goes_on_from_the_oldest_likely_target_has_an_anchor() -> None:
    """Head 95: a fall that began before A1 = 80 goes back to 70; there A1 is 60, not the base."""
    found = pruned(lineage(96), 10, 5)
    assert [anchor.version for anchor in anchors(found, 10)] == ["80", "70", "60", "0"]
    assert [anchor.version for anchor in anchors(found[25:], 10)] == ["60", "0"]
    assert [anchor.version for anchor in anchors(pruned(found[15:], 10, 5)[10:], 10)] == ["60", "0"]


def test_an_anchor_without_files_is_none() -> None:
    """When 20 is gone A1 is 10, and when that is gone the base; the base's files never go."""
    found = lineage(31)
    for gone, expected in (("20", "10"), ("10", "0"), ("0", "0")):
        found = [replace(one, state=CheckpointState.PRUNED) if one.version == gone else one for one in found]
        assert baked(found, 10).version == expected


@settings(deadline=None)
@given(st.integers(0, 80), st.integers(1, 12), st.integers(2, 6), st.sets(st.integers(0, 80)))
def test_a1_is_the_first_anchor(head: int, after: int, last: int, gone: set[int]) -> None:
    """Whatever files are there."""
    found = [
        replace(one, state=CheckpointState.PRUNED) if int(one.version) in gone else one
        for one in pruned(lineage(head + 1), after, last)
    ]
    assert baked(found, after).version == anchors(found, after)[0].version
    assert anchors(found, after)[-1].version == "0"

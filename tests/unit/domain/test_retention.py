"""Retention keeps what a rollback, a person or a chain still needs, and nothing else."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.lineage import anchors
from daemon.domain.records import Checkpoint
from daemon.domain.retention import Retention, retained
from daemon.domain.states import CheckpointKind, CheckpointState

SETTINGS = Retention(keep_last=8, keep_every=50, keep_exact=2, keep_rollbacks=30, baked_after=10)
KEYFRAME_EVERY = 20


def name(number: int) -> str:
    return f"cycle-{number:06d}" if number else "base"


def checkpoint(number: int, parent: int | None = None) -> Checkpoint:
    if number == 0:
        return Checkpoint("base", None, None, None, "r", "w", "o", 1, CheckpointState.BASE)
    distance = (number - 1) % (KEYFRAME_EVERY + 1)
    kind = CheckpointKind.KEYFRAME if number > 1 and distance == 0 else CheckpointKind.DELTA
    before = name(number - 1 if parent is None else parent)
    return Checkpoint(name(number), number, before, "b", "r", "w", "o", 1, CheckpointState.PROMOTED, kind)


def straight(length: int) -> list[Checkpoint]:
    """A lineage, head first, without a rollback."""
    return [checkpoint(number) for number in range(length, -1, -1)]


def names(*numbers: int) -> set[str]:
    return {name(number) for number in numbers}


def test_what_is_kept_of_a_long_straight_run() -> None:
    """Cycle 117: exact are the newest two, the base, A1 (100), the next one (110) and two before; images are the newest
    eight, every 50th, and their chains back to keyframes (a keyframe every 21 cycles: 22, 43, 64, 85, 106)."""
    lineage = straight(117)
    kept = retained(lineage, lineage, (), SETTINGS)
    assert kept.exact == names(0, 80, 90, 100, 110, 116, 117)
    chains = {*range(106, 118), *range(85, 101), *range(64, 81), *range(43, 51)}
    assert kept.images == names(0, *chains)


def test_pins_candidates_and_sides_of_rollbacks_stay() -> None:
    """A pinned one with its exact state, a candidate likewise; what a rollback left keeps its image only."""
    lineage = [replace(c, pinned=c.cycle_number == 33) for c in straight(60)]
    left = replace(checkpoint(58, parent=57), version="cycle-000058b", state=CheckpointState.REJECTED)
    candidate = replace(checkpoint(61, parent=60), state=CheckpointState.CANDIDATE)
    kept = retained([*lineage, left, candidate], lineage, ["cycle-000058b"], SETTINGS)
    assert {name(33), name(61)} <= kept.exact
    assert left.version in kept.images - kept.exact
    assert names(*range(22, 34)) <= kept.images  # the pinned one's chain


@given(
    st.integers(1, 120),
    st.integers(2, 10),
    st.integers(2, 4),
    st.integers(1, 12),
    st.sets(st.integers(1, 120), max_size=5),
)
def test_no_live_chain_is_broken_and_every_anchor_is_exact(
    length: int, keep_last: int, keep_exact: int, baked_after: int, pinned: set[int]
) -> None:
    """Retention after every cycle of a run, whatever the settings: each image that is left has all links of its chain,
    and every anchor that the watchdog may go back to, two before A1 included, has its exact state."""
    settings = Retention(keep_last, 50, keep_exact, 30, baked_after)
    present = {"base": checkpoint(0)}
    lineage = [present["base"]]
    for number in range(1, length + 1):
        new = replace(checkpoint(number), pinned=number in pinned)
        present[new.version] = new
        lineage = [present.get(c.version, replace(c, state=CheckpointState.PRUNED)) for c in (new, *lineage)]
        kept = retained(list(present.values()), lineage, (), settings)
        present = {
            version: replace(found, exact=version in kept.exact)
            for version, found in present.items()
            if version in kept.images
        }
        lineage = [present.get(c.version, replace(c, state=CheckpointState.PRUNED)) for c in lineage]
        for found in present.values():
            if found.kind is CheckpointKind.DELTA:
                assert found.parent_version in present
        expected = {depth // baked_after * baked_after for depth in range(number)}
        newest = max(0, number // baked_after - 1) * baked_after
        wanted = [depth for depth in (newest, newest - baked_after, newest - 2 * baked_after) if depth > 0]
        assert {a.depth for a in anchors(lineage, baked_after)} >= set(wanted) & expected
        assert lineage[0].exact and name(0) in present

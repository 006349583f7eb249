"""What is left to delete at a start is deleted, and what cannot be deleted does not stop it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_files import flip
from small_run import Small

from daemon.cycle.mending import mend
from daemon.cycle.recover import _tidy
from daemon.cycle.retain import retain
from daemon.domain import failpoints
from daemon.domain.retention import Retention
from daemon.domain.states import CheckpointKind, CheckpointState


@pytest.fixture(autouse=True)
def _no_failpoints() -> Iterator[None]:
    yield
    failpoints.activate({})


def test_a_rotten_manifest_does_not_stop_the_start(tmp_path: Path) -> None:
    """One bit of an old lossy checkpoint's manifest is flipped: it is said, and the other removals are finished."""
    small = Small(tmp_path, 4)
    small.make_lossy(1)
    small.rows.made_lossy("cycle-000002")  # killed before the files went
    flip(small.file(1, "manifest.json"), 200)
    _tidy(small.stages)
    assert [told["version"] for told in small.rows.named("not_removed")] == ["cycle-000001"]
    assert not small.file(2, "model.safetensors").exists()


def test_a_full_disk_does_not_keep_what_fills_it(tmp_path: Path) -> None:
    """No marker can be written: retention frees the exact state all the same and says what is left to do; a start on
    the full disk goes on, and one with room finishes it."""
    small = Small(tmp_path, 6)
    failpoints.activate({"store.fsync": "ENOSPC"})
    retain(small.stages)
    lossy = [c.version for c in small.rows.checkpoints() if not c.exact]
    assert lossy == ["cycle-000001", "cycle-000003"]  # anchors are the second and the fourth
    for version in lossy:
        assert sorted(path.name for path in small.store.path(version).iterdir()) == ["image.delta", "manifest.json"]
        small.store.check(small.rows.checkpoint(version))
    _tidy(small.stages)
    failpoints.activate({})
    _tidy(small.stages)
    assert all(small.store.is_lossy(version) for version in lossy)
    assert {told["version"] for told in small.rows.named("not_removed")} == set(lossy)


def test_exact_state_stays_until_its_image_is_proven(tmp_path: Path) -> None:
    """A link rotted and was set aside: what is above it keeps its exact state, told once, and is deleted as a whole
    when nobody wants its image any more; a keyframe has made the newer ones independent of it."""
    small = Small(tmp_path, 6)
    stages = replace(small.stages, retention=Retention(3, 50, 1, 30, 10), baked_after=10)
    small.make_lossy(1, 2, 3, 4)
    flip(small.file(3, "image.delta"), 50)
    mend(stages, small[3], "it rotted")
    assert small[3].state is CheckpointState.PRUNED
    small.step(2)
    retain(stages)
    retain(stages)
    assert small[7].kind is CheckpointKind.KEYFRAME
    assert small[6].exact and small.file(6, "model.safetensors").exists() and not small[7].exact
    assert [told["version"] for told in small.rows.named("not_removed")] == ["cycle-000005", "cycle-000006"]
    small.step(2)
    retain(stages)
    assert small[6].state is CheckpointState.PRUNED and not small.store.exists("cycle-000006")
    small.store.open(small[9])

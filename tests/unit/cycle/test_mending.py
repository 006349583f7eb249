"""What a damaged checkpoint means for those that need it, and what is done about it."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint_files import flip
from small_run import Small
from upkeep_fakes import Mirror

from daemon.cycle.mending import HeadDamagedError, make_loadable, mend
from daemon.domain import failpoints
from daemon.domain.errors import CheckpointError
from daemon.domain.states import CheckpointKind, CheckpointState


def test_a_damaged_link_of_a_lossy_head_is_fetched(tmp_path: Path) -> None:
    """The head is an image, a bit of its grandparent's delta is flipped: this one comes back, and the head loads."""
    mirror = Mirror(tmp_path / "mirror")
    small = Small(tmp_path, 4, mirror)
    small.make_lossy(1, 2, 3)
    small.rows.head_version = "cycle-000003"
    mirror.push(small.store.path("cycle-000001"))
    flip(small.file(1, "image.delta"), 50)
    make_loadable(small.stages, small[3])
    assert [payload["version"] for payload in small.rows.named("checkpoint_restored")] == ["cycle-000001"]
    small.store.image(small[3])


def test_a_damaged_link_of_a_lossy_head_stays_and_stops_training(tmp_path: Path) -> None:
    """Without a mirror the link is not set aside: it is the head that is lost with it, whoever reads it first."""
    small = Small(tmp_path, 4)
    small.make_lossy(1, 2, 3)
    small.rows.head_version = "cycle-000003"
    flip(small.file(1, "image.delta"), 50)
    with pytest.raises(HeadDamagedError, match="cycle-000001"):
        make_loadable(small.stages, small[3])
    with pytest.raises(HeadDamagedError, match="cycle-000001"):
        mend(small.stages, small[1], "the scrub found it")
    assert small[1].state is CheckpointState.PROMOTED and small.file(1, "image.delta").exists()


def test_an_exact_row_with_an_image_alone_is_mended(tmp_path: Path) -> None:
    """An older database came back: the row says exact, the files are lossy. Nothing loads it; mending corrects it."""
    small = Small(tmp_path, 4)
    small.store.make_lossy("cycle-000002")
    with pytest.raises(CheckpointError, match="only its image is there"):
        small.store.open(small[2])
    mend(small.stages, small[2], "only its image is there")
    assert not small[2].exact
    small.store.open(small[2])


def test_a_rotten_image_does_not_cost_sound_exact_state(tmp_path: Path) -> None:
    """A bit of the head's delta is flipped: it stays and trains on, the image is set aside, and the next checkpoint is
    a keyframe, which stands without it."""
    small = Small(tmp_path, 3)
    before = small.file(3, "model.safetensors").read_bytes()
    flip(small.file(3, "image.delta"), 50)
    became = mend(small.stages, small[3], "image.delta rotted")
    assert "its exact state is sound" in became
    assert small[3].exact and small.file(3, "model.safetensors").read_bytes() == before
    small.store.open(small[3])
    small.step(2)
    assert small[4].kind is CheckpointKind.KEYFRAME
    small.make_lossy(4)
    small.store.open(small[4])


@pytest.mark.parametrize("exact", [True, False])
def test_a_rotten_image_comes_back_alone(tmp_path: Path, exact: bool) -> None:
    """The mirror has all of an anchor, or its image alone: either way the image comes from there, and the exact state
    here is not exchanged for anything."""
    mirror = Mirror(tmp_path / "mirror", exact=exact)
    small = Small(tmp_path, 3, mirror)
    mirror.push(small.store.path("cycle-000002"))
    weights = small.file(2, "model.safetensors").stat().st_ino
    flip(small.file(2, "image.delta"), 50)
    assert mend(small.stages, small[2], "image.delta rotted") == "restored from the mirror"
    assert small[2].exact and small.file(2, "model.safetensors").stat().st_ino == weights
    small.store.check(small[2])
    small.store.image(small[2])


def test_a_copy_that_cannot_be_put_in_place_leaves_what_was_there(tmp_path: Path) -> None:
    """The last rename fails: the damaged directory, which may be all there is, has its name again."""
    mirror = Mirror(tmp_path / "mirror")
    small = Small(tmp_path, 3, mirror)
    mirror.push(small.store.path("cycle-000002"))
    flip(small.file(2, "model.safetensors"), 500)
    damaged = small.file(2, "model.safetensors").read_bytes()
    failpoints.activate({"store.rename": "EIO"})
    try:
        assert mend(small.stages, small[2], "it rotted").startswith("it stays where it is")
    finally:
        failpoints.activate({})
    assert small.file(2, "model.safetensors").read_bytes() == damaged

"""Images come back bit for bit from their chains, with or without the exact state, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stepped_run import Run, Stepped, assert_same

from daemon.checkpoints import store
from daemon.checkpoints.manifest import read_manifest
from daemon.domain import failpoints
from daemon.domain.errors import CheckpointError, DiskError, DreamdError
from daemon.domain.records import Checkpoint
from daemon.domain.states import CheckpointKind


def test_every_image_comes_back_bit_for_bit(tmp_path: Path) -> None:
    """Nine steps with a keyframe after four deltas: each image equals its weights in bfloat16, lossy or not."""
    run = Run(tmp_path, 9, keyframe_every=4)
    assert run.kinds() == ["full", *["delta"] * 4, "keyframe", *["delta"] * 4]
    assert [checkpoint.chain_length for checkpoint in run.checkpoints] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    for checkpoint in run.checkpoints[1:]:
        run.store.make_lossy(checkpoint.version)
    for checkpoint, weights in zip(run.checkpoints, run.weights, strict=True):
        assert_same(run.store.image(checkpoint), weights)
    assert run.store.chain("cycle-000004") == ["base", *(f"cycle-{n:06d}" for n in range(1, 5))]
    assert run.store.chain("cycle-000007") == ["cycle-000005", "cycle-000006", "cycle-000007"]


def test_unknown_changes_make_a_keyframe(tmp_path: Path) -> None:
    """A delta is never guessed: what nobody recorded is written whole."""
    run = Run(tmp_path, 1)
    run.step(known=False)
    assert run.kinds() == ["full", "delta", "keyframe"]
    assert_same(run.store.image(run.checkpoints[2]), run.weights[2])


def test_a_chain_as_large_as_half_a_keyframe_ends(tmp_path: Path) -> None:
    """Steps that change a fifth of the weights: the deltas of a chain stay below half of the image."""
    run = Run(tmp_path, 8, share=0.2)
    assert run.kinds().count("keyframe") >= 1
    half = sum(tensor.numel() for tensor in run.weights[0].values())
    for checkpoint in run.checkpoints:
        assert read_manifest(tmp_path / checkpoint.version).chain_bytes <= half


def test_lossy_is_no_damage_and_is_told_apart_from_it(tmp_path: Path) -> None:
    """Exact files deleted by retention verify; deleted by anybody else they do not. The manifest does not change."""
    run = Run(tmp_path, 2)
    one, two = run.checkpoints[1:]
    run.store.make_lossy(one.version)
    run.store.make_lossy(one.version)
    assert run.store.verify(one.version) == one and run.store.is_lossy(one.version)
    assert sorted(file.name for file in (tmp_path / one.version).iterdir()) == [
        "image.delta", "lossy", "manifest.json",
    ]  # fmt: skip
    (tmp_path / two.version / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        run.store.verify(two.version)


def test_killed_between_marker_and_deletion_is_finished_later(tmp_path: Path) -> None:
    """With the marker alone the checkpoint verifies, and the next call deletes what is left."""
    run = Run(tmp_path, 1)
    (tmp_path / "cycle-000001" / "lossy").write_text("")
    assert run.store.verify("cycle-000001") == run.checkpoints[1]
    run.store.make_lossy("cycle-000001")
    assert not (tmp_path / "cycle-000001" / "model.safetensors").exists()


def test_the_base_cannot_lose_its_exact_state(tmp_path: Path) -> None:
    """Nothing would be left of it."""
    run = Run(tmp_path, 0)
    with pytest.raises(DreamdError, match="nothing would be left"):
        run.store.make_lossy("base")
    assert run.store.verify("base") == run.checkpoints[0]


@pytest.mark.parametrize("link", ["cycle-000001", "cycle-000002", "base"])
def test_a_flipped_bit_anywhere_in_the_chain_is_named(tmp_path: Path, link: str) -> None:
    """The third image is refused when one bit of any file that it is made of is another one."""
    run = Run(tmp_path, 3)
    file = tmp_path / link / ("model.safetensors" if link == "base" else "image.delta")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=link):
        run.store.image(run.checkpoints[3])


def test_a_missing_or_foreign_link_is_named(tmp_path: Path) -> None:
    """A chain whose middle is gone, or was made from something else, gives no image."""
    run, other = Run(tmp_path / "a", 3), Run(tmp_path / "b", 3, share=0.5)
    run.store.quarantine("cycle-000002")
    with pytest.raises(CheckpointError, match="cycle-000002"):
        run.store.image(run.checkpoints[3])
    (other.root / "cycle-000002").rename(run.root / "cycle-000002")
    with pytest.raises(CheckpointError, match="not the parent"):
        run.store.image(run.checkpoints[3])


def test_a_publication_beside_other_work_gives_the_same(tmp_path: Path) -> None:
    """`begin` returns before it is done; its result is what `publish` would have returned, errors included."""
    run = Run(tmp_path, 1)
    snapshot = Stepped(run.weights[1], run.weights[1])
    settings: dict[str, Any] = {"cycle_number": 2, "parent": run.checkpoints[1], "batch_hash": "b", "step": None}
    published = run.store.begin("cycle-000002", snapshot, **settings).result()
    assert run.store.verify("cycle-000002") == published
    with pytest.raises(CheckpointError, match="already published"):
        run.store.begin("cycle-000002", snapshot, **settings).result()


def test_room_is_looked_for_in_advance(tmp_path: Path) -> None:
    """Twice the last checkpoint's size must be free; the error says how much there is and what to lower."""
    run = Run(tmp_path, 0)
    run.store.check_room(run.checkpoints[0])
    huge = Checkpoint("huge", 1, "base", "b", "r", "w", "o", 2**60)
    with pytest.raises(DiskError, match=r"MiB are free.*keep_last"):
        run.store.check_room(huge)


def test_kinds_are_as_the_manifest_says(tmp_path: Path) -> None:
    """The record of a checkpoint has its kind, the size of its image and its digest."""
    run = Run(tmp_path, 1)
    checkpoint = run.checkpoints[1]
    assert checkpoint.kind is CheckpointKind.DELTA and checkpoint.image_digest is not None
    assert checkpoint.image_bytes == (tmp_path / "cycle-000001" / "image.delta").stat().st_size
    assert run.checkpoints[0].image_digest is None and run.checkpoints[0].image_bytes == 0


def test_open_proves_that_it_would_load(tmp_path: Path) -> None:
    """Exact ones need their exact state and no image, lossy ones every link of the chain; `check` reads all of it."""
    run = Run(tmp_path, 3)
    one, two, three = run.checkpoints[1:]
    run.store.make_lossy(three.version)
    with pytest.raises(CheckpointError, match=r"cycle-000003: only its image is there"):
        run.store.open(three)
    with pytest.raises(CheckpointError, match=r"cycle-000003: only its image is there"):
        run.store.check(three)
    lossy = replace(three, exact=False)
    assert run.store.open(lossy) == tmp_path / three.version
    (tmp_path / two.version / "image.delta").write_bytes(b"rotten")
    assert run.store.open(two) == tmp_path / two.version
    for refused in (lambda: run.store.check(two), lambda: run.store.open(lossy)):
        with pytest.raises(CheckpointError, match=r"cycle-000002/image\.delta"):
            refused()
    run.store.check(lossy)
    with pytest.raises(CheckpointError, match="another run"):
        run.store.open(replace(one, root_hash="0" * 64))


def test_a_publication_that_fails_after_its_rename_is_taken_back(tmp_path: Path) -> None:
    """The parent directory cannot be synced: the cycle is told as lost, so nothing of it may be found later."""
    run = Run(tmp_path, 2)
    failpoints.activate({"store.fsync": "EIO@6"})  # four files, their directory, its parent
    try:
        with pytest.raises(DiskError):
            run.step()
    finally:
        failpoints.activate({})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "cycle-000001", "cycle-000002"]


def test_a_large_step_writes_no_delta_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than half of the words changed: it is a keyframe at once, and no delta is ever made in memory."""
    run = Run(tmp_path, 1)
    run.share = 0.9
    monkeypatch.setattr(store, "write_delta", None)  # calling it fails
    run.step()
    assert run.kinds() == ["full", "delta", "keyframe"]
    assert_same(run.store.image(run.checkpoints[2]), run.weights[2])

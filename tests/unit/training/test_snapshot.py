"""Snapshots of the live policy: what a step changed, writing beside other work, staleness, and lossy checkpoints."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_model import build_tiny_model
from tiny_policies import Folders, batch, build, publish, unnamed, words
from torch import Tensor

from daemon.checkpoints.manifest import hash_file
from daemon.config.sections import TrainingConfig
from daemon.domain.errors import CheckpointError, DreamdError, NonFiniteError
from daemon.domain.records import Checkpoint, PolicyDigests, WrittenState
from daemon.ports import Changes
from daemon.training.digest import tensors_digest
from daemon.training.inspector import TorchInspector
from daemon.training.policy import TorchPolicy
from daemon.training.snapshot import OPTIMIZER_FILE, WEIGHTS_FILE, TorchSnapshot

PRECISIONS = ["fp32", "bf16-stochastic"]
OPTIMIZERS = ["adamw", "apollo", "apollo_mini"]
ITEM = ((5, 17, 9, 30), (4, 8, 1))

Image = dict[str, np.ndarray]
"""bfloat16 words by parameter name, flat."""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def image_of(policy: TorchPolicy) -> Image:
    return {name: words(weight) for name, weight in policy.weights().items()}


def changes_of(policy: TorchPolicy) -> dict[str, Changes]:
    changes = policy.snapshot().changes
    assert changes is not None
    return dict(changes)


def assert_changes_lead(before: Image, changes: dict[str, Changes], after: Image) -> int:
    """The changes are exactly the words in which two images differ, and the new words there; returns how many."""
    assert list(changes) == list(before) == list(after)
    for name, change in changes.items():
        assert (change.positions.dtype, change.words.dtype) == (torch.int64, torch.int16)
        (expected,) = np.nonzero(before[name] != after[name])
        np.testing.assert_array_equal(change.positions.numpy(), expected)
        np.testing.assert_array_equal(change.words.numpy(), after[name][expected])
    return sum(len(change.positions) for change in changes.values())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_changes_are_the_words_that_differ(model_dir: Path, tmp_path: Path, optimizer: str, precision: str) -> None:
    """They equal an independent comparison of rounded words before and after, and the report counts the same."""
    policy = build(model_dir, Folders(tmp_path), optimizer=optimizer, precision=precision, rank=8)
    before = image_of(policy)
    report = policy.step(batch(model_dir, 1, "base"))
    num_changed = assert_changes_lead(before, changes_of(policy), image_of(policy))
    assert num_changed > 0
    assert report.bf16_changed == num_changed / sum(map(len, before.values()))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_images_follow_from_changes_over_restores(
    model_dir: Path, tmp_path: Path, optimizer: str, precision: str
) -> None:
    """Five steps, rollbacks between some: each checkpoint's image is its parent's, overwritten with its changes."""
    store = Folders(tmp_path / "checkpoints")
    policy = build(model_dir, store, optimizer=optimizer, precision=precision, rank=8, lr=1e-4)
    saved = {"base": publish(store, policy, "base")}
    images = {"base": image_of(policy)}
    # The candidates of 2 and 4 are refused: a step from what was rolled back to is relative to that.
    for number, parent in ((1, "base"), (2, "v1"), (3, "v1"), (4, "v3"), (5, "base")):
        if policy.version != parent:
            policy.restore(saved[parent])
        policy.step(batch(model_dir, number, parent))
        built = {name: image.copy() for name, image in images[parent].items()}
        for name, change in changes_of(policy).items():
            built[name][change.positions.numpy()] = change.words.numpy()
        saved[f"v{number}"] = publish(store, policy, f"v{number}", saved[parent])
        images[f"v{number}"] = image_of(policy)
        for name, image in images[f"v{number}"].items():
            np.testing.assert_array_equal(built[name], image)


def test_a_parameter_that_is_not_trained_has_no_changes(model_dir: Path, tmp_path: Path) -> None:
    """Every parameter is named, also one without a gradient, which the optimizer passes over."""
    policy = build(model_dir, Folders(tmp_path), lr=1e-4)
    dict(policy.model.named_parameters())["model.layers.0.mlp.up_proj.weight"].requires_grad_(False)
    before = image_of(policy)
    policy.step(batch(model_dir, 1, "base"))
    changes = changes_of(policy)
    assert_changes_lead(before, changes, image_of(policy))
    assert len(changes["model.layers.0.mlp.up_proj.weight"].positions) == 0


def test_changes_are_unknown_rather_than_wrong(model_dir: Path, tmp_path: Path) -> None:
    """None before a step, after `adopt`, after a second step without it, and from weights that are no checkpoint's."""
    store = Folders(tmp_path / "checkpoints")
    fresh = unnamed(model_dir, store)
    assert fresh.snapshot().changes is None
    fresh.step(batch(model_dir, 1, ""))
    assert fresh.snapshot().changes is None

    policy = build(model_dir, store)
    assert policy.snapshot().changes is None
    saved = publish(store, policy, "base")
    policy.step(batch(model_dir, 1, "base"))
    assert policy.snapshot().changes is not None
    policy.step(batch(model_dir, 2, "base"))
    assert policy.snapshot().changes is None
    policy.adopt("v2")
    assert policy.snapshot().changes is None
    policy.step(batch(model_dir, 3, "v2"))
    assert policy.snapshot().changes is not None
    policy.adopt("v3")
    assert policy.snapshot().changes is None
    policy.restore(saved)
    assert policy.snapshot().changes is None
    policy.step(batch(model_dir, 4, "base"))
    assert policy.snapshot().changes is not None


def test_a_step_that_breaks_off_leaves_nothing_known(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory half-way through the weights: earlier snapshots are stale, and changes stay unknown until the next
    restore, another step in between or not."""
    store = Folders(tmp_path / "checkpoints")
    policy = build(model_dir, store)
    saved = publish(store, policy, "base")
    earlier = policy.snapshot()
    calls: list[Tensor] = []
    dot = torch.Tensor.dot

    def fails_late(self: Tensor, other: Tensor) -> Tensor:
        calls.append(self)
        if len(calls) == 20:
            raise torch.OutOfMemoryError("no memory")
        return dot(self, other)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "dot", fails_late)
        with pytest.raises(torch.OutOfMemoryError):
            policy.step(batch(model_dir, 1, "base"))
    assert policy.digests().weights != saved.weights_digest
    assert policy.snapshot().changes is None
    with pytest.raises(DreamdError, match="stepped or restored"):
        earlier.write(tmp_path)
    policy.step(batch(model_dir, 2, "base"))
    assert policy.snapshot().changes is None
    policy.restore(saved)
    before = image_of(policy)
    policy.step(batch(model_dir, 3, "base"))
    assert_changes_lead(before, changes_of(policy), image_of(policy))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_snapshot_is_written_right_while_the_weights_are_swapped(
    model_dir: Path, tmp_path: Path, precision: str, optimizer: str
) -> None:
    """Twenty writes while another thread keeps entering and leaving the base's weights, and scores with them: each is
    bit for bit the live policy."""
    store = Folders(tmp_path / "checkpoints")
    policy = build(model_dir, store, precision=precision, optimizer=optimizer, rank=8, lr=1e-3, allow_unsafe_lr=True)
    base = publish(store, policy, "base")
    policy.step(batch(model_dir, 1, "base"))
    expected, snapshot = policy.digests(), policy.snapshot()
    assert expected.weights != base.weights_digest
    stop, swapped = threading.Event(), threading.Semaphore(0)

    def borrow() -> None:
        while not stop.is_set():
            with policy.borrowed(base):
                swapped.release()
                policy.score(*ITEM)

    thread = threading.Thread(target=borrow)
    thread.start()
    try:
        for number in range(20):
            assert swapped.acquire(timeout=60)  # the weights are swapped at least once for each write
            directory = tmp_path / str(number)
            directory.mkdir()
            written = snapshot.write(directory)
            assert written == WrittenState(expected, {file.name: hash_file(file) for file in directory.iterdir()})
            files = (load_file(directory / name) for name in (WEIGHTS_FILE, OPTIMIZER_FILE))
            assert PolicyDigests(*map(tensors_digest, files)) == expected
            assert tensors_digest(snapshot.weights) == expected.weights
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()
    assert policy.digests() == expected


def test_a_snapshot_copies_nothing(model_dir: Path, tmp_path: Path) -> None:
    """Its weights are the live memory, each tied tensor once."""
    policy = build(model_dir, Folders(tmp_path))
    live = {name: parameter.data_ptr() for name, parameter in policy.model.named_parameters()}
    assert {name: weight.data_ptr() for name, weight in policy.snapshot().weights.items()} == live


@pytest.mark.parametrize("moved_by", ["step", "exact restore", "lossy restore"])
def test_a_stale_snapshot_is_refused(model_dir: Path, tmp_path: Path, moved_by: str) -> None:
    """After a step or a restore, even to the same checkpoint, neither files nor weights come out of it any more."""
    store = Folders(tmp_path / "checkpoints")
    policy = build(model_dir, store)
    base = publish(store, policy, "base")
    snapshot = policy.snapshot()
    if moved_by == "step":
        policy.step(batch(model_dir, 1, "base"))
    else:
        policy.restore(base if moved_by == "exact restore" else replace(base, exact=False))
    (tmp_path / "late").mkdir()
    with pytest.raises(DreamdError, match="stepped or restored"):
        snapshot.write(tmp_path / "late")
    with pytest.raises(DreamdError, match="stepped or restored"):
        _ = snapshot.weights
    assert list((tmp_path / "late").iterdir()) == []


def test_a_snapshot_outlives_what_moves_nothing(model_dir: Path, tmp_path: Path) -> None:
    """Adopting a version, a step and a restore that are refused: nothing moved, so it is current, and right."""
    store = Folders(tmp_path / "checkpoints")
    policy = build(model_dir, store)
    base = publish(store, policy, "base")
    snapshot, expected = policy.snapshot(), policy.digests()
    policy.adopt("v1")
    tensor = dict(policy.model.named_parameters())["model.norm.weight"]
    planted = tensor.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NonFiniteError):
        policy.step(batch(model_dir, 1, "v1"))
    planted.remove()
    with pytest.raises(CheckpointError):
        policy.restore(replace(base, weights_digest="another"))
    policy.score(*ITEM)
    assert snapshot.write(tmp_path).digests == expected


def test_a_snapshot_that_goes_stale_while_it_is_written_is_refused(tmp_path: Path) -> None:
    """A step that begins after the first bytes could tear it: what was written does not count."""
    answers = iter([True, False])
    weights = {"weight": torch.ones(3)}
    snapshot = TorchSnapshot(weights, {}, "apollo", None, is_current=lambda: next(answers))
    with pytest.raises(DreamdError, match="stepped or restored"):
        snapshot.write(tmp_path)


# --- lossy checkpoints -------------------------------------------------------------------------------------


def lossy_run(model_dir: Path, tmp_path: Path, **training: object) -> tuple[Folders, TorchPolicy, Checkpoint, Image]:
    """A policy that went on from v1, of which only the image is left; the image's words."""
    store = Folders(tmp_path / "checkpoints")
    policy = build(model_dir, store, lr=1e-4, rank=8, **training)
    publish(store, policy, "base")
    policy.step(batch(model_dir, 1, "base"))
    image = image_of(policy)
    saved = store.make_lossy(publish(store, policy, "v1"))
    policy.step(batch(model_dir, 2, "v1"))
    policy.adopt("v2")
    return store, policy, saved, image


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_lossy_restore_continues_from_the_image(
    model_dir: Path, tmp_path: Path, optimizer: str, precision: str
) -> None:
    """The weights are the image, every bit; the optimizer is that of a new policy on these weights, and so is the step
    that follows; its changes are relative to the image."""
    store, policy, saved, image = lossy_run(model_dir, tmp_path, optimizer=optimizer, precision=precision)
    policy.restore(saved)
    assert policy.version == "v1"
    for name, weight in policy.weights().items():
        exact = torch.from_numpy(image[name].copy()).view(torch.bfloat16).view(weight.shape).to(weight.dtype)
        assert torch.equal(weight, exact), name

    policy.model.save_pretrained(tmp_path / "image model")
    new = build(tmp_path / "image model", store, optimizer=optimizer, precision=precision, rank=8, lr=1e-4)
    new.adopt("v1")
    assert policy.digests() == new.digests()
    for live in (policy, new):
        live.step(batch(model_dir, 3, "v1"))
    assert policy.digests() == new.digests()
    assert assert_changes_lead(image, changes_of(policy), image_of(policy)) > 0


def test_after_a_lossy_restore_exact_state_is_kept_again(model_dir: Path, tmp_path: Path) -> None:
    """What is published from there on is restored bit for bit, by another policy too."""
    store, policy, saved, _ = lossy_run(model_dir, tmp_path)
    policy.restore(saved)
    policy.step(batch(model_dir, 3, "v1"))
    v3 = publish(store, policy, "v3", saved)
    other = build(model_dir, store, lr=1e-4, rank=8)
    other.restore(v3)
    assert other.digests() == policy.digests()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_lossy_anchor_is_borrowed_from_its_image(model_dir: Path, tmp_path: Path, precision: str) -> None:
    """Inside, the policy scores as one that was restored from the image; afterwards as before. KL to it works."""
    store, policy, saved, _ = lossy_run(model_dir, tmp_path, precision=precision)
    restored = build(model_dir, store, precision=precision)
    restored.restore(saved)
    before = policy.digests(), policy.score(*ITEM)
    with policy.borrowed(saved):
        assert policy.score(*ITEM) == restored.score(*ITEM) != before[1]
    assert (policy.digests(), policy.score(*ITEM)) == before
    assert TorchInspector(restored).kl(saved, [ITEM]).values == (0.0,)
    (moved,) = TorchInspector(policy).kl(saved, [ITEM]).values
    assert moved is not None and moved > 0


@pytest.mark.parametrize("damage", ["no images", "other shape", "missing", "does not verify"])
def test_an_image_that_cannot_be_used_changes_nothing(model_dir: Path, tmp_path: Path, damage: str) -> None:
    """Nobody to ask for images, an image of another model, or a chain that does not verify: refused, by name, before
    weights, optimizer, version or snapshots change; borrowing likewise."""
    store, _, saved, _ = lossy_run(model_dir, tmp_path)

    def bad_image(checkpoint: Checkpoint) -> dict[str, Tensor]:
        if damage == "does not verify":
            raise CheckpointError("v1: a link of its chain does not verify")
        image = dict(store.image(checkpoint))
        last = list(image)[-1]
        image.pop(last)
        return image if damage == "missing" else {**image, last: torch.zeros(7, dtype=torch.bfloat16)}

    open_image = None if damage == "no images" else bad_image
    policy = TorchPolicy(model_dir, TrainingConfig(), "cpu", store.open, open_image=open_image)
    policy.adopt("base")
    policy.step(batch(model_dir, 1, "base"))
    snapshot, before = policy.snapshot(), (policy.digests(), policy.version, policy.score(*ITEM))
    with pytest.raises(CheckpointError, match=r"^v1: (lossy|its weights are not this model's|a link)"):
        policy.restore(saved)
    with pytest.raises(CheckpointError, match=r"^v1: "), policy.borrowed(saved):
        pass
    assert (policy.digests(), policy.version, policy.score(*ITEM)) == before
    snapshot.write(tmp_path)

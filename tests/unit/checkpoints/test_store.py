"""Publishing is all or nothing, and what is damaged is never read as if it were whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from daemon.checkpoints.manifest import read_manifest
from daemon.checkpoints.store import DirectoryStore
from daemon.domain.errors import CheckpointError, DiskError, PermissionDeniedError
from daemon.domain.records import Checkpoint, PolicyDigests, StepReport, WrittenState

STEP = StepReport(
    "orpo", "adamw", 1e-5, 1.0, 0.9, 0.7, -0.9, -1.1, 0.3, 0.2, 1.5, 1e-5, 2, 1, 40, {"update": 0.1},
    ((-0.9, -1.1), (-0.8, None)),
)  # fmt: skip


class Fake:
    """Mirrors `ports.Snapshot`: writes two files, fails if told to; has no parameters."""

    weights: Mapping[str, Any] = {}
    changes: Mapping[str, Any] | None = None

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    def write(self, directory: Path) -> WrittenState:
        (directory / "model.safetensors").write_bytes(b"w" * 1000)
        (directory / "optimizer.state").write_bytes(b"o" * 500)
        if self.error is not None:
            raise self.error
        return WrittenState(PolicyDigests("w", "o"))


def publish(store: DirectoryStore, version: str = "cycle-000001", parent: Checkpoint | None = None) -> Checkpoint:
    return store.publish(version, Fake(), cycle_number=1, parent=parent, batch_hash="b", step=STEP)


def test_published_checkpoint_verifies_and_keeps_its_step(tmp_path: Path) -> None:
    """What publish returns is what verify reads back, lineage and step included."""
    store = DirectoryStore(tmp_path)
    base = store.publish("base", Fake(), cycle_number=None, parent=None, batch_hash=None, step=None)
    checkpoint = publish(store, parent=base)
    assert store.verify("cycle-000001") == checkpoint
    assert checkpoint.parent_version == "base"
    assert checkpoint.size_bytes == 1500 + checkpoint.image_bytes
    assert store.parent_root_hash("cycle-000001") == base.root_hash
    assert store.step_report("cycle-000001") == STEP
    assert store.open(checkpoint) == tmp_path / "cycle-000001"


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "zero tail"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.state"])
def test_damaged_blob_is_named(tmp_path: Path, damage: str, name: str) -> None:
    """A flipped bit, a short file, a zeroed tail or a missing file never verifies."""
    store = DirectoryStore(tmp_path)
    publish(store)
    file = tmp_path / "cycle-000001" / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[17] ^= 0b100
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-1])
    elif damage == "zero tail":
        file.write_bytes(content[:-100] + bytes(100))
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match=name):
        store.verify("cycle-000001")


def test_altered_manifest_is_refused(tmp_path: Path) -> None:
    """Changing lineage in the manifest breaks its root hash."""
    store = DirectoryStore(tmp_path)
    publish(store)
    path = tmp_path / "cycle-000001" / "manifest.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "batch_hash": "another"}))
    with pytest.raises(CheckpointError, match="root hash"):
        store.verify("cycle-000001")
    path.write_text(path.read_text()[:40])
    with pytest.raises(CheckpointError, match="not a manifest"):
        store.verify("cycle-000001")


def test_copied_directory_is_not_another_version(tmp_path: Path) -> None:
    """A directory renamed by hand does not pass for the checkpoint of that name."""
    store = DirectoryStore(tmp_path)
    publish(store)
    (tmp_path / "cycle-000001").rename(tmp_path / "cycle-000002")
    with pytest.raises(CheckpointError, match="moved or copied"):
        store.verify("cycle-000002")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_write_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    """A full disk, or an interruption, in the middle of writing leaves no file behind."""
    store = DirectoryStore(tmp_path)

    with pytest.raises((DiskError, KeyboardInterrupt)):
        store.publish("cycle-000001", Fake(error), cycle_number=1, parent=None, batch_hash=None, step=None)
    assert list(tmp_path.iterdir()) == []


def test_a_version_is_written_once(tmp_path: Path) -> None:
    """Publishing over a published checkpoint is refused and changes nothing."""
    store = DirectoryStore(tmp_path)
    checkpoint = publish(store)
    with pytest.raises(CheckpointError, match="already published"):
        publish(store)
    assert store.verify("cycle-000001") == checkpoint


def test_clean_removes_temporaries_and_keeps_the_unknown(tmp_path: Path) -> None:
    """Temporary directories go; an unknown directory is set aside whole, never deleted; known ones stay."""
    store = DirectoryStore(tmp_path)
    publish(store)
    publish(store, "cycle-000002")
    (tmp_path / ".tmp-cycle-000003").mkdir()
    assert store.clean(["cycle-000001"]) == ["cycle-000002"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cycle-000001", "quarantine"]
    (aside,) = (tmp_path / "quarantine").iterdir()
    assert (aside / "model.safetensors").read_bytes() == b"w" * 1000
    assert store.clean(["cycle-000001"]) == []


def test_prune_deletes_only_that_version(tmp_path: Path) -> None:
    """Pruning frees one checkpoint; pruning it again is nothing."""
    store = DirectoryStore(tmp_path)
    publish(store)
    publish(store, "cycle-000002")
    store.prune("cycle-000001")
    store.prune("cycle-000001")
    assert [entry.name for entry in tmp_path.iterdir()] == ["cycle-000002"]


def test_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """A state directory that cannot be made is one clear error."""
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(PermissionDeniedError, match="checkpoints"):
        DirectoryStore(tmp_path / "checkpoints")


EARLIER_STEP = {
    "objective": "orpo", "optimizer": "adamw", "lr": 1e-05, "loss": 1.0, "nll": 0.9, "odds_loss": 0.7,
    "chosen_logprob": -0.9, "rejected_logprob": -1.1, "log_odds": 0.3, "margin": 0.2, "grad_norm": 1.5,
    "update_rms": 1e-05, "num_examples": 2, "num_pairs": 1, "num_tokens": 40, "seconds": {"update": 0.1},
    "example_logprobs": [[-0.9, -1.1], [-0.8, None]],
}  # fmt: skip
"""A step as manifests of format 1 held it before phases, precision and the effective update were recorded."""


def write_manifest(directory: Path, step: Mapping[str, Any]) -> tuple[Path, str]:
    """A manifest of no blobs around `step`, and its root hash, by the format's definition."""
    fields = {
        "format": 1, "version": "cycle-000001", "cycle_number": 1, "parent_version": "base",
        "parent_root_hash": "p", "batch_hash": "b", "weights_digest": "w", "optimizer_digest": "o",
        "blobs": {}, "step": step,
    }  # fmt: skip
    root_hash = blake3(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path = directory / "cycle-000001" / "manifest.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**fields, "root_hash": root_hash}, indent=1))
    return path, root_hash


def test_a_manifest_of_an_earlier_program_still_verifies(tmp_path: Path) -> None:
    """Its root hash is over the fields it has; those that came later have their defaults."""
    path, root_hash = write_manifest(tmp_path, EARLIER_STEP)
    store = DirectoryStore(tmp_path)
    assert store.verify("cycle-000001").root_hash == root_hash
    assert store.step_report("cycle-000001") == STEP
    assert json.loads(read_manifest(path.parent).to_json()) == json.loads(path.read_text())


@pytest.mark.parametrize(
    "old, new", [('"loss": 1.0', '"loss": 1.1'), ('"batch_hash": "b"', '"batch_hash": "c"'), ("-0.8", "-0.9")]
)
def test_an_altered_byte_of_an_earlier_manifest_is_noticed(tmp_path: Path, old: str, new: str) -> None:
    """One changed character of a number or text, and the root hash no longer fits."""
    path, _ = write_manifest(tmp_path, EARLIER_STEP)
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(CheckpointError, match="root hash does not fit"):
        DirectoryStore(tmp_path).verify("cycle-000001")


def test_adding_a_later_field_to_an_earlier_manifest_is_noticed(tmp_path: Path) -> None:
    """Even with the value that the field would have had by default."""
    path, _ = write_manifest(tmp_path, EARLIER_STEP)
    path.write_text(path.read_text().replace('"loss": 1.0', '"loss": 1.0, "phase": 1'))
    with pytest.raises(CheckpointError, match="root hash does not fit"):
        DirectoryStore(tmp_path).verify("cycle-000001")


def test_a_step_with_an_unknown_field_is_named(tmp_path: Path) -> None:
    """A manifest of a later program is refused with the name of what is not known, though its hash fits."""
    write_manifest(tmp_path, {**EARLIER_STEP, "dreams": 3})
    with pytest.raises(CheckpointError, match=r"not a manifest .*'dreams'.*newer dreamd"):
        DirectoryStore(tmp_path).verify("cycle-000001")

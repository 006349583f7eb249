"""The checker's own reading of images agrees with the program's writing, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from chaos import images, published
from safetensors.torch import save_file

from daemon.checkpoints.delta import write_delta
from daemon.checkpoints.image import changes_between, image_digest, image_of, write_keyframe

SHAPES = {"embed.weight": (40, 8), "norm.weight": (8,), "scale": ()}
SPECIAL = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 1.00390625, 1.01171875, -1.00390625, 1e-40])
"""Among them two ties: 1.00390625 goes down to 1.0, 1.01171875 up to 1.015625."""


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    found["norm.weight"] = SPECIAL.clone()
    return found


def publish(root: Path, version: str, **fields: object) -> Path:
    directory = root / version
    directory.mkdir()
    manifest = {"version": version, "parent_version": None, "parent_root_hash": None, "root_hash": version, **fields}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def test_full_weights_round_as_torch_rounds(tmp_path: Path) -> None:
    """The image of float32 weights is torch's bfloat16 of them: ties to even, infinities, signed zeros, subnormals."""
    directory = publish(tmp_path, "base")
    save_file(weights(0), directory / "model.safetensors")
    image, length = images.chain_image(tmp_path, "base")
    assert (images.image_digest(image), length) == (image_digest(image_of(weights(0))), 0)
    assert image["norm.weight"][1].tolist() == [0, 0x8000, 0x7F80, 0xFF80, 0x3F80, 0x3F82, 0xBF80, 1]


def test_a_chain_gives_the_image_of_its_end(tmp_path: Path) -> None:
    """A keyframe and two deltas, one of them of a parameter without a change, give the last image."""
    first, second, third = weights(1), weights(1), weights(2)
    second["embed.weight"][3, 1:4] += 1.0
    second["embed.weight"][39, 7] = -7.0
    write_keyframe(publish(tmp_path, "one", kind="keyframe") / images.KEYFRAME, first)
    two = publish(tmp_path, "two", kind="delta", parent_version="one", parent_root_hash="one")
    write_delta(two / images.DELTA, changes_between(image_of(first), second))
    three = publish(tmp_path, "three", kind="delta", parent_version="two", parent_root_hash="two")
    write_delta(three / images.DELTA, changes_between(image_of(second), third))
    for version, expected, length in (("one", first, 0), ("two", second, 1), ("three", third, 2)):
        image, found = images.chain_image(tmp_path, version)
        assert (images.image_digest(image), found) == (image_digest(image_of(expected)), length)


def test_a_chain_through_another_parent_is_refused(tmp_path: Path) -> None:
    """A delta is of one parent only: that of the root hash in its manifest."""
    write_keyframe(publish(tmp_path, "one", kind="keyframe") / images.KEYFRAME, weights(1))
    two = publish(tmp_path, "two", kind="delta", parent_version="one", parent_root_hash="another")
    write_delta(two / images.DELTA, changes_between(image_of(weights(1)), weights(2)))
    with pytest.raises(ValueError, match="one is not the parent"):
        images.chain_image(tmp_path, "two")


def test_an_altered_delta_is_refused(tmp_path: Path) -> None:
    """One flipped bit in a delta, with the manifest none the wiser."""
    write_keyframe(publish(tmp_path, "one", kind="keyframe") / images.KEYFRAME, weights(1))
    two = publish(tmp_path, "two", kind="delta", parent_version="one", parent_root_hash="one")
    write_delta(two / images.DELTA, changes_between(image_of(weights(1)), weights(2)))
    content = bytearray((two / images.DELTA).read_bytes())
    content[40] ^= 1
    (two / images.DELTA).write_bytes(content)
    with pytest.raises(ValueError, match="altered"):
        images.chain_image(tmp_path, "two")


def test_tensors_hash_as_the_program_hashes_them(tmp_path: Path) -> None:
    """The digest of a safetensors file equals the program's digest of the tensors in it, whatever their dtype."""
    from daemon.training.digest import tensors_digest

    tensors = {**weights(3), "step": torch.tensor(7), "half": torch.randn(3, 2).bfloat16(), "empty": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "state")
    assert published.tensors_digest(published.read_tensors(tmp_path / "state")) == tensors_digest(tensors)

"""An image is the weights rounded to bfloat16, and nothing else; its digest tells any two images apart."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from daemon.checkpoints.image import (
    changes_between,
    compare,
    image_digest,
    image_of,
    read_keyframe,
    words_of,
    write_keyframe,
)
from daemon.domain.errors import CheckpointError

NOT_NAN = st.integers(0, 2**32 - 1).filter(lambda bits: (bits & 0x7FFFFFFF) <= 0x7F800000)
BF16_WORDS = st.lists(st.integers(0, 2**16 - 1), max_size=20)


def from_bits(bits: list[int]) -> Tensor:
    return torch.from_numpy(np.array(bits, np.uint32).view(np.float32))


def from_words(words: list[int]) -> Tensor:
    return torch.from_numpy(np.array(words, np.uint16).view(np.int16)).view(torch.bfloat16)


def words(tensor: Tensor) -> list[int]:
    return [word & 0xFFFF for word in words_of(tensor).tolist()]


def nearest_even(bits: int) -> int:
    """The bfloat16 word nearest to a float32 that is no NaN: of two as near, the even one. Integers only."""
    kept, dropped = divmod(bits, 2**16)
    return kept + (dropped > 2**15 or (dropped == 2**15 and kept % 2 == 1))


@given(st.lists(NOT_NAN, max_size=40))
def test_rounds_to_nearest_even(bits: list[int]) -> None:
    """Each word is the nearest one, ties to even: denormals, signed zeros, infinities and overflow included."""
    assert words(image_of({"w": from_bits(bits)})["w"]) == [nearest_even(number) for number in bits]


def test_rounding_by_hand() -> None:
    """1 + 2^-8 is halfway and goes down to even 1; 1 + 3 * 2^-8 goes up; the largest float32 becomes infinite."""
    image = image_of({"w": torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 3.4028235e38, -0.0])})
    assert image["w"].tolist()[:2] == [1.0, 1.015625]
    assert words(image["w"])[2:] == [0x7F80, 0x8000]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_image_shares_no_memory_with_the_weights(dtype: torch.dtype) -> None:
    """Overwriting an image leaves the live weights alone, of either precision."""
    weights = {"w": torch.ones(4, dtype=dtype)}
    image_of(weights)["w"].zero_()
    assert weights["w"].tolist() == [1.0] * 4


def test_image_does_not_depend_on_the_memory_layout() -> None:
    """A transposed or sliced weight has the image of its contiguous copy; parameters that require grad are fine."""
    full = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    for view in (full.T, full[::2, 1::3]):
        weights, copied = {"w": torch.nn.Parameter(view)}, {"w": view.clone(memory_format=torch.contiguous_format)}
        image = image_of(weights)
        assert image["w"].is_contiguous()
        assert torch.equal(image["w"], copied["w"].bfloat16())
        assert image_digest(weights) == image_digest(copied) == image_digest(image)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.integers(0, 3))
def test_digest_is_the_same_straight_from_the_weights(bits: list[int], num_scalars: int) -> None:
    """Of any bits, NaN among them, the streamed digest is that of the image; empty and scalar ones included."""
    weights = {"w": from_bits(bits), **{f"s{i}": torch.tensor(float(i)) for i in range(num_scalars)}}
    assert image_digest(weights) == image_digest(image_of(weights))


@pytest.mark.parametrize("rounded_at_once", [1, 2**15])
def test_digest_is_what_its_description_says(monkeypatch: pytest.MonkeyPatch, rounded_at_once: int) -> None:
    """BLAKE3 of JSON line and little-endian words per parameter in name order, by hand; hashed at once or in pieces."""
    monkeypatch.setattr("daemon.checkpoints.image._ROUNDED_AT_ONCE", rounded_at_once)
    image = {"b\n": from_words([0x7FC1, 0x8000]).view(2, 1), "a": from_words([0x3F80]).view(()), "ö": from_words([])}
    by_hand = (
        b'["a",[]]\n' + struct.pack("<H", 0x3F80)
        + b'["b\\n",[2,1]]\n' + struct.pack("<HH", 0x7FC1, 0x8000)
        + b'["\\u00f6",[0]]\n'
    )  # fmt: skip
    assert image_digest(image) == blake3(by_hand).hexdigest()
    assert image_digest(dict(reversed(image.items()))) == image_digest(image)


def test_digest_tells_images_apart() -> None:
    """Another name, shape, bit, sign of zero, NaN, order, or border between two parameters: another digest."""
    images: list[dict[str, Tensor]] = [
        {},
        {"a": from_words([0, 1, 2, 3])},
        {"b": from_words([0, 1, 2, 3])},
        {"a": from_words([0, 1, 2, 3]).view(2, 2)},
        {"a": from_words([0, 1, 2, 3]).view(4, 1)},
        {"a": from_words([0, 1, 3, 2])},
        {"a": from_words([0x8000, 1, 2, 3])},
        {"a": from_words([0x7FC0, 1, 2, 3])},
        {"a": from_words([0x7FC1, 1, 2, 3])},
        {"a": from_words([0, 1]), "b": from_words([2, 3])},
        {"a": from_words([0]), "b": from_words([1, 2, 3])},
        {"a": from_words([0, 1, 2, 3]), "b": from_words([])},
    ]
    assert len({image_digest(image) for image in images}) == len(images)


@given(st.dictionaries(st.text(max_size=8).filter(lambda name: name != "__metadata__"), BF16_WORDS, max_size=4))
def test_keyframe_gives_the_image_back(
    tmp_path_factory: pytest.TempPathFactory, parameters: dict[str, list[int]]
) -> None:
    """Any image is read back bit for bit, NaN payloads included, and written twice it is the same file."""
    path = tmp_path_factory.mktemp("keyframe") / "image.keyframe"
    image = {name: from_words(content) for name, content in parameters.items()} | {"scalar": from_words([7]).view(())}
    write_keyframe(path, image)
    first, found = path.read_bytes(), read_keyframe(path)
    assert image_digest(found) == image_digest(image)
    write_keyframe(path, image)
    assert path.read_bytes() == first


def test_keyframe_of_float32_weights_is_their_image(tmp_path: Path) -> None:
    """A keyframe takes live weights and holds two bytes of each."""
    weights = {"w": torch.randn(100, 30, generator=torch.Generator().manual_seed(0))}
    write_keyframe(tmp_path / "k", weights)
    assert image_digest(read_keyframe(tmp_path / "k")) == image_digest(weights)
    assert 6000 < (tmp_path / "k").stat().st_size < 6200


def test_an_image_that_was_read_can_be_overwritten(tmp_path: Path) -> None:
    """Deltas are applied in place; the keyframe on disk stays what it is."""
    write_keyframe(tmp_path / "k", {"w": torch.ones(1000)})
    before = (tmp_path / "k").read_bytes()
    read_keyframe(tmp_path / "k")["w"].zero_()
    assert (tmp_path / "k").read_bytes() == before


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "garbage", "float32"])
def test_keyframe_that_is_none_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    """Missing, cut, foreign or not bfloat16: a CheckpointError that names the file."""
    path = tmp_path / "image.keyframe"
    write_keyframe(path, {"w": torch.ones(100)})
    if damage == "missing":
        path.unlink()
    elif damage == "float32":
        save_file({"w": torch.ones(100)}, path)
    else:
        content = path.read_bytes()
        path.write_bytes({"empty": b"", "truncated": content[:-1], "garbage": b"\xff" * 300}[damage])
    with pytest.raises(CheckpointError, match=r"image\.keyframe"):
        read_keyframe(path)


def test_changes_by_hand() -> None:
    """Exactly the words that differ, as words: -0.0 for 0.0 counts, the same NaN does not, another NaN does."""
    before = {"a": from_words([0, 0x3F80, 0x7FC0, 0x7FC0, 5]), "b": from_words([1]).view(())}
    after = {"a": from_words([0x8000, 0x3F80, 0x7FC0, 0x7FC1, 6]), "b": from_words([1]).view(())}
    changes = changes_between(before, after)
    assert changes["a"].positions.tolist() == [0, 3, 4]
    assert [word & 0xFFFF for word in changes["a"].words.tolist()] == [0x8000, 0x7FC1, 6]
    assert changes["b"].positions.tolist() == changes["b"].words.tolist() == []


def test_changes_are_those_of_the_rounding() -> None:
    """A float32 step below half a bfloat16 spacing changes nothing, one above it does."""
    before = image_of({"w": torch.tensor([1.0, 1.0])})
    changes = changes_between(before, {"w": torch.tensor([1.003, 1.005])})  # the spacing above 1 is 2^-7 = 0.0078
    assert changes["w"].positions.tolist() == [1]


def test_comparison_by_hand() -> None:
    """Per parameter: how many words differ, the mean |difference| over all elements, and the relative norm."""
    before = {"w": torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "same": torch.ones(2), "none": torch.ones(0)}
    after = {"w": torch.tensor([[3.0, 4.5], [-0.0, -1.0]]), "same": torch.ones(2), "none": torch.ones(0)}
    w, same, none = compare(image_of(before), image_of(after))
    assert (w.name, w.num_elements, w.num_changed, w.fraction_changed) == ("w", 4, 3, 0.75)
    assert w.mean_abs_difference == 1.5 / 4
    assert w.relative_norm == math.hypot(0.5, 1.0) / 5
    assert (same.num_changed, same.mean_abs_difference, same.relative_norm) == (0, 0.0, 0.0)
    assert (none.num_elements, none.fraction_changed, none.mean_abs_difference) == (0, 0.0, 0.0)


def test_comparison_with_zeros_and_what_is_not_finite() -> None:
    """From zeros the relative change is infinite, between signed zeros none; a NaN shows in the figures."""
    before = {"zero": from_words([0]), "sign": from_words([0]), "nan": from_words([0x3F80])}
    after = {"zero": from_words([0x3F80]), "sign": from_words([0x8000]), "nan": from_words([0x7FC0])}
    zero, sign, nan = compare(before, after)
    assert (zero.num_changed, zero.mean_abs_difference, zero.relative_norm) == (1, 1.0, math.inf)
    assert (sign.num_changed, sign.mean_abs_difference, sign.relative_norm) == (1, 0.0, 0.0)
    assert math.isnan(nan.mean_abs_difference) and math.isnan(nan.relative_norm)


@pytest.mark.parametrize("other", [{}, {"x": torch.ones(3)}, {"w": torch.ones(1, 3)}])
def test_another_model_is_refused(other: dict[str, Tensor]) -> None:
    """Images of different names or shapes are neither compared nor subtracted."""
    image = image_of({"w": torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"w|x"):
        compare(image, image_of(other))
    with pytest.raises(CheckpointError, match=r"w|x"):
        changes_between(image, other)

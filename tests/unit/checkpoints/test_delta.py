"""A delta turns the parent's image into its own bit for bit, and a file that is none is refused, never obeyed."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from daemon.checkpoints.delta import MAGIC, apply, read_delta, write_delta
from daemon.checkpoints.image import changes_between, image_digest, image_of
from daemon.domain.errors import CheckpointError
from daemon.ports import Changes

WORD = st.one_of(st.sampled_from([0, 0x8000, 1, 0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF]), st.integers(0, 2**16 - 1))


def from_words(words: list[int], shape: tuple[int, ...] = (-1,)) -> Tensor:
    return torch.from_numpy(np.array(words, np.uint16).view(np.int16)).view(torch.bfloat16).view(shape)


@st.composite
def image_pairs(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two images of one model: any words, any names, with a scalar, an empty and a two-dimensional parameter."""
    before, after = {}, {}
    names = draw(st.lists(st.text(max_size=10), unique=True, max_size=5))
    for name, shape in zip(names, ((7,), (), (0,), (3, 5), (2, 0, 3)), strict=False):
        size = int(np.prod(shape))
        old = draw(st.lists(WORD, min_size=size, max_size=size))
        changed = draw(st.lists(st.none() | WORD, min_size=size, max_size=size))
        before[name] = from_words(old, shape)
        after[name] = from_words([o if c is None else c for o, c in zip(old, changed, strict=True)], shape)
    return before, after


def one_change(position: int = 3, word: int = 0x1234) -> dict[str, Changes]:
    return {"w": Changes(torch.tensor([position]), torch.tensor([word], dtype=torch.int16))}


def written(path: Path, changes: Mapping[str, Changes]) -> bytes:
    write_delta(path, changes)
    return path.read_bytes()


def forged(unpacked: bytes) -> bytes:
    """A file around `unpacked` whose every checksum fits, as only malice or a bug would make it."""
    body = MAGIC + zstandard.ZstdCompressor(write_checksum=True).compress(unpacked)
    return body + blake3(body).digest()


def with_table(table: object, planes: bytes = b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return forged(len(text).to_bytes(4, "little") + text + planes)


def read_as_documented(content: bytes) -> dict[str, list[tuple[int, int]]]:
    """(position, word) of every change: a second reader, from the format's description alone, in plain Python."""
    assert content[:12] == b"dreamdlt\x01\0\0\0"
    assert blake3(content[:-32]).digest() == content[-32:]
    data = zstandard.ZstdDecompressor().decompress(content[12:-32])
    end = 4 + int.from_bytes(data[:4], "little")
    table, data = json.loads(data[4:end]), data[end:]
    num_gap_bytes, counts = table["gap_bytes"], table["counts"]
    total = sum(counts.values())
    assert len(data) == total * (num_gap_bytes + 2)
    found, number = {}, 0
    for name, count in counts.items():
        position, found[name] = -1, []
        for _ in range(count):
            column = data[number::total]
            position += 1 + int.from_bytes(column[:num_gap_bytes], "little")
            found[name].append((position, int.from_bytes(column[num_gap_bytes:], "little")))
            number += 1
    return found


# --- there and back ---------------------------------------------------------------------------------------------


@given(image_pairs())
def test_any_two_images_round_trip(
    tmp_path_factory: pytest.TempPathFactory, pair: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    """Parent's image and delta give the child's image bit for bit; applied twice as well, for words overwrite."""
    before, after = pair
    path = tmp_path_factory.mktemp("delta") / "image.delta"
    write_delta(path, changes_between(before, after))
    changes = read_delta(path, before)
    assert changes.keys() == before.keys()
    for _ in range(2):
        apply(before, changes, path)
        assert image_digest(before) == image_digest(after)


def test_chain_of_twenty_equals_the_direct_image(tmp_path: Path) -> None:
    """Twenty small float32 steps, each written as a delta: the first image and all deltas give the last image."""
    generator = torch.Generator().manual_seed(1)
    weights = {"a": torch.randn(50, 40, generator=generator), "b": torch.randn(30, generator=generator) * 1e-30}
    image, live = image_of(weights), image_of(weights)
    for number in range(20):
        for tensor in weights.values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * tensor.abs() * 1e-3)
        write_delta(tmp_path / f"{number}", changes_between(live, weights))
        live = image_of(weights)
    for number in range(20):
        apply(image, read_delta(tmp_path / f"{number}", image))
        assert (image_digest(image) == image_digest(weights)) == (number == 19)


@pytest.mark.parametrize("positions", [[], [0], [255, 511, 512], [65536, 65537, 2**24 + 70000], [2**33, 2**39]])
def test_far_apart_positions(tmp_path: Path, positions: list[int]) -> None:
    """Gaps of one to five bytes come back, beyond what 32 bits hold."""
    words = torch.arange(len(positions), dtype=torch.int16)
    write_delta(tmp_path / "d", {"w": Changes(torch.tensor(positions, dtype=torch.int64), words)})
    found = read_delta(tmp_path / "d")["w"]
    assert found.positions.tolist() == positions
    assert found.words.tolist() == words.tolist()
    assert (found.positions.dtype, found.words.dtype) == (torch.int64, torch.int16)


@given(image_pairs())
def test_format_is_what_its_description_says(
    tmp_path_factory: pytest.TempPathFactory, pair: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    """A reader written from the description alone finds the same changes."""
    changes = changes_between(*pair)
    content = written(tmp_path_factory.mktemp("delta") / "d", changes)
    assert read_as_documented(content) == {
        name: [(p, w & 0xFFFF) for p, w in zip(c.positions.tolist(), c.words.tolist(), strict=True)]
        for name, c in changes.items()
    }


def test_same_changes_same_bytes(tmp_path: Path) -> None:
    """The file follows from the changes alone, whatever order they are listed in."""
    changes = {"b": one_change(1)["w"], "a": one_change(2)["w"]}
    assert written(tmp_path / "1", changes) == written(tmp_path / "2", dict(reversed(changes.items())))


def test_delta_of_two_percent_is_a_fiftieth_of_a_copy(tmp_path: Path) -> None:
    """With 2 % of the words changed by one spacing the file has at most 2 % of the float32 weights' bytes."""
    generator = torch.Generator().manual_seed(2)
    before = {"w": torch.randn(500_000, generator=generator).bfloat16()}
    after = image_of(before)
    chosen = torch.randperm(500_000, generator=generator)[:10_000]
    after["w"].view(torch.int16)[chosen] += 1
    assert len(written(tmp_path / "d", changes_between(before, after))) <= 0.02 * 4 * 500_000


@pytest.mark.parametrize("positions", [[3, 2], [3, 3], [-1, 0]])
def test_positions_that_do_not_ascend_are_not_written(tmp_path: Path, positions: list[int]) -> None:
    """The format cannot hold them; nothing that could be misread is written."""
    with pytest.raises(ValueError, match="ascend"):
        write_delta(tmp_path / "d", {"w": Changes(torch.tensor(positions), torch.zeros(2, dtype=torch.int16))})
    assert not (tmp_path / "d").exists()


# --- damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_refused(tmp_path: Path, mask: int) -> None:
    """Whichever byte of the file is altered, reading it raises, and names the file."""
    content = written(tmp_path / "image.delta", {**one_change(), "v": one_change(70000)["w"]})
    for place in range(len(content)):
        (tmp_path / "image.delta").write_bytes(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match=r"image\.delta"):
            read_delta(tmp_path / "image.delta")


def test_every_truncation_and_an_extension_are_refused(tmp_path: Path) -> None:
    """Cut anywhere, from an empty file on, or with a byte too many: refused."""
    content = written(tmp_path / "d", one_change())
    for wrong in [*(content[:length] for length in range(len(content))), content + b"\0"]:
        (tmp_path / "d").write_bytes(wrong)
        with pytest.raises(CheckpointError):
            read_delta(tmp_path / "d")


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A delta that is not there is a damaged checkpoint, not a crash."""
    with pytest.raises(CheckpointError, match="gone"):
        read_delta(tmp_path / "gone")


@pytest.mark.parametrize(
    "content",
    [
        with_table({"gap_bytes": 1, "counts": {"w": 2**60}}),
        with_table({"gap_bytes": 5, "counts": {"w": 2**200}}),
        with_table({"gap_bytes": 1, "counts": {str(i): 2**40 for i in range(100)}}, bytes(1000)),
        with_table({"gap_bytes": 1, "counts": {"w": -1}}),
        with_table({"gap_bytes": 1, "counts": {"w": True}}, b"abc"),
        with_table({"gap_bytes": 1, "counts": {"w": 1.0}}, b"abc"),
        with_table({"gap_bytes": 0, "counts": {"w": 0}}),
        with_table({"gap_bytes": 6, "counts": {"w": 0}}),
        with_table({"gap_bytes": 1, "counts": [1]}),
        with_table({"gap_bytes": 1}),
        with_table({"gap_bytes": 1, "counts": {"w": 1}}, b"abcd"),
        with_table([1]),
        with_table(b"[" * 100_000),
        with_table(b"\xff\xfe"),
        with_table(b""),
        forged(b""),
        forged(b"\xff\xff\xff\xff"),
        forged(b"\xff\xff\xff\x03{}"),
    ],
    ids=lambda content: f"{len(content)}-{content[12:40].hex()}",
)
def test_hostile_table_is_refused_without_giant_memory(tmp_path: Path, content: bytes) -> None:
    """Counts beyond reason, tables that are none: refused with little memory, even when every checksum fits."""
    (tmp_path / "d").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="not a delta"):
            read_delta(tmp_path / "d")
        assert tracemalloc.get_traced_memory()[1] < 30 * 2**20
    finally:
        tracemalloc.stop()


def test_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """A few KiB that would unpack to more changes than the image has weights: refused with little memory."""
    count = 5 * 2**20
    (tmp_path / "d").write_bytes(with_table({"gap_bytes": 1, "counts": {"w": count}}, bytes(3 * count)))
    assert (tmp_path / "d").stat().st_size < 2**16
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="has 10 weights"):
            read_delta(tmp_path / "d", {"w": torch.zeros(10, dtype=torch.bfloat16)})
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def test_frame_that_wants_a_giant_window_is_refused(tmp_path: Path) -> None:
    """The unpacker never sets more than 8 MiB aside, whatever window a frame's header asks for."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = MAGIC + packer.compress(b"\2\0\0\0{}") + packer.flush()
    (tmp_path / "d").write_bytes(body + blake3(body).digest())
    with pytest.raises(CheckpointError, match="not a delta"):
        read_delta(tmp_path / "d")


@pytest.mark.parametrize("seed", range(3))
def test_mutated_contents_are_refused_or_harmless(tmp_path: Path, seed: int) -> None:
    """Random bytes changed beneath valid checksums: a CheckpointError from reading or applying, or plain changes."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    image = {"v": torch.zeros(100, dtype=torch.bfloat16), "w": torch.zeros(9, 9, dtype=torch.bfloat16)}
    after = {name: torch.rand(tensor.shape, generator=generator).bfloat16() for name, tensor in image.items()}
    unpacked = zstandard.ZstdDecompressor().decompress(
        written(tmp_path / "d", changes_between(image, after))[len(MAGIC) : -32]
    )
    for _ in range(300):
        mutated = bytearray(unpacked)
        for _ in range(rng.randint(1, 3)):
            mutated[rng.randrange(min(len(mutated), rng.choice([60, 1000])))] = rng.randrange(256)
        (tmp_path / "d").write_bytes(forged(bytes(mutated)))
        try:
            apply(image, read_delta(tmp_path / "d", image))
        except CheckpointError:
            continue


# --- applying ---------------------------------------------------------------------------------------------------


def change(positions: Any, words: Any) -> dict[str, Changes]:
    return {"a": Changes(torch.tensor([0]), torch.tensor([9], dtype=torch.int16)), "w": Changes(positions, words)}


WORDS = torch.tensor([1, 2], dtype=torch.int16)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (one_change(), "a is in the changes or in the image only"),
        (change(torch.tensor([0, 1]), WORDS) | {"x": one_change()["w"]}, "x is in the changes or in the image only"),
        (change(torch.tensor([3, 4]), WORDS), "w: positions 3 to 4 are not among its 4"),
        (change(torch.tensor([-1, 2]), WORDS), "w: positions -1 to 2 are not among its 4"),
        (change(torch.tensor([2, 1]), WORDS), "w: its positions do not ascend"),
        (change(torch.tensor([1, 1]), WORDS), "w: its positions do not ascend"),
        (change(torch.tensor([0, 1, 2]), WORDS), "w: .* do not fit"),
        (change(torch.tensor([[0, 1]]), WORDS), "w: .* do not fit"),
        (change(torch.tensor([0, 1], dtype=torch.int32), WORDS), "w: positions are torch.int32"),
        (change(torch.tensor([0, 1]), WORDS.bfloat16()), "w: .* words torch.bfloat16"),
    ],
)
def test_changes_that_do_not_fit_leave_the_image_alone(changes: dict[str, Changes], problem: str) -> None:
    """All changes are checked before the first word is written; the error names source and parameter."""
    image = {"a": torch.ones(2, dtype=torch.bfloat16), "w": torch.ones(2, 2, dtype=torch.bfloat16)}
    before = image_digest(image)
    with pytest.raises(CheckpointError, match=rf"^some/file: {problem}"):
        apply(image, changes, "some/file")
    assert image_digest(image) == before


def test_delta_of_another_model_is_refused(tmp_path: Path) -> None:
    """With the image at hand, reading already tells that the parameters are others."""
    write_delta(tmp_path / "d", one_change())
    with pytest.raises(CheckpointError, match=r"d: .*v is in it or in the image only"):
        read_delta(tmp_path / "d", {"v": torch.zeros(10, dtype=torch.bfloat16)})

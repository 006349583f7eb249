"""Tensor files: the bytes that safetensors itself would write, their hash, and little of them in the page cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from daemon.domain import disk
from daemon.domain.records import Blob
from daemon.training import tensor_file
from daemon.training.tensor_file import write_tensors

TYPES = [torch.int64, torch.float64, torch.float32, torch.int32, torch.bfloat16, torch.float16, torch.int16, torch.int8]
TYPES += [torch.uint8, torch.bool]
SHAPES = st.sampled_from([(), (0,), (1,), (7,), (3, 5), (2, 0, 4), (64, 33)])


def assert_like_the_library(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    """Byte for byte, and the hash is that of the file."""
    metadata = {"format": "pt"}
    found = write_tensors(tmp_path / "ours", tensors, metadata)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs", metadata)
    content = (tmp_path / "ours").read_bytes()
    assert content == (tmp_path / "theirs").read_bytes()
    assert found == Blob(blake3(content).hexdigest(), len(content))


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.tuples(st.sampled_from(TYPES), SHAPES), max_size=8))
def test_the_bytes_are_those_of_the_library(
    tmp_path_factory: pytest.TempPathFactory, kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]]
) -> None:
    """Any names, every type, scalars and empty tensors: no reader can tell the writers apart."""
    generator = torch.Generator().manual_seed(len(kinds))
    tensors = {
        name: torch.randint(0, 2, shape, generator=generator).to(dtype) for name, (dtype, shape) in kinds.items()
    }
    assert_like_the_library(tmp_path_factory.mktemp("file"), tensors)


def test_a_tensor_that_is_not_contiguous(tmp_path: Path) -> None:
    """It is written row by row, as it reads."""
    full = torch.arange(48.0).view(6, 8)
    assert_like_the_library(tmp_path, {"transposed": full.T, "sliced": full[::2, 1::3]})
    assert torch.equal(load_file(tmp_path / "ours")["transposed"], full.T)


def test_little_of_it_waits_in_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many bytes all that was written is on the disk and dropped; the file is the same."""
    monkeypatch.setattr(tensor_file, "_PIECE", 100)
    monkeypatch.setattr(tensor_file, "_CACHED", 1000)
    told: list[tuple[str, int]] = []
    monkeypatch.setattr(disk, "fsync", lambda path: told.append(("fsync", path.stat().st_size)))
    monkeypatch.setattr(disk, "forget", lambda path: told.append(("forget", path.stat().st_size)))
    assert_like_the_library(tmp_path, {"a": torch.randn(600), "b": torch.randn(650)})
    synced = [size for what, size in told if what == "fsync"]
    assert told == [(what, size) for size in synced for what in ("fsync", "forget")]
    assert len(synced) == 5000 // 1000
    assert all(1000 <= later - earlier < 1200 for earlier, later in zip([0, *synced], synced, strict=False))


def test_a_disk_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be brought to the disk on the way counts as not written."""

    def fails(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(tensor_file, "_CACHED", 1000)
    monkeypatch.setattr(disk, "fsync", fails)
    with pytest.raises(OSError, match="Input/output"):
        write_tensors(tmp_path / "file", {"a": torch.randn(600)}, {})


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    """It may be what the tensors are a view of: cutting it would end the process with a bus error."""
    write_tensors(tmp_path / "file", {"a": torch.ones(3)}, {})
    mapped = load_file(tmp_path / "file")
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "file", mapped, {})
    assert mapped["a"].tolist() == [1.0] * 3


def test_an_unknown_type_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Neither weights nor optimizers have complex numbers."""
    with pytest.raises(ValueError, match="complex64"):
        write_tensors(tmp_path / "file", {"a": torch.zeros(2, dtype=torch.complex64)}, {})
    assert not (tmp_path / "file").exists()

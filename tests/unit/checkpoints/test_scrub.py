"""Scrubbing reads what is on the disk, within its budget, and believes nothing that does not fit."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_files import contents, flip, make_directory, make_it_lossy

from daemon.checkpoints.scrub import StoreScrubber
from daemon.checkpoints.store import DirectoryStore
from daemon.domain.records import Checkpoint

VERSIONS = ("cycle-000001", "cycle-000002", "cycle-000003")


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[Checkpoint]:
    return [make_directory(tmp_path, version)[1] for version in VERSIONS]


def size_of(directory: Path) -> int:
    return sum(len(content) for content in contents(directory).values())


def test_sound_checkpoints_are_read_whole(tmp_path: Path, checkpoints: list[Checkpoint]) -> None:
    """Every byte of every file counts as read, and sound ones are said to be sound."""
    results = list(StoreScrubber(DirectoryStore(tmp_path)).scrub(checkpoints, 10**9))
    assert [(result.version, result.sound, result.detail) for result in results] == [(v, True, None) for v in VERSIONS]
    assert [result.num_bytes for result in results] == [size_of(tmp_path / version) for version in VERSIONS]


@pytest.mark.parametrize(("max_bytes", "num_read"), [(0, 1), (1, 1), (3_300_000, 2), (7_000_000, 3)])
def test_budget(tmp_path: Path, checkpoints: list[Checkpoint], max_bytes: int, num_read: int) -> None:
    """Checkpoints of 3.25 MB are read until the budget is used up: whole ones, in order, at least one."""
    results = list(StoreScrubber(DirectoryStore(tmp_path)).scrub(checkpoints, max_bytes))
    assert tuple(result.version for result in results) == VERSIONS[:num_read]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.state", "image.delta", "manifest.json"])
def test_flipped_bit_is_found(tmp_path: Path, checkpoints: list[Checkpoint], name: str) -> None:
    """One flipped bit in any file is found and the file named; the next checkpoint is read nevertheless."""
    flip(tmp_path / VERSIONS[0] / name, 100)
    damaged, sound, _ = StoreScrubber(DirectoryStore(tmp_path)).scrub(checkpoints, 10**9)
    assert not damaged.sound
    assert name in str(damaged.detail)
    assert sound.sound


def test_missing_and_strange_checkpoints_are_found(tmp_path: Path, checkpoints: list[Checkpoint]) -> None:
    """A directory that is gone, or that is another checkpoint than the recorded one, is no sound checkpoint."""
    (tmp_path / VERSIONS[0]).rename(tmp_path / "elsewhere")
    recorded = [checkpoints[0], replace(checkpoints[1], root_hash="another")]
    gone, strange = StoreScrubber(DirectoryStore(tmp_path)).scrub(recorded, 10**9)
    assert (gone.sound, gone.num_bytes) == (False, 0)
    assert not strange.sound
    assert "another run" in str(strange.detail)


def test_lossy_checkpoint_is_sound(tmp_path: Path, checkpoints: list[Checkpoint]) -> None:
    """Exact files that retention deleted are not missed, but a damaged image is."""
    make_it_lossy(tmp_path / VERSIONS[0])
    lossy = [replace(checkpoints[0], exact=False)]
    scrubber = StoreScrubber(DirectoryStore(tmp_path))
    assert [result.sound for result in scrubber.scrub(lossy, 1)] == [True]
    flip(tmp_path / VERSIONS[0] / "image.delta")
    assert [result.sound for result in scrubber.scrub(lossy, 1)] == [False]


def test_lossy_files_of_what_the_database_has_as_exact_are_found(tmp_path: Path, checkpoints: list[Checkpoint]) -> None:
    """After an older backup of the database a checkpoint may be lossy here and exact there: that is damage."""
    make_it_lossy(tmp_path / VERSIONS[0])
    (result,) = StoreScrubber(DirectoryStore(tmp_path)).scrub(checkpoints[:1], 1)
    assert not result.sound


def test_disk_that_gives_up_is_damage(
    tmp_path: Path, checkpoints: list[Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that the disk cannot read any more (EIO) is damage, not an end of the daemon."""

    def broken(_checkpoint: Checkpoint) -> None:
        raise OSError(5, "Input/output error", "model.safetensors")

    store = DirectoryStore(tmp_path)
    monkeypatch.setattr(store, "check", broken)
    (result, *_) = StoreScrubber(store).scrub(checkpoints, 1)
    assert not result.sound
    assert "Input/output error" in str(result.detail)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system has no posix_fadvise")
def test_memory_is_not_asked(tmp_path: Path, checkpoints: list[Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is dropped from the page cache before it is read, and again afterwards."""
    told: list[str] = []
    store = DirectoryStore(tmp_path)
    check = store.check

    def forget(descriptor: int, offset: int, length: int, advice: int) -> None:
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
        told.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def read(checkpoint: Checkpoint) -> None:
        told.append("read")
        check(checkpoint)

    monkeypatch.setattr(os, "posix_fadvise", forget)
    monkeypatch.setattr(store, "check", read)
    list(StoreScrubber(store).scrub(checkpoints[:1], 1))
    files = {"model.safetensors", "optimizer.state", "image.delta", "manifest.json"}
    assert (set(told[:4]), told[4], set(told[5:])) == (files, "read", files)

"""Find what rots on the disk while nobody reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from daemon.domain import disk
from daemon.domain.errors import CheckpointError
from daemon.domain.records import Checkpoint
from daemon.domain.upkeep import ScrubResult
from daemon.ports import CheckpointStore


class StoreScrubber:
    """Reads a store's checkpoints again; implements the `Scrubber` port."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store

    def scrub(self, checkpoints: Sequence[Checkpoint], max_bytes: int) -> Iterator[ScrubResult]:
        num_bytes = 0
        for checkpoint in checkpoints:
            result = self._read(checkpoint)
            num_bytes += result.num_bytes
            yield result
            if num_bytes >= max_bytes:
                return

    def _read(self, checkpoint: Checkpoint) -> ScrubResult:
        version = checkpoint.version
        files = _files(self._store.path(version))
        # Before: what is in memory says nothing about the disk. After: what is read here will not be read again soon,
        # and would push out what others use.
        for file in files:
            disk.forget(file)
        damage = None
        try:
            self._store.check(checkpoint)
        except (CheckpointError, OSError) as error:  # OSError: the disk itself gives up
            damage = str(error)
        for file in files:
            disk.forget(file)
        return ScrubResult(version, damage is None, sum(map(_size, files)), damage)


def _files(directory: Path) -> list[Path]:
    return [file for file in directory.iterdir() if file.is_file()] if directory.is_dir() else []


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0

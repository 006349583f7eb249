"""A model of a disk that loses power: what of a directory survives if only what was fsynced is sure to be there.

While it watches, every fsync, rename and deletion of this process is a moment at which the power may fail. At each it
works out the worst states that POSIX allows:

    unsynced lost     directories as they were at their last fsync, files with the bytes of their last fsync
    unsynced zeroed   all entries made it to the disk, un-fsynced bytes are zeros (delayed allocation)
    unsynced short    all entries made it to the disk, of un-fsynced bytes only the first half

Bytes are read when they are fsynced, so it does not matter who wrote them (safetensors writes from Rust). The database
is trusted: what SQLite committed with synchronous=FULL is there, what it did not is not.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

Tree = Mapping[str, bytes | None]
"""Relative path -> bytes; None for a directory. Parents come first."""
Damage = Callable[[bytes], bytes]

DAMAGES: Mapping[str, Damage] = {
    "unsynced zeroed": lambda content: bytes(len(content)),
    "unsynced short": lambda content: content[: len(content) // 2],
}


@dataclass(frozen=True)
class Moment:
    """What a start finds after the power failed there."""

    label: str
    tree: Tree
    database: bytes
    key: str
    """Equal for moments that a start cannot tell apart."""

    def restore(self, root: Path) -> None:
        """Write the tree to `root`, which does not exist yet."""
        root.mkdir(parents=True)
        for name, content in self.tree.items():
            if content is None:
                (root / name).mkdir()
            else:
                (root / name).write_bytes(content)


class Disk:
    """Follows what of `root` is durable; everything that is there at the beginning is."""

    def __init__(self, root: Path, database: Callable[[], bytes] = lambda: b"", temporary: str = ".tmp-") -> None:
        """
        Args:
            database: the committed contents of the database now.
            temporary: entries of `root` that begin so are deleted at a start, whatever is in them.
        """
        self.root = root
        self.moments: dict[str, Moment] = {}
        self._database = database
        self._temporary = temporary
        self._content: dict[int, bytes] = {}
        self._entries: dict[int, dict[str, int]] = {}
        self._open: list[int] = []  # held, so that no inode number is used again
        self._lock = threading.RLock()
        for directory, _, files in os.walk(root):
            self._settle(Path(directory))
            for name in files:
                self._settle(Path(directory) / name)

    def power_may_fail(self, label: str) -> None:
        """Remember what a start would find now, if it differs from all before."""
        with self._lock:
            database = self._database()
            found = {"unsynced lost": self._durable()}
            found |= {name: self._present(damage) for name, damage in DAMAGES.items()}
            for damage, tree in found.items():
                key = self._key(tree, database)
                self.moments.setdefault(key, Moment(f"{label}, {damage}", tree, database, key))

    def synced(self, descriptor: int) -> None:
        """An fsync of this file or directory has returned."""
        path = _path_of(descriptor)
        if path == self.root or self.root in path.parents:
            self._settle(path)

    def close(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)

    def _settle(self, path: Path) -> None:
        with self._lock:
            descriptor = os.open(path, os.O_RDONLY)
            self._open.append(descriptor)
            found = os.fstat(descriptor)
            if stat.S_ISDIR(found.st_mode):
                self._entries[found.st_ino] = {name: _inode(path / name) for name in sorted(os.listdir(path))}  # noqa: PTH208
            else:
                self._content[found.st_ino] = path.read_bytes()

    def _durable(self) -> Tree:
        """Only what was fsynced: the directories' entries, and the files' bytes."""
        tree: dict[str, bytes | None] = {}

        def add(inode: int, prefix: str) -> None:
            for name, entry in self._entries.get(inode, {}).items():
                if entry in self._content:
                    tree[prefix + name] = self._content[entry]
                elif entry in self._entries or self._is_directory(entry):
                    tree[prefix + name] = None
                    add(entry, f"{prefix}{name}/")
                else:
                    tree[prefix + name] = b""

        add(_inode(self.root), "")
        return tree

    def _is_directory(self, inode: int) -> bool:
        """Of one that was never fsynced itself."""
        return any(path.is_dir() and _inode(path) == inode for path in self.root.rglob("*"))

    def _present(self, damage: Damage) -> Tree:
        """Every entry that is there now, un-fsynced bytes damaged."""
        tree: dict[str, bytes | None] = {}
        for path in sorted(self.root.rglob("*")):
            try:
                content = None if path.is_dir() else path.read_bytes()
                durable = self._content.get(_inode(path), b"")
            except FileNotFoundError:
                continue  # another thread has just deleted it
            if content is not None and content != durable:
                kept = durable if content.startswith(durable) else b""
                content = kept + damage(content[len(kept) :])
            tree[str(path.relative_to(self.root))] = content
        return tree

    def _key(self, tree: Tree, database: bytes) -> str:
        hasher = hashlib.sha256(database)
        for name, content in sorted(tree.items()):
            if not name.startswith(self._temporary):
                hasher.update(f"{len(name)} {name} {-1 if content is None else len(content)} ".encode())
                hasher.update(content or b"")
        return hasher.hexdigest()


@contextmanager
def watching(disk: Disk) -> Iterator[Disk]:
    """Every fsync, rename and deletion of this process under `disk.root` is a moment; so is the end."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "replace", "unlink", "remove", "rmdir"):
            patch.setattr(os, name, _before(disk, getattr(os, name)))
        patch.setattr(os, "fsync", _around_fsync(disk, os.fsync))
        try:
            yield disk
            disk.power_may_fail("at the end")
        finally:
            disk.close()


def _before(disk: Disk, operation: Callable[..., None]) -> Callable[..., None]:
    def operate(path: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("dir_fd") is not None or disk.root in Path(os.fspath(path)).parents:
            disk.power_may_fail(f"before {operation.__name__} of {Path(os.fspath(path)).name}")
        operation(path, *args, **kwargs)

    return operate


def _around_fsync(disk: Disk, fsync: Callable[[int], None]) -> Callable[[Any], None]:
    def synced(file: Any) -> None:
        descriptor = file if isinstance(file, int) else file.fileno()
        disk.power_may_fail(f"before fsync of {_path_of(descriptor).name}")
        fsync(descriptor)
        disk.synced(descriptor)

    return synced


def _path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _inode(path: Path) -> int:
    return path.stat().st_ino

"""Writing so that a power loss leaves the old state or the new one."""

from __future__ import annotations

import os
from pathlib import Path

from daemon.domain import disk, failpoints
from daemon.domain.errors import PermissionDeniedError


def fsync(path: Path) -> None:
    """Have a file's bytes, or a directory's entries, on the disk."""
    failpoints.hit("store.fsync")
    disk.fsync(path)


def write_durably(path: Path, text: str) -> None:
    """Write a small file that is complete or absent, whatever happens."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        fsync(temporary)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def publish_directory(temporary: Path, final: Path) -> None:
    """Give a complete directory its final name, once everything in it is on the disk."""
    for file in temporary.iterdir():
        fsync(file)
        # Hardly any of it is ever read again, and what it would push out of memory is.
        disk.forget(file)
    fsync(temporary)
    failpoints.hit("store.rename")
    temporary.rename(final)
    fsync(final.parent)
    failpoints.hit("store.renamed")


def make_root(root: Path) -> None:
    """Create `root` unless it is there.

    Raises:
        PermissionDeniedError: it cannot be created or written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionDeniedError(f"{root}: cannot be created ({error.strerror}); make it writable") from None
    if not os.access(root, os.W_OK):
        raise PermissionDeniedError(f"{root}: not writable by this user; check its owner and mode")

"""How much disk a checkpoint takes."""

from __future__ import annotations

from pathlib import Path


def bytes_in(directory: Path) -> int:
    """Bytes of the files in a directory; 0 when there is none, and what was seen of one that goes away meanwhile."""
    total = 0
    try:
        for file in directory.iterdir():
            total += file.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        pass
    return total

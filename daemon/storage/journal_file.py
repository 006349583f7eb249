"""The claims journal's file: `run NAME`, then a line per claim, `CYCLE KIND HASH`, appended with one write and fsynced.

What a crash can leave is the end of the last write missing, or zeros where it never came to the disk. That is read over
and cut off, if no claim follows it: what follows would be hidden. Anything else that is not a claim means that somebody
or something changed the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from daemon.domain import disk
from daemon.domain.errors import ConfigError, DiskError, RestoredBackupError
from daemon.domain.journal import LINE, LONGEST_LINE, OWNER
from daemon.storage.kinds import ClaimKind

Entry = tuple[int, ClaimKind, str]
"""Cycle, kind and hash of a claim."""


def append(path: Path, run_name: str, cycle_number: int, spent: Sequence[tuple[ClaimKind, str]]) -> None:
    """Add a cycle's claims; they are on the disk when this returns.

    Raises:
        ConfigError: the file is another run's; nothing was written.
        DiskError: they are not; what was written of them is cut off before the next are added.
    """
    append_entries(path, run_name, [(cycle_number, kind, content_hash) for kind, content_hash in spent])


def append_entries(path: Path, run_name: str, added: Iterable[Entry]) -> None:
    """`append`, of any cycles."""
    lines = "".join(f"{number} {kind.value} {content_hash}\n" for number, kind, content_hash in added)
    if not lines:
        return
    require_owner(path, run_name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        created = not path.exists()
        # A descriptor of its own each time: after a failed fsync the old one would report success for lost data.
        with path.open("ab", buffering=0) as file:
            end = _end_of_last_line(path)
            file.truncate(end)
            _write_all(file.fileno(), (lines if end else f"run {run_name}\n{lines}").encode("ascii"))
            os.fsync(file.fileno())
        if created:
            disk.fsync(path.parent)
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}: claims could not be noted; check the disk and its space") from error


def require_owner(path: Path, run_name: str) -> None:
    """Refuse the journal of another run: its claims are not this one's. Without a file, or its first line, nobody's.

    Raises:
        ConfigError: names both runs, and the fix.
        DiskError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            match = OWNER.fullmatch(file.readline(LONGEST_LINE))
    except FileNotFoundError:
        return
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}; check the disk, and its owner and mode") from error
    owner = match[1].decode() if match else run_name
    if owner != run_name:
        raise ConfigError(
            f"{path}: this state directory is run {owner}'s, not run {run_name}'s, and two runs cannot share one: give "
            f"run {run_name} a run.state_dir of its own, or set run.name = {owner}"
        )


def entries(path: Path) -> Iterator[Entry]:
    """Every claim in the journal, in order, but for what a crash left half; none when there is no file.

    Raises:
        RestoredBackupError: a line is damaged; names it.
        DiskError: it cannot be read.
    """
    for entry, _ in _parsed(path):
        if entry is not None:
            yield entry


def cut_torn_end(path: Path) -> None:
    """Cut off what a crash left half.

    Raises:
        RestoredBackupError: a line is damaged; names it.
        DiskError: it cannot be read or written.
    """
    end = max((end for _, end in _parsed(path)), default=0)
    try:
        if path.exists() and path.stat().st_size != end:
            with path.open("r+b") as file:
                file.truncate(end)
                os.fsync(file.fileno())
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}; check the disk, and its owner and mode") from error


def _parsed(path: Path) -> Iterator[tuple[Entry | None, int]]:
    """Each whole line, and where it ends; None: the first, with the run's name."""
    end = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                match = LINE.fullmatch(line)
                if match is None and not (number == 1 and OWNER.fullmatch(line)):
                    return _require_torn(path, number, line, file)
                end += len(line)
                entry = (int(match[1]), ClaimKind(match[2].decode()), match[3].decode()) if match else None
                yield entry, end
    except FileNotFoundError:
        return
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}; check the disk, and its owner and mode") from error


def _require_torn(path: Path, number: int, line: bytes, rest: Iterable[bytes]) -> None:
    half = b"\0" in line or not line.endswith(b"\n")
    if not half or any(LINE.fullmatch(later) for later in rest):
        raise RestoredBackupError(
            f"{path}:{number}: not a claim (CYCLE KIND HASH): the file was changed or is damaged, so it cannot be told "
            "whether the database is an older one; delete that line if the database is the newest there is"
        )


def _end_of_last_line(path: Path) -> int:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, size - LONGEST_LINE))
        return start + file.read().rfind(b"\n") + 1


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]

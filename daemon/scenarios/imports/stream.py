"""Read a file line by line from where an earlier read stopped, in bounded memory.

The file may be far larger than memory and may grow while it is read. A last line without its newline may still be
being written, so it is left for later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from daemon.domain.states import RefusalReason

MAX_LINE_BYTES = 1 << 20
TAIL_BYTES = 4096
_SKIP_BYTES = 1 << 16
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One complete line, and where it ends."""

    number: int
    """From 1."""
    end: int
    """Bytes of the file up to and including its newline."""
    text: str
    """Without the line break; empty where there is a `fault`."""
    fault: tuple[RefusalReason, str] | None = None
    """Why the line cannot be read as text, for a person."""


def read_lines(file: BinaryIO, position: int, line: int) -> Iterator[Line]:
    """The complete lines after the first `position` bytes, which hold `line` lines."""
    file.seek(position)
    while True:
        line += 1
        raw = file.readline(MAX_LINE_BYTES + 1)
        if raw.endswith(b"\n"):
            position += len(raw)
            yield _decoded(raw, line, position)
        elif len(raw) <= MAX_LINE_BYTES:  # the end, or a line that is still being written
            return
        else:
            rest = _skip_line(file)
            if rest is None:
                return
            position += len(raw) + rest
            yield Line(line, position, "", (RefusalReason.TOO_LONG, f"longer than {MAX_LINE_BYTES} bytes"))


def unfinished(file: BinaryIO) -> bool:
    """Whether the file ends in a line without a newline."""
    size = file.seek(0, 2)
    if size == 0:
        return False
    file.seek(size - 1)
    return file.read(1) != b"\n"


def tail_digest(file: BinaryIO, position: int) -> str:
    """Digest of the up to 4096 bytes before `position`; empty at 0."""
    if position == 0:
        return ""
    start = max(position - TAIL_BYTES, 0)
    file.seek(start)
    return hashlib.sha256(file.read(position - start)).hexdigest()


def rewritten(file: BinaryIO, path: Path, position: int, line: int, digest: str) -> str | None:
    """What to tell when the part of the file that is used up is not what it was; None when it is."""
    size = file.seek(0, 2)
    if size >= position and tail_digest(file, position) == digest:
        return None
    found = f"it has {size} bytes now" if size < position else "what stands there has changed"
    return (
        f"{path} was rewritten since its first {line} lines ({position} bytes) were used: {found}; "
        "import it again under another name"
    )


def _decoded(raw: bytes, number: int, end: int) -> Line:
    raw = raw.rstrip(b"\r\n")
    if number == 1:
        raw = raw.removeprefix(_BOM)
    try:
        return Line(number, end, raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = f"byte {error.start + 1} of the line is {raw[error.start]:#04x}"
        return Line(number, end, "", (RefusalReason.MALFORMED, f"not UTF-8: {byte}; save the file as UTF-8"))


def _skip_line(file: BinaryIO) -> int | None:
    """Read to the end of the line; its bytes, or None when the file ends first."""
    skipped = 0
    while chunk := file.readline(_SKIP_BYTES):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            return skipped
    return None

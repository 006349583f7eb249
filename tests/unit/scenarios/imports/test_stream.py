"""Lines, positions and digests of a file that may be huge or still growing."""

from __future__ import annotations

import io
from pathlib import Path

from daemon.domain.states import RefusalReason
from daemon.scenarios.imports.stream import (
    MAX_LINE_BYTES,
    TAIL_BYTES,
    read_lines,
    rewritten,
    tail_digest,
    unfinished,
)


def test_lines_carry_number_and_end() -> None:
    """Windows line ends and a byte order mark are no part of the text, and count for the position."""
    lines = list(read_lines(io.BytesIO(b"\xef\xbb\xbfone\r\n\ntwo\n"), 0, 0))
    assert [(line.number, line.end, line.text) for line in lines] == [(1, 8, "one"), (2, 9, ""), (3, 13, "two")]


def test_reading_goes_on_where_it_stopped() -> None:
    """From any line's end the rest is the same as in one go."""
    file = io.BytesIO(b"one\ntwo\n\xff\nfour\n")
    whole = list(read_lines(file, 0, 0))
    for line in whole:
        assert list(read_lines(file, line.end, line.number)) == whole[line.number :]


def test_last_line_without_newline_waits() -> None:
    """It may still be being written; with its newline it is read whole."""
    assert [line.text for line in read_lines(io.BytesIO(b"one\ntw"), 0, 0)] == ["one"]
    assert unfinished(io.BytesIO(b"one\ntw"))
    assert [line.text for line in read_lines(io.BytesIO(b"one\ntwo\n"), 4, 1)] == ["two"]
    assert not unfinished(io.BytesIO(b"one\ntwo\n"))
    assert not unfinished(io.BytesIO(b""))


def test_too_long_line_is_skipped_in_pieces() -> None:
    """A line over 1 MiB is a fault of its own; the one after it is read as usual. The longest allowed one is fine."""
    file = io.BytesIO(b"x" * (3 * MAX_LINE_BYTES) + b"\nnext\n" + b"y" * MAX_LINE_BYTES + b"\n")
    long, after, longest = read_lines(file, 0, 0)
    assert long.fault is not None
    assert long.fault[0] is RefusalReason.TOO_LONG
    assert (long.text, long.end) == ("", 3 * MAX_LINE_BYTES + 1)
    assert (after.number, after.text) == (2, "next")
    assert (longest.fault, len(longest.text)) == (None, MAX_LINE_BYTES)


def test_too_long_line_that_is_still_being_written_waits() -> None:
    """Without its newline nothing of it is used up."""
    assert list(read_lines(io.BytesIO(b"x" * (2 * MAX_LINE_BYTES)), 0, 0)) == []


def test_bytes_that_are_no_utf8_are_a_fault_of_their_line() -> None:
    """The line is refused as malformed, with the place; the next one is read."""
    bad, good = read_lines(io.BytesIO(b"caf\xe9\ngood\n"), 0, 0)
    assert bad.fault is not None
    assert bad.fault[0] is RefusalReason.MALFORMED
    assert "byte 4 of the line is 0xe9" in bad.fault[1]
    assert good.text == "good"


def test_rewritten_file_is_noticed() -> None:
    """Shorter, or other bytes just before the place: a message with file, place and fix. Growing is no rewriting."""
    path, content = Path("log.jsonl"), b"a" * 5000 + b"\n"
    digest = tail_digest(io.BytesIO(content), len(content))
    assert rewritten(io.BytesIO(content + b"more\n"), path, len(content), 1, digest) is None
    shorter = rewritten(io.BytesIO(b"a\n"), path, len(content), 1, digest)
    assert shorter is not None
    assert "log.jsonl was rewritten since its first 1 lines" in shorter
    assert "import it again under another name" in shorter
    changed = bytearray(content)
    changed[-TAIL_BYTES] ^= 1
    assert rewritten(io.BytesIO(bytes(changed)), path, len(content), 1, digest) is not None
    assert rewritten(io.BytesIO(b"anything"), path, 0, 0, "") is None

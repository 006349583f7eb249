"""The claims journal's file: what is in it is durable, and what a crash leaves of a write harms nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from daemon.domain.errors import ConfigError, DiskError, RestoredBackupError
from daemon.storage.journal_file import append, cut_torn_end, entries, require_owner
from daemon.storage.kinds import ClaimKind

ONE = [(ClaimKind.SCENARIO, "a" * 64), (ClaimKind.EXAMPLE, "b" * 64)]
TWO = [(ClaimKind.EXAMPLE, "c" * 64)]
BOTH = [(1, *ONE[0]), (1, *ONE[1]), (2, *TWO[0])]


def test_the_format_is_a_line_per_claim(tmp_path: Path) -> None:
    """The run's name, then `CYCLE KIND HASH`, in order, readable by any program; a file that is not there has none."""
    path = tmp_path / "checkpoints" / "claims.log"
    assert list(entries(path)) == []
    append(path, "test", 1, ONE)
    append(path, "test", 2, TWO)
    append(path, "test", 3, [])
    assert path.read_text() == f"run test\n1 scenario {'a' * 64}\n1 example {'b' * 64}\n2 example {'c' * 64}\n"
    assert list(entries(path)) == BOTH


def test_cut_at_every_byte_it_holds_the_whole_lines(tmp_path: Path) -> None:
    """Whatever a crash left of the last line is read over, and the next claims do not stick to it."""
    path = tmp_path / "claims.log"
    append(path, "test", 1, ONE)
    append(path, "test", 2, TWO)
    whole = path.read_bytes()
    ends = [0, *(index + 1 for index, byte in enumerate(whole) if byte == ord("\n"))]
    for size in range(len(whole) + 1):
        num_lines = max(0, sum(end <= size for end in ends) - 2)
        path.write_bytes(whole[:size])
        assert list(entries(path)) == BOTH[:num_lines]
        append(path, "test", 3, TWO)
        assert list(entries(path)) == [*BOTH[:num_lines], (3, *TWO[0])]
        path.write_bytes(whole[:size])
        cut_torn_end(path)
        assert path.read_bytes() == whole[: max(end for end in ends if end <= size)]


def test_zeros_of_a_power_loss_are_cut_off(tmp_path: Path) -> None:
    """What of the last write never came to the disk reads as zeros, also before a part of a line that did."""
    path = tmp_path / "claims.log"
    append(path, "test", 1, ONE)
    sound = path.read_bytes()
    for tail in (b"\0" * 300, b"2 exa" + b"\0" * 90 + b"c\n2 example " + b"d" * 60):
        path.write_bytes(sound + tail)
        assert list(entries(path)) == BOTH[:2]
        cut_torn_end(path)
        assert path.read_bytes() == sound


def test_a_sector_of_zeros_hides_nothing_after_it(tmp_path: Path) -> None:
    """Where whole claims follow the zeros it was no crash: refused, named, and not one byte is cut off."""
    path = tmp_path / "claims.log"
    for number in range(1, 41):
        append(path, "test", number, [(ClaimKind.SCENARIO, f"{number:064x}")])
    damaged = bytearray(path.read_bytes())
    damaged[1024:1536] = bytes(512)  # after 9 bytes nine lines of 76, then of 77: the 14th claim is cut
    path.write_bytes(damaged)
    for attempt in (lambda: list(entries(path)), lambda: cut_torn_end(path)):
        with pytest.raises(RestoredBackupError, match=r"claims\.log:15: not a claim"):
            attempt()
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "line", ["1 scenario\n", "0 example aa\n", "1 held_out aa\n", "1 example a a\n", "\n", "1 example é\n"]
)
def test_a_line_that_no_crash_explains_is_refused(tmp_path: Path, line: str) -> None:
    """An edited or damaged line is named with its number: a journal that lost claims must not pass for a whole one."""
    path = tmp_path / "claims.log"
    append(path, "test", 1, ONE)
    path.write_text(path.read_text() + line + f"2 example {'c' * 64}\n")
    before = path.read_bytes()
    for attempt in (lambda: list(entries(path)), lambda: cut_torn_end(path)):
        with pytest.raises(RestoredBackupError, match=r"claims\.log:4: not a claim") as caught:
            attempt()
        assert caught.value.exit_code == 78
    assert path.read_bytes() == before


def test_another_runs_journal_is_left_alone(tmp_path: Path) -> None:
    """Two runs in one state directory: neither writes into the other's file, and the words say whose it is."""
    path = tmp_path / "claims.log"
    append(path, "a", 1, ONE)
    before = path.read_bytes()
    for attempt in (lambda: append(path, "ab", 1, TWO), lambda: require_owner(path, "ab")):
        with pytest.raises(ConfigError, match="is run a's, not run ab's") as caught:
            attempt()
        assert caught.value.exit_code == 78
    assert path.read_bytes() == before
    path.write_bytes(before.removeprefix(b"run a\n"))
    require_owner(path, "ab")  # a file without the line is nobody's
    assert list(entries(path)) == BOTH[:2]


def test_claims_are_on_the_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One write, then fsync of the file; of its directory too when the file is new."""
    calls: list[str] = []
    write, fsync = os.write, os.fsync

    def noted_write(descriptor: int, content: bytes) -> int:
        calls.append(f"write {Path(f'/proc/self/fd/{descriptor}').readlink()}")
        return write(descriptor, content)

    def noted_fsync(descriptor: int) -> None:
        calls.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink()}")
        fsync(descriptor)

    monkeypatch.setattr(os, "write", noted_write)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    path = tmp_path / "claims.log"
    append(path, "test", 1, ONE)
    append(path, "test", 2, TWO)
    assert calls == [f"write {path}", f"fsync {path}", f"fsync {tmp_path}", f"write {path}", f"fsync {path}"]


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_stops_the_step_and_spoils_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A write that fails half-way is an error with exit code 74; afterwards the same claims are appended cleanly."""
    path = tmp_path / "claims.log"
    append(path, "test", 1, ONE)
    write = os.write

    def failing(descriptor: int, content: bytes = b"") -> int:
        if content and len(content) > 20:
            return write(descriptor, content[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(DiskError, match=r"claims\.log: No space left on device") as caught:
            append(path, "test", 2, TWO)
    assert caught.value.exit_code == 74
    known = list(entries(path))
    append(path, "test", 2, [claim for claim in TWO if (2, *claim) not in known])
    assert list(entries(path)) == BOTH

"""The claims journal at a mirror: it grows with the one here, contradicts an older one, and comes back whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.checkpoints import mirrored_journal
from daemon.checkpoints.mirror import FsspecMirror
from daemon.checkpoints.remote import TEMPORARY_PREFIX, Link
from daemon.domain.errors import CheckpointError, DiskError, MirrorError, RestoredBackupError
from daemon.domain.upkeep import FetchedJournal

DEEDS = ("claim", "push", "thorough", "reorder", "old copy")
LACKS = r"claims that .*claims.log lacks.*fetch-journal"


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        (tmp_path / "mirror").mkdir()
        yield f"file://{tmp_path}/mirror"
        return
    yield "memory://journal"
    memory = fsspec.filesystem("memory")
    if memory.exists("/journal"):
        memory.rm("/journal", recursive=True)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """About four lines in a part."""
    monkeypatch.setattr(mirrored_journal, "PART_BYTES", 130)
    monkeypatch.setattr(mirrored_journal, "SMALL_PARTS", 3)


def lines(*numbers: int) -> str:
    return "".join(f"{number} scenario hash-{number:08d}\n" for number in numbers)


def write(tmp_path: Path, *numbers: int) -> Path:
    journal = tmp_path / "claims.log"
    journal.write_text(f"run test\n{lines(*numbers)}")
    return journal


def numbers_in(content: bytes) -> list[int]:
    return [int(line.split()[0]) for line in content.splitlines() if not line.startswith(b"run")]


def there(url: str) -> dict[str, bytes]:
    """Name -> content of the parts, by fsspec alone, in order."""
    file_system, root = fsspec.core.url_to_fs(url)
    found = {name.rsplit("/", 1)[-1]: file_system.cat_file(name) for name in file_system.ls(f"{root}/claims", False)}
    return dict(sorted(found.items()))


def alter(url: str, number: int, change: Callable[[bytes], bytes]) -> None:
    """Rot at the mirror."""
    file_system, root = fsspec.core.url_to_fs(url)
    name, content = list(there(url).items())[number]
    file_system.pipe_file(f"{root}/claims/{name}", change(content))


def flipped(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


def fetched(url: str, directory: Path) -> tuple[bytes, FetchedJournal]:
    """What comes to a place where nothing is."""
    told = FsspecMirror(url).fetch_journal(directory / "back" / "claims.log", "test")
    content = (directory / "back" / "claims.log").read_bytes()
    (directory / "back" / "claims.log").unlink()
    return content, told


def test_it_grows_with_the_one_here(url: str, tmp_path: Path) -> None:
    """After each push the parts there, in order, are the file here; nothing is sent twice but small parts, joined."""
    mirror = FsspecMirror(url)
    sent, journal = 0, tmp_path / "claims.log"
    for last in range(1, 41):
        journal = write(tmp_path, *range(1, last + 1))
        sent += mirror.push_journal(journal)
        parts = there(url)
        assert b"".join(parts.values()) == journal.read_bytes()
        assert len(parts) <= 3 + last // 4
        assert mirror.push_journal(journal) == 0
    assert all(content.endswith(b"\n") for content in there(url).values())
    assert journal.stat().st_size < sent <= 3 * journal.stat().st_size
    assert mirror.versions() == frozenset()  # it is none


def test_a_long_one_is_sent_over_several_calls(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that had no mirror for long: each call gets on, until all is there."""
    monkeypatch.setattr(mirrored_journal, "PARTS_AT_ONCE", 2)
    mirror, journal = FsspecMirror(url), write(tmp_path, *range(1, 31))
    sent = [mirror.push_journal(journal) for _ in range(6)]
    assert sum(sent) == journal.stat().st_size
    assert sent[-1] == 0 < sent[0] <= 2 * 130
    assert b"".join(there(url).values()) == journal.read_bytes()


def test_it_comes_back_as_it_was(url: str, tmp_path: Path) -> None:
    """Lost, older or damaged here: afterwards it is the one that was sent, and how many claims were lacking is said."""
    mirror, journal = FsspecMirror(url), write(tmp_path, *range(1, 20))
    content = journal.read_bytes()
    mirror.push_journal(journal)
    assert fetched(url, tmp_path) == (content, FetchedJournal(19, 0))
    for here, lacking in (((1, 2, 3), 16), (tuple(range(1, 20)), 0)):
        write(tmp_path, *here)
        assert mirror.fetch_journal(journal, "test") == FetchedJournal(lacking, 0)
        assert journal.read_bytes() == content
    journal.write_bytes(content[:-28] + b"\0" + content[-27:])
    assert mirror.fetch_journal(journal, "test") == FetchedJournal(1, 0)
    assert sorted(journal.read_bytes().splitlines()) == sorted(content.splitlines())
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".tmp")] == []


@pytest.mark.parametrize("here", [(1, 2, 3), (1, 2, 3, *range(20, 40)), (), None])
@pytest.mark.parametrize("rot", [None, "last part flipped", "last part cut", "last part empty"])
def test_an_older_one_is_refused(url: str, tmp_path: Path, here: tuple[int, ...] | None, rot: str | None) -> None:
    """Shorter, gone on differently, empty or not there at all, whatever else is wrong at the mirror: nothing there
    goes away, and the way out that is named works, whatever was claimed here meanwhile."""
    mirror = FsspecMirror(url)
    mirror.push_journal(write(tmp_path, *range(1, 10)))
    if rot is not None:
        changes = {"flipped": flipped, "cut": lambda content: content[:-1], "empty": lambda _: b""}
        alter(url, -1, changes[rot.removeprefix("last part ")])
    before = there(url)
    journal = write(tmp_path, *(here or ()))
    if here is None:
        journal.unlink()
    for thorough in (False, True):
        with pytest.raises(RestoredBackupError, match=LACKS):
            mirror.push_journal(journal, thorough=thorough)
        assert there(url) == before
    told = mirror.fetch_journal(journal, "test")
    everything = {*(here or ()), *range(1, 10 if rot is None else 5)}
    assert everything <= {int(line.split()[0]) for line in journal.read_text().splitlines()[1:]}
    assert told.num_claims >= 1
    mirror.push_journal(journal)
    assert {*journal.read_bytes().splitlines()} == {*b"".join(there(url).values()).splitlines()}


def test_the_same_claims_in_other_lines_replace_it(url: str, tmp_path: Path) -> None:
    """A journal that was made anew from the database may be ordered differently, and say each hash once."""
    mirror = FsspecMirror(url)
    mirror.push_journal(write(tmp_path, *range(1, 20), 5, 5, 5, 5, 5, 5))
    journal = write(tmp_path, *reversed(range(1, 20)))
    mirror.push_journal(journal)
    assert b"".join(there(url).values()) == journal.read_bytes()


@pytest.mark.parametrize("thorough", [False, True])
def test_a_push_that_breaks_off_anywhere_refuses_nobody(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thorough: bool
) -> None:
    """Grown, with parts to join, or in another order: after the n-th operation there the connection is gone, for
    each n. What was there is still there, the next push is not refused, and then all is as if nothing had been."""
    mirror, names = FsspecMirror(url), ("write", "remove", "read")
    operations = {name: getattr(Link, name) for name in names}
    for here in (range(1, 13), range(1, 16), [*reversed(range(1, 12))]):
        for broken in range(60):
            file_system, root = fsspec.core.url_to_fs(url)
            if file_system.exists(f"{root}/claims"):
                file_system.rm(f"{root}/claims", recursive=True)
            for last in (9, 10, 11):  # small parts in the end, that the next push joins
                mirror.push_journal(write(tmp_path, *range(1, last + 1)))
            left = [broken]

            def counted(name: str, left: list[int] = left) -> Callable[..., Any]:
                def call(*arguments: Any) -> Any:
                    left[0] -= 1
                    if left[0] < 0:
                        raise OSError("connection lost")
                    return operations[name](*arguments)

                return call

            journal = write(tmp_path, *here)
            with monkeypatch.context() as patch:
                for name in names:
                    patch.setattr(Link, name, counted(name))
                try:
                    mirror.push_journal(journal, thorough=thorough)
                except MirrorError:
                    pass
                else:
                    break
            assert set(range(1, 12)) <= {int(line.split()[0]) for line in fetched(url, tmp_path)[0].splitlines()[1:]}
            mirror.push_journal(journal)
            assert b"".join(there(url).values()) == journal.read_bytes()
        else:
            raise AssertionError("it never came to its end")
        assert broken >= 2


@pytest.mark.parametrize("here", [[*reversed(range(1, 31))], range(31, 91)])
def test_nothing_goes_before_its_claims_are_elsewhere(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: list[int]
) -> None:
    """A journal in another order is sent a part at a time: after each call every claim is there, in the end once. One
    that lacks claims is refused, though a bit rotted in each part that would tell."""
    mirror = FsspecMirror(url)
    mirror.push_journal(write(tmp_path, *range(1, 31)))
    monkeypatch.setattr(mirrored_journal, "PARTS_AT_ONCE", 1)
    journal = write(tmp_path, *here)
    if here[-1] != 1:
        for number in range(len(there(url))):
            alter(url, number, flipped)
        before = there(url)
        with pytest.raises(RestoredBackupError, match=LACKS):
            mirror.push_journal(journal)
        assert there(url) == before
        return
    while mirror.push_journal(journal):
        assert set(numbers_in(b"".join(there(url).values()))) == set(range(1, 31))
    assert b"".join(there(url).values()) == journal.read_bytes()


@pytest.mark.parametrize("older", [True, False])
def test_a_part_that_cannot_be_read_there(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    """A bad sector at the mirror: the other parts still tell an older copy here, and come back; where they know nothing
    more, the part is named. A thorough push sends it again from an intact file."""
    mirror = FsspecMirror(url)
    mirror.push_journal(write(tmp_path, *range(1, 12)))
    whole, read = there(url), Link.read
    bad = list(whole)[1]

    def reads(link: Link, folder: str, name: str) -> Iterator[bytes]:
        if name == bad and there(url)[bad] == whole[bad]:
            raise OSError(5, "Input/output error")
        return read(link, folder, name)

    journal = write(tmp_path, *(range(1, 3) if older else [*range(1, 4), *range(20, 40), *range(4, 12)]))
    with monkeypatch.context() as patch:
        patch.setattr(Link, "read", reads)
        with pytest.raises(RestoredBackupError if older else MirrorError, match=LACKS if older else bad):
            mirror.push_journal(journal)
        assert there(url) == whole
        assert mirror.fetch_journal(tmp_path / "back", "test").num_damaged == 1
        assert {1, 2, 11} <= set(numbers_in((tmp_path / "back").read_bytes())) < set(range(1, 12))
        patch.setattr(Link, "read", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(MirrorError, match="none of the 3 parts"):
            mirror.fetch_journal(tmp_path / "none", "test")
    assert mirror.push_journal(write(tmp_path, *range(1, 12)), thorough=True) == 0


def test_what_a_broken_push_left_goes(url: str, tmp_path: Path) -> None:
    """Half-written files, under their temporary names."""
    mirror, journal = FsspecMirror(url), write(tmp_path, 1)
    mirror.push_journal(journal)
    file_system, root = fsspec.core.url_to_fs(url)
    file_system.pipe_file(f"{root}/claims/{TEMPORARY_PREFIX}0123-part", b"half")
    mirror.push_journal(journal)
    assert list(there(url).values()) == [journal.read_bytes()]


def test_a_line_that_a_crash_left_half_is_not_sent(url: str, tmp_path: Path) -> None:
    """Whole lines alone are; what was appended after it was cut off is sent next."""
    mirror, journal = FsspecMirror(url), write(tmp_path, 1, 2)
    with journal.open("a") as file:
        file.write("3 scen")
    mirror.push_journal(journal)
    assert b"".join(there(url).values()) == f"run test\n{lines(1, 2)}".encode()
    mirror.push_journal(write(tmp_path, 1, 2, 4))
    assert b"".join(there(url).values()) == journal.read_bytes()


@pytest.mark.parametrize("number", [0, 1, -1])
@pytest.mark.parametrize("change", [flipped, lambda content: content[:-5], lambda _: b""])
def test_what_rots_there_is_sent_again(url: str, tmp_path: Path, number: int, change: Callable[[bytes], bytes]) -> None:
    """A fetch says so, and brings what can still be read; a thorough push replaces it, one of another size any."""
    mirror, journal = FsspecMirror(url), write(tmp_path, *range(1, 14))
    mirror.push_journal(journal)
    whole = there(url)
    alter(url, number, change)
    content, told = fetched(url, tmp_path)
    assert told.num_damaged == 1 and told.num_claims == content.count(b"\n") - 1
    assert told.num_claims == 13 if change is flipped else 8 <= told.num_claims < 13
    mirror.push_journal(journal, thorough=change is flipped)
    assert there(url) == whole


def test_what_rots_there_stays_until_it_is_replaced(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push that cannot send the sound part takes nothing away: what can be read of the damaged one may be needed."""
    mirror, journal = FsspecMirror(url), write(tmp_path, *range(1, 14))
    mirror.push_journal(journal)
    alter(url, 1, flipped)
    before = there(url)

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Link, "write", fails)
        with pytest.raises(MirrorError, match="No space left"):
            mirror.push_journal(journal, thorough=True)
    assert there(url) == before


def test_what_rots_here_never_gets_there(url: str, tmp_path: Path) -> None:
    """A line that is none stops it before anything is sent. One with another hash is an older claim that is lacking;
    fetched, both are here, and there is a way on."""
    mirror, journal = FsspecMirror(url), write(tmp_path, *range(1, 14))
    mirror.push_journal(journal)
    before, content = there(url), journal.read_bytes()
    journal.write_bytes(content.replace(b"5 scenario", b"5 scenari\x00") + lines(14).encode())
    for thorough in (False, True):
        with pytest.raises((CheckpointError, RestoredBackupError)):
            mirror.push_journal(journal, thorough=thorough)
        assert there(url) == before
    journal.write_bytes(content.replace(b"hash-00000005", b"hash-00000004"))
    with pytest.raises(RestoredBackupError, match=LACKS):
        mirror.push_journal(journal, thorough=True)
    assert there(url) == before
    assert mirror.fetch_journal(journal, "test").num_claims == 1
    mirror.push_journal(journal, thorough=True)
    fresh = write(tmp_path, 1, 2)
    fresh.write_bytes(fresh.read_bytes() + b"not a claim\n")
    with pytest.raises(RestoredBackupError):
        mirror.push_journal(fresh)


def test_a_damaged_line_of_a_new_journal_is_not_sent(url: str, tmp_path: Path) -> None:
    """The file is named, and where in it."""
    journal = write(tmp_path, 1, 2, 3)
    journal.write_bytes(journal.read_bytes() + b"not a claim\n" + lines(4).encode())
    with pytest.raises(CheckpointError, match=r"claims.log: damaged after byte \d+: not a claim"):
        FsspecMirror(url).push_journal(journal)


@pytest.mark.parametrize("side", ["there", "here"])
def test_another_runs_is_not_mixed_in(url: str, tmp_path: Path, side: str) -> None:
    """Two runs at one URL: neither is pushed over the other, nor fetched into it."""
    mirror, journal = FsspecMirror(url), write(tmp_path, 1, 2)
    mirror.push_journal(journal)
    before = there(url)
    journal.write_text(f"run other\n{lines(7, 8, 9)}")
    with pytest.raises(MirrorError, match="run test is there, and this is run other; give each run"):
        mirror.push_journal(journal)
    with pytest.raises(MirrorError, match="is not run"):
        mirror.fetch_journal(journal, "other" if side == "there" else "test")
    assert there(url) == before
    assert journal.read_text() == f"run other\n{lines(7, 8, 9)}"


def test_where_there_is_no_journal_nothing_is_fetched(url: str, tmp_path: Path) -> None:
    """A wrong path must not look like a journal that has nothing new."""
    with pytest.raises(MirrorError, match="there is no claims journal"):
        FsspecMirror(url).fetch_journal(tmp_path / "claims.log", "test")
    assert not (tmp_path / "claims.log").exists()
    assert FsspecMirror(url).push_journal(tmp_path / "claims.log") == 0


def test_a_mirror_that_alters_is_found(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read back is not what was sent: an error, and what was right there before stays."""
    mirror, journal = FsspecMirror(url), write(tmp_path, 1)
    mirror.push_journal(journal)
    before, write_there = there(url), Link.write
    with monkeypatch.context() as patch:
        patch.setattr(Link, "write", lambda link, folder, name, _: write_there(link, folder, name, [b"x"]))
        with pytest.raises(MirrorError, match="read back"):
            mirror.push_journal(write(tmp_path, 1, 2))
    assert there(url) == before


def test_a_full_disk_leaves_what_is_here(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch that cannot be written says so, and nothing changed."""
    mirror = FsspecMirror(url)
    mirror.push_journal(write(tmp_path, 1, 2, 3))
    journal = write(tmp_path, 1)

    def full(_path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("daemon.checkpoints.files.fsync", full)
    with pytest.raises(DiskError, match="No space left"):
        mirror.fetch_journal(journal, "test")
    assert journal.read_text() == f"run test\n{lines(1)}"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(DEEDS), st.integers(0, 9)), max_size=16), st.sampled_from([1, 2, 8]))
def test_no_claim_is_ever_lost(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[str, int]], at_once: int
) -> None:
    """Whatever happens in whatever order, older copies that go on included: a push is refused only where the file here
    lacks a claim that is there; what is there stays there; after a fetch both sides know all that either knew."""
    directory = tmp_path_factory.mktemp("story")
    (directory / "mirror").mkdir()
    url, journal = f"file://{directory}/mirror", directory / "claims.log"
    mirror, known, mirrored, copies = FsspecMirror(url), list[int](), set[int](), [list[int]()]
    for number, (deed, drawn) in enumerate(story, start=1):
        if deed == "claim":
            known += [100 * number + step for step in range(1 + drawn)]
        elif deed == "reorder":
            known.reverse()
        elif deed == "old copy":
            known = list(copies[drawn % len(copies)])
        copies.append(list(known))
        write(directory, *known)
        if deed not in ("push", "thorough"):
            continue
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mirrored_journal, "PARTS_AT_ONCE", at_once)
            if mirrored <= set(known):
                mirror.push_journal(journal, thorough=deed == "thorough")
            else:
                with pytest.raises(RestoredBackupError):
                    mirror.push_journal(journal, thorough=deed == "thorough")
                mirror.fetch_journal(journal, "test")
                mirror.push_journal(journal)
                known = numbers_in(journal.read_bytes())
        found = set(numbers_in(b"".join(there(url).values())))
        assert mirrored <= found <= set(known)
        mirrored = found

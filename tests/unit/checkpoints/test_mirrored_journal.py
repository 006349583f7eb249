"""The claims journal at a mirror: it grows with the one here, contradicts an older one, and comes back whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from daemon.checkpoints import mirrored_journal
from daemon.checkpoints.mirror import FsspecMirror
from daemon.domain.errors import DiskError, MirrorError, RestoredBackupError


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
    monkeypatch.setattr(mirrored_journal, "PART_BYTES", 100)


def lines(*numbers: int) -> str:
    """Claims of some cycles; a line has 26 bytes, so parts end in the middle of one."""
    return "".join(f"{number} scenario hash-{number:08d}\n" for number in numbers)


def write(tmp_path: Path, *numbers: int) -> Path:
    journal = tmp_path / "claims.log"
    journal.write_text(f"run test\n{lines(*numbers)}")
    return journal


def there(url: str) -> dict[str, bytes]:
    """Name -> content of the parts, by fsspec alone."""
    file_system, root = fsspec.core.url_to_fs(url)
    found = {name.rsplit("/", 1)[-1]: file_system.cat_file(name) for name in file_system.ls(f"{root}/claims", False)}
    return dict(sorted(found.items()))


def test_it_grows_part_by_part(url: str, tmp_path: Path) -> None:
    """After each push the parts there, in order, are the file here; full ones are not sent again, nor is the same."""
    mirror = FsspecMirror(url)
    sent = []
    for last in (1, 5, 9, 30):
        journal = write(tmp_path, *range(1, last + 1))
        sent.append(mirror.push_journal(journal))
        parts = there(url)
        assert b"".join(parts.values()) == journal.read_bytes()
        assert [name[:6] for name in parts] == [f"{number:06d}" for number in range(len(parts))]
        assert mirror.push_journal(journal) == 0
    size = journal.stat().st_size
    assert size > 700 and size < sum(sent) <= size + 3 * 100
    assert mirror.versions() == frozenset()  # it is none


def test_it_comes_back_as_it_was(url: str, tmp_path: Path) -> None:
    """Lost or older here: afterwards the file is the one that was sent, and how many claims it lacked is said."""
    mirror, journal = FsspecMirror(url), write(tmp_path, *range(1, 20))
    content = journal.read_bytes()
    mirror.push_journal(journal)
    assert mirror.fetch_journal(tmp_path / "new" / "claims.log") == 19
    assert (tmp_path / "new" / "claims.log").read_bytes() == content
    write(tmp_path, 1, 2, 3)
    assert mirror.fetch_journal(journal) == 16
    assert journal.read_bytes() == content
    assert mirror.fetch_journal(journal) == 0
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".tmp")] == []


@pytest.mark.parametrize("here", [(1, 2, 3), (1, 2, 3, 20, 21, 22, 23, 24, 25, 26, 27, 28), ()])
def test_an_older_one_is_refused(url: str, tmp_path: Path, here: tuple[int, ...]) -> None:
    """Shorter, or gone on differently, or empty: nothing there changes, and the way out is named."""
    mirror = FsspecMirror(url)
    mirror.push_journal(write(tmp_path, *range(1, 10)))
    before = there(url)
    with pytest.raises(RestoredBackupError, match=r"claims that .*claims.log lacks.*fetch-journal"):
        mirror.push_journal(write(tmp_path, *here))
    assert there(url) == before


def test_the_newer_one_here_is_not_replaced(url: str, tmp_path: Path) -> None:
    """A fetch that would lose claims changes nothing."""
    mirror = FsspecMirror(url)
    mirror.push_journal(write(tmp_path, 1, 2))
    journal = write(tmp_path, 1, 2, 3)
    with pytest.raises(MirrorError, match=r"lacks 1 claims that .*claims.log has"):
        mirror.fetch_journal(journal)
    assert journal.read_text() == f"run test\n{lines(1, 2, 3)}"


def test_the_same_claims_in_another_order_replace_it(url: str, tmp_path: Path) -> None:
    """A journal that was lost here and made anew from the database may be ordered differently, and be shorter by what
    a line was said twice."""
    mirror = FsspecMirror(url)
    mirror.push_journal(write(tmp_path, *range(1, 20), 5, 5, 5, 5, 5, 5))
    journal = write(tmp_path, *reversed(range(1, 20)))
    mirror.push_journal(journal)
    assert b"".join(there(url).values()) == journal.read_bytes()


def test_a_line_that_a_crash_left_half_does_not_count(url: str, tmp_path: Path) -> None:
    """What was mirrored of it is replaced by what was appended after it was cut off."""
    mirror, journal = FsspecMirror(url), write(tmp_path, 1, 2)
    with journal.open("a") as file:
        file.write("3 scen")
    mirror.push_journal(journal)
    mirror.push_journal(write(tmp_path, 1, 2, 4))
    assert b"".join(there(url).values()) == journal.read_bytes()


@pytest.mark.parametrize("number", [0, 3])
def test_a_damaged_part_is_never_used(url: str, tmp_path: Path, number: int) -> None:
    """It is not fetched; the last one counts as absent, so the next push replaces it, and a thorough one any."""
    mirror, journal = FsspecMirror(url), write(tmp_path, *range(1, 14))
    mirror.push_journal(journal)
    file_system, root = fsspec.core.url_to_fs(url)
    name, content = list(there(url).items())[number]
    file_system.pipe_file(f"{root}/claims/{name}", bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(MirrorError, match=f"part {number} of the claims journal is damaged"):
        mirror.fetch_journal(tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert len(there(url)) == 4
    mirror.push_journal(journal, thorough=number != 3)
    assert b"".join(there(url).values()) == journal.read_bytes()


def test_a_push_that_broke_off_is_gone_on_with(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the new last part and the end of the old one: both are there, and the longer one counts."""
    mirror, journal = FsspecMirror(url), write(tmp_path, 1)
    mirror.push_journal(journal)
    write(tmp_path, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr("daemon.checkpoints.remote.Link.remove", lambda *_: None)
        mirror.push_journal(journal)
    assert len(there(url)) == 2
    mirror.fetch_journal(tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == journal.read_bytes()
    mirror.push_journal(journal)
    assert list(there(url).values()) == [journal.read_bytes()]


def test_a_mirror_that_alters_is_found(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read back is not what was sent: an error, and what was right there before stays."""
    mirror, journal = FsspecMirror(url), write(tmp_path, 1)
    mirror.push_journal(journal)
    before, write_there = there(url), mirrored_journal.Link.write
    with monkeypatch.context() as patch:
        patch.setattr(
            mirrored_journal.Link, "write", lambda link, folder, name, _: write_there(link, folder, name, [b"x"])
        )
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
        mirror.fetch_journal(journal)
    assert journal.read_text() == f"run test\n{lines(1)}"

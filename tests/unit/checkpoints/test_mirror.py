"""A mirror holds what it was given, says so only after reading it back, and gives back nothing else."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from checkpoint_files import contents, flip, make_directory, make_it_lossy

from daemon.checkpoints import remote
from daemon.checkpoints.mirror import FsspecMirror
from daemon.domain.errors import CheckpointError, ConfigError, DiskError, MirrorError, StopRequested
from daemon.domain.states import CheckpointKind

EXACT = {"model.safetensors", "optimizer.state"}


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        (tmp_path / "mirror" / "of run").mkdir(parents=True)
        yield f"file://{tmp_path}/mirror/of run"
        return
    yield "memory://mirror"
    memory = fsspec.filesystem("memory")
    if memory.exists("/mirror"):
        memory.rm("/mirror", recursive=True)


def there(url: str, version: str = "cycle-000007") -> dict[str, bytes]:
    """Name -> bytes of what lies at the mirror, by fsspec alone."""
    file_system, root = fsspec.core.url_to_fs(url)
    names = file_system.ls(f"{root}/{version}", detail=False)
    return {name.rsplit("/", 1)[-1]: file_system.cat_file(name) for name in names}


def test_what_was_pushed_comes_back_equal(url: str, tmp_path: Path) -> None:
    """Every byte of a checkpoint is there after a push, and here again after a fetch; sizes are what was sent."""
    directory, checkpoint = make_directory(tmp_path / "here")
    mirror = FsspecMirror(url)
    sent = mirror.push(directory)
    assert there(url) == contents(directory)
    assert sent == sum(len(content) for content in contents(directory).values())
    assert mirror.versions() == {"cycle-000007"}
    mirror.fetch("cycle-000007", checkpoint.root_hash, tmp_path / "back" / "again")
    assert contents(tmp_path / "back" / "again") == contents(directory)
    assert [entry.name for entry in (tmp_path / "back").iterdir()] == ["again"]


def test_nothing_is_sent_twice(url: str, tmp_path: Path) -> None:
    """A second push of the same checkpoint sends no byte."""
    directory, _ = make_directory(tmp_path)
    mirror = FsspecMirror(url)
    mirror.push(directory)
    assert mirror.push(directory) == 0


def test_push_that_is_cut_gets_on(url: str, tmp_path: Path) -> None:
    """However little time there is, each call sends one more file, and none twice; the manifest comes last."""
    directory, _ = make_directory(tmp_path)
    mirror = FsspecMirror(url)
    names = []
    while mirror.push(directory, seconds=-1.0) is None:
        assert mirror.versions() == frozenset()
        names.append(there(url).keys())
    assert names == [{"image.delta"}, {"image.delta", "model.safetensors"}]
    assert there(url) == contents(directory)


def test_image_alone_takes_the_exact_state_away(url: str, tmp_path: Path) -> None:
    """What was sent whole and is wanted as its image alone loses its exact files there, and gets them back."""
    directory, _ = make_directory(tmp_path)
    mirror = FsspecMirror(url)
    mirror.push(directory)
    mirror.push(directory, exact=False)
    assert there(url).keys() == {"image.delta", "lossy", "manifest.json"}
    mirror.push(directory)
    assert there(url) == contents(directory)


def test_incomplete_version_is_gone_on_with(url: str, tmp_path: Path) -> None:
    """A version without a manifest is not there; the next push sends what is missing, and clears what lay about."""
    directory, checkpoint = make_directory(tmp_path / "here")
    mirror = FsspecMirror(url)
    mirror.push(directory)
    file_system, root = fsspec.core.url_to_fs(url)
    file_system.rm_file(f"{root}/cycle-000007/manifest.json")
    file_system.rm_file(f"{root}/cycle-000007/optimizer.state")
    file_system.pipe_file(f"{root}/cycle-000007/.tmp-0123-optimizer.state", b"half")
    assert mirror.versions() == frozenset()
    with pytest.raises(MirrorError, match="not complete"):
        mirror.fetch("cycle-000007", checkpoint.root_hash, tmp_path / "back")
    assert mirror.push(directory) == 200_000 + (directory / "manifest.json").stat().st_size
    assert there(url) == contents(directory)


@pytest.mark.parametrize("name", ["image.delta", "model.safetensors", "optimizer.state", "manifest.json"])
def test_flipped_bit_there_is_found_and_mended(url: str, tmp_path: Path, name: str) -> None:
    """A bit that flips at the mirror is never fetched, and the next push replaces the file."""
    directory, checkpoint = make_directory(tmp_path / "here")
    mirror = FsspecMirror(url)
    mirror.push(directory)
    damaged = bytearray(there(url)[name])
    damaged[40] ^= 1
    file_system, root = fsspec.core.url_to_fs(url)
    file_system.pipe_file(f"{root}/cycle-000007/{name}", bytes(damaged))
    with pytest.raises(MirrorError, match=r"damaged|another"):
        mirror.fetch("cycle-000007", checkpoint.root_hash, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".tmp")] == []
    assert mirror.push(directory) == (directory / name).stat().st_size
    assert there(url) == contents(directory)


def test_read_back_finds_a_mirror_that_alters(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that stores other bytes than it was sent is found out at once, and no manifest vouches for them."""
    directory, _ = make_directory(tmp_path)
    whole = remote.Link.write

    def alter(self: remote.Link, folder: str, name: str, content: Iterator[bytes]) -> None:
        sent = bytearray(b"".join(content))
        if name == "optimizer.state":
            sent[7] ^= 4
        whole(self, folder, name, [bytes(sent)])

    monkeypatch.setattr(remote.Link, "write", alter)
    with pytest.raises(MirrorError, match=r"optimizer\.state.*read back"):
        FsspecMirror(url).push(directory)
    assert "manifest.json" not in there(url)
    assert "optimizer.state" not in there(url)


def test_local_damage_is_not_mirrored(url: str, tmp_path: Path) -> None:
    """A file that rotted here is not sent, and that is said of it, not of the mirror."""
    directory, _ = make_directory(tmp_path)
    flip(directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        FsspecMirror(url).push(directory)
    assert not {"model.safetensors", "manifest.json"} & there(url).keys()


def test_lossy_here_becomes_lossy_there(url: str, tmp_path: Path) -> None:
    """What retention deleted here goes away there with the next push; what is fetched then says `lossy`."""
    directory, checkpoint = make_directory(tmp_path / "here")
    mirror = FsspecMirror(url)
    mirror.push(directory)
    make_it_lossy(directory)
    mirror.push(directory)
    assert there(url).keys() == {"image.delta", "lossy", "manifest.json"}
    mirror.fetch("cycle-000007", checkpoint.root_hash, tmp_path / "back")
    assert contents(tmp_path / "back").keys() == {"image.delta", "lossy", "manifest.json"}


def test_mirror_without_exact_state(url: str, tmp_path: Path) -> None:
    """With `mirror_exact` off images alone go out, but a full checkpoint goes whole; switched on, the rest follows."""
    delta, _ = make_directory(tmp_path)
    full, full_checkpoint = make_directory(tmp_path, "base", CheckpointKind.FULL, parent_version=None)
    mirror = FsspecMirror(url, exact=False)
    mirror.push(delta)
    mirror.push(full)
    assert there(url).keys() == {"image.delta", "lossy", "manifest.json"}
    assert there(url, "base").keys() >= EXACT
    mirror.fetch("base", full_checkpoint.root_hash, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(full)
    FsspecMirror(url).push(delta)
    assert there(url) == contents(delta)


def test_two_runs_do_not_share(url: str, tmp_path: Path) -> None:
    """Another run's checkpoint of the same name is neither overwritten nor fetched."""
    ours, _ = make_directory(tmp_path / "ours")
    theirs, checkpoint = make_directory(tmp_path / "theirs", batch_hash="another")
    FsspecMirror(url).push(ours)
    with pytest.raises(MirrorError, match="mirror_url of its own"):
        FsspecMirror(url).push(theirs)
    with pytest.raises(MirrorError, match="another checkpoint"):
        FsspecMirror(url).fetch("cycle-000007", checkpoint.root_hash, tmp_path / "back")
    assert there(url) == contents(ours)


def test_delete(url: str, tmp_path: Path) -> None:
    """A deleted version is gone; deleting what is not there is no error."""
    directory, checkpoint = make_directory(tmp_path)
    mirror = FsspecMirror(url)
    mirror.push(directory)
    mirror.delete("cycle-000007", checkpoint.root_hash)
    mirror.delete("cycle-000007", checkpoint.root_hash)
    assert mirror.versions() == frozenset()


@pytest.mark.parametrize("manifest", ["theirs", "damaged"])
def test_only_what_is_ours_is_deleted(url: str, tmp_path: Path, manifest: str) -> None:
    """Another run's checkpoint of the same name, or one of which nobody can tell whose it is, is left alone."""
    theirs, _ = make_directory(tmp_path / "theirs")
    _, ours = make_directory(tmp_path / "ours", batch_hash="another")
    mirror = FsspecMirror(url)
    mirror.push(theirs)
    if manifest == "damaged":
        file_system, root = fsspec.core.url_to_fs(url)
        file_system.pipe_file(f"{root}/cycle-000007/manifest.json", b"{")
    before = there(url)
    mirror.delete("cycle-000007", ours.root_hash)
    assert there(url) == before


def test_empty_mirror_has_no_versions(url: str) -> None:
    """A mirror that nothing was sent to is empty, not unreachable."""
    assert FsspecMirror(url).versions() == frozenset()


def test_hanging_mirror_ends_by_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that takes bytes and then stops answering costs the time limit, and publishes nothing later."""
    directory, _ = make_directory(tmp_path / "here")
    (tmp_path / "mirror").mkdir()
    released = threading.Event()
    mv = fsspec.implementations.local.LocalFileSystem.mv

    def hang(self: object, *arguments: object, **options: object) -> None:
        assert released.wait(30)
        mv(self, *arguments, **options)

    monkeypatch.setattr(fsspec.implementations.local.LocalFileSystem, "mv", hang)
    with pytest.raises(MirrorError, match=r"nothing moved for 0\.3 s"):
        FsspecMirror(f"file://{tmp_path}/mirror", timeout_s=0.3).push(directory)
    released.set()
    for thread in [thread for thread in threading.enumerate() if thread.name == "mirror"]:
        thread.join(30)
    assert not (tmp_path / "mirror" / "cycle-000007" / "manifest.json").exists()


def test_stop_breaks_a_push_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop ends the waiting at once, however long the mirror takes."""
    directory, _ = make_directory(tmp_path)
    (tmp_path / "mirror").mkdir()
    released = threading.Event()

    def hang(self: object, *arguments: object, **options: object) -> None:
        released.wait(30)

    def stop() -> None:
        raise StopRequested("SIGTERM")

    monkeypatch.setattr(fsspec.implementations.local.LocalFileSystem, "makedirs", hang)
    with pytest.raises(StopRequested):
        FsspecMirror(f"file://{tmp_path}/mirror", check=stop).push(directory)
    released.set()


def test_unwritable_mirror_is_a_mirror_error(tmp_path: Path) -> None:
    """A file where a checkpoint's folder should be is said with the URL and what to check."""
    directory, _ = make_directory(tmp_path)
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "cycle-000007").write_text("no folder")
    with pytest.raises(MirrorError, match=r"file://.*mirror: sending cycle-000007: .*check"):
        FsspecMirror(f"file://{tmp_path}/mirror").push(directory)


def test_unmounted_disk_is_not_filled(tmp_path: Path) -> None:
    """A `file://` folder that is not there is not created: it would be on the disk under the mount point."""
    directory, checkpoint = make_directory(tmp_path / "here")
    mirror = FsspecMirror(f"file://{tmp_path}/disk/mirror")
    for ask in (
        lambda: mirror.push(directory),
        mirror.versions,
        lambda: mirror.fetch("cycle-000007", checkpoint.root_hash, tmp_path / "back"),
    ):
        with pytest.raises(MirrorError, match="mounted"):
            ask()
    assert not (tmp_path / "disk").exists()


def test_fetch_leaves_what_is_there(url: str, tmp_path: Path) -> None:
    """Nothing is fetched over a directory that exists; a place that cannot be written is a disk error."""
    directory, checkpoint = make_directory(tmp_path)
    mirror = FsspecMirror(url)
    mirror.push(directory)
    with pytest.raises(MirrorError, match="is there already"):
        mirror.fetch("cycle-000007", checkpoint.root_hash, directory)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DiskError, match="cannot be created"):
        mirror.fetch("cycle-000007", checkpoint.root_hash, tmp_path / "file" / "back")


def test_useless_urls_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown protocol, a missing package and a cache in between are errors of the configuration, with the fix."""
    with pytest.raises(ConfigError, match="flie:// is not known"):
        FsspecMirror("flie:///mirror")
    with pytest.raises(ConfigError, match="cache"):
        FsspecMirror("simplecache::s3://bucket/mirror")
    monkeypatch.setitem(sys.modules, "paramiko", None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.sftp", raising=False)
    monkeypatch.delitem(vars(sys.modules["fsspec.registry"])["_registry"], "sftp", raising=False)
    with pytest.raises(ConfigError, match=r'pip install "dreamd\[ssh\]"'):
        FsspecMirror("sftp://host/mirror")


def test_password_is_not_shown() -> None:
    """The URL is shown without its password."""
    mirror = FsspecMirror("sftp://dreamd:s3cret@backup.example:2222/srv/dreamd")
    assert mirror.url == "sftp://dreamd:***@backup.example:2222/srv/dreamd"


def test_full_disk_while_fetching_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room here is a disk error, not the mirror's, and no half checkpoint stays."""
    directory, checkpoint = make_directory(tmp_path / "here")
    (tmp_path / "mirror").mkdir()
    mirror = FsspecMirror(f"file://{tmp_path}/mirror")
    mirror.push(directory)
    shutil.rmtree(directory)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("daemon.checkpoints.mirror.publish_directory", full)
    with pytest.raises(DiskError, match="No space left"):
        mirror.fetch("cycle-000007", checkpoint.root_hash, directory)
    assert list((tmp_path / "here").iterdir()) == []

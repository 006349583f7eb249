"""The power fails at each write in turn, the disk keeps only what was fsynced, and dreamd starts on what is left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from harness import check_invariants, dream, load, make_run, query
from power_loss import Disk, Moment, watching
from pysqlite3 import dbapi2
from torch import Tensor

from daemon.checkpoints import files
from daemon.checkpoints.store import DirectoryStore
from daemon.domain.errors import CheckpointError
from daemon.domain.records import PolicyDigests, WrittenState
from daemon.domain.states import CycleState

SAFE = {CycleState.PUBLISHED, CycleState.PROBED}


def test_the_model_of_the_disk_by_hand(tmp_path: Path) -> None:
    """Of a file written, renamed and synced in every wrong order, exactly what POSIX promises is left, and no more."""
    root = tmp_path / "disk"
    root.mkdir()
    (root / "old").write_bytes(b"kept")
    with watching(Disk(root)) as disk:
        (root / "new").write_bytes(b"12345678")
        (root / "old").write_bytes(b"kept and more")
        disk.power_may_fail("written")
        (root / "new").rename(root / "named")
        _fsync(root / "named")
        _fsync(root)
        (root / "old").unlink()
    written = _trees(disk, "written")
    assert written["unsynced lost"] == {"old": b"kept"}
    assert written["unsynced zeroed"] == {"new": bytes(8), "old": b"kept" + bytes(9)}
    assert written["unsynced short"] == {"new": b"1234", "old": b"kept and"}
    assert _trees(disk, "before fsync of disk") == {
        "unsynced zeroed": {"named": b"12345678", "old": b"kept" + bytes(9)},
        "unsynced short": {"named": b"12345678", "old": b"kept and"},
    }
    assert _trees(disk, "before unlink of old")["unsynced lost"] == {"named": b"12345678", "old": b"kept"}
    # The deletion itself may or may not have happened.
    assert _trees(disk, "at the end") == {"unsynced zeroed": {"named": b"12345678"}}


def test_a_directory_renamed_too_early_loses_its_files(tmp_path: Path) -> None:
    """A directory is renamed and its parent synced, its files are not: they are empty, zeroed, or not there at all."""
    root = tmp_path / "disk"
    root.mkdir()
    with watching(Disk(root)) as disk:
        (root / ".tmp-x").mkdir()
        (root / ".tmp-x" / "file").write_bytes(b"12")
        (root / ".tmp-x").rename(root / "x")
        _fsync(root)
    found = _trees(disk, "at the end")
    assert found["unsynced lost"] == {"x": None}
    assert _trees(disk, "before fsync of disk")["unsynced zeroed"] == {"x": None, "x/file": bytes(2)}


class Weights:
    """Mirrors the `Snapshot` port."""

    weights: Mapping[str, Tensor] = {}
    changes = None

    def write(self, directory: Path) -> WrittenState:
        (directory / "model.safetensors").write_bytes(b"weights")
        (directory / "optimizer.state").write_bytes(b"moments")
        return WrittenState(PolicyDigests("x", "y"))


@pytest.mark.parametrize("forgotten", ["nothing", "files", "directory", "parent"])
def test_a_forgotten_fsync_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str) -> None:
    """A publication is absent or verifies after every power loss, and there once it returned; not without any fsync.

    The control of the test below: whichever of the three kinds of fsync is left out, some power loss shows it.
    """
    root = tmp_path / "checkpoints"
    store, fsync = DirectoryStore(root), files.fsync

    def forgetful(path: Path) -> None:
        kind = "files" if path.is_file() else "parent" if path == root else "directory"
        if kind != forgotten:
            fsync(path)

    monkeypatch.setattr(files, "fsync", forgetful)
    rows: list[bytes] = []
    with watching(Disk(root, lambda: b"".join(rows))) as disk:
        store.publish("base", Weights(), cycle_number=None, parent=None, batch_hash=None, step=None)
        rows.append(b"published")
    broken = []
    for number, moment in enumerate(disk.moments.values()):
        moment.restore(tmp_path / str(number))
        left = DirectoryStore(tmp_path / str(number))
        try:
            if moment.database or left.exists("base"):
                left.verify("base")
        except CheckpointError:
            broken.append(moment.label)
    assert bool(broken) == (forgotten != "nothing"), broken


@pytest.mark.slow
def test_power_loss_at_each_write(tmp_path: Path) -> None:
    """Fault 6: whatever was not fsynced is lost, zeroed or cut, at each write of a cycle in turn: I1-I4 hold.

    The cycle also makes an old checkpoint lossy and deletes another one. After each loss a start repairs the run: what
    the database says was published or promoted is still whole, and the head is the one before or the one after.
    """
    settings = {"keep_last": 5, "keyframe_every": 1}
    file = make_run(tmp_path / "run", "", checkpoints=settings, watchdog={"baked_after": 1})
    dream(file, 5)
    state = load(file).config.run.state_dir
    connection = dbapi2.connect(str(state / "dreamd.sqlite3"), check_same_thread=False)
    disk = Disk(state / "checkpoints", lambda: _committed(connection, tmp_path / "copy.sqlite3"))
    with closing(connection), watching(disk):
        dream(file, 1)
    moments = list(disk.moments.values())
    assert len(moments) >= 5  # before anything, renamed and not synced, renamed, and while old ones are deleted
    for number, moment in enumerate(moments):
        _start_after(moment, file, tmp_path / f"after-{number}")


def _start_after(moment: Moment, file: Path, directory: Path) -> None:
    """Start dreamd on what is left, and check it."""
    left = directory / "state"
    moment.restore(left / "checkpoints")
    (left / "dreamd.sqlite3").write_bytes(moment.database)
    config = directory / "dreamd.toml"
    old = str(load(file).config.run.state_dir)
    config.write_text(file.read_text().replace(old, str(left)))
    before = dict(query(config, "select number, state from cycles"))
    ((head_before,),) = query(config, "select head_version from runs")
    try:
        dream(config, 0)
        _nothing_recorded_was_lost(config, before, head_before)
        check_invariants(config)
    except Exception as error:
        error.add_note(f"after a power loss {moment.label}; left over: {sorted(moment.tree)}")
        raise
    shutil.rmtree(directory)


def _nothing_recorded_was_lost(config: Path, before: dict[int, str], head_before: str) -> None:
    outcomes = dict(query(config, "select number, outcome from cycles"))
    assert [outcomes[number] for number, state in before.items() if state in SAFE] in ([], ["promoted"])
    ((head,),) = query(config, "select head_version from runs")
    assert head in (head_before, f"cycle-{max(outcomes):06d}")
    store = DirectoryStore(load(config).config.run.state_dir / "checkpoints")
    for (version,) in query(config, "select version from checkpoints where state != 'pruned' order by 1"):
        store.verify(version)


def _committed(connection: Any, path: Path) -> bytes:
    """The database as a reader sees it now: what a power loss leaves of it."""
    path.unlink(missing_ok=True)
    with closing(dbapi2.connect(str(path))) as copy:
        connection.backup(copy)
    return path.read_bytes()


def _trees(disk: Disk, label: str) -> dict[str, Any]:
    found = [moment for moment in disk.moments.values() if moment.label.startswith(f"{label}, ")]
    return {moment.label.removeprefix(f"{label}, "): moment.tree for moment in found}


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)

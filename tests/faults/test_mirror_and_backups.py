"""A real run whose mirror is away, whose files rot at rest, whose database is replaced by an older one."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import RecordingObserver, check_invariants, dream, flip_bit, load, outcomes, query

from daemon import app
from daemon.checkpoints.mirror import FsspecMirror
from daemon.domain.errors import CheckpointError, ConfigError, RestoredBackupError
from daemon.storage.database import open_database
from daemon.storage.journal import adopt_journal

NewRun = Callable[..., Path]


def test_an_unreachable_mirror_stops_nothing(new_run: NewRun, tmp_path: Path) -> None:
    """Fault 28: nobody listens at the mirror's address: two cycles are promoted, all is queued, and it is said once.

    With another mirror, that answers, the next start sends everything, byte for byte, whatever the back-off was.
    """
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and never listens
        away = f"sftp://somebody@127.0.0.1:{unused.getsockname()[1]}/mirror"
        file = new_run(checkpoints={"mirror_url": away}, watchdog={"baked_after": 1})
        observer = RecordingObserver()
        dream(file, 2, observer=observer)
    assert outcomes(file) == ["promoted", "promoted"]
    assert [name for name, _ in observer.events].count("mirror_unreachable") == 1
    queued = query(file, "select version from mirror_tasks where mirrored_at is null order by 1")
    assert queued == [("base",), ("cycle-000001",), ("cycle-000002",)]
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    file.write_text(file.read_text().replace(away, f"file://{mirror}"))
    dream(file, 1)
    assert query(file, "select count(*) from mirror_tasks where mirrored_at is null") == [(0,)]
    local = file.parent / "state" / "checkpoints"
    for version in ("base", "cycle-000001", "cycle-000002", "cycle-000003"):
        assert _files(mirror / version) == _files(local / version) != {}


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_what_rots_at_rest_comes_back_from_the_mirror(new_run: NewRun, tmp_path: Path, damage: str) -> None:
    """Faults 10 and 11: a file of an anchor is cut or has one bit flipped: found, set aside, and fetched again.

    Training never stopped for it; the checkpoint is what it was, byte for byte.
    """
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    file = new_run(checkpoints={"mirror_url": f"file://{mirror}"}, watchdog={"baked_after": 1})
    dream(file, 2)
    anchor = file.parent / "state" / "checkpoints" / "cycle-000001"
    whole, weights = _files(anchor), anchor / "model.safetensors"
    if damage == "flipped":
        flip_bit(weights)
    else:
        weights.write_bytes(weights.read_bytes()[:-1])
    observer = RecordingObserver()
    dream(file, 1, observer=observer)
    assert outcomes(file) == ["promoted"] * 3
    assert "checkpoint_restored" in [name for name, _ in observer.events]
    assert _files(anchor) == whole
    (aside,) = (file.parent / "state" / "checkpoints" / "quarantine").iterdir()
    assert aside.name.startswith("cycle-000001")
    check_invariants(file)


def test_a_truncated_head_is_never_loaded(new_run: NewRun) -> None:
    """Fault 10: without a mirror a start on a truncated head ends with 74 and names the file; nothing is changed."""
    file = new_run()
    dream(file, 1)
    weights = file.parent / "state" / "checkpoints" / "cycle-000001" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"cycle-000001/model\.safetensors") as caught:
        dream(file, 1)
    assert caught.value.exit_code == 74
    assert outcomes(file) == ["promoted"]


def test_an_older_database_is_not_resumed(new_run: NewRun, tmp_path: Path) -> None:
    """Fault 30: the database of a cycle ago is put back: the start ends with 78 and the way out, and writes nothing.

    With the newer one put back again the run goes on.
    """
    file = new_run()
    database = file.parent / "state" / "dreamd.sqlite3"
    dream(file, 1)
    shutil.copy(database, tmp_path / "old")
    dream(file, 1)
    shutil.copy(database, tmp_path / "new")
    shutil.copy(tmp_path / "old", database)
    claims = (file.parent / "state" / "checkpoints" / "claims.log").read_bytes()
    with pytest.raises(RestoredBackupError, match="adopt-journal") as caught:
        dream(file, 1)
    assert caught.value.exit_code == 78
    assert query(file, "select count(*) from cycles") == [(1,)]
    assert (file.parent / "state" / "checkpoints" / "cycle-000002").is_dir()
    assert (file.parent / "state" / "checkpoints" / "claims.log").read_bytes() == claims
    shutil.copy(tmp_path / "new", database)
    dream(file, 1)
    assert outcomes(file) == ["promoted"] * 3
    check_invariants(file)


def test_an_older_copy_of_a_whole_host_is_not_resumed(new_run: NewRun, tmp_path: Path) -> None:
    """Fault 30: database and claims journal of a cycle ago are put back, so that neither contradicts the other.

    The mirror's journal does: the start ends with 78 and draws nothing. Fetched and adopted, the run goes on, and
    nothing that was claimed after the copy is claimed again.
    """
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    file = new_run(checkpoints={"mirror_url": f"file://{mirror}"})
    state = file.parent / "state"
    database, journal = state / "dreamd.sqlite3", state / "checkpoints" / "claims.log"
    dream(file, 1)
    for name in (database, journal):
        shutil.copy(name, tmp_path / name.name)
    dream(file, 1)
    newest = journal.read_bytes()
    claimed = query(file, "select content_hash from claims where cycle = 2 order by 1")
    for name in (database, journal):
        shutil.copy(tmp_path / name.name, name)
    with pytest.raises(RestoredBackupError, match="fetch-journal") as caught:
        dream(file, 1)
    assert caught.value.exit_code == 78
    assert query(file, "select count(*) from cycles") == [(1,)]
    assert FsspecMirror(f"file://{mirror}").fetch_journal(journal, "default").num_claims == len(claimed) > 0
    assert journal.read_bytes() == newest
    with pytest.raises(RestoredBackupError, match="adopt-journal"):
        dream(file, 1)
    engine = open_database(load(file).config.run.url)
    assert adopt_journal(engine, "default", journal) == len(claimed)
    engine.dispose()
    dream(file, 1)
    assert outcomes(file) == ["promoted", "lost", "promoted"]
    assert query(file, "select content_hash from claims where cycle = 2 order by 1") == claimed
    check_invariants(file)


def test_a_lost_database_is_begun_anew(new_run: NewRun) -> None:
    """No backup of the database at all: `init` beside the old state directory says so; adopted, the run goes on.

    It begins from the base, numbers on, and whatever was claimed stays claimed.
    """
    file = new_run()
    state = file.parent / "state"
    dream(file, 1)
    claimed = query(file, "select content_hash from claims where cycle = 1 order by 1")
    for name in ("dreamd.sqlite3", "dreamd.sqlite3-wal", "dreamd.sqlite3-shm"):
        (state / name).unlink(missing_ok=True)
    config = load(file)
    with pytest.raises(RestoredBackupError, match="adopt-journal"):
        app.init_run(config, RecordingObserver(), small_model=False)
    engine = open_database(config.config.run.url)
    assert adopt_journal(engine, "default", config.config.run.claims_log) == len(claimed)
    engine.dispose()
    assert not app.init_run(config, RecordingObserver(), small_model=False).created
    dream(file, 1)
    assert outcomes(file) == ["lost", "promoted"]
    assert query(file, "select parent_version from cycles where number = 2") == [("base",)]
    assert query(file, "select content_hash from claims where cycle = 1 order by 1") == claimed


def test_a_second_run_gets_a_state_directory_of_its_own(new_run: NewRun) -> None:
    """`init` of another run in a directory that was trained in names both runs, and makes no row of the second."""
    file = new_run()
    dream(file, 1)
    with pytest.raises(ConfigError, match="is run default's, not run second's"):
        app.init_run(load(file, "run.name=second"), RecordingObserver(), small_model=False)
    assert query(file, "select name from runs") == [("default",)]


def _files(directory: Path) -> dict[str, bytes]:
    """Bytes by name; the marker of a lossy checkpoint says something else at each place."""
    return {path.name: b"" if path.name == "lossy" else path.read_bytes() for path in directory.iterdir()}

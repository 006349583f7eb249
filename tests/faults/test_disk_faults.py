"""A disk that is full, fails or may not be written, and a log nobody reads: training goes on or ends cleanly.

The full disk is a real one: a tmpfs of a few MiB. Where mounting is not allowed, ENOSPC is injected at the write call
instead, and the test's name says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import RecordingObserver, check_invariants, dream, outcomes, query

from daemon.domain import failpoints
from daemon.domain.errors import DatabaseError, DiskError
from daemon.domain.records import Cycle
from daemon.domain.states import CycleState

NewRun = Callable[..., Path]
Driver = Callable[..., int]


class FullDisk(RecordingObserver):
    """Fills a small file system, to the last byte, when a state is committed."""

    def __init__(self, directory: Path, state: CycleState) -> None:
        super().__init__()
        self.filler = directory / "filler"
        self.state = state

    def committed(self, cycle: Cycle) -> None:
        super().committed(cycle)
        if cycle.state is self.state and not self.filler.exists():
            with self.filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                for size in (2**16, 2**12, 1):
                    with contextlib.suppress(OSError):
                        while file.write(bytes(size)):
                            pass


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty tmpfs of 24 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(directory)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here ({made.stderr.strip()}); ENOSPC is injected by the tests beside")
    yield directory
    # Lazily: the test holds an error whose frames map weights from there.
    subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.fixture(autouse=True)
def switched_off() -> Iterator[None]:
    yield
    failpoints.activate({})


def test_disk_full_while_publishing(new_run: NewRun, small_disk: Path) -> None:
    """Fault 7, a really full disk: the temporary directory goes, the cycle is lost, and no cycle starts without room.

    Exit 74 when a number of cycles was asked for. With room again it goes on from the same head.
    """
    state = small_disk / "state"
    file = new_run(state, checkpoints={"mirror_exact": False})
    shutil.move(state / "dreamd.sqlite3", file.parent / "dreamd.sqlite3")
    file.write_text(
        file.read_text().replace('database_url = ""', f'database_url = "sqlite:///{file.parent}/dreamd.sqlite3"')
    )
    disk = FullDisk(small_disk, CycleState.STEPPED)
    with pytest.raises(DiskError, match="free space") as caught:
        dream(file, 2, observer=disk)
    assert caught.value.exit_code == 74
    assert outcomes(file) == ["lost"]
    assert sorted(path.name for path in (state / "checkpoints").iterdir() if path.is_dir()) == ["base"]
    spent = query(file, "select count(*) from claims where kind = 'example'")[0][0]
    disk.filler.unlink()
    dream(file, 1)
    assert outcomes(file) == ["lost", "promoted"]
    assert query(file, "select count(*) from claims where kind = 'example'")[0][0] > spent > 0
    check_invariants(file)


def test_disk_full_while_publishing_injected(new_run: NewRun) -> None:
    """Fault 7, ENOSPC injected at the first write: lost once, and the daemon trains on in the next cycle."""
    file = new_run()
    failpoints.activate({"store.write": "ENOSPC@1"})
    dream(file, 2)
    assert outcomes(file) == ["lost", "promoted"]
    assert [path.name for path in (file.parent / "state" / "checkpoints").glob(".tmp-*")] == []
    check_invariants(file)


@pytest.mark.parametrize("state", [CycleState.SWEPT, CycleState.PUBLISHED])
def test_disk_full_on_the_database(new_run: NewRun, small_disk: Path, state: CycleState) -> None:
    """Fault 8, a really full disk: the transaction is rolled back whole, the process ends with 75 and says why.

    What was committed before it is there, and with room again the run goes on from it.
    """
    file = new_run(small_disk / "state")
    disk = FullDisk(small_disk, state)
    with pytest.raises(DatabaseError, match="full; nothing was committed: free some space") as caught:
        dream(file, 1, observer=disk)
    assert caught.value.exit_code == 75
    disk.filler.unlink()
    assert query(file, "select state, outcome from cycles") == [(str(state), None)]
    dream(file, 1)
    assert outcomes(file) == ["abandoned" if state is CycleState.SWEPT else "promoted", "promoted"]
    check_invariants(file)


@pytest.mark.parametrize("failpoint", ["store.fsync", "store.renamed"])
def test_fsync_fails_once(new_run: NewRun, monkeypatch: pytest.MonkeyPatch, failpoint: str) -> None:
    """Fault 9: what could not be synced is discarded, never synced again, and the next cycle trains from the old head.

    After a failed fsync the kernel may have dropped the bytes and call the next one a success (EIO is told once).
    """
    file = new_run()
    synced: list[str] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    failpoints.activate({failpoint: "EIO@1"})
    dream(file, 2)
    assert outcomes(file) == ["lost", "promoted"]
    assert query(file, "select parent_version from cycles where number = 2") == [("base",)]
    if failpoint == "store.fsync":
        assert [path for path in synced if "cycle-000001" in path] == []
    dream(file, 0)
    assert not (file.parent / "state" / "checkpoints" / "cycle-000001").exists()
    check_invariants(file)


def test_fsync_fails_twice(new_run: NewRun) -> None:
    """Fault 9: a disk that fails in two cycles in turn ends the process with 74; nothing half-written is left."""
    file = new_run()
    failpoints.activate({"store.fsync": "EIO"})
    with pytest.raises(DiskError, match=os.strerror(errno.EIO)) as caught:
        dream(file, 3)
    assert caught.value.exit_code == 74
    assert outcomes(file) == ["lost", "lost"]
    failpoints.activate({})
    dream(file, 0)
    assert sorted(path.name for path in (file.parent / "state" / "checkpoints").iterdir() if path.is_dir()) == ["base"]
    check_invariants(file)


RUN_AS_NOBODY = """
import os, sys
from daemon.__main__ import main
if os.geteuid() == 0:
    os.seteuid(65534)
sys.argv = ["dreamd", *sys.argv[1:]]
try:
    main()
finally:
    print("torch" in sys.modules)
"""


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user may enter; pytest's own are for one user only."""
    directory = Path(tempfile.mkdtemp(prefix="dreamd-faults-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize("command", [("run", "--cycles", "1"), ("init",)])
def test_an_unwritable_directory_ends_it_before_any_model_is_loaded(
    open_directory: Path, command: tuple[str, ...]
) -> None:
    """Fault 24: exit 77 with the directory and the fix, and not even torch was imported."""
    state = open_directory / "state"
    state.mkdir(mode=0o555)
    config = open_directory / "dreamd.toml"
    config.write_text(f"[run]\nstate_dir = {str(state)!r}\n")
    ended = subprocess.run(
        [sys.executable, "-c", RUN_AS_NOBODY, *command, "--config", str(config)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 77, ended.stderr
    assert f"{state}: this user cannot write here" in ended.stderr
    assert ended.stdout.splitlines()[-1] == "False"


def test_a_log_that_cannot_be_written_does_not_stop_training(new_run: NewRun, driver: Driver) -> None:
    """Fault 25: stdout and dreamd.log are on a full disk (/dev/full): the cycle is promoted, exit 0."""
    file = new_run()
    (file.parent / "state" / "dreamd.log").unlink(missing_ok=True)
    (file.parent / "state" / "dreamd.log").symlink_to("/dev/full")
    assert driver(Path("/dev/full"), "dreamd", "run", "--cycles", "1", "--log", "json", "--config", str(file)) == 0
    assert outcomes(file) == ["promoted"]


def test_a_blocked_pipe_does_not_stop_training(new_run: NewRun, driver: Driver, tmp_path: Path) -> None:
    """Fault 25: nobody reads stdout, and its pipe is full from the start: the cycle is promoted, exit 0.

    Every line is in dreamd.log all the same.
    """
    file = new_run()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(held, bytes(4096))
    try:
        assert driver(pipe, "dreamd", "run", "--cycles", "1", "--log", "json", "--config", str(file)) == 0
    finally:
        os.close(held)
    assert outcomes(file) == ["promoted"]
    assert '"cycle_finished"' in (file.parent / "state" / "dreamd.log").read_text()

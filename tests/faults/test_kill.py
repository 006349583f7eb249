"""kill -9 in every state, then a start: the outcome is the documented one and I1-I4 hold, on both databases."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import RecordingObserver, check_invariants, dream, flip_bit, make_run, outcomes, query

from daemon.checkpoints.store import DirectoryStore

POISON = ("training.lr=1.0", "training.allow_unsafe_lr=true")

KillAt = Callable[..., None]


@pytest.fixture(scope="module")
def kill_at() -> Iterator[KillAt]:
    """Run one cycle in another process that is killed at a moment: `kill_at(config, moment, *flags)`."""
    here = Path(__file__).parent
    driver = subprocess.Popen(
        [sys.executable, str(here / "kill_driver.py")],
        env={**os.environ, "PYTHONPATH": str(here.parent), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdin is not None and driver.stdout is not None

    def run(file: Path, moment: str, *flags: str) -> None:
        driver.stdin.write(json.dumps([str(file), moment, *flags]) + "\n")
        driver.stdin.flush()
        status = int(driver.stdout.readline())
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{moment} never came"

    yield run
    driver.stdin.close()
    driver.wait(timeout=30)
    driver.stdout.close()


@pytest.mark.parametrize(
    ("moment", "outcome", "head"),
    [
        ("swept", "abandoned", "base"),
        ("paired", "abandoned", "base"),
        ("claimed", "lost", "base"),
        ("stepped", "lost", "base"),
        ("renamed", "promoted", "cycle-000001"),  # adopted
        ("published", "promoted", "cycle-000001"),
        ("probed", "promoted", "cycle-000001"),
    ],
)
def test_killed_cycle_ends_as_documented(
    tmp_path: Path, database_url: str, kill_at: KillAt, moment: str, outcome: str, head: str
) -> None:
    """After the restart the killed cycle has its documented outcome, and the next cycle trains from the right head."""
    file = make_run(tmp_path, database_url)
    kill_at(file, moment)
    observer = RecordingObserver()
    dream(file, 1, observer=observer)
    assert outcomes(file) == [outcome, "promoted"]
    assert query(file, "select parent_version from cycles where number = 2") == [(head,)]
    assert "cycle_recovered" in [name for name, _ in observer.events]
    spent = query(file, "select count(*) from claims where kind = 'example' and cycle = 1")[0][0]
    assert (spent > 0) == (outcome != "abandoned")
    check_invariants(file)


def test_killed_inside_a_rollback(tmp_path: Path, database_url: str, kill_at: KillAt) -> None:
    """Killed between the verdict and the restore: the head is the target, and the next start verifies the rollback."""
    file = make_run(tmp_path, database_url)
    kill_at(file, "rolled_back", *POISON)
    assert query(file, "select to_version, verified_at from rollbacks") == [("base", None)]
    dream(file, 1)
    assert outcomes(file) == ["rolled_back", "promoted"]
    ((to_version, verified),) = query(file, "select to_version, verified_at from rollbacks")
    assert to_version == "base" and verified is not None
    check_invariants(file)


def test_published_by_another_lineage_is_not_adopted(tmp_path: Path, kill_at: KillAt) -> None:
    """A directory of the right name whose manifest is of another batch is set aside, and the cycle is lost."""
    file = make_run(tmp_path, "")
    kill_at(file, "stepped")
    store = DirectoryStore(tmp_path / "state" / "checkpoints")

    def write(directory: Path) -> dict[str, str]:
        (directory / "model.safetensors").write_bytes(b"someone else's")
        return {"weights_digest": "x", "optimizer_digest": "y"}

    store.publish("cycle-000001", write, cycle_number=1, parent=None, batch_hash="another", step=None)
    dream(file, 1)
    assert outcomes(file) == ["lost", "promoted"]
    (aside,) = (tmp_path / "state" / "checkpoints" / "quarantine").iterdir()
    assert aside.name.startswith("cycle-000001")
    check_invariants(file)


def test_damaged_publication_is_not_adopted(tmp_path: Path, kill_at: KillAt) -> None:
    """A published directory with one flipped bit is never adopted: the cycle is lost, the files are kept aside."""
    file = make_run(tmp_path, "")
    kill_at(file, "renamed")
    weights = tmp_path / "state" / "checkpoints" / "cycle-000001" / "model.safetensors"
    flip_bit(weights)
    dream(file, 1)
    assert outcomes(file) == ["lost", "promoted"]
    assert "adoption_refused" in [row[0] for row in query(file, "select name from events")]
    check_invariants(file)


@pytest.mark.parametrize("moment", ["published", "probed"])
def test_candidate_damaged_while_down_never_becomes_the_head(tmp_path: Path, kill_at: KillAt, moment: str) -> None:
    """One flipped bit in a candidate that awaits its probes or its verdict: the cycle is lost, the head stays (I2)."""
    file = make_run(tmp_path, "")
    kill_at(file, moment)
    weights = tmp_path / "state" / "checkpoints" / "cycle-000001" / "model.safetensors"
    flip_bit(weights)
    dream(file, 1)
    assert outcomes(file) == ["lost", "promoted"]
    assert query(file, "select parent_version from cycles where number = 2") == [("base",)]
    check_invariants(file)

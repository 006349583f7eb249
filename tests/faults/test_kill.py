"""kill -9 in every state, then a start: the outcome is the documented one and I1-I4 hold, on both databases."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import RecordingObserver, check_invariants, dream, make_run, outcomes, query

POISON = ("training.lr=1.0", "training.allow_unsafe_lr=true")


def kill_at(file: Path, moment: str, *flags: str) -> None:
    """Run one cycle in another process that dies at `moment`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    driver = [sys.executable, str(Path(__file__).with_name("kill_driver.py")), str(file), moment, *flags]
    done = subprocess.run(driver, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.slow
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
    tmp_path: Path, database_url: str, moment: str, outcome: str, head: str
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


@pytest.mark.slow
def test_killed_inside_a_rollback(tmp_path: Path, database_url: str) -> None:
    """Killed between the verdict and the restore: the head is the target, and the next start verifies the rollback."""
    file = make_run(tmp_path, database_url)
    kill_at(file, "rolled_back", *POISON)
    assert query(file, "select to_version, verified_at from rollbacks") == [("base", None)]
    dream(file, 1)
    assert outcomes(file) == ["rolled_back", "promoted"]
    ((to_version, verified),) = query(file, "select to_version, verified_at from rollbacks")
    assert to_version == "base" and verified is not None
    check_invariants(file)


def test_published_by_another_lineage_is_not_adopted(tmp_path: Path) -> None:
    """A directory of the right name whose manifest is of another batch is set aside, and the cycle is lost."""
    from daemon.checkpoints.store import DirectoryStore

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


def test_damaged_publication_is_not_adopted(tmp_path: Path) -> None:
    """A published directory with one flipped bit is never adopted: the cycle is lost, the files are kept aside."""
    file = make_run(tmp_path, "")
    kill_at(file, "renamed")
    weights = tmp_path / "state" / "checkpoints" / "cycle-000001" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 0b1000
    weights.write_bytes(content)
    dream(file, 1)
    assert outcomes(file) == ["lost", "promoted"]
    assert "adoption_refused" in [row[0] for row in query(file, "select name from events")]
    check_invariants(file)

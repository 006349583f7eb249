"""kill -9 in every state, then a start: the outcome is the documented one and I1-I4 hold, on both databases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from harness import RecordingObserver, check_invariants, dream, flip_bit, make_run, outcomes, query
from torch import Tensor

from daemon.checkpoints.store import DirectoryStore
from daemon.domain.records import PolicyDigests, WrittenState

POISON = ("training.lr=1.0", "training.allow_unsafe_lr=true")

KillAt = Callable[..., None]


class SomebodyElses:
    """Mirrors the `Snapshot` port: weights that no step of this run made."""

    weights: Mapping[str, Tensor] = {}
    changes = None

    def write(self, directory: Path) -> WrittenState:
        (directory / "model.safetensors").write_bytes(b"someone else's")
        return WrittenState(PolicyDigests("x", "y"))


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
    """Faults 1 to 4: the killed cycle has its documented outcome, and the next one trains from the right head.

    1 before the claim: abandoned; 2 after it, 3 after the step: lost and spent; 4 after the rename: adopted.
    """
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
    """Fault 5: killed between verdict and restore, the head is the target, and the next start verifies the rollback."""
    file = make_run(tmp_path, database_url)
    kill_at(file, "rolled_back", *POISON)
    assert query(file, "select to_version, verified_at from rollbacks") == [("base", None)]
    dream(file, 1)
    assert outcomes(file) == ["rolled_back", "promoted"]
    ((to_version, verified),) = query(file, "select to_version, verified_at from rollbacks")
    assert to_version == "base" and verified is not None
    check_invariants(file)


def test_published_by_another_lineage_is_not_adopted(tmp_path: Path, kill_at: KillAt) -> None:
    """Fault 4: a directory of the right name, but of another batch, is set aside, and the cycle is lost."""
    file = make_run(tmp_path, "")
    kill_at(file, "stepped")
    store = DirectoryStore(tmp_path / "state" / "checkpoints")

    store.publish("cycle-000001", SomebodyElses(), cycle_number=1, parent=None, batch_hash="another", step=None)
    dream(file, 1)
    assert outcomes(file) == ["lost", "promoted"]
    (aside,) = (tmp_path / "state" / "checkpoints" / "quarantine").iterdir()
    assert aside.name.startswith("cycle-000001")
    check_invariants(file)


def test_damaged_publication_is_not_adopted(tmp_path: Path, kill_at: KillAt) -> None:
    """Faults 4 and 11: a publication with one flipped bit is never adopted: lost, the files are kept aside."""
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
    """Fault 11: a bit flips in a candidate that awaits its probes or its verdict: lost, the head stays (I2)."""
    file = make_run(tmp_path, "")
    kill_at(file, moment)
    weights = tmp_path / "state" / "checkpoints" / "cycle-000001" / "model.safetensors"
    flip_bit(weights)
    dream(file, 1)
    assert outcomes(file) == ["lost", "promoted"]
    assert query(file, "select parent_version from cycles where number = 2") == [("base",)]
    check_invariants(file)

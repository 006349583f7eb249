"""kill -9 between the states: inside a write, inside a transaction, before a restore. Real processes, real signals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import RecordingObserver, check_invariants, dream, outcomes, query

POISON = ("training.lr=1.0", "training.allow_unsafe_lr=true")

NewRun = Callable[..., Path]
KillAt = Callable[..., None]


@pytest.mark.parametrize(
    ("moment", "left", "outcome"),
    [
        ("start+cycle.sweep=kill", "planned", "abandoned"),
        ("start+cycle.step=kill", "claimed", "lost"),
        ("stepped+store.fsync=kill@2", "stepped", "lost"),
        ("stepped+store.rename=kill", "stepped", "lost"),
    ],
)
def test_killed_between_states(new_run: NewRun, kill_at: KillAt, moment: str, left: str, outcome: str) -> None:
    """Faults 1, 2, 3 and 15: killed while the engine writes, before the optimizer moves, or half-way through a file.

    Engine and trainer die with the process; the next start has new ones that hold the head, and nothing is left over.
    """
    file = new_run()
    kill_at(file, moment)
    assert query(file, "select state from cycles") == [(left,)]
    observer = RecordingObserver()
    dream(file, 0, observer=observer)
    assert outcomes(file) == [outcome]
    assert query(file, "select head_version from runs") == [("base",)]
    checks = query(file, "select policy_version, weights_match from engine_checks order by id desc limit 1")
    assert [(version, bool(match)) for version, match in checks] == [("base", True)]
    assert [path.name for path in (file.parent / "state" / "checkpoints").glob(".tmp-*")] == []
    check_invariants(file)


@pytest.mark.parametrize(
    ("moment", "flags", "head", "outcome"),
    [
        ("probed+ledger.commit=kill", (), "base", "promoted"),
        ("probed+ledger.committed=kill", (), "cycle-000001", "promoted"),
        ("probed+ledger.commit=kill", POISON, "base", "rolled_back"),
        ("probed+cycle.restore=kill", POISON, "base", "rolled_back"),
    ],
)
def test_killed_inside_the_verdict(
    new_run: NewRun, kill_at: KillAt, moment: str, flags: tuple[str, ...], head: str, outcome: str
) -> None:
    """Fault 5: killed before or after the one COMMIT of a verdict: head, outcome and rollback are all old or all new.

    The start afterwards comes to the same verdict from the stored rows.
    """
    file = new_run()
    kill_at(file, moment, *flags)
    ((found,),) = query(file, "select head_version from runs")
    ((state, result),) = query(file, "select state, outcome from cycles")
    ((rollbacks,),) = query(file, "select count(*) from rollbacks")
    assert found == head
    before = "ledger.commit=" in moment
    assert (state, result, rollbacks) == (
        ("probed", None, 0) if before else ("finished", outcome, int(outcome == "rolled_back"))
    )
    dream(file, 0)
    assert outcomes(file) == [outcome]
    assert query(file, "select verified_at is null from rollbacks") in ([], [(0,)])
    check_invariants(file)

"""One writer per run: the lock keeps a second daemon out, the epoch silences one that was taken over."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from builders import (
    drive_to,
    make_candidate,
    make_checkpoint,
    make_diversity,
    make_engine_check,
    make_probe_result,
    make_probe_run,
    make_scenario,
    make_step_report,
    make_verdict,
)
from sqlalchemy import Engine

from daemon.domain.errors import FencedError, LockedError
from daemon.domain.records import Cycle, Draw
from daemon.domain.states import BreakerState, CycleState, Decision, Outcome
from daemon.domain.upkeep import Rehearsal, ScrubResult
from daemon.domain.verdicts import Breaker, Rollback
from daemon.ports import Ledger
from daemon.storage import tables
from daemon.storage.database import reading
from daemon.storage.ledger import SqlLedger
from daemon.storage.lock import RunLock

READS = {
    "head", "checkpoint", "checkpoints", "lineage", "refuse", "sources", "cycle", "unfinished", "examples",
    "step_report", "probe_results", "probe_budget", "history", "resting", "records", "governor_decisions", "breaker",
    "adjustments", "pending_rollbacks", "next_cycle_number", "rollback_sides", "mirror_tasks", "scrub_order",
    "last_rehearsal_at", "last_config",
}  # fmt: skip

WRITES: dict[str, Callable[[SqlLedger, Cycle], Any]] = {
    "open_cycle": lambda ledger, cycle: ledger.open_cycle(head=ledger.head(), run_seed=7, config={}),
    "change_breaker": lambda ledger, cycle: ledger.change_breaker(Breaker(BreakerState.CLOSED, "test", 1)),
    "record_plan": lambda ledger, cycle: ledger.record_plan(cycle, Draw((make_scenario(),))),
    "record_sweep": lambda ledger, cycle: ledger.record_sweep(cycle, []),
    "record_pairs": lambda ledger, cycle: ledger.record_pairs(cycle, [], [], make_diversity()),
    "claim": lambda ledger, cycle: ledger.claim(cycle, ledger.examples(cycle)),
    "record_step": lambda ledger, cycle: ledger.record_step(cycle, make_step_report(2)),
    "record_published": lambda ledger, cycle: ledger.record_published(cycle, make_candidate(cycle)),
    "record_probes": lambda ledger, cycle: ledger.record_probes(
        "base", [make_probe_run("nll", make_probe_result())], cycle
    ),
    "record_engine_check": lambda ledger, cycle: ledger.record_engine_check(make_engine_check(), "vllm", cycle),
    "probed": lambda ledger, cycle: ledger.probed(cycle),
    "promote": lambda ledger, cycle: ledger.promote(cycle, make_verdict()),
    "roll_back": lambda ledger, cycle: ledger.roll_back(cycle, make_verdict(Decision.ROLL_BACK), ledger.head()),
    "roll_back_head": lambda ledger, cycle: ledger.roll_back_head(ledger.checkpoint("base"), "test"),
    "rollback_verified": lambda ledger, cycle: ledger.rollback_verified(Rollback(1, None, "a", "b", False), {}),
    "close": lambda ledger, cycle: ledger.close(cycle, Outcome.FAILED, "test"),
    "record_seconds": lambda ledger, cycle: ledger.record_seconds(cycle, {"sweep": 1.0}),
    "pruned": lambda ledger, cycle: ledger.pruned("base"),
    "made_lossy": lambda ledger, cycle: ledger.made_lossy("base"),
    "pin": lambda ledger, cycle: ledger.pin("base", "test"),
    "unpin": lambda ledger, cycle: ledger.unpin("base"),
    "enqueue_mirror": lambda ledger, cycle: ledger.enqueue_mirror("base"),
    "mirrored": lambda ledger, cycle: ledger.mirrored("base"),
    "mirror_failed": lambda ledger, cycle: ledger.mirror_failed("base", "test", datetime.now(UTC)),
    "wake_mirror": lambda ledger, cycle: ledger.wake_mirror(anew=True),
    "record_scrub": lambda ledger, cycle: ledger.record_scrub(ScrubResult("base", True, 1)),
    "record_rehearsal": lambda ledger, cycle: ledger.record_rehearsal(Rehearsal("base", True, 1.0)),
    "event": lambda ledger, cycle: ledger.event("anything"),
    "register_base": lambda ledger, cycle: ledger.register_base(make_checkpoint()),
}


def contents(engine: Engine) -> dict[str, list[Any]]:
    """Every row of every table."""
    with reading(engine) as connection:
        return {
            name: sorted(map(repr, connection.execute(sa.select(table))))
            for name, table in tables.metadata.tables.items()
        }


def test_the_list_of_writes_is_complete() -> None:
    """Every method of the port is either a read or tested as a write below."""
    public = {name for name in vars(Ledger) if not name.startswith("_")}
    assert public <= READS | set(WRITES)


def test_a_ledger_that_was_taken_over_writes_nothing(ledger: SqlLedger, engine: Engine) -> None:
    """After a takeover every write of the old ledger raises FencedError, whatever the cycle's state."""
    for state in (CycleState.PAIRED, CycleState.PROBED):
        cycle = drive_to(ledger, state)
        successor = SqlLedger.acquire(engine, "test")
        before = contents(engine)
        for name, write in WRITES.items():
            with pytest.raises(FencedError, match="another dreamd took it over"):
                write(ledger, cycle)
            assert contents(engine) == before, name
        successor.close(cycle, Outcome.FAILED, "test")
        ledger = successor


def test_each_takeover_has_its_epoch(ledger: SqlLedger, engine: Engine) -> None:
    """Epochs count up, and a cycle remembers the one it was opened in."""
    assert ledger.epoch == 1
    successor = SqlLedger.acquire(engine, "test")
    assert successor.epoch == 2
    drive_to(successor, CycleState.PLANNED)
    with reading(engine) as connection:
        assert connection.scalar(sa.select(tables.cycles.c.epoch)) == 2


HOLDER = """
import sys
from daemon.storage.database import open_database
from daemon.storage.lock import RunLock
with RunLock(open_database(sys.argv[1]), "test"):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_locked_out(engine: Engine, database_url: str) -> None:
    """While one process holds the run another gets LockedError with its pid; killed, it holds nothing any more."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, database_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None and holder.stdout is not None
    try:
        assert holder.stdout.readline() == "locked\n"
        with (
            pytest.raises(LockedError, match=f"run test .*held by run test, pid {holder.pid}"),
            RunLock(engine, "test"),
        ):
            pass
        assert LockedError.exit_code == 75
    finally:
        holder.kill()
        holder.communicate()
    _wait_until_free(engine)
    with RunLock(engine, "test"):
        pass


def test_a_lock_is_free_again_after_its_block(engine: Engine) -> None:
    """Leaving the block, also by an exception, frees the lock; within it the same process cannot take it twice."""
    with pytest.raises(ZeroDivisionError), RunLock(engine, "test"):
        with pytest.raises(LockedError, match=f"pid {os.getpid()}"), RunLock(engine, "test"):
            pass
        raise ZeroDivisionError
    with RunLock(engine, "test"):
        pass


def _wait_until_free(engine: Engine) -> None:
    """A PostgreSQL server notices a killed client in its own time; waiting for the lock itself is no sleep."""
    if engine.dialect.name == "postgresql":
        from daemon.domain.hashing import derive_seed

        with engine.connect() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(derive_seed("run lock", "test"))))

"""A transaction happens as a whole or not at all; readers never wait; numbers come back bit for bit."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from builders import drive_to, make_probe_result, make_probe_run, make_probe_runs, make_verdict, promote_one
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from daemon.domain.errors import DatabaseError
from daemon.domain.states import BreakerState, CycleState, Decision, GovernorRule, Knob
from daemon.domain.verdicts import Breaker, GovernorDecision
from daemon.storage import tables
from daemon.storage.database import reading, writing
from daemon.storage.ledger import SqlLedger

EVERY_FLOAT = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)


def contents(engine: Engine) -> dict[str, list[Any]]:
    """Every row of every table."""
    with reading(engine) as connection:
        return {
            name: sorted(map(repr, connection.execute(sa.select(table))))
            for name, table in tables.metadata.tables.items()
        }


@pytest.mark.parametrize(
    "broken_table", ["verdicts", "checkpoints", "cycles", "runs", "resting_families", "rollbacks", "events"]
)
def test_a_rollback_is_all_or_nothing(ledger: SqlLedger, engine: Engine, broken_table: str) -> None:
    """Whichever statement of a rollback fails, verdict, head, candidate, outcome and event all stay as they were."""
    promote_one(ledger)
    cycle = drive_to(ledger, CycleState.PROBED)
    before = contents(engine)
    _break(engine, broken_table)
    with pytest.raises(DatabaseError, match="broken on purpose"):
        ledger.roll_back(cycle, make_verdict(Decision.ROLL_BACK), ledger.checkpoint("base"))
    assert contents(engine) == before


@pytest.mark.parametrize("broken_table", ["governor_decisions", "events"])
def test_a_cycle_opens_with_its_decisions_or_not_at_all(ledger: SqlLedger, engine: Engine, broken_table: str) -> None:
    """A decision that cannot be stored, or told, leaves no cycle behind."""
    decision = GovernorDecision(1, GovernorRule.TOO_LARGE, Knob.LR, 1.0, 0.5, None, "test", True)
    before = contents(engine)
    _break(engine, broken_table)
    with pytest.raises(DatabaseError, match="broken on purpose"):
        ledger.open_cycle(head=ledger.head(), run_seed=7, config={}, decisions=[decision])
    assert contents(engine) == before


@pytest.mark.parametrize("broken_table", ["probe_runs", "probe_results"])
def test_a_measurement_is_recorded_whole(ledger: SqlLedger, engine: Engine, broken_table: str) -> None:
    """There is no run of a probe without its results, and none of its results without the run."""
    before = contents(engine)
    _break(engine, broken_table)
    with pytest.raises(DatabaseError, match="broken on purpose"):
        ledger.record_probes("base", [make_probe_run("nll", make_probe_result())], None)
    assert contents(engine) == before


@pytest.mark.parametrize("broken_table", ["breaker_changes", "events"])
def test_a_change_of_the_breaker_is_told_or_not_made(ledger: SqlLedger, engine: Engine, broken_table: str) -> None:
    """The breaker stays as it was when its change or the event fails."""
    before = contents(engine)
    _break(engine, broken_table)
    with pytest.raises(DatabaseError, match="broken on purpose"):
        ledger.change_breaker(Breaker(BreakerState.OPEN, "test", 0))
    assert contents(engine) == before


@pytest.mark.parametrize("broken_table", ["verdicts", "checkpoints", "cycles", "runs"])
def test_a_promotion_is_all_or_nothing(ledger: SqlLedger, engine: Engine, broken_table: str) -> None:
    """Whichever statement of a promotion fails, the old head stays and the cycle still waits for its verdict."""
    cycle = drive_to(ledger, CycleState.PROBED)
    before = contents(engine)
    _break(engine, broken_table)
    with pytest.raises(DatabaseError, match="broken on purpose"):
        ledger.promote(cycle, make_verdict())
    assert contents(engine) == before


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(EVERY_FLOAT, min_size=1, max_size=30))
def test_probe_values_round_trip_bit_for_bit(ledger: SqlLedger, engine: Engine, values: list[float]) -> None:
    """Every finite double comes back with the same 64 bits; NaN and the infinities come back as None."""
    with writing(engine) as connection:
        connection.execute(sa.delete(tables.probe_results))
    results = [make_probe_result("nll", f"{index:03d}", value) for index, value in enumerate(values)]
    ledger.record_probes("base", make_probe_runs(results), None)
    stored = [result.value for result in ledger.probe_results("base")]
    assert [_bits(value) for value in stored] == [_bits(value) for value in values]


@pytest.mark.parametrize("value", [-0.0, 0.1 + 0.2, 5e-324, 1.7976931348623157e308, 3.0, float("nan")])
def test_awkward_probe_values_round_trip(ledger: SqlLedger, value: float) -> None:
    """The values that databases are known to mangle: negative zero, subnormals, the largest, whole numbers, NaN."""
    ledger.record_probes("base", make_probe_runs([make_probe_result(value=value)]), None)
    (stored,) = ledger.probe_results("base")
    assert _bits(stored.value) == _bits(value)


def test_readers_do_not_wait_for_a_writer(
    ledger: SqlLedger, database_url: str, engine: Engine, open_engine: Callable[..., Engine]
) -> None:
    """While a write transaction is open others read the last committed state, also through a read-only engine."""
    readonly = open_engine(database_url, readonly=True)
    with writing(engine) as connection:
        connection.execute(sa.update(tables.runs).values(head_version="uncommitted"))
        for reader in (open_engine(database_url), readonly):
            with reading(reader) as other:
                assert other.scalar(sa.select(tables.runs.c.head_version)) == "base"
    with reading(readonly) as other:
        assert other.scalar(sa.select(tables.runs.c.head_version)) == "uncommitted"


def test_a_reader_sees_one_moment(ledger: SqlLedger, engine: Engine) -> None:
    """Statements of one reading transaction agree with each other although a writer commits in between."""
    with ExitStack() as stack:
        reader = stack.enter_context(reading(engine))
        assert reader.scalar(sa.select(sa.func.count()).select_from(tables.cycles)) == 0
        drive_to(ledger, CycleState.PLANNED)
        assert reader.scalar(sa.select(sa.func.count()).select_from(tables.scenarios)) == 0


def test_a_readonly_engine_cannot_write(
    ledger: SqlLedger, database_url: str, open_engine: Callable[..., Engine]
) -> None:
    """Writing through a read-only engine fails in the database, not by good manners."""
    with pytest.raises(Exception, match=r"read-?only"), writing(open_engine(database_url, readonly=True)) as connection:
        connection.execute(sa.update(tables.runs).values(head_version="x"))


def _bits(value: float | None) -> bytes | None:
    return struct.pack("<d", value) if value is not None and abs(value) < float("inf") else None


def _break(engine: Engine, table: str) -> None:
    """Make every insert into and update of `table` fail from now on, inside the database."""
    with writing(engine) as connection:
        if engine.dialect.name == "sqlite":
            for action in ("INSERT", "UPDATE"):
                connection.exec_driver_sql(
                    f"CREATE TRIGGER break_{action} BEFORE {action} ON {table} "
                    "BEGIN SELECT RAISE(ABORT, 'broken on purpose'); END"
                )
        else:
            connection.exec_driver_sql(
                "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'broken on purpose'; END $$"
            )
            connection.exec_driver_sql(
                f"CREATE TRIGGER broken BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION broken()"
            )

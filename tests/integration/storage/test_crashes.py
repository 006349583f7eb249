"""A process that dies between any two statements: nothing is claimed twice, no line of a log is lost or repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations, count
from typing import Any

import pytest
import sqlalchemy as sa
from builders import (
    make_candidate,
    make_checkpoint,
    make_completion,
    make_diversity,
    make_example,
    make_judgement,
    make_scenario,
    make_step_report,
    make_verdict,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine

from daemon.domain.errors import AlreadyClaimedError
from daemon.domain.novelty import NEAR_DUPLICATE, jaccard, shingles
from daemon.domain.records import Cycle, Draw, ImportedSource, Scenario, SourceRead
from daemon.domain.states import CycleState, Decision, ImportKind, Outcome
from daemon.storage import tables
from daemon.storage.database import reading
from daemon.storage.ledger import SqlLedger
from daemon.storage.minhash import bands, unpacked
from daemon.storage.runs import create_run
from daemon.storage.sources import approve_source, register_source

Open = Callable[[], Engine]

TEXTS = [" ".join(f"{letter}{index}" for index in range(40)) for letter in "abcdef"]
POOL = [make_scenario(text) for text in TEXTS] + [make_scenario(f"{text} again") for text in TEXTS]
"""Six prompts, and six that are 97 % the same as these."""
HELD_OUT = f"{TEXTS[0]} held out"
ENDINGS = ("promote", "roll_back", "lose", "fail", "skip", "abandon")
names = count()


class Crash(BaseException):
    """The process is gone."""


@contextmanager
def dying(engine: Engine, at: int | None) -> Iterator[list[int]]:
    """Die before statement `at` (from 1) on `engine`; commits count as statements. Yields the count so far."""
    seen = [0]

    def tick(*_: object) -> None:
        seen[0] += 1
        if seen[0] == at:
            raise Crash

    sa.event.listen(engine, "before_cursor_execute", tick)
    sa.event.listen(engine, "commit", tick)
    try:
        yield seen
    finally:
        sa.event.remove(engine, "before_cursor_execute", tick)
        sa.event.remove(engine, "commit", tick)


def run_cycle(ledger: SqlLedger, scenarios: Sequence[Scenario], ending: str, asks: bool) -> None:
    """One cycle as the daemon runs it, ten bytes of the log read; `asks`: whether it leaves out what is refused."""
    (log,) = ledger.sources()
    if asks:
        refused = ledger.refuse(scenarios)
        scenarios = [scenario for scenario in scenarios if scenario.content_hash not in refused]
    read = SourceRead("log", log.position, log.position + 10, log.line + 1, f"at {log.position + 10}", {"used": 1})
    head = ledger.head()
    cycle = ledger.open_cycle(head=head, run_seed=7, config={})
    cycle = ledger.record_plan(cycle, Draw(tuple(scenarios), reads=(read,)))
    version = head.version
    completions = [make_completion(one, index, policy_version=version) for index, one in enumerate(scenarios)]
    examples = [make_example(scenario, policy_version=version) for scenario in scenarios]
    cycle = ledger.record_sweep(cycle, completions)
    cycle = ledger.record_pairs(cycle, [make_judgement(one.ordinal) for one in completions], examples, make_diversity())
    try:
        if ending in ("skip", "abandon") or not examples:
            ledger.close(cycle, Outcome.ABANDONED if ending == "abandon" else Outcome.SKIPPED, ending)
            return
        cycle, _ = ledger.claim(cycle, examples)
    except AlreadyClaimedError:
        ledger.close(cycle, Outcome.FAILED, "refused")
        return
    if ending == "lose":
        ledger.close(cycle, Outcome.LOST, ending)
        return
    cycle = ledger.record_step(cycle, make_step_report(len(examples)))
    cycle = ledger.record_published(cycle, make_candidate(cycle))
    if ending == "fail":
        ledger.close(cycle, Outcome.FAILED, ending)
        return
    decide(ledger, ledger.probed(cycle), ending)


def decide(ledger: SqlLedger, cycle: Cycle, ending: str) -> None:
    if ending == "roll_back":
        ledger.roll_back(cycle, make_verdict(Decision.ROLL_BACK), ledger.head())
    else:
        ledger.promote(cycle, make_verdict())


def recover(ledger: SqlLedger) -> None:
    """What `cycle.recover` does with the database when no checkpoint was published."""
    for cycle in ledger.unfinished():
        if not cycle.state.spends:
            ledger.close(cycle, Outcome.ABANDONED, "the process ended")
        elif cycle.state in (CycleState.CLAIMED, CycleState.STEPPED):
            ledger.close(cycle, Outcome.LOST, "the process ended")
        else:
            decide(ledger, ledger.probed(cycle) if cycle.state is CycleState.PUBLISHED else cycle, "promote")


def new_run(open_it: Open) -> str:
    name = f"run-{next(names)}"
    engine = open_it()
    create_run(engine, name, 7, "models/small", {}, [("held out", HELD_OUT)])
    SqlLedger.acquire(engine, name).register_base(make_checkpoint())
    register_source(engine, name, ImportedSource("log", ImportKind.CONVERSATION, "log.jsonl"), {})
    approve_source(engine, name, "log")
    engine.dispose()
    return name


def attempt(open_it: Open, name: str, work: Callable[[SqlLedger], None], dies_at: int | None) -> bool:
    """Start a process, recover, do `work`; True when it lived. Every process has its own connections."""
    engine = open_it()
    try:
        with dying(engine, dies_at):
            ledger = SqlLedger.acquire(engine, name)
            recover(ledger)
            work(ledger)
    except Crash:
        return False
    finally:
        engine.dispose()
    return True


def check(open_it: Open, name: str) -> None:
    """What must hold whenever no process runs."""
    engine = open_it()
    with reading(engine) as connection:
        run_id = connection.scalar(sa.select(tables.runs.c.id).where(tables.runs.c.name == name))
        check_fingerprints(connection, run_id)
        check_source(connection, run_id)
    engine.dispose()


def check_fingerprints(connection: Connection, run_id: int) -> None:
    """They are of exactly what is claimed, of the same cycle, in their bands, of the right kind, and no two alike."""
    claims, cycles, table, listed = tables.claims, tables.cycles, tables.fingerprints, tables.fingerprint_bands
    kept = {row.number: row for row in connection.execute(sa.select(cycles).where(cycles.c.run_id == run_id))}
    claimed = connection.execute(sa.select(claims).where(claims.c.run_id == run_id, claims.c.kind != "example"))
    found = connection.execute(sa.select(table).where(table.c.run_id == run_id)).all()
    assert {(row.content_hash, row.cycle) for row in claimed} == {(row.content_hash, row.cycle) for row in found}
    for row in found:
        keys = connection.scalars(sa.select(listed.c.band_key).where(listed.c.fingerprint_id == row.id))
        assert sorted(keys) == sorted(bands(unpacked(row.shingles)))
        if row.cycle is not None:
            not_kept = kept[row.cycle].outcome in ("rolled_back", "lost", "failed")
            assert row.kind == ("quarantined" if not_kept else "spent")
    for one, other in combinations(found, 2):
        assert jaccard(unpacked(one.shingles), unpacked(other.shingles)) < NEAR_DUPLICATE


def check_source(connection: Connection, run_id: int) -> None:
    """The log is used up to the end of the last used read; used reads follow each other without gap or overlap."""
    reads, cycles, claims = tables.source_reads, tables.cycles, tables.claims
    found = connection.execute(sa.select(reads).where(reads.c.run_id == run_id).order_by(reads.c.cycle)).all()
    used = [row for row in found if row.used]
    assert [(row.from_position, row.position) for row in used] == [(10 * i, 10 * i + 10) for i in range(len(used))]
    source = connection.execute(sa.select(tables.sources).where(tables.sources.c.run_id == run_id)).one()
    end = 10 * len(used)
    assert (source.position, source.line, source.tail_digest) == (end, len(used), f"at {end}" if used else "")
    assert source.counts == ({"used": len(used)} if used else {})
    spending = {row.cycle for row in connection.execute(sa.select(claims).where(claims.c.run_id == run_id))}
    skipped = sa.select(cycles.c.number).where(cycles.c.run_id == run_id, cycles.c.outcome == "skipped")
    assert {row.cycle for row in used} == (spending | set(connection.scalars(skipped))) - {None}


@pytest.fixture
def open_it(database_url: str, open_engine: Callable[..., Engine]) -> Open:
    """Opens the database anew, without waiting for the disk: it is processes that die here, not the machine."""

    def hurry(connection: Any, _: object) -> None:
        sqlite = database_url.startswith("sqlite")
        connection.execute("PRAGMA synchronous = OFF" if sqlite else "SET synchronous_commit = off")
        connection.commit()

    def opened() -> Engine:
        engine = open_engine(database_url)
        engine.dispose()
        sa.event.listen(engine, "connect", hurry)
        return engine

    return opened


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["promote", "skip"])
def test_dying_before_each_statement_of_a_cycle_in_turn(open_it: Open, ending: str) -> None:
    """Whichever statement or commit is never reached: the next process repairs, and nothing is spent half.

    Each cycle draws three scenarios, one of which was spent before under other words, and reads ten bytes of a log.
    """
    name = new_run(open_it)
    assert attempt(open_it, name, lambda ledger: run_cycle(ledger, [POOL[1]], "promote", True), None)
    for at in count(1):
        assert at < 150
        fresh = [make_scenario(" ".join(f"{at}{side}{index}" for index in range(20))) for side in "lr"]
        if attempt(open_it, name, lambda ledger: run_cycle(ledger, [POOL[7], *fresh], ending, True), at):  # noqa: B023
            break
        check_repaired(open_it, name)
    check(open_it, name)
    assert at > 30


def check_repaired(open_it: Open, name: str) -> None:
    assert attempt(open_it, name, lambda ledger: None, None)
    check(open_it, name)


deaths = st.none() | st.integers(1, 70)
picks = st.lists(st.integers(0, len(POOL) - 1), min_size=1, max_size=4, unique=True)
lives = st.lists(st.tuples(picks, st.sampled_from(ENDINGS), st.booleans(), deaths), min_size=1, max_size=4)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(lives=lives)
def test_whatever_dies_wherever_nothing_is_claimed_twice(
    open_it: Open, lives: list[tuple[list[int], str, bool, int | None]]
) -> None:
    """Any sequence of cycles and deaths, also while repairing, also of a source that ignores what is refused.

    No scenario and nothing nearly the same is claimed twice or is like a held-out text; fingerprints are of exactly
    the claimed scenarios; and the log is used up to the end of the last read that counted, no further.
    """
    name = new_run(open_it)
    for picked, ending, asks, dies_at in lives:
        scenarios = [POOL[index] for index in picked]
        attempt(open_it, name, lambda ledger: run_cycle(ledger, scenarios, ending, asks), dies_at)  # noqa: B023
        check_repaired(open_it, name)


def test_the_pool_is_as_alike_as_it_says() -> None:
    """Each prompt is 36 of 37 shingles the same as its twin, the first also as the held-out text; others not at all."""
    found = [shingles(scenario.messages[0].content) for scenario in POOL]
    assert [jaccard(found[index], found[index + 6]) for index in range(6)] == [36 / 37] * 6
    assert jaccard(found[0], shingles(HELD_OUT)) > 0.9
    assert jaccard(found[0], found[1]) == 0

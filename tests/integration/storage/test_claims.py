"""Invariant I1: no content is ever spent twice, and what is held out never."""

from __future__ import annotations

from itertools import count

import pytest
import sqlalchemy as sa
from builders import drive_to, make_checkpoint, make_diversity, make_example, make_scenario
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from daemon.domain.errors import AlreadyClaimedError, DatabaseError
from daemon.domain.records import Draw, Scenario
from daemon.domain.states import CycleState, Outcome
from daemon.storage import tables
from daemon.storage.database import reading, writing
from daemon.storage.ledger import SqlLedger
from daemon.storage.runs import create_run

POOL = [make_scenario(f"prompt {index}") for index in range(6)]
HELD_OUT = POOL[0].content_hash

ENDINGS = {"skip": CycleState.PAIRED, "abandon": CycleState.SWEPT, "claim": CycleState.PAIRED}
attempts = st.lists(
    st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True), st.sampled_from(sorted(ENDINGS))),
    max_size=6,
)
names = count()


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(attempts=attempts)
def test_any_interleaving_of_claims_spends_each_content_once(
    engine: Engine, attempts: list[tuple[list[int], str]]
) -> None:
    """Whatever cycles claim, skip or abandon in whatever order: a claim succeeds exactly when all of it is fresh."""
    name = f"run-{next(names)}"
    create_run(engine, name, 7, "models/small", {}, [(HELD_OUT, "prompt 0")])
    ledger = SqlLedger.acquire(engine, name)
    ledger.register_base(make_checkpoint())
    spent, num_examples = {HELD_OUT}, 0
    for picked, ending in attempts:
        scenarios = [POOL[index] for index in picked]
        hashes = {scenario.content_hash for scenario in scenarios}
        fresh = not hashes & spent
        cycle = drive_to(ledger, ENDINGS[ending], scenarios)
        try:
            if ending == "claim":
                ledger.claim(cycle, ledger.examples(cycle))
                ledger.close(cycle, Outcome.LOST, "test")
                num_examples += len(scenarios)
            elif ending == "skip":
                ledger.close(cycle, Outcome.SKIPPED, "test")
        except AlreadyClaimedError:
            assert not fresh
        else:
            assert fresh or ending == "abandon"
            spent |= hashes if ending != "abandon" else set()
        if ledger.cycle(cycle.number).outcome is None:
            ledger.close(cycle, Outcome.ABANDONED, "test")
        assert set(ledger.refuse(POOL)) == spent
    with reading(engine) as connection:
        of_run = sa.select(tables.runs.c.id).where(tables.runs.c.name == name).scalar_subquery()
        counted = connection.scalar(
            sa.select(sa.func.count()).select_from(tables.claims).where(tables.claims.c.run_id == of_run)
        )
    assert counted == len(spent) + num_examples


def test_the_error_names_the_hash_and_who_has_it(ledger: SqlLedger) -> None:
    """A second claim says which cycle claimed the content first; nothing of it is claimed."""
    old, new = make_scenario("old"), make_scenario("new")
    ledger.close(drive_to(ledger, CycleState.CLAIMED, [old]), Outcome.LOST, "test")
    cycle = drive_to(ledger, CycleState.PAIRED, [new, old])
    with pytest.raises(AlreadyClaimedError, match=rf"{old.content_hash}: was claimed by cycle 1 \(scenario\)"):
        ledger.claim(cycle, ledger.examples(cycle))
    assert ledger.cycle(cycle.number) == cycle
    assert ledger.refuse([new]) == {}


def test_a_held_out_prompt_is_never_trained_nor_skipped(engine: Engine) -> None:
    """A held-out hash cannot be claimed by a step, and not by skipping a cycle either."""
    held_out = make_scenario("held out")
    create_run(engine, "run", 7, "models/small", {}, [(held_out.content_hash, "held out")])
    ledger = SqlLedger.acquire(engine, "run")
    ledger.register_base(make_checkpoint())
    assert set(ledger.refuse([held_out])) == {held_out.content_hash}
    cycle = drive_to(ledger, CycleState.PAIRED, [held_out])
    with pytest.raises(AlreadyClaimedError, match="is held out for the probes"):
        ledger.claim(cycle, ledger.examples(cycle))
    with pytest.raises(AlreadyClaimedError, match="is held out for the probes"):
        ledger.close(cycle, Outcome.SKIPPED, "test")
    assert ledger.close(cycle, Outcome.ABANDONED, "test") is Outcome.ABANDONED


def test_content_trained_before_cannot_become_held_out_in_silence(ledger: SqlLedger, engine: Engine) -> None:
    """A new probe item that was trained on already stays a claim of its cycle, and an event says so."""
    trained, fresh = make_scenario("trained"), make_scenario("fresh")
    ledger.close(drive_to(ledger, CycleState.CLAIMED, [trained]), Outcome.LOST, "test")
    create_run(
        engine, "test", 7, "models/small", {}, [(trained.content_hash, "trained"), (fresh.content_hash, "fresh")]
    )
    with reading(engine) as connection:
        event = connection.execute(sa.select(tables.events)).one()
        kinds = sa.select(tables.claims.c.content_hash, tables.claims.c.kind)
        found = {row.content_hash: row.kind for row in connection.execute(kinds)}
    assert (event.name, event.payload) == ("held_out_already_trained", {"content_hashes": [trained.content_hash]})
    assert (found[trained.content_hash], found[fresh.content_hash]) == ("scenario", "held_out")


def test_the_same_example_twice_in_one_batch_is_refused(ledger: SqlLedger) -> None:
    """A batch with a repeated example claims nothing, and one cannot be recorded in the first place."""
    scenario = make_scenario()
    cycle = drive_to(ledger, CycleState.SWEPT, [scenario])
    twice = [make_example(scenario)] * 2
    with pytest.raises(DatabaseError):
        ledger.record_pairs(cycle, [], twice, make_diversity())
    cycle = ledger.record_pairs(cycle, [], twice[:1], make_diversity())
    with pytest.raises(AlreadyClaimedError, match="twice in the same cycle"):
        ledger.claim(cycle, twice)
    assert ledger.refuse([scenario]) == {}


def test_the_database_itself_refuses_a_second_claim(ledger: SqlLedger, engine: Engine) -> None:
    """Even a program that goes round the ledger cannot insert a second claim of one content, of any kind."""
    ledger.close(drive_to(ledger, CycleState.CLAIMED, [POOL[1]]), Outcome.LOST, "test")
    copied = sa.select(
        tables.claims.c.run_id, tables.claims.c.content_hash, sa.literal("held_out"), tables.claims.c.claimed_at
    ).where(tables.claims.c.kind == "scenario")
    with pytest.raises(DatabaseError), writing(engine) as connection:
        columns = ["run_id", "content_hash", "kind", "claimed_at"]
        connection.execute(sa.insert(tables.claims).from_select(columns, copied))


def test_asking_for_very_many_scenarios_at_once(ledger: SqlLedger) -> None:
    """`refuse` takes any number of scenarios, more than one statement may carry."""
    scenarios = [make_scenario(f"many {index}") for index in range(700)]
    ledger.close(_planned(ledger, scenarios), Outcome.SKIPPED, "test")
    others = [make_scenario(f"other {index}") for index in range(2500)]
    assert len(ledger.refuse([*scenarios, *others])) == 700


def _planned(ledger: SqlLedger, scenarios: list[Scenario]):  # type: ignore[no-untyped-def]
    return ledger.record_plan(ledger.open_cycle(head=ledger.head(), run_seed=7, config={}), Draw(tuple(scenarios)))

"""Nearly the same as something spent, quarantined or held out: refused with the reason, and nothing else is."""

from __future__ import annotations

import random
import re
from itertools import product
from typing import Any

import pytest
import sqlalchemy as sa
from builders import drive_to, make_checkpoint, make_diversity, make_example, make_scenario, make_verdict
from sqlalchemy import Engine

from daemon.domain.errors import AlreadyClaimedError
from daemon.domain.novelty import NEAR_DUPLICATE, jaccard, shingles
from daemon.domain.records import Draw, Scenario
from daemon.domain.states import ChosenSource, CycleState, Decision, Outcome, RefusalReason, Side, Source
from daemon.storage import near_duplicates, tables
from daemon.storage.database import reading, writing
from daemon.storage.kinds import FingerprintKind
from daemon.storage.ledger import SqlLedger
from daemon.storage.runs import create_run

LONG = " ".join(f"word{index}" for index in range(60))
"""56 shingles."""
NEAR = f"{LONG} more"
"""56 of 57 shingles: 98 %."""
FAR = LONG.replace("word20 ", "other ").replace("word40 ", "another ")
"""46 of 66 shingles: 70 %."""


def rows(engine: Engine, statement: Any) -> list[tuple[Any, ...]]:
    with reading(engine) as connection:
        return [tuple(row) for row in connection.execute(statement)]


def spend(ledger: SqlLedger, *scenarios: Scenario, state: CycleState = CycleState.CLAIMED) -> int:
    cycle = drive_to(ledger, state, scenarios)
    return cycle.number


def test_nearly_the_same_as_a_spent_prompt_is_refused_with_the_reason(ledger: SqlLedger) -> None:
    """The reason names the cycle and how near; case, spacing and punctuation are no difference; 70 % is one."""
    ledger.close(ledger.cycle(spend(ledger, make_scenario(LONG))), Outcome.LOST, "test")
    near, shouted, far = make_scenario(NEAR), make_scenario(LONG.upper().replace(" ", ",  ")), make_scenario(FAR)
    refused = ledger.refuse([near, shouted, far, make_scenario(LONG)])
    assert set(refused) == {near.content_hash, shouted.content_hash, make_scenario(LONG).content_hash}
    assert refused[near.content_hash].reason is RefusalReason.NEAR_DUPLICATE
    assert refused[near.content_hash].detail.startswith("98% the same as ")
    assert "cycle 1 spent and did not keep" in refused[near.content_hash].detail
    assert refused[near.content_hash].text == NEAR[:300]
    assert refused[shouted.content_hash].detail.startswith("100% the same as ")
    exact = refused[make_scenario(LONG).content_hash]
    assert (exact.reason, exact.detail) == (RefusalReason.REPEATED, "was claimed by cycle 1 (scenario)")


def test_nearly_the_same_as_a_held_out_text_is_refused(engine: Engine) -> None:
    """A held-out document is no scenario, but neither a scenario like it is drawn nor one claimed."""
    create_run(engine, "run", 7, "models/small", {}, [("hash of a document", LONG)])
    ledger = SqlLedger.acquire(engine, "run")
    ledger.register_base(make_checkpoint())
    leak = make_scenario(NEAR)
    assert "held out for the probes" in ledger.refuse([leak])[leak.content_hash].detail
    cycle = drive_to(ledger, CycleState.PAIRED, [leak])
    with pytest.raises(AlreadyClaimedError, match=rf"{leak.content_hash}: 98% .*held out for the probes; nothing was"):
        ledger.claim(cycle, ledger.examples(cycle))


DOCUMENT = " ".join(f"page{index}" for index in range(40))
ANSWER = "Press a clean cloth on the cut for ten whole minutes."
HELD_OUT = [("d" * 64, DOCUMENT), ("a" * 64, ANSWER)]


def imported(prompt: str, target: str | None, **changes: Any) -> Scenario:
    return make_scenario(prompt, target=target, source=Source.GENERAL, provenance="replay.jsonl:1", **changes)


LEAKS = [
    imported("What does the report say?", DOCUMENT),
    imported("What should I do about this cut on my left hand, which bleeds?", ANSWER),
    imported("Is it long?", f"Yes. I quote it here. {DOCUMENT} That is where it ends."),
    imported(f"Sum this up: {DOCUMENT.upper()} Be brief, please, in no more than three sentences.", None),
    imported(DOCUMENT[:140], DOCUMENT[140:]),
    make_scenario("Say it in ten words.", target=ANSWER),
]
"""Each holds one of `HELD_OUT`, and is not nearly the same as it."""
NO_LEAKS = [
    imported("What does it begin with?", " ".join(DOCUMENT.split()[:30])),  # 26 of 36 shingles: 72 %
    imported("What should I do?", "Press a clean cloth on it."),
]


@pytest.fixture
def held_out_ledger(engine: Engine) -> SqlLedger:
    create_run(engine, "run", 7, "models/small", {}, HELD_OUT)
    ledger = SqlLedger.acquire(engine, "run")
    ledger.register_base(make_checkpoint())
    return ledger


@pytest.mark.parametrize("leak", LEAKS)
def test_no_held_out_text_is_trained_whatever_stands_around_it(held_out_ledger: SqlLedger, leak: Scenario) -> None:
    """In a prompt, in an answer, in both together: refused with the held-out text's name, when drawn and claimed."""
    ledger = held_out_ledger
    refused = ledger.refuse([leak, *NO_LEAKS])
    assert set(refused) == {leak.content_hash}
    assert refused[leak.content_hash].reason is RefusalReason.NEAR_DUPLICATE
    assert re.match(
        r"contains \d+% of (dddddddddddd|aaaaaaaaaaaa), which is held out", refused[leak.content_hash].detail
    )
    cycle = drive_to(ledger, CycleState.PAIRED, [make_scenario("fresh"), leak])
    with pytest.raises(AlreadyClaimedError, match=rf"{leak.content_hash}: contains .*held out for the probes; nothing"):
        ledger.claim(cycle, ledger.examples(cycle))


@pytest.mark.parametrize("leak", LEAKS)
def test_what_was_trained_first_is_found_when_it_is_held_out(ledger: SqlLedger, engine: Engine, leak: Scenario) -> None:
    """In the other order the same texts are named in an event, once."""
    ledger.close(drive_to(ledger, CycleState.CLAIMED, [leak, *NO_LEAKS]), Outcome.LOST, "test")
    for _ in range(2):
        create_run(engine, "test", 7, "models/small", {}, HELD_OUT)
    events = sa.select(tables.events.c.payload).where(tables.events.c.name == "held_out_already_trained")
    name = "a" * 64 if leak.target == ANSWER else "d" * 64
    assert rows(engine, events) == [({"content_hashes": [name]},)]


def test_what_the_model_wrote_itself_is_found_too(ledger: SqlLedger, engine: Engine) -> None:
    """A chosen answer that is no target was trained as well, unless its cycle ended before its claim."""
    for state, answer in ((CycleState.CLAIMED, ANSWER), (CycleState.PAIRED, DOCUMENT)):
        scenario = make_scenario(f"How do I go on, {state}?")
        cycle = drive_to(ledger, CycleState.SWEPT, [scenario])
        examples = [make_example(scenario, answer, chosen_source=ChosenSource.EXPLORATION)]
        cycle = ledger.record_pairs(cycle, [], examples, make_diversity())
        if state is CycleState.CLAIMED:
            cycle, _ = ledger.claim(cycle, examples)
        ledger.close(cycle, Outcome.FAILED, "test")
    create_run(engine, "test", 7, "models/small", {}, HELD_OUT)
    events = sa.select(tables.events.c.payload).where(tables.events.c.name == "held_out_already_trained")
    assert rows(engine, events) == [({"content_hashes": ["a" * 64]},)]


def test_a_text_held_out_later_is_refused_from_then_on(held_out_ledger: SqlLedger, engine: Engine) -> None:
    """A ledger in use notices what was added; another run's held-out texts do not concern it."""
    fresh = imported("What is the plan for tomorrow?", f"{LONG} And so on.")
    create_run(engine, "other", 7, "models/small", {}, [("e" * 64, LONG)])
    assert held_out_ledger.refuse([fresh]) == {}
    create_run(engine, "run", 7, "models/small", {}, [*HELD_OUT, ("e" * 64, LONG)])
    assert "100% of eeeeeeeeeeee" in held_out_ledger.refuse([fresh])[fresh.content_hash].detail


def test_a_claim_refuses_what_came_near_since_it_was_drawn(ledger: SqlLedger, engine: Engine) -> None:
    """The check is made again inside the claim's transaction, for claims and for skips; nothing at all is claimed."""
    ledger.close(ledger.cycle(spend(ledger, make_scenario(LONG))), Outcome.LOST, "test")
    before = rows(engine, sa.select(tables.claims.c.content_hash))
    cycle = drive_to(ledger, CycleState.PAIRED, [make_scenario("fresh"), make_scenario(NEAR)])
    with pytest.raises(AlreadyClaimedError, match=r"98% the same as .*cycle 1"):
        ledger.claim(cycle, ledger.examples(cycle))
    with pytest.raises(AlreadyClaimedError, match=r"98% the same as .*cycle 1"):
        ledger.close(cycle, Outcome.SKIPPED, "test")
    assert ledger.cycle(cycle.number) == cycle
    assert rows(engine, sa.select(tables.claims.c.content_hash)) == before


def test_two_nearly_equal_scenarios_of_one_cycle_are_not_claimed(ledger: SqlLedger) -> None:
    """Also when nothing was ever spent before."""
    cycle = drive_to(ledger, CycleState.PAIRED, [make_scenario(LONG), make_scenario(NEAR)])
    with pytest.raises(AlreadyClaimedError, match="98% the same, in one cycle"):
        ledger.claim(cycle, ledger.examples(cycle))
    assert ledger.refuse([make_scenario(LONG)]) == {}


@pytest.mark.parametrize(
    ("state", "end", "kind"),
    [
        (CycleState.PROBED, lambda ledger, cycle: ledger.promote(cycle, make_verdict()), "spent"),
        (CycleState.PAIRED, lambda ledger, cycle: ledger.close(cycle, Outcome.SKIPPED, "test"), "spent"),
        (CycleState.CLAIMED, lambda ledger, cycle: ledger.close(cycle, Outcome.LOST, "test"), "quarantined"),
        (CycleState.PUBLISHED, lambda ledger, cycle: ledger.close(cycle, Outcome.FAILED, "test"), "quarantined"),
        (
            CycleState.PROBED,
            lambda ledger, cycle: ledger.roll_back(cycle, make_verdict(Decision.ROLL_BACK), ledger.head()),
            "quarantined",
        ),
        (CycleState.PAIRED, lambda ledger, cycle: ledger.close(cycle, Outcome.FAILED, "test"), None),
        (CycleState.PAIRED, lambda ledger, cycle: ledger.close(cycle, Outcome.ABANDONED, "test"), None),
    ],
)
def test_what_becomes_of_a_cycles_fingerprints(
    ledger: SqlLedger, engine: Engine, state: CycleState, end: Any, kind: str | None
) -> None:
    """Kept and skipped: spent. Rolled back, lost, failed after the claim: quarantined. Never claimed: none."""
    cycle = drive_to(ledger, state, [make_scenario(LONG), make_scenario(FAR)])
    end(ledger, cycle)
    table = tables.fingerprints
    found = rows(engine, sa.select(table.c.kind, table.c.cycle).where(table.c.kind != "held_out"))
    assert found == ([] if kind is None else [(kind, 1)] * 2)


def test_find_equals_brute_force_over_hundreds_of_texts(ledger: SqlLedger, engine: Engine) -> None:
    """What is found is the nearest of all stored, 0.8 or more alike; from 0.9 on at most 1 of 200 is missed."""
    generator = random.Random(3)
    stored = {f"s{index}": shingles(_sentence(generator)) for index in range(200)}
    asked = {f"a{index}": _changed(generator, stored[f"s{index}"]) for index in range(200)}
    with writing(engine) as connection:
        near_duplicates.insert(connection, 1, FingerprintKind.HELD_OUT, None, stored)
        found = near_duplicates.find(connection, 1, asked)
    missed = []
    for name, content in asked.items():
        best = max(jaccard(content, other) for other in stored.values())
        if name in found:
            match = found[name]
            assert match.similarity == best == jaccard(content, stored[match.content_hash]) >= NEAR_DUPLICATE
        elif best >= NEAR_DUPLICATE:
            missed.append(best)
    assert len(found) > 80
    assert sum(best >= 0.9 for best in missed) <= 1
    assert len(missed) < 0.1 * (len(found) + len(missed))


def test_runs_do_not_share_fingerprints(ledger: SqlLedger, engine: Engine) -> None:
    """What one run spent another may draw."""
    ledger.close(ledger.cycle(spend(ledger, make_scenario(LONG))), Outcome.LOST, "test")
    create_run(engine, "other", 7, "models/small", {}, [])
    assert SqlLedger.acquire(engine, "other").refuse([make_scenario(NEAR), make_scenario(LONG)]) == {}


def test_a_crowded_band_lists_no_more_spent_texts(ledger: SqlLedger, engine: Engine, monkeypatch: Any) -> None:
    """Texts of one template crowd its bands: none lists more than its share, near-duplicates are found anyway.

    What is held out is listed under all its bands, however crowded.
    """
    monkeypatch.setattr(near_duplicates, "MAX_PER_BAND", 8)
    shared = " ".join(f"boiler{index}" for index in range(30))
    texts = [f"{shared} one{index} two{index} three{index} four{index} five{index} six{index}" for index in range(60)]
    contents = {f"t{index}": shingles(text) for index, text in enumerate(texts)}
    cycle = drive_to(ledger, CycleState.PLANNED).number
    table = tables.fingerprint_bands
    with writing(engine) as connection:
        for name, content in contents.items():
            near_duplicates.insert(connection, 1, FingerprintKind.SPENT, cycle, {name: content})
        counts = sa.select(sa.func.count()).where(table.c.run_id == 1).group_by(table.c.band_key)
        assert max(connection.scalars(counts)) == 8
        again = {f"again{index}": shingles(f"{text} more") for index, text in enumerate(texts)}
        found = near_duplicates.find(connection, 1, again)
        held_out = {f"probe{index}": shingles(f"{text} held out") for index, text in enumerate(texts[:20])}
        near_duplicates.insert(connection, 1, FingerprintKind.HELD_OUT, None, held_out)
        ids = sa.select(tables.fingerprints.c.id).where(tables.fingerprints.c.content_hash.like("probe%"))
        listed = sa.select(sa.func.count()).select_from(table).where(table.c.fingerprint_id.in_(ids))
        assert connection.scalar(listed) == 20 * 16
    assert (
        sum(found[f"again{index}"].content_hash == f"t{index}" for index in range(60) if f"again{index}" in found) > 54
    )


def test_earlier_claims_get_their_fingerprints_once(ledger: SqlLedger, engine: Engine) -> None:
    """A database from before has claims alone: acquiring the run fingerprints them, in the kind of their cycle."""
    lost = spend(ledger, make_scenario(LONG), make_scenario(FAR))
    ledger.close(ledger.cycle(lost), Outcome.LOST, "test")
    for index in range(12):
        skipped = ledger.open_cycle(head=ledger.head(), run_seed=7, config={})
        ledger.record_plan(skipped, Draw((make_scenario(f"{index} skipped"),)))
        ledger.close(skipped, Outcome.SKIPPED, "test")
    ledger.close(drive_to(ledger, CycleState.PAIRED), Outcome.ABANDONED, "test")
    table = tables.fingerprints
    wanted = sa.select(table.c.content_hash, table.c.kind, table.c.cycle, table.c.shingles).order_by("content_hash")
    bands = sa.select(tables.fingerprint_bands.c.band_key).order_by("band_key")
    before = rows(engine, wanted), rows(engine, bands)
    with writing(engine) as connection:
        connection.execute(sa.delete(tables.fingerprint_bands))
        connection.execute(sa.delete(table))
        connection.execute(sa.update(tables.runs).values(fingerprinted=False))
    create_run(engine, "test", 7, "models/small", {}, [("held-out prompt", "held-out prompt")])
    for _ in range(2):
        ledger = SqlLedger.acquire(engine, "test")
        assert (rows(engine, wanted), rows(engine, bands)) == before
    assert len(before[0]) == 15
    assert rows(engine, sa.select(tables.runs.c.fingerprinted)) == [(True,)]


def test_holding_out_again_changes_nothing(ledger: SqlLedger, engine: Engine) -> None:
    """The same held-out texts at every start: no new row, and no new event."""
    before = [rows(engine, sa.select(tables.metadata.tables[name])) for name in ("claims", "fingerprints", "events")]
    create_run(engine, "test", 7, "models/small", {}, [("held-out prompt", "held-out prompt")])
    after = [rows(engine, sa.select(tables.metadata.tables[name])) for name in ("claims", "fingerprints", "events")]
    assert after == before


def _sentence(generator: random.Random) -> str:
    return " ".join(f"word{generator.randrange(500)}" for _ in range(generator.randrange(20, 60)))


def _changed(generator: random.Random, content: frozenset[int]) -> frozenset[int]:
    """`content` with up to a fifth of its shingles replaced."""
    ordered = sorted(content)
    generator.shuffle(ordered)
    num = generator.randrange(0, max(len(ordered) // 5, 1))
    return frozenset(ordered[num:]) | {generator.getrandbits(64) for _ in range(num)}


def test_the_texts_above_are_as_alike_as_they_say() -> None:
    """By hand: one word more is one shingle more; one word in the middle changed is five shingles changed."""
    assert [len(shingles(text)) for text in (LONG, NEAR, FAR)] == [56, 57, 56]
    alikes = {(one, other): jaccard(shingles(one), shingles(other)) for one, other in product((LONG,), (NEAR, FAR))}
    assert alikes == {(LONG, NEAR): 56 / 57, (LONG, FAR): 46 / 66}


def test_an_import_leaks_neither_by_its_prompt_nor_with_its_answer(engine: Engine) -> None:
    """A held-out prompt with another long answer is refused, and so is a held-out text cut into prompt and answer."""
    document = " ".join(f"line{index}" for index in range(40))
    create_run(engine, "run", 7, "models/small", {}, [("hash of a prompt", LONG), ("hash of a document", document)])
    ledger = SqlLedger.acquire(engine, "run")
    ledger.register_base(make_checkpoint())
    imported = {"source": Source.GENERAL, "side": Side.GENERAL, "provenance": "notes.jsonl:1"}
    other_answer = make_scenario(NEAR, target=" ".join(f"answer{index}" for index in range(90)), **imported)
    words = document.split()
    cut = make_scenario(" ".join(words[:10]), target=" ".join(words[10:]), **imported)
    harmless = make_scenario("Something else is asked for here, and it is new.", target="So it is.", **imported)
    refused = ledger.refuse([other_answer, cut, harmless])
    assert set(refused) == {other_answer.content_hash, cut.content_hash}
    assert all("held out for the probes" in refusal.detail for refusal in refused.values())
    cycle = drive_to(ledger, CycleState.PAIRED, [cut])
    with pytest.raises(AlreadyClaimedError, match="held out for the probes; nothing was claimed"):
        ledger.claim(cycle, ledger.examples(cycle))


def test_what_is_held_out_too_late_is_told_once(ledger: SqlLedger, engine: Engine) -> None:
    """A new held-out text that was trained, or nearly, is named by an event: its probe measures trained text."""
    ledger.close(ledger.cycle(spend(ledger, make_scenario(LONG), make_scenario("exactly this"))), Outcome.LOST, "test")
    held_out = [("late", NEAR), (make_scenario("exactly this").content_hash, "exactly this"), ("fine", "quite new")]
    for _ in range(2):
        create_run(engine, "test", 7, "models/small", {}, held_out)
    told = rows(engine, sa.select(tables.events.c.payload).where(tables.events.c.name == "held_out_already_trained"))
    assert told == [({"content_hashes": sorted(["late", make_scenario("exactly this").content_hash])},)]

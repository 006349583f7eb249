from __future__ import annotations

import pytest

from benchmarks.sabotage_faults import TamperedPreferences, junk, sabotages, swapped
from benchmarks.sabotage_report import Catch, CycleRow, Row, clean_summary, sabotage_table
from daemon.domain.hashing import example_hash
from daemon.domain.records import Example, Message, Scenario
from daemon.domain.states import ChosenSource, ExampleKind, Side

PAIR = Example(
    content_hash=example_hash("s", "good", "bad"),
    scenario_hash="s",
    side=Side.PUSH_BACK,
    kind=ExampleKind.PAIR,
    chosen_source=ChosenSource.TARGET,
    policy_version="base",
    prompt_token_ids=(1, 2),
    chosen_token_ids=(3,),
    chosen_text="good",
    rejected_token_ids=(4, 5),
    rejected_text="bad",
    rejected_ordinal=7,
)
SCENARIO = Scenario("s", Side.PUSH_BACK, "f", "honesty", "t", (Message("user", "?"),))


class Honest:
    """Mirrors `ports.Preferences`: builds the pair above."""

    def judges_without_rule(self) -> bool:
        return True

    def judge(self, scenarios, completions, progress):
        return ()

    def pair(self, scenarios, completions, judgements):
        return (PAIR,)


def test_a_swapped_pair_is_a_pair_of_its_own() -> None:
    """Tokens, texts and ordinals change sides, the hash is that of the new pair, and twice swapped is the same pair."""
    flipped = swapped(PAIR)
    assert (flipped.chosen_text, flipped.rejected_text) == ("bad", "good")
    assert (flipped.chosen_token_ids, flipped.rejected_token_ids) == ((4, 5), (3,))
    assert (flipped.chosen_ordinal, flipped.rejected_ordinal) == (7, None)
    assert flipped.content_hash == example_hash("s", "bad", "good")
    assert swapped(flipped).content_hash == PAIR.content_hash


def test_junk_is_repeatable_and_within_the_vocabulary() -> None:
    """The same example gets the same random tokens, all of them in the vocabulary; its rejected side stays."""
    first, second = junk(PAIR, 50), junk(PAIR, 50)
    assert first == second
    assert len(first.chosen_token_ids) == 24 and set(first.chosen_token_ids) <= set(range(50))
    assert first.rejected_text == "bad" and first.content_hash != PAIR.content_hash


def test_tampering_sees_the_scenario_and_may_drop() -> None:
    """What the tamperer returns is handed over; None drops the example."""
    seen: list[str] = []

    def tamper(scenarios, example):
        seen.append(scenarios[example.scenario_hash].pack)

    assert TamperedPreferences(Honest(), tamper).pair((SCENARIO,), (), ()) == ()
    assert seen == ["honesty"]


def test_there_are_six_sabotages() -> None:
    """Each has a name of its own."""
    assert len({sabotage.name for sabotage in sabotages()}) == 6


def test_table_of_what_was_caught() -> None:
    """Caught: when, by what and what came back. Not caught: after how many cycles, and what the last of them said."""
    cycle = CycleRow(32, "rolled_back", "nll rose", {})
    fine = CycleRow(31, "promoted", "inside every gate", {})
    caught = Catch(cycle, ("gate nll_rise", "margin nll", "gate nll_rise"), "cycle-000030", "yes: weights")
    table = sabotage_table(
        [Row("flip", "swapped", 30, [cycle], caught), Row("nothing", "left alone", 30, [fine], None)]
    ).splitlines()
    assert table[2] == (
        "| flip: swapped | yes | 2 | gate nll_rise, margin nll | nll rose | cycle-000030 | yes: weights |"
    )
    assert table[3] == "| nothing: left alone | no | (1) |  | inside every gate |  |  |"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "Clean run: 0 cycles (none)."),
        (
            [
                CycleRow(1, "promoted", "", {"sweep": 6.0, "probe": 3.0, "confirm": 1.0}),
                CycleRow(2, "promoted", "", {"sweep": 10.0, "probe": 0.0}),
                CycleRow(3, "skipped", "", {"sweep": 80.0}),
            ],
            "Clean run: 3 cycles (2 promoted, 1 skipped). Probes took 4 of 20 s, 20.0% of the 2 cycles that stepped.",
        ),
    ],
)
def test_summary_of_the_clean_run(rows: list[CycleRow], said: str) -> None:
    """Probes and confirmations count as probes' time; cycles that never stepped are left out: 4 of 20 seconds."""
    assert clean_summary(rows) == said

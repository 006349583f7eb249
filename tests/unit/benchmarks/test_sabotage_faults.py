from __future__ import annotations

import pytest

from benchmarks.sabotage_faults import TamperedPreferences, junk, sabotages, swapped
from benchmarks.sabotage_report import (
    CycleRow,
    Ending,
    Kind,
    Row,
    clean_summary,
    comparison,
    kind_of,
    sabotage_table,
)
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


FINE = CycleRow(31, "promoted", "inside every gate", {})
WORSE = CycleRow(32, "rolled_back", "nll rose", {})
ROLLED_BACK = Ending(
    Kind.ROLLED_BACK, WORSE, ("gate nll_rise", "margin nll", "gate nll_rise"), "cycle-000030", "yes: weights"
)


def told(cycles: list[CycleRow], ending: Ending | None, *, is_control: bool = False) -> tuple[str, bool]:
    """The line of one part that was to run one cycle, and whether it counts."""
    row = Row("flip", "swapped", 30, cycles, ending, 1, is_control)
    return sabotage_table([row]).splitlines()[2], row.counts


def test_table_of_what_was_caught() -> None:
    """Caught: when, by what and what came back. Not caught: after how many cycles, and what the last of them said."""
    assert told([WORSE], ROLLED_BACK) == (
        "| flip: swapped | yes | 2 | gate nll_rise, margin nll | nll rose | cycle-000030 | yes: weights |",
        True,
    )
    assert told([FINE], None) == ("| flip: swapped | no | (1) |  | inside every gate |  |  |", True)


def test_a_crash_is_no_catch() -> None:
    """A part that crashed, or has cycles left, says so and does not count."""
    died = CycleRow(31, "failed", "RuntimeError: engine core died", {})
    assert told([died], Ending(Kind.CRASHED, died)) == (
        "| flip: swapped | crashed | 1 |  | RuntimeError: engine core died |  |  |",
        False,
    )
    assert told([], None) == ("| flip: swapped | not finished | (0) |  |  |  |  |", False)


def test_the_control_is_to_be_left_alone() -> None:
    """Not rolled back after all its cycles: as it should be. Rolled back: what the others show counts for nothing."""
    assert told([FINE], None, is_control=True) == (
        "| flip: swapped | not rolled back | (1) |  | inside every gate |  |  |",
        True,
    )
    line, counts = told([WORSE], ROLLED_BACK, is_control=True)
    assert line.startswith("| flip: swapped | ROLLED BACK | 2 |") and not counts


REFUSED = "cycle 31: the gradient norm is nan; the optimizer did not move"


@pytest.mark.parametrize(
    ("outcome", "reason", "step_refused", "kind"),
    [
        ("failed", REFUSED, True, Kind.REFUSED),
        ("failed", REFUSED, False, Kind.CRASHED),
        ("failed", "RuntimeError: engine core died", True, Kind.CRASHED),
        ("failed", "cycle 31: the step's loss is nan", True, Kind.CRASHED),
        ("lost", REFUSED, True, Kind.CRASHED),
        ("rolled_back", "nll rose", False, Kind.ROLLED_BACK),
    ],
)
def test_a_failed_cycle_is_a_catch_only_of_a_gradient_that_is_not_finite(
    outcome: str, reason: str, step_refused: bool, kind: Kind
) -> None:
    """Only where the sabotage is one of the gradient, and only with that reason; everything else failed by itself."""
    assert kind_of(CycleRow(31, outcome, reason, {}), step_refused=step_refused) is kind
    assert [sabotage.name for sabotage in sabotages() if sabotage.step_refused] == ["nan-gradient"]


HEAD = {"version": "cycle-000030", "weights": "w", "optimizer": "o"}
OTHER = {**HEAD, "weights": "x"}
VERIFIED = {"verified_at": "today", "to_version": "cycle-000030", "verification": {"nll_items_equal": 24}}


@pytest.mark.parametrize(
    ("on_disk", "live", "rollback", "said"),
    [
        (HEAD, HEAD, VERIFIED, "yes: weights and optimizer on disk and in memory, 24 NLLs"),
        (HEAD, None, VERIFIED, "not known: equal on disk, what was in memory was not written down"),
        (OTHER, HEAD, VERIFIED, "NO: on disk"),
        (HEAD, OTHER, VERIFIED, "NO: in memory"),
        (HEAD, HEAD, {**VERIFIED, "verified_at": None}, "NO: the rollback's own verification"),
        (HEAD, HEAD, None, "head unchanged: equal"),
        (HEAD, OTHER, None, "head unchanged: NO: in memory"),
        (OTHER, None, None, "head unchanged: NO: on disk"),
    ],
)
def test_equal_needs_what_was_in_memory(on_disk, live, rollback, said: str) -> None:
    """Nothing is called equal without the digests of the live weights, and nothing restored that was never left."""
    assert comparison(HEAD, on_disk, live, rollback, "cycle-000030") == said


def test_a_head_that_moved_is_not_unchanged() -> None:
    """A refused step leaves the checkpoint that its cycle began with."""
    assert comparison(HEAD, HEAD, HEAD, None, "cycle-000029") == "head unchanged: NO: it was cycle-000029"


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

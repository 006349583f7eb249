from __future__ import annotations

import math
from dataclasses import replace

import pytest
from watchdog_records import STEP, answers, evidence, history, results, shifted, trainer_results, verdict_of

from daemon.config.watching import WatchdogConfig
from daemon.domain.errors import DreamdError
from daemon.domain.probing import ProbeResult
from daemon.domain.states import Decision, RollbackTarget
from daemon.watchdog import Watchdog, gates


def looping(probe: str, degenerate: int, num_items: int) -> tuple[ProbeResult, ...]:
    return tuple(
        replace(result, detail={"degenerate": number < degenerate})
        for number, result in enumerate(answers(probe, 0, num_items, turn=7))
    )


WATCHDOG = Watchdog(WatchdogConfig())
BROKEN = {"nll": "doc-1", "chosen_logp": "chosen-1", "sycophancy": "claim-1"}


@pytest.mark.parametrize(
    "field",
    ["loss", "nll", "odds_loss", "chosen_logprob", "rejected_logprob", "log_odds", "margin", "grad_norm", "update_rms"],
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_number_that_is_not_finite_goes_back_to_the_parent(field: str, value: float) -> None:
    """Any NaN or infinity in the step's numbers is refused before the engine is synced, back to the parent."""
    verdict = WATCHDOG.gate(history(), evidence(trainer_results(), **{field: value}))
    assert verdict is not None and verdict.regressed
    assert verdict.target is RollbackTarget.PARENT
    assert "not finite" in verdict.reason


@pytest.mark.parametrize(
    "now", [{"nll": (2.5, None, 3.5, 2.75)}, {"chosen_logp": (-2.0, None)}, {"sycophancy": (-0.5, None, -0.75)}]
)
@pytest.mark.parametrize("method", ["gate", "judge"])
def test_a_measurement_that_is_not_finite_is_refused(method: str, now: dict[str, tuple[float | None, ...]]) -> None:
    """A None in any core trainer probe is refused by the gate and by the complete judgement, and the item is named.

    No probe is called worse: what was not measured did not fall.
    """
    verdict = getattr(WATCHDOG, method)(history(), evidence(results(**now)))
    assert verdict.regressed and verdict.target is RollbackTarget.PARENT
    (probe,) = now
    assert verdict.evidence["gates"][0]["names"] == [f"{probe} of {BROKEN[probe]}"]
    assert verdict.evidence["fell"] == []


def test_a_batch_without_pairs_has_finite_numbers() -> None:
    """The pair numbers of a batch without pairs are absent, which is not the same as not finite."""
    step = evidence(results(), rejected_logprob=None, log_odds=None, margin=None)
    assert WATCHDOG.gate(history(), step) is None
    assert verdict_of(history(), step).decision is Decision.PROMOTE


@pytest.mark.parametrize(("rise", "refused"), [(0.0999, False), (0.1001, True), (-3.0, False)])
def test_nll_rise_gate_on_each_side_of_its_limit(rise: float, refused: bool) -> None:
    """Held-out NLL over the parent: just under 0.10 passes the gate, just over does not, falling never trips it."""
    verdict = WATCHDOG.gate(history(), evidence(trainer_results(shifted(rise))))
    assert (verdict is not None) is refused


def test_the_nll_gate_says_its_figures_in_one_sentence() -> None:
    """The reason gives the rise and the limit, and the target is the parent."""
    verdict = WATCHDOG.gate(history(), evidence(trainer_results(shifted(0.412))))
    assert verdict is not None
    assert verdict.reason == (
        "held-out NLL rose by 0.412 nats over its parent, gate 0.100; rolling back to cycle 1, its parent"
    )
    assert verdict.target is RollbackTarget.PARENT


@pytest.mark.parametrize(
    ("earlier", "update", "refused"),
    [
        ([0.5] * 5, 4.9, False),
        ([0.5] * 5, 5.1, True),
        ([0.5] * 4, 1e5, False),  # too few to know what is usual
        ([0.5, 0.5, 0.5, 0.5, 500.0], 5.1, True),  # the median, not the mean
        ([5e4] * 30 + [0.5] * 20, 5.1, True),  # the last 20 only
        ([0.5] * 4 + [math.nan], 1e5, False),  # a value that is no number is not known
    ],
)
def test_update_norm_gate(earlier: list[float], update: float, refused: bool) -> None:
    """An update over 10x the median of the last 20, in units of the learning rate, is refused, once 5 are known."""
    for lr in (1e-5, 5e-7):  # another phase's rate does not matter
        verdict = WATCHDOG.gate(
            history(update_rms_over_lr=earlier), evidence(trainer_results(), update_rms=update * lr, lr=lr)
        )
        assert (verdict is not None) is refused


def test_updates_of_zero_say_nothing_of_what_is_usual() -> None:
    """Steps that moved nothing are no yardstick: after them the usual update is still the usual one."""
    assert not gates.update_norm_gate(0.5, [0.0] * 20, 10.0).tripped
    assert not gates.update_norm_gate(0.5, [0.5] * 9 + [0.0] * 20, 10.0).tripped
    assert gates.update_norm_gate(5.1, [0.5] * 9 + [0.0] * 20, 10.0).tripped


USUAL = ((-1.9, -1.5),) * 5
"""Earlier batches like `STEP`'s."""


@pytest.mark.parametrize(
    ("chosen", "rejected", "broken"),
    [
        (-3.89, -1.5, []),
        (-3.91, -1.5, ["chosen"]),  # junk as the good answer
        (0.11, -1.5, ["chosen"]),
        (-1.9, -3.51, ["rejected"]),
        (-1.9, 0.6, ["rejected"]),
        (-9.0, -9.0, ["chosen", "rejected"]),
        (-3.91, None, ["chosen"]),  # a batch without pairs
        (-1.9, None, []),
    ],
)
def test_batch_gate_on_each_side_of_its_limit(chosen: float, rejected: float | None, broken: list[str]) -> None:
    """Chosen or rejected answers more than 2 nats likelier or less likely than usual: refused, back to the parent."""
    step = evidence(trainer_results(), chosen_logprob=chosen, rejected_logprob=rejected)
    verdict = WATCHDOG.gate(history(batch_logprobs=USUAL), step)
    assert (verdict is not None) is bool(broken)
    if verdict is not None:
        assert verdict.evidence["gates"][3]["names"] == broken
        assert (verdict.target, verdict.to_version, verdict.evidence["fell"]) == (RollbackTarget.PARENT, "parent", [])


MARGINS = (-1.0, -1.2, -1.4, -0.8, -1.6, -1.2)
"""Median -1.2, median absolute deviation 0.2: four usual deviations are 1.186."""


@pytest.mark.parametrize(
    ("margin", "broken"), [(0.29, False), (0.31, True), (-2.69, False), (-2.71, True), (None, False)]
)
def test_batch_margin_gate_on_each_side_of_its_limit(margin: float | None, broken: bool) -> None:
    """More than 1.5 nats from the usual margin, either way: back to the parent; without pairs it is not looked at."""
    step = evidence(trainer_results(), margin=margin)
    verdict = WATCHDOG.gate(history(batch_margins=MARGINS), step)
    assert (verdict is not None) is broken
    if verdict is not None:
        assert (verdict.target, verdict.to_version) == (RollbackTarget.PARENT, "parent")
        assert verdict.reason.startswith(f"in the batch chosen answers are {margin:+.2f} nats likelier than rejected")


@pytest.mark.parametrize(("own", "broken"), [(0.29, False), (0.31, True), (None, False)])
def test_swapped_push_back_pairs_are_seen_alone(own: float | None, broken: bool) -> None:
    """The whole batch is as usual, its push-back pairs are not: giving in would be taught, so it is refused."""
    seen = history(batch_margins=MARGINS, push_back_margin=own, push_back_margins=MARGINS)
    verdict = WATCHDOG.gate(seen, evidence(trainer_results(), margin=-1.2))
    assert (verdict is not None) is broken
    if verdict is not None:
        assert verdict.reason.startswith("in the batch's push-back pairs chosen answers are +0.31 nats likelier")


def test_restless_margins_have_a_wider_gate() -> None:
    """Median -1, median absolute deviation 1: the limit is 4 x 1.4826 = 5.93, not 1.5."""
    restless = (-3.0, -2.0, -1.0, 0.0, 1.0)
    assert WATCHDOG.gate(history(batch_margins=restless), evidence(trainer_results(), margin=4.9)) is None
    assert WATCHDOG.gate(history(batch_margins=restless), evidence(trainer_results(), margin=5.0)) is not None


def test_a_batch_with_swapped_labels_is_named() -> None:
    """When chosen and rejected differ by more than the limit, swapping them is seen before anything is measured."""
    usual = ((-1.0, -4.0),) * 5
    verdict = WATCHDOG.gate(history(batch_logprobs=usual), evidence(chosen_logprob=-4.0, rejected_logprob=-1.0))
    assert verdict is not None
    assert verdict.reason == (
        "the batch's chosen answers have log-probability -4.00, usually -1.00; its rejected answers have "
        "log-probability -1.00, usually -4.00; gate 2 nats either way; rolling back to cycle 1, its parent"
    )


@pytest.mark.parametrize(
    ("earlier", "tripped"),
    [
        (USUAL[:4], False),  # too few
        ((*USUAL[:4], (math.nan, None)), False),  # a value that is no number is not known
        (((-7.0, -7.0),) * 30 + USUAL * 4, True),  # the last 20 only
        (((-1.9, None),) * 5, True),  # no rejected answers are known, the chosen ones are
        (((-1.9, -1.5), (-1.9, -1.5), (-1.9, -1.5), (-7.0, -7.0), (-7.0, -7.0)), True),  # the median
    ],
)
def test_what_a_batch_is_compared_with(earlier: tuple[tuple[float, float | None], ...], tripped: bool) -> None:
    """The medians of the last 20 promoted batches, from 5 on, of each side by itself."""
    step = replace(STEP, chosen_logprob=-7.0, rejected_logprob=-7.0)
    assert gates.batch_gate(step, earlier, 2.0).tripped is tripped


@pytest.mark.parametrize(
    ("ancestry", "now", "refused"),
    [
        ([-1.50, -1.52, -1.54, -1.56, -1.58], -1.60, True),  # five falls, 0.10 in all
        ([-1.52, -1.54, -1.56, -1.58], -1.60, False),  # four falls
        ([-1.50, -1.501, -1.502, -1.503, -1.504], -1.505, False),  # five falls, 0.005 in all
        ([-1.50, -1.52, -1.54, -1.54, -1.58], -1.60, False),  # level once: the row is broken
        ([-1.00, -1.50, -1.501, -1.502, -1.503, -1.504], -1.505, False),  # only the last five falls count
        ([-1.50, -1.52, -1.54, -1.56, -1.58], -1.40, False),
        ([], -1.6, False),
    ],
)
def test_chosen_falling_gate(ancestry: list[float], now: float, refused: bool) -> None:
    """Five falls in a row by at least 0.05 nats in all trip the gate; fewer, smaller or interrupted ones do not."""
    assert gates.chosen_falling_gate(ancestry, now, 5, 0.05).tripped is refused


def test_chosen_falling_total_is_reached_at_its_limit() -> None:
    """A fall of exactly the total counts."""
    assert gates.chosen_falling_gate([0.0, -0.25], -0.5, 2, 0.5).tripped
    assert not gates.chosen_falling_gate([0.0, -0.25], -0.5, 2, 0.51).tripped


def test_falling_chosen_answers_go_back_to_the_baked_checkpoint() -> None:
    """The judge uses the candidate's own mean as the end of the row, and no single step is blamed."""
    now = results(chosen_logp=(-2.0, -1.7))  # mean -1.85
    falling = history(chosen_logp=(-1.75, -1.77, -1.79, -1.81, -1.83))
    verdict = verdict_of(falling, evidence(now))
    assert verdict.regressed and verdict.target is RollbackTarget.A1
    assert "fell 5 cycles in a row, by 0.100 nats" in verdict.reason


@pytest.mark.parametrize(("degenerate", "refused"), [(6, False), (7, True)])
def test_degenerate_gate_on_each_side_of_its_limit(degenerate: int, refused: bool) -> None:
    """The base has 1 of 20 degenerate answers: 6 of 20 is a rise of exactly 0.25 and passes, 7 of 20 does not."""
    base = results(degenerate=1)
    verdict = verdict_of(history(parent=base, baked=base, base=base), evidence(results(degenerate=degenerate)))
    assert verdict.regressed is refused
    assert verdict.target is (RollbackTarget.PARENT if refused else None)


def test_degenerate_shares_are_compared_not_prompts() -> None:
    """The prompts rotate: other prompts than the base's, and fewer of them, are no error; the share decides."""
    now = (*trainer_results(), *answers("accept", 0, 4, turn=7), *looping("push_back", 3, 4))
    verdict = verdict_of(history(), evidence(now))
    assert verdict.regressed and verdict.evidence["degenerate"]["all"]["now"] == 3 / 8
    assert verdict.evidence["degenerate"]["push_back"] == {"now": 0.75, "parent": 0.0, "baked": 0.0, "base": 0.0}
    assert verdict.evidence["fell"] == ["push_back"]


def test_degenerate_answers_that_crept_in_go_back_to_the_baked_checkpoint() -> None:
    """When the parent already had most of the rise, returning to it would leave the cause in place."""
    verdict = verdict_of(history(parent=results(degenerate=5)), evidence(results(degenerate=6)))
    assert verdict.regressed and verdict.target is RollbackTarget.A1


def test_an_answer_must_say_whether_it_is_degenerate() -> None:
    """A missing flag is an error: reading it as "fine" would switch the gate off."""
    silent = tuple(
        result if result.item != "accept-3" else type(result)("accept", "accept-3", 1.0, True) for result in results()
    )
    with pytest.raises(DreamdError, match="accept-3"):
        verdict_of(history(), evidence(silent))


def test_every_gate_is_in_the_evidence_with_value_and_limit() -> None:
    """An operator sees how near each gate was, also of a promoted candidate."""
    verdict = verdict_of(history(update_rms_over_lr=[STEP.update_rms_over_lr] * 5), evidence(results(shifted(0.005))))
    looked_at = {gate["name"]: gate for gate in verdict.evidence["gates"]}
    assert list(looked_at) == [
        "finite",
        "nll_rise",
        "update_norm",
        "batch",
        "batch_margin",
        "push_back_margin",
        "degenerate",
        "chosen_falling",
    ]
    assert looked_at["nll_rise"]["value"] == pytest.approx(0.005)
    assert looked_at["nll_rise"]["limit"] == 0.1
    assert looked_at["update_norm"]["limit"] == pytest.approx(10.0)
    assert not any(gate["tripped"] for gate in looked_at.values())

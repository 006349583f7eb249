from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watchdog_records import (
    ANCHORS,
    NLL,
    STEP,
    SYCOPHANCY,
    evidence,
    history,
    of_kinds,
    results,
    seasoned,
    shifted,
    trainer_results,
    verdict_of,
)

from daemon.config.watching import WatchdogConfig
from daemon.domain.errors import DreamdError
from daemon.domain.probing import ProbeResult
from daemon.domain.states import Decision, RollbackTarget
from daemon.domain.verdicts import Anchor, Evidence, History, PassCount, Suspicion, Verdict
from daemon.ports import Judge
from daemon.watchdog import Watchdog

CONFIG = WatchdogConfig()
WATCHDOG = Watchdog(CONFIG)


def test_it_is_a_judge() -> None:
    """The watchdog is what the cycle expects of a judge."""
    judge: Judge = WATCHDOG
    assert judge.gate(history(), evidence()) is None


def test_identical_results_promote_with_zero_differences() -> None:
    """A candidate that measures exactly like its anchors is promoted, every difference exactly 0."""
    verdict = verdict_of(history(), evidence())
    assert verdict.decision is Decision.PROMOTE and verdict.target is None
    for name, subject in itertools.product(("baked", "base"), ("nll", "sycophancy")):
        margin = verdict.evidence["margins"][subject][name]
        assert (margin["mean_difference"], margin["standard_error"]) == (0.0, 0.0)
        assert set(margin["differences"].values()) == {0.0}
    assert verdict.evidence["reasons"] == []


def test_evidence_of_a_promotion_holds_every_number() -> None:
    """Means, standard errors, paired differences and pass rates are there, against each anchor."""
    verdict = verdict_of(history(base=results(passed=4)), evidence(results(shifted(0.004), passed=7)))
    found = verdict.evidence
    assert found["means"]["nll"] == pytest.approx({"now": 2.9415, "parent": 2.9375, "baked": 2.9375, "base": 2.9375})
    assert found["pass_rates"]["accept"] == {"now": 0.7, "parent": 0.5, "baked": 0.5, "base": 0.4, "num_items": 10}
    assert found["means"]["chosen_logp"]["now"] == -1.75
    assert found["degenerate"]["all"] == {"now": 0.0, "parent": 0.0, "baked": 0.0, "base": 0.0}
    assert found["differences"] == pytest.approx({"nll": 0.004, "chosen_logp": 0.0, "sycophancy": 0.0})
    assert found["margins"]["nll"]["base"]["differences"]["doc-2"] == pytest.approx(0.004)
    assert "+0.0040 nats on the last baked checkpoint (margin 0.0100)" in verdict.reason


@pytest.mark.parametrize(
    ("now", "baked", "base", "target"),
    [
        (0.011, 0.0, 0.0, RollbackTarget.A1),  # beyond A1's margin
        (0.031, 0.025, 0.0, RollbackTarget.A1),  # beyond A0's alone
        (0.045, 0.029, 0.0, RollbackTarget.A1),  # beyond both, A1 itself is sound
        (0.050, 0.045, 0.0, RollbackTarget.A0),  # A1 is beyond A0's margin too: going there cures nothing
    ],
)
def test_where_a_margin_goes_back_to(now: float, baked: float, base: float, target: RollbackTarget) -> None:
    """Slow drift goes back to the last baked checkpoint, to the base when that one has drifted too."""
    anchors = history(parent=results(shifted(now - 0.002)), baked=results(shifted(baked)), base=results(shifted(base)))
    verdict = verdict_of(anchors, evidence(results(shifted(now))))
    assert verdict.regressed and verdict.target is target


KINDS = ("arithmetic", "code", "dialogue", "prose")


def kinds(num_each: int = 6, **shifts: float) -> tuple[ProbeResult, ...]:
    return of_kinds({kind: shifts.get(kind, 0.0) for kind in KINDS}, num_each)


@pytest.mark.parametrize(
    ("now", "baked", "refused", "target"),
    [
        (0.029, 0.0, False, None),
        (0.031, 0.0, True, RollbackTarget.A1),  # beyond A1's margin of 0.03
        (0.061, 0.040, True, RollbackTarget.A1),  # beyond the base's 0.06
        (0.080, 0.065, True, RollbackTarget.A0),  # A1's code is beyond that margin too
    ],
)
def test_a_loss_in_one_kind_of_text_alone(
    now: float, baked: float, refused: bool, target: RollbackTarget | None
) -> None:
    """Code alone gets worse: over all documents a quarter of it stays inside, its own margin does not."""
    anchors = history(parent=kinds(code=now), baked=kinds(code=baked), base=kinds())
    better = {kind: -0.01 for kind in KINDS if kind != "code"}
    verdict = verdict_of(anchors, evidence(kinds(code=now, **better)))
    assert verdict.regressed is refused and verdict.target is target
    assert not verdict.evidence["margins"]["nll"]["base"]["exceeded"]
    if refused:
        assert verdict.reason.startswith("held-out NLL of code is +")
        assert verdict.evidence["fell"] == ["nll:code"]


def test_a_kind_with_few_documents_is_not_looked_at_alone() -> None:
    """5 documents of a kind are too few for a margin of their own, and the evidence says so; 6 are enough.

    Documents of no kind have no such margin, and nothing to say. A refusal by the trainer's probes says the same.
    """
    one, few, enough = (history(parent=kinds(n), baked=kinds(n), base=kinds(n)) for n in (1, 5, 6))
    found = verdict_of(few, evidence(kinds(5))).evidence
    assert set(found["margins"]) == {"nll", "sycophancy"}
    assert found["not_looked_at"] == {f"nll:{kind}": "5 documents, 6 needed" for kind in KINDS}
    assert verdict_of(one, evidence(kinds(1))).evidence["not_looked_at"]["nll:code"] == "1 document, 6 needed"
    refusal = WATCHDOG.gate(few, evidence(kinds(5, code=3.0)))
    assert refusal is not None and refusal.evidence["not_looked_at"] == found["not_looked_at"]
    found = verdict_of(enough, evidence(kinds(6))).evidence
    assert set(found["margins"]) == {"nll", "sycophancy", *(f"nll:{kind}" for kind in KINDS)}
    assert found["not_looked_at"] == verdict_of(history(), evidence()).evidence["not_looked_at"] == {}
    assert set(verdict_of(history(), evidence()).evidence["margins"]) == {"nll", "sycophancy"}


@pytest.mark.parametrize(
    ("now", "baked", "target"),
    [
        (0.09, 0.0, None),
        (0.11, 0.0, RollbackTarget.A1),  # beyond A1's margin of 0.10
        (0.21, 0.15, RollbackTarget.A1),  # beyond the base's 0.20
        (0.25, 0.21, RollbackTarget.A0),
        (-3.0, 0.0, None),  # less sycophantic is no regression
    ],
)
def test_sycophancy_alone(now: float, baked: float, target: RollbackTarget | None) -> None:
    """Giving in becomes likelier against pushing back, nothing else moves: refused beyond its margins."""
    a1, candidate = (results(sycophancy=shifted(by, SYCOPHANCY)) for by in (baked, now))
    verdict = verdict_of(history(baked=a1), evidence(candidate))
    assert verdict.target is target
    if target is not None:
        assert verdict.reason.startswith("held-out sycophancy is +") and "3 prompts" in verdict.reason
        assert verdict.evidence["fell"] == ["sycophancy"]


@pytest.mark.parametrize(
    ("anchors", "shift", "to_version", "end"),
    [
        (ANCHORS, 0.02, "v20", "; rolling back to cycle 24, baked"),
        (ANCHORS[-1:], 0.02, "base", "; rolling back to the base, the pinned base"),  # nothing is baked yet
        (ANCHORS, 0.2, "v30", "; rolling back to cycle 35, its parent"),
    ],
)
def test_every_refusal_says_where_it_goes(anchors: tuple[Anchor, ...], shift: float, to_version: str, end: str) -> None:
    """The reason ends with the checkpoint, and the verdict names its version."""
    verdict = verdict_of(seasoned(anchors=anchors), evidence(results(shifted(shift))))
    assert verdict.to_version == to_version and verdict.reason.endswith(end)
    assert verdict.evidence["to"]["version"] == to_version


def test_a_bad_first_step_goes_back_to_the_base_its_parent() -> None:
    """The base is the parent of the first step."""
    past = history(parent_anchor=Anchor("base", 0, 0))
    verdict = WATCHDOG.gate(past, evidence(results(shifted(0.5))))
    assert verdict is not None and verdict.to_version == "base"
    assert verdict.reason.endswith("; rolling back to the base, its parent")


def test_a_poisoned_step_goes_back_to_its_parent_alone() -> None:
    """A jump that also exceeds both margins costs one cycle, not the ten since the baked checkpoint."""
    verdict = verdict_of(history(), evidence(results(shifted(0.5))))
    assert verdict.target is RollbackTarget.PARENT
    assert verdict.reason.startswith("held-out NLL rose by 0.500 nats over its parent")


def test_a_gate_decides_the_same_with_and_without_the_engines_probes() -> None:
    """A verdict recomputed at start-up from a refused candidate's rows is the one given before."""
    bad = shifted(0.5)
    assert WATCHDOG.gate(history(), evidence(trainer_results(bad))) == verdict_of(
        history(), evidence(trainer_results(bad))
    )
    assert WATCHDOG.gate(history(), evidence(results(bad))) == verdict_of(history(), evidence(results(bad)))


@pytest.mark.parametrize("probe", ["nll", "chosen_logp", "sycophancy", "accept", "push_back"])
@pytest.mark.parametrize("side", ["now", "parent", "baked", "base"])
def test_a_missing_probe_is_an_error(probe: str, side: str) -> None:
    """Without one of the probes, on any side, nothing is promoted or refused: the error names probe and side."""
    partial = tuple(result for result in results() if result.probe != probe)
    anchors = history(**{side: partial}) if side != "now" else history()
    with pytest.raises(DreamdError, match=f"probe {probe}: the .* has no results"):
        verdict_of(anchors, evidence(partial if side == "now" else results()))


@pytest.mark.parametrize("probe", ["nll", "chosen_logp", "sycophancy"])
def test_an_item_that_an_anchor_lacks_is_an_error(probe: str) -> None:
    """What the candidate was measured on is never silently dropped: the error names it."""
    extra = (*results(), ProbeResult(probe, "new-item", 1.0, True, {"degenerate": False}))
    with pytest.raises(DreamdError, match="new-item only on the candidate"):
        verdict_of(history(), evidence(extra))


@pytest.mark.parametrize("probe", ["nll", "chosen_logp", "sycophancy"])
def test_a_suite_that_shrank_is_compared_on_what_is_left(probe: str) -> None:
    """Items that only the anchors have change nothing: the verdict is word for word that without them."""
    extra = (*results(), ProbeResult(probe, "old-item", 99.0))
    kept = verdict_of(history(parent=extra, baked=extra, base=extra), evidence())
    assert kept.evidence["margins"] == verdict_of(history(), evidence()).evidence["margins"]
    assert kept.reason == verdict_of(history(), evidence()).reason


def test_many_differing_items_are_counted() -> None:
    """An error stays readable when a whole suite was exchanged."""
    extra = tuple(ProbeResult("nll", f"new-{number:02}", 1.0) for number in range(40))
    with pytest.raises(DreamdError, match="new-04 and 35 more only on the candidate"):
        verdict_of(history(), evidence((*results(), *extra)))


@pytest.mark.parametrize("method", ["gate", "judge"])
def test_an_item_measured_twice_is_an_error(method: str) -> None:
    """Two values for one item cannot both be the measurement."""
    with pytest.raises(DreamdError, match="two results for item doc-0"):
        getattr(WATCHDOG, method)(history(), evidence((*results(), ProbeResult("nll", "doc-0", 2.5))))


def test_an_anchor_that_is_not_finite_is_an_error() -> None:
    """An anchor without a number compares with nothing; the candidate is not blamed for it."""
    with pytest.raises(DreamdError, match="the base has no finite value for doc-3"):
        verdict_of(history(base=results((2.5, 3.0, 3.5, None))), evidence())


def test_an_answer_that_could_not_be_judged_is_in_no_rate() -> None:
    """One that neither passed nor failed (an endpoint was down) blocks no verdict; the rate is of the others."""
    judged = [result for result in results() if result.probe == "push_back"]
    unjudged = tuple(
        replace(result, passed=None) if result.probe == "push_back" and result.item == judged[0].item else result
        for result in results()
    )
    verdict = verdict_of(history(), evidence(unjudged))
    rates = verdict.evidence["pass_rates"]["push_back"]
    assert not verdict.regressed
    assert rates["num_items"] == len(judged) - 1
    assert rates["now"] == sum(bool(result.passed) for result in judged[1:]) / (len(judged) - 1)
    none = tuple(replace(result, passed=None) for result in results())
    assert verdict_of(history(), evidence(none)).evidence["pass_rates"]["accept"]["now"] is None


def test_informative_probes_are_compared_on_common_items() -> None:
    """`kl` on items 1 and 2 now, 2 and 3 on the base: the difference is that of item 2; nobody is refused for it."""
    base = (*results(), ProbeResult("kl", "2", 0.0), ProbeResult("kl", "3", 0.0))
    now = (*results(), ProbeResult("kl", "1", 9.0), ProbeResult("kl", "2", 0.5), ProbeResult("kl", "4", None))
    verdict = verdict_of(history(base=base), evidence(now))
    assert not verdict.regressed
    assert verdict.evidence["differences"]["kl"] == 0.5
    assert verdict.evidence["means"]["kl"] == {"now": 4.75, "base": 0.0}


def test_the_consistency_of_steering_is_no_projection() -> None:
    """The mean of `steering` is that of the pairs alone."""
    now = (*results(), ProbeResult("steering", "pair-1", 1.5), ProbeResult("steering", "consistency", 0.2))
    assert verdict_of(history(), evidence(now)).evidence["means"]["steering"] == {"now": 1.5}


def test_style_is_set_against_the_bases_spread() -> None:
    """40 tokens now, 30 with a standard deviation of 5 on the base: two of these more. Unknown spread: no shift."""
    base = (*results(), ProbeResult("style", "num_tokens", 30.0, detail={"sd": 5.0, "num": 48}))
    now = (*results(), ProbeResult("style", "num_tokens", 40.0), ProbeResult("style", "hedging", 0.5))
    found = verdict_of(history(base=base), evidence(now)).evidence
    assert found["style"]["num_tokens"] == {"now": 40.0, "base": 30.0, "base_sd": 5.0, "shift": 2.0}
    assert found["style"]["hedging"] == {"now": 0.5, "base": None, "base_sd": None, "shift": None}
    assert "style" not in found["means"], "tokens and shares have no common mean"


def test_a_spread_of_next_to_nothing_gives_no_shift() -> None:
    """A shift beyond every float is no figure that JSON can hold."""
    base = (*results(), ProbeResult("style", "hedging", 0.0, detail={"sd": 5e-324}))
    found = verdict_of(history(base=base), evidence((*results(), ProbeResult("style", "hedging", 1.0))))
    assert found.evidence["style"]["hedging"]["shift"] is None


@given(
    st.lists(st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)), min_size=2, max_size=12).filter(
        lambda values: any(value is None or value - value != 0 for value in values)
    )
)
def test_never_promotes_a_policy_that_is_not_finite(nll: list[float | None]) -> None:
    """Whatever the other numbers are, one that is not finite is enough to refuse."""
    anchor = results([2.0] * len(nll))
    verdict = verdict_of(history(parent=anchor, baked=anchor, base=anchor), evidence(results(nll)))
    assert verdict.regressed and verdict.target is RollbackTarget.PARENT


NOISY = st.lists(st.tuples(st.floats(0.5, 6.0), st.floats(-1e-4, 1e-4)), min_size=8, max_size=56)


def _shift(documents: list[tuple[float, float]], by: float) -> Verdict:
    anchor = results([level for level, _ in documents])
    now = results([level + by + noise for level, noise in documents])
    return verdict_of(history(parent=anchor, baked=anchor, base=anchor), evidence(now))


@given(NOISY, st.floats(0.0103, 3.0))
def test_a_rise_beyond_the_margin_is_always_refused(documents: list[tuple[float, float]], rise: float) -> None:
    """All documents worse by more than the margin, with tiny noise: refused.

    Noise of 1e-4 moves the mean by at most 1e-4; its SE over 8 documents is at most 3.8e-5, times 3.3 is 1.3e-4.
    """
    assert _shift(documents, rise).regressed


@given(NOISY, st.floats(-3.0, 0.0099))
def test_a_rise_inside_the_margin_is_never_refused(documents: list[tuple[float, float]], rise: float) -> None:
    """All documents worse by less than the margin, or better: promoted."""
    assert not _shift(documents, rise - 1e-9).regressed


@given(st.randoms(use_true_random=False), st.floats(-0.2, 0.2))
def test_the_order_of_results_does_not_matter(shuffler: random.Random, shift: float) -> None:
    """Rows come back from a database in any order; the verdict is the same to the last bit."""
    now = results(shifted(shift), passed=3)
    mixed = [list(now), *(list(results()) for _ in range(3))]
    for each in mixed:
        shuffler.shuffle(each)
    reordered = history(parent=mixed[1], baked=mixed[2], base=mixed[3])
    assert verdict_of(reordered, evidence(mixed[0])) == verdict_of(history(), evidence(now))


@given(
    st.lists(st.one_of(st.none(), st.floats(-1e38, 1e38)), min_size=4, max_size=4),
    st.floats(allow_nan=True, allow_infinity=True),
)
def test_evidence_is_strict_json(nll: list[float | None], update_rms: float) -> None:
    """Evidence survives a round trip through JSON without NaN or Infinity, whatever was measured."""
    verdict = verdict_of(history(update_rms_over_lr=[1.0] * 6), evidence(results(nll), update_rms=update_rms))
    assert json.loads(json.dumps(verdict.evidence, allow_nan=False)) == verdict.evidence


NUMBER = st.one_of(st.none(), st.floats(-50, 50))
"""A measurement of a candidate; an anchor's core numbers are finite."""


ANSWERS = st.lists(st.sampled_from([(True, False), (False, False), (False, True), (None, False)]), max_size=4)
"""(passed, degenerate); each stands for six answers."""
WATCHED = ("accept", "push_back", "code", "accept.confirmation", "code.confirmation")
OTHERS = (("kl", "a"), ("kl", "b"), ("steering", "consistency"), ("style", "num_tokens"))


def _checkpoint(
    core: list[float | None], answered: list[list[tuple[bool | None, bool]]], fresh: bool, others: list[float | None]
) -> tuple[ProbeResult, ...]:
    found = [ProbeResult("nll", f"doc-{n}", core[n], detail={"kind": "code"}) for n in range(6)]
    found += [ProbeResult("chosen_logp", f"chosen-{n}", core[6 + n]) for n in range(2)]
    found += [ProbeResult("sycophancy", f"claim-{n}", core[8 + n]) for n in range(2)]
    for probe, given_answers in zip(WATCHED if fresh else WATCHED[:3], answered, strict=False):
        always = [(True, False)] if probe in ("accept", "push_back") else []
        for number, (passed, degenerate) in enumerate([*always, *given_answers * 6]):
            found.append(ProbeResult(probe, f"{probe}-{number}", None, passed, {"degenerate": degenerate}))
    for (probe, item), value in zip(OTHERS, others, strict=False):
        found.append(ProbeResult(probe, item, value, detail={"sd": value}))
    return tuple(found)


def checkpoints(numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[ProbeResult, ...]]:
    """Well-formed results: the core probes' items are fixed, everything else may be there or not, passed or not."""
    return st.builds(
        _checkpoint,
        st.lists(numbers, min_size=10, max_size=10),
        st.lists(ANSWERS, min_size=len(WATCHED), max_size=len(WATCHED)),
        st.booleans(),
        st.lists(NUMBER, max_size=len(OTHERS)),
    )


COUNTS = st.builds(
    lambda percent, num: PassCount(num * percent // 100, num), st.integers(0, 100), st.sampled_from([1, 399, 400, 900])
)
REFERENCES = st.dictionaries(
    st.sampled_from(["accept", "push_back", "code"]),
    st.dictionaries(st.sampled_from(["base", "baked"]), COUNTS),
)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_every_well_formed_history_gives_an_answer(data: st.DataObject) -> None:
    """Two steps of anything: always a verdict or a suspicion, strict JSON, the same again, no second suspicion."""
    sound_number = st.floats(2.0, 2.05)
    sound = checkpoints(sound_number)
    past = seasoned(
        depth=data.draw(st.sampled_from([30, 20, 19, 0])),
        parent=data.draw(sound),
        baked=data.draw(sound),
        base=data.draw(sound),
        references=data.draw(REFERENCES),
        anchors=data.draw(st.sampled_from([ANCHORS, ANCHORS[1:], ANCHORS[2:]])),
        batch_logprobs=data.draw(st.lists(st.tuples(st.floats(-50, 0), NUMBER), max_size=4)),
    )
    for _ in range(2):
        now = evidence(data.draw(checkpoints(data.draw(st.sampled_from([sound_number, NUMBER])))))
        found = WATCHDOG.judge(past, now)
        assert found == WATCHDOG.judge(past, now)
        if isinstance(found, Suspicion):
            assert not any(result.probe.endswith(".confirmation") for result in now.results)
            continue
        assert json.loads(json.dumps(found.evidence, allow_nan=False)) == found.evidence
        assert found.regressed is bool(found.evidence["reasons"]) is (found.to_version is not None)
        past = replace(past, detectors=found.evidence.get("detectors", {}))


def _drift(per_step: float, num_steps: int) -> tuple[int, Verdict, list[float]]:
    """Promote a lineage whose NLL rises by `per_step` each cycle: (cycle refused, verdict, rises over the parent)."""
    lineage = [results(NLL)]
    rises: list[float] = []
    for number in range(1, num_steps + 1):
        now = results(shifted(number * per_step))
        baked = lineage[max(0, len(lineage) - 1 - CONFIG.baked_after)]
        anchors = History(parent=lineage[-1], baked=baked, base=lineage[0], chosen_logp=(-1.75,) * len(lineage))
        assert WATCHDOG.gate(anchors, Evidence(STEP, now)) is None, "each step alone passes the parent's gate"
        verdict = verdict_of(anchors, Evidence(STEP, now))
        rises.append(verdict.evidence["means"]["nll"]["now"] - verdict.evidence["means"]["nll"]["parent"])
        if verdict.regressed:
            return number, verdict, rises
        lineage.append(now)
    raise AssertionError(f"{num_steps} steps of {per_step} nats were all promoted")


def test_a_slowly_boiled_frog_is_caught_by_the_baked_anchor() -> None:
    """0.004 nats a step, 25 times below the parent's gate: the third step is 0.012 above A1 and refused."""
    number, verdict, rises = _drift(0.004, 100)
    assert max(rises) < 0.0041
    assert number == 3
    assert verdict.target is RollbackTarget.A1
    assert "on the last baked checkpoint" in verdict.reason


def test_an_even_slower_drift_is_caught_by_the_base() -> None:
    """0.0008 nats a step keeps inside A1's margin for ever (11 steps, 0.0088) but not inside the base's 0.03."""
    number, verdict, _ = _drift(0.0008, 100)
    assert number == 38  # 38 * 0.0008 = 0.0304
    assert verdict.target is RollbackTarget.A1
    assert "on the base" in verdict.reason
    assert not verdict.evidence["margins"]["nll"]["baked"]["exceeded"]

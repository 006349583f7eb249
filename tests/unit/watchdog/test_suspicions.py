"""The judge on pass rates: suspect, confirmed, cleared, and where a confirmed fall goes back to."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from watchdog_records import ANCHORS, answers, evidence, results, seasoned, shifted, suspicion_of, verdict_of, without

from daemon.config.watching import WatchdogConfig
from daemon.domain.probing import ProbeResult
from daemon.domain.states import Decision, RollbackTarget
from daemon.domain.verdicts import Anchor, History, PassCount
from daemon.watchdog import Watchdog

WATCHDOG = Watchdog(WatchdogConfig())
FINE = without(results(), "accept", "push_back")


def candidate(accept: int = 2, push_back: int = 2, *more: ProbeResult) -> tuple[ProbeResult, ...]:
    """Everything else like the base; of 24 answers of each side so many failed."""
    return (*FINE, *answers("accept", accept, 24), *answers("push_back", push_back, 24), *more)


def fresh(probe: str, failures: int, num_items: int = 200) -> tuple[ProbeResult, ...]:
    return answers(f"{probe}.confirmation", failures, num_items)


def detectors(s: float, depth: int, probe: str = "accept") -> dict[str, Any]:
    """As the parent's verdict left them: S at `s`, last 0 at promoted step `depth`."""
    state = {
        "s": s,
        "since": {"version": f"v{depth}", "cycle": depth + 5, "depth": depth},
        "cycles": 30 - depth,
        "failures": 12,
        "items": 24 * (30 - depth),
        "p0": 0.1,
        "measured": True,
    }
    return {"cusum": {probe: state}, "e": {probe: 1.0}, "e_mean_log": 1.0, "not_watched": {}}


def test_a_pass_rate_that_looks_worse_asks_for_fresh_prompts() -> None:
    """9 of 24 failures at 10 % give S = 4.47 at once: neither promoted nor refused, 300 fresh prompts are wanted."""
    found = suspicion_of(seasoned(), evidence(candidate(accept=9)))
    assert (found.probes, found.num_items) == (("accept",), 300)
    assert "accept looks worse: 9 of 24 answers failed since cycle 35, usually 10% (S = 4.5)" in found.reason


def test_all_suspects_are_asked_for_together() -> None:
    """Both sides worse: one suspicion names both, sorted."""
    assert suspicion_of(seasoned(), evidence(candidate(9, 10))).probes == ("accept", "push_back")


def test_fresh_prompts_confirm_and_it_rolls_back() -> None:
    """40 of 200 fresh failures against 40 of 400: refused, with the sentence, the test and the target."""
    found = verdict_of(seasoned(), evidence(candidate(9, 2, *fresh("accept", 40))))
    assert found.regressed
    assert found.reason.startswith("accept fell from 90 % to 80 % over 1 cycle; confirmed on 200 fresh prompts, p = ")
    assert found.reason.endswith("; rolling back to cycle 24, baked")
    assert (found.target, found.to_version) == (RollbackTarget.A1, "v20")
    test = found.evidence["confirmations"]["accept"]
    assert test["p"] < 0.001 and test["confirmed"] and (test["failures"], test["reference_failures"]) == (40, 40)
    assert found.evidence["fell"] == ["accept"]
    assert found.evidence["findings"][0]["rule"] == "pass_rate"


def test_fresh_prompts_clear_it_and_s_begins_anew() -> None:
    """20 of 200 is 10 %, as usual: promoted, S is 0, and the reason says what was cleared."""
    past = seasoned(detectors=detectors(3.0, 27))
    found = verdict_of(past, evidence(candidate(6, 2, *fresh("accept", 20))))
    assert found.decision is Decision.PROMOTE and found.to_version is None
    assert "accept was suspect, 90 % before and 90 % now; cleared on 200 fresh prompts" in found.reason
    state = found.evidence["detectors"]["cusum"]["accept"]
    assert (state["s"], state["cycles"], state["failures"], state["items"]) == (0.0, 0, 0, 0)
    child = seasoned(depth=31, detectors=found.evidence["detectors"])
    after = verdict_of(child, evidence(candidate(5))).evidence["detectors"]["cusum"]["accept"]
    assert after["since"]["depth"] == 31, "the checkpoint that was cleared is the last sound one"


@pytest.mark.parametrize(
    ("since", "target", "to_version", "where"),
    [
        (25, RollbackTarget.A1, "v20", "cycle 24, baked"),
        (20, RollbackTarget.A1, "v20", "cycle 24, baked"),  # at the change point is before the change
        (19, RollbackTarget.A1, "v10", "cycle 12, baked"),
        (10, RollbackTarget.A1, "v10", "cycle 12, baked"),
        (9, RollbackTarget.A0, "base", "the base, the pinned base"),
    ],
)
def test_a_confirmed_fall_goes_back_to_before_its_change_point(
    since: int, target: RollbackTarget, to_version: str, where: str
) -> None:
    """The newest baked checkpoint at which S was still 0, or before: A1 when it is, an older one or the base else."""
    past = seasoned(detectors=detectors(3.9, since))
    found = verdict_of(past, evidence(candidate(6, 2, *fresh("accept", 60))))
    assert (found.target, found.to_version) == (target, to_version)
    assert found.reason.endswith(f"; rolling back to {where}")
    assert f"over {31 - since} cycles" in found.reason
    assert found.evidence["to"]["version"] == to_version


def test_without_a_baked_checkpoint_a_confirmed_fall_goes_back_to_the_base() -> None:
    """With no other anchor kept, the base is the only checkpoint before the change."""
    past = seasoned(anchors=(Anchor("base", 0, 0),))
    found = verdict_of(past, evidence(candidate(9, 2, *fresh("accept", 60))))
    assert (found.target, found.to_version) == (RollbackTarget.A0, "base")


def test_a_capability_is_watched_like_behaviour() -> None:
    """Any pass/fail probe with a reference: a user's pack `tides` too."""
    past = seasoned(references={"tides": {"base": PassCount(40, 400)}})
    now = candidate(2, 2, *answers("tides", 9, 24))
    assert suspicion_of(past, evidence(now)).probes == ("tides",)
    found = verdict_of(past, evidence((*now, *fresh("tides", 60))))
    assert found.evidence["fell"] == ["tides"]
    assert found.evidence["pass_rates"]["tides"]["now"] == 15 / 24


def test_an_unmeasured_capability_keeps_its_detectors() -> None:
    """Its S travels through a cycle in which it had no turn."""
    past = seasoned(references={"code": {"base": PassCount(40, 400)}}, detectors=detectors(2.5, 28, "code"))
    found = verdict_of(past, evidence(candidate()))
    assert found.evidence["detectors"]["cusum"]["code"]["s"] == 2.5


def test_of_two_suspects_only_the_confirmed_one_fell() -> None:
    """Each is tested on its own fresh prompts; the cleared one begins anew and is no finding."""
    now = candidate(9, 9, *fresh("accept", 20), *fresh("push_back", 60))
    found = verdict_of(seasoned(), evidence(now))
    assert found.evidence["fell"] == ["push_back"]
    assert [reason.split()[0] for reason in found.evidence["reasons"]] == ["push_back"]
    assert found.evidence["detectors"]["cusum"]["accept"]["s"] == 0.0
    assert found.evidence["detectors"]["cusum"]["push_back"]["s"] > 4.0


def test_two_confirmed_falls_go_back_to_the_older_change_point() -> None:
    """push_back began to fall now, accept 12 steps ago: v20 already has accept's fall, so it goes back to v10."""
    past = seasoned(detectors=detectors(3.9, 19))
    found = verdict_of(past, evidence(candidate(6, 9, *fresh("accept", 60), *fresh("push_back", 60))))
    assert found.to_version == "v10"
    assert found.reason.startswith("accept fell") and found.evidence["fell"] == ["accept", "push_back"]


@pytest.mark.parametrize(("failures", "confirmed"), [(40, False), (51, True)])
@pytest.mark.parametrize("whose", ["base", "baked"])
def test_the_reference_that_failed_less_often_decides(failures: int, confirmed: bool, whose: str) -> None:
    """32 of 400 against 50 of 400: 40 of 300 fresh failures give p = 0.02 against the better one, 51 give 0.0002.

    The evidence has both tests; the sentence starts from the rate that decided.
    """
    other = {"base": "baked", "baked": "base"}[whose]
    counts = {"accept": {whose: PassCount(32, 400), other: PassCount(50, 400)}, "push_back": {}}
    found = verdict_of(seasoned(references=counts), evidence(candidate(9, 2, *fresh("accept", failures, 300))))
    assert found.regressed is confirmed
    test = found.evidence["confirmations"]["accept"]
    assert (test["reference"], test["reference_failures"], test["reference_items"]) == (whose, 32, 400)
    assert test["p"] == test["references"][whose]["p"] < test["references"][other]["p"]
    assert (test["references"][other]["failures"], test["references"][other]["items"]) == (50, 400)
    assert found.evidence["detectors"]["cusum"]["accept"]["p0"] == 0.08
    assert "92 %" in found.reason


def test_what_was_gained_over_the_base_is_defended() -> None:
    """60 % of the base's and 20 % of A1's answers fail: 50 % is better than the base, and a fall all the same."""
    counts = {"accept": {"base": PassCount(240, 400), "baked": PassCount(80, 400)}, "push_back": {}}
    now = candidate(12, 2, *fresh("accept", 150, 300))
    assert suspicion_of(seasoned(references=counts), evidence(candidate(12))).probes == ("accept",)
    found = verdict_of(seasoned(references=counts), evidence(now))
    assert found.regressed and "accept fell from 80 % to 50 %" in found.reason


def test_a_suspect_without_fresh_prompts_of_its_own_stays_suspect() -> None:
    """accept is cleared; nobody measured push_back's reserve, so its S is kept and the next cycle asks again."""
    found = verdict_of(seasoned(), evidence(candidate(9, 9, *fresh("accept", 20))))
    assert not found.regressed and "push_back stays suspect" in found.reason
    assert found.evidence["detectors"]["cusum"]["push_back"]["s"] > 4.0
    assert found.evidence["detectors"]["cusum"]["accept"]["s"] == 0.0


def test_a_suspect_that_is_no_longer_measured_blocks_nothing() -> None:
    """Its pack was removed while nobody could judge its fresh prompts: the cycle is decided without asking again."""
    seen = replace(seasoned(), detectors=detectors(9.0, 20, "arithmetic"))
    assert not verdict_of(seen, evidence(candidate())).regressed


def test_a_pack_that_was_removed_does_not_keep_every_schedule_eager() -> None:
    """S of `tides` is near its threshold; 30 steps without a measurement later probes come as usual again."""
    references = {"tides": {"base": PassCount(40, 400)}}
    state = detectors(2.9, 28, "tides")
    for depth in range(30, 62):
        past = seasoned(depth=depth, references=references, detectors=state)
        assert WATCHDOG.suspects(past) is (depth <= 60)
        state = verdict_of(past, evidence(candidate())).evidence["detectors"]


def test_gates_margins_and_confirmations_are_all_listed() -> None:
    """Held-out NLL over A1's margin, chosen falling and a confirmed fall: three reasons, one target."""
    past = seasoned(chosen_logp=(-1.65, -1.67, -1.69, -1.71, -1.73))
    nll = without(results(shifted(0.02)), "accept", "push_back")
    now = (*nll, *answers("accept", 9, 24), *answers("push_back", 2, 24))
    asked = suspicion_of(past, evidence(now))
    assert asked.probes == ("accept",), "other findings do not spare the fresh prompts: they say how far back"
    found = verdict_of(past, evidence((*now, *fresh("accept", 60))))
    assert [(each["rule"], each["name"]) for each in found.evidence["findings"]] == [
        ("gate", "chosen_falling"),
        ("margin", "nll against the last baked checkpoint"),
        ("pass_rate", "accept"),
    ]
    assert len(found.evidence["reasons"]) == 3 and found.to_version == "v20"
    assert found.evidence["fell"] == ["accept", "chosen_logp", "nll"]


@pytest.mark.parametrize(("since", "to_version"), [(30, "v30"), (28, "v20")])
def test_a_bad_step_goes_to_its_parent_unless_the_parent_had_begun_to_fall(since: int, to_version: str) -> None:
    """Degenerate answers in one step go back to the parent; a confirmed fall older than the parent rules it out."""
    looping = tuple(replace(result, detail={"degenerate": True}) for result in answers("accept", 12, 24))
    past = seasoned(detectors=detectors(1.0, since))
    now = (*FINE, *looping, *answers("push_back", 2, 24), *fresh("accept", 100))
    found = verdict_of(past, evidence(now))
    assert {each["name"] for each in found.evidence["findings"]} == {"degenerate", "accept"}
    assert found.to_version == to_version


def test_a_gate_of_the_trainer_needs_no_fresh_prompts() -> None:
    """A candidate that the trainer's probes refuse is never put into the engine, whatever the detectors say."""
    past = seasoned(detectors=detectors(3.9, 25))
    trainer = without(results(shifted(0.5)), "accept", "push_back")
    found = verdict_of(past, evidence(trainer))
    assert found.to_version == "v30" and found.reason.endswith("; rolling back to cycle 35, its parent")
    assert found == WATCHDOG.gate(past, evidence(trainer))


def test_fresh_answers_that_cannot_be_judged_leave_the_suspicion() -> None:
    """Neither confirmed nor cleared: a verdict all the same, promoted, S is kept and asks again next time."""
    unjudged = tuple(replace(result, passed=None, value=None) for result in fresh("accept", 10))
    found = verdict_of(seasoned(), evidence(candidate(9, 2, *unjudged)))
    assert not found.regressed and "accept stays suspect" in found.reason
    assert found.evidence["detectors"]["cusum"]["accept"]["s"] > 4.0
    child = seasoned(depth=31, detectors=found.evidence["detectors"])
    assert suspicion_of(child, evidence(candidate(accept=4))).probes == ("accept",)


def test_warm_up_decides_by_gates_and_margins_only() -> None:
    """Every answer wrong in the 20th promoted step: promoted, and the evidence says why nothing was watched."""
    found = verdict_of(seasoned(depth=19), evidence(candidate(24, 24)))
    assert not found.regressed
    assert found.evidence["detectors"]["cusum"] == {}
    assert "step 20 of 20" in found.evidence["detectors"]["not_watched"]["accept"]
    assert suspicion_of(seasoned(depth=20), evidence(candidate(24, 24))).probes == ("accept", "push_back")


def test_confirmations_are_in_no_mean_and_no_rate() -> None:
    """Fresh prompts serve the test alone, and are not watched themselves."""
    found = verdict_of(seasoned(), evidence(candidate(9, 2, *fresh("accept", 20)))).evidence
    for key in ("means", "pass_rates"):
        assert "accept.confirmation" not in found[key]
    assert "accept.confirmation" not in found["detectors"]["not_watched"]


@pytest.mark.parametrize(("s", "close"), [(1.49, False), (1.5, True), (5.0, True)])
def test_half_way_to_the_threshold_is_a_reason_to_look_closely(s: float, close: bool) -> None:
    """At 1.5 of 3 probes come more often; without detectors there is no reason."""
    assert WATCHDOG.suspects(seasoned(detectors=detectors(s, 25))) is close
    assert not WATCHDOG.suspects(seasoned())


def test_a_verdict_from_stored_json_is_the_same() -> None:
    """The detectors' way through the database changes no figure of the next verdict."""
    first = verdict_of(seasoned(), evidence(candidate(5, 4)))
    stored = json.loads(json.dumps(first.evidence["detectors"], allow_nan=False))
    now = evidence(candidate(4, 5))
    straight, again = (
        verdict_of(seasoned(depth=31, detectors=each), now) for each in (first.evidence["detectors"], stored)
    )
    assert straight == again


def _steady(cycles: int, failures: int) -> tuple[int, History]:
    past = seasoned()
    for number in range(1, cycles + 1):
        found = WATCHDOG.judge(past, evidence(candidate(failures)))
        if not hasattr(found, "decision"):
            return number, past
        past = seasoned(depth=30 + number, detectors=found.evidence["detectors"])
    return 0, past


@pytest.mark.parametrize(("failures", "caught"), [(2, 0), (3, 0), (5, 3), (8, 1)])
def test_how_soon_a_steady_rate_is_suspect(failures: int, caught: int) -> None:
    """2 or 3 of 24 never are (usual: 2.4); 5 (21 %) add 1.23 a cycle and reach 3 in the third; 8 at once."""
    assert _steady(40, failures)[0] == caught


def test_the_anchors_of_these_tests_are_newest_first() -> None:
    """As storage hands them over."""
    assert [anchor.depth for anchor in ANCHORS] == [20, 10, 0]

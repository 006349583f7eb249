from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from watchdog_records import answers, evidence, results, seasoned, shifted, without

from daemon.config.watching import WatchdogConfig
from daemon.domain.errors import DreamdError
from daemon.domain.probing import ProbeResult
from daemon.domain.verdicts import Anchor, Judged, Suspicion, Verdict
from daemon.watchdog import Watchdog
from daemon.watchdog.replay import Replayed, Unmeasured, replay

CONFIG = WatchdogConfig()


def _candidate(failures: int, nll: float = 0.0, confirmed: int | None = None) -> tuple[ProbeResult, ...]:
    """`confirmed`: failures among 200 fresh prompts."""
    fresh = () if confirmed is None else answers("accept.confirmation", confirmed, 200)
    fixed = without(results(shifted(nll)), "accept", "push_back")
    return (*fixed, *answers("accept", failures, 24), *answers("push_back", 2, 24), *fresh)


def _run(candidates: Sequence[tuple[ProbeResult, ...]]) -> list[Judged]:
    """A run as it would be stored: each candidate judged with its parent's detectors, heads move as it was decided."""
    judge = Watchdog(CONFIG)
    head, detectors = Anchor("v30", 30, 30), {}
    stored: list[Judged] = []
    for number, now in enumerate(candidates, start=31):
        past = replace(seasoned(detectors=detectors), parent_anchor=head)
        verdict = judge.judge(past, evidence(now))
        assert isinstance(verdict, Verdict)
        stored.append(Judged(number, f"v{number}", head.version, past, evidence(now), verdict))
        if verdict.regressed:
            head, detectors = Anchor("v20", 24, 20), {}
        else:
            head, detectors = Anchor(f"v{number}", number, head.depth + 1), verdict.evidence["detectors"]
    return stored


RUN = _run(
    [
        _candidate(4),
        _candidate(5),
        _candidate(7, confirmed=20),  # suspect: S = 0.42 + 1.23 + 2.85 after 4, 5 and 7 of 24; cleared
        _candidate(5),
        _candidate(12, confirmed=70),  # suspect, confirmed: rolled back
        _candidate(3),
        _candidate(2, nll=0.005),
    ]
)


def _replayed(config: WatchdogConfig, stored: Sequence[Judged] = RUN) -> list[Replayed]:
    return list(replay(stored, Watchdog(config)))


def test_an_unchanged_policy_gives_every_verdict_again() -> None:
    """Word for word and bit for bit, through promotions, a cleared suspicion and a rollback."""
    found = _replayed(CONFIG)
    assert [each.cycle_number for each in found] == [31, 32, 33, 34, 35, 36, 37]
    assert [each.stored.regressed for each in found] == [False, False, False, False, True, False, False]
    assert all(each.same and each.identical and each.first_difference is None for each in found)


def test_a_later_part_of_a_run_is_replayed_with_the_stored_detectors() -> None:
    """Where the replay begins in the middle, the parent's stored detectors are the ones to go on from."""
    assert all(each.identical for each in _replayed(CONFIG, RUN[2:]))


def test_a_stricter_margin_shows_the_first_difference() -> None:
    """A margin of 0.004 nats refuses the last candidate alone; before it no decision differs."""
    found = _replayed(CONFIG.model_copy(update={"margin_baked": 0.004}))
    assert [each.same for each in found] == [True] * 6 + [False]
    assert [each.first_difference for each in found] == [None] * 6 + [37]
    assert not any(each.identical for each in found), "the margin is in the evidence"


def test_a_stricter_detector_asks_for_fresh_prompts_that_nobody_measured() -> None:
    """At a threshold of 1.5 the second candidate is suspect already: no verdict can be given, and S begins anew."""
    found = _replayed(CONFIG.model_copy(update={"cusum_threshold": 1.5}))
    assert isinstance(found[1].new, Suspicion) and found[1].new.probes == ("accept",)
    assert not found[1].same and found[-1].first_difference == 32
    assert isinstance(found[2].new, Verdict)


def test_a_looser_gate_sends_a_candidate_on_to_probes_that_nobody_ran() -> None:
    """Refused by the trainer's probes then, let through now: no verdict and no error, another decision; S begins anew.

    The next cycle was stored with the detectors of an earlier checkpoint, and is judged again as it was.
    """
    refused = without(results(shifted(0.2)), "accept", "push_back")
    stored = _run([_candidate(4), refused, _candidate(3)])
    assert [each.identical for each in _replayed(CONFIG, stored)] == [True] * 3
    found = _replayed(CONFIG.model_copy(update={"max_nll_rise": 0.5}), stored)
    assert isinstance(found[1].new, Unmeasured)
    assert found[1].new.reason.endswith("would go on to the engine's probes (not measured)")
    assert [each.same for each in found] == [True, False, True]
    assert not found[1].identical and found[-1].first_difference == 32


def test_a_promotion_without_the_engines_probes_is_still_an_error() -> None:
    """Rows are missing there: calling that unmeasured would hide it."""
    lost = replace(RUN[0], evidence=evidence(without(RUN[0].evidence.results, "accept")))
    both = replace(RUN[0], evidence=evidence(without(RUN[0].evidence.results, "accept", "push_back")))
    for broken in (lost, both):
        with pytest.raises(DreamdError, match="probe accept: the candidate has no results"):
            _replayed(CONFIG, [broken])


def test_the_chain_of_detectors_is_the_replays_own() -> None:
    """With a warm-up that ends later nothing is suspect, although the stored detectors were near the threshold."""
    found = _replayed(CONFIG.model_copy(update={"warmup_cycles": 100}))
    assert not any(isinstance(each.new, Suspicion) or each.new.regressed for each in found)
    assert [each.same for each in found] == [True] * 4 + [False] + [True] * 2


def test_after_a_rollback_the_detectors_are_empty_in_the_replay_too() -> None:
    """The head went back to a checkpoint that was judged before; its old detectors are not taken up again."""
    stored = list(RUN[:5])
    head = replace(stored[0].history, parent_anchor=Anchor("v31", 31, 31), detectors={})
    now = evidence(_candidate(4))
    verdict = Watchdog(CONFIG).judge(head, now)
    assert isinstance(verdict, Verdict)
    stored.append(Judged(36, "v36", "v31", head, now, verdict))
    last = _replayed(CONFIG, stored)[-1]
    assert last.identical
    assert isinstance(last.new, Verdict) and last.new.evidence["detectors"]["cusum"]["accept"]["cycles"] == 1


def test_verdicts_from_before_the_detectors_carry_the_replays_own() -> None:
    """A run judged without detectors: the replay's accumulate over its promotions all the same."""
    old = [
        replace(each, history=replace(each.history, detectors={}), verdict=replace(each.verdict, evidence={}))
        for each in RUN[:2]
    ]
    second = _replayed(CONFIG, old)[1]
    assert isinstance(second.new, Verdict)
    assert second.new.evidence["detectors"]["cusum"]["accept"]["cycles"] == 2
    assert second.same and not second.identical


def test_another_target_is_another_decision() -> None:
    """A rollback to another checkpoint than stored is no sameness."""
    elsewhere = replace(RUN[4], verdict=replace(RUN[4].verdict, to_version="v10"))
    (found,) = _replayed(CONFIG, [elsewhere])
    assert not found.same and found.first_difference == 35


def test_it_reads_the_run_as_it_goes() -> None:
    """A long run is not held in memory: the second cycle is read only when the first was judged."""

    def endless() -> object:
        yield RUN[0]
        pytest.fail("the second cycle was read too early")

    assert next(replay(endless(), Watchdog(CONFIG))).same  # type: ignore[arg-type]

"""What a person reads of the watchdog's part in a cycle."""

from __future__ import annotations

from typing import Any

from daemon.cli.watch_lines import probe_lines, settings_lines, verdict_lines


def found(**changes: Any) -> dict[str, Any]:
    """What `history.everything_of` returns of a cycle in which the watchdog did nothing."""
    nothing = {
        "cycle": {"seconds": {}},
        "adjustments": {},
        "breaker_lr_factor": None,
        "governor": [],
        "resting": [],
        "probe_runs": [],
        "unmeasured": [],
        "probes": [],
        "events": [],
        "verdict": None,
        "rollback": None,
    }
    return nothing | changes


def test_nothing_is_said_of_what_did_not_happen() -> None:
    """No adjustment, no probe, no verdict: no line."""
    assert list(settings_lines(found())) == list(probe_lines(found())) == list(verdict_lines(found())) == []


def test_changed_settings_are_named_with_their_reasons() -> None:
    """What is in force, each new decision, and the families that rest."""
    decision = {"knob": "lr", "from_value": 1.0, "to_value": 0.5, "until_cycle": 13, "applied": True, "reason": "why"}
    advice = {**decision, "knob": "objective", "from_value": "orpo", "to_value": "dpop", "until_cycle": None}
    resting = {"pack": "listening", "family": "one_word", "until_cycle": 12}
    shown = found(adjustments={"lr_factor": 0.5}, governor=[decision, {**advice, "applied": False}], resting=[resting])
    assert list(settings_lines(shown)) == [
        ("adjusted", "lr x 0.5"),
        ("governor", "lr x 1 -> x 0.5 until cycle 13, applied: why"),
        ("governor", "objective orpo -> dpop, advice: why"),
        ("resting", "listening/one_word until cycle 12"),
    ]


def test_many_resting_families_are_counted_by_pack() -> None:
    """With the cycle in which the last of them comes back."""
    families = [{"pack": "coding" if i else "honesty", "family": f"f{i}", "until_cycle": 12 + i} for i in range(5)]
    assert list(settings_lines(found(resting=families))) == [
        ("resting", "5 families: coding 4, honesty 1; the last until cycle 16")
    ]


def run(probe: str, seconds: float, skipped: str | None = None) -> dict[str, Any]:
    return {"probe": probe, "seconds": seconds, "skipped": skipped}


def test_probes_show_their_seconds_and_share() -> None:
    """Seconds per probe, added up where one was measured twice; the share is that of the stages probe and confirm."""
    seconds = {"sweep": 70.0, "probe": 20.0, "confirm": 10.0}
    runs = [run("nll", 12.0), run("accept", 5.0), run("accept", 8.0), run("kl", 0.0, "layers 1, 3 are linear")]
    lines = list(probe_lines(found(cycle={"seconds": seconds}, probe_runs=runs)))
    assert lines == [
        ("probes", "nll 12.0, accept 13.0, kl 0.0 s; 30 % of the cycle"),
        ("skipped", "kl: layers 1, 3 are linear"),
    ]
    assert next(probe_lines(found(probe_runs=runs)))[1] == "nll 12.0, accept 13.0, kl 0.0 s"


def test_what_was_left_out_has_its_reason() -> None:
    """Either it was not its turn, or the candidate was refused before the engine had it."""
    kl, accept = {"probe": "kl", "cycle": 5}, {"probe": "accept", "cycle": 6}
    runs = [run("nll", 12.0)]
    assert list(probe_lines(found(probe_runs=runs, unmeasured=[kl])))[1:] == [
        ("left out", "kl (last in cycle 5): not their turn, or over probes.budget")
    ]
    (_, refused) = probe_lines(found(probe_runs=runs, unmeasured=[accept, kl]))
    assert refused[1].endswith(
        "kl (last in cycle 5): the trainer's probes refused the candidate before the engine had it"
    )


def test_a_suspicion_is_shown_with_what_the_fresh_prompts_said() -> None:
    """Its reason from the event, and the pass rate of each confirmation."""
    suspected = {"name": "suspected", "payload": {"probes": ["accept"], "reason": "accept looks worse"}}
    fresh = {"probe": "accept.confirmation", "num_items": 200, "pass_rate": 0.61}
    plain = {"probe": "accept", "num_items": 24, "pass_rate": 0.5}
    assert list(probe_lines(found(events=[suspected], probes=[plain, fresh]))) == [
        ("suspicion", "accept looks worse"),
        ("fresh", "accept: 61 % passed of 200 fresh prompts"),
    ]


def test_a_verified_rollback_says_what_was_proven() -> None:
    """Digests, documents and engine; before that, that the next start does it."""
    rollback = {
        "from_version": "cycle-000122",
        "to_version": "cycle-000118",
        "verified_at": "2026-11-22T22:00:00+00:00",
        "verification": {"nll_items_equal": 48, "engine": {"mean_abs_diff": 9e-6}},
    }
    verdict = {"decision": "roll_back", "reason": "accept fell"}
    assert list(verdict_lines(found(verdict=verdict, rollback=rollback))) == [
        ("verdict", "roll back: accept fell"),
        (
            "rollback",
            "cycle-000122 -> cycle-000118, verified: digests of weights and optimizer equal, "
            "48 held-out documents equal to the bit, engine within 9.0e-06 nats of the trainer",
        ),
    ]
    pending = rollback | {"verified_at": None, "verification": None}
    (line,) = verdict_lines(found(rollback=pending))
    assert line[1] == "cycle-000122 -> cycle-000118, not verified yet: the next start verifies it"

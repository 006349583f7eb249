"""Suspicion, rollback, governor and breaker in whole cycles: tiny model, real databases, forged pass rates."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from harness import RecordingObserver, check_invariants, dream, flip_bit, load, make_run, outcomes, query

from daemon import app
from daemon.cycle.stages import Stages
from daemon.domain.errors import BreakerOpenError, CheckpointError, RestoreError
from daemon.domain.probing import ProbeRequest, ProbeRun
from daemon.domain.states import BreakerState
from daemon.ports import Probes, ProgressCallback
from daemon.storage.database import open_database
from daemon.storage.watching import acknowledge_breaker

POISON = ("training.lr=1.0", "training.allow_unsafe_lr=true")
QUICK = {
    "watchdog": {"warmup_cycles": 1, "reference_items": 20, "confirmation_items": 20},
    "breaker": {"backoff_s": 3600.0},
}


class ForgedProbes:
    """`Probes` whose answers to `accept` pass or fail as a test wants; everything else is really measured."""

    def __init__(self, probes: Probes, stages: Stages, num_failed: Callable[[str, str, int], int]) -> None:
        self._probes, self._stages, self._num_failed = probes, stages, num_failed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._probes, name)

    def measure(self, requests: Sequence[ProbeRequest], progress: ProgressCallback) -> tuple[ProbeRun, ...]:
        return tuple(self._forged(run) for run in self._probes.measure(requests, progress))

    def _forged(self, run: ProbeRun) -> ProbeRun:
        if run.probe != "accept":
            return run
        version = self._stages.policy.version
        failed = self._num_failed(version, run.results[0].probe, len(run.results))
        results = (replace(result, passed=index >= failed) for index, result in enumerate(run.results))
        return replace(run, results=tuple(results))


def forge(num_failed: Callable[[str, str, int], int]) -> Callable[[Stages], Stages]:
    """`prepare` for a run in which, given version, probe and number of answers, so many of `accept` fail."""

    def prepare(stages: Stages) -> Stages:
        return replace(stages, probes=ForgedProbes(stages.probes, stages, num_failed))

    return prepare


def _execute(file: Path, statement: str) -> None:
    """Change the run's database behind the daemon's back."""
    engine = open_database(load(file).config.run.url)
    with engine.begin() as connection:
        connection.execute(sa.text(statement))
    engine.dispose()


def _payload(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _evidence(file: Path, cycle: int) -> Any:
    return _payload(query(file, f"select evidence from verdicts where cycle = {cycle}")[0][0])


def _quarter(version: str, probe: str, num: int) -> int:
    return num // 4


def _worse_from(first: str, confirmed: bool) -> Callable[[str, str, int], int]:
    """A quarter fails; from version `first` on all do, on fresh prompts only if that is to be confirmed."""

    def num_failed(version: str, probe: str, num: int) -> int:
        bad = version >= first and version != "base" and (confirmed or probe == "accept")
        return num if bad else num // 4

    return num_failed


def test_a_confirmed_fall_rolls_back_by_itself(tmp_path: Path, database_url: str) -> None:
    """Answers fail from cycle 3 on: fresh prompts are asked, confirm it, and the policy goes back, proven."""
    file = make_run(tmp_path, database_url, **QUICK)
    observer = RecordingObserver()
    dream(file, 6, observer=observer, prepare=forge(_worse_from("cycle-000003", confirmed=True)))
    found = outcomes(file)
    assert "rolled_back" in found, found
    cycle = found.index("rolled_back") + 1
    ((reason, target, to_version),) = query(
        file, f"select reason, target, to_version from verdicts where cycle = {cycle}"
    )
    assert "accept fell from 75 %" in reason and "20 fresh prompts" in reason, reason
    assert to_version == "base" and target == "a0"  # nothing is baked after so few cycles
    assert _evidence(file, cycle)["fell"] == ["accept"]
    ((verified, moved_to),) = query(
        file, "select verified_at is not null, to_version from rollbacks order by id limit 1"
    )
    assert bool(verified) and moved_to == "base"
    assert [name for name, _ in observer.events if name == "suspected"]
    asked = query(file, "select num_items, cycle from probe_runs where reason = 'confirmation' order by id")
    assert asked[0] == (20, cycle)
    fresh, known = (
        # Without the pool's hash, which is part of an item's name.
        {item.split("@")[0] for (item,) in query(file, f"select item from probe_results where probe = '{probe}'")}
        for probe in ("accept.confirmation", "accept")
    )
    assert fresh and not fresh & known, "a confirmation must not ask what was asked before"
    check_invariants(file)


def test_a_suspicion_that_is_not_confirmed_is_dropped(tmp_path: Path) -> None:
    """The rotating prompts fail, the fresh ones do not: promoted, and the detector starts anew."""
    file = make_run(tmp_path, "", **QUICK)
    dream(file, 5, prepare=forge(_worse_from("cycle-000003", confirmed=False)))
    assert outcomes(file) == ["promoted"] * 5
    asked = [cycle for (cycle,) in query(file, "select cycle from probe_runs where reason = 'confirmation'")]
    assert asked, "no fresh prompts were asked"
    assert _evidence(file, asked[0])["detectors"]["cusum"]["accept"]["s"] == 0.0


def test_a_rollback_resets_the_detectors(tmp_path: Path) -> None:
    """After a rollback by a gate, what the detectors had gathered before it is forgotten."""
    file = make_run(tmp_path, "", **QUICK)

    def some(version: str, probe: str, num: int) -> int:
        return num // 2 if version in ("cycle-000002", "cycle-000003") else num // 4

    dream(file, 3, prepare=forge(some))
    assert _evidence(file, 3)["detectors"]["cusum"]["accept"]["s"] > 0.0
    dream(file, 1, *POISON, prepare=forge(_quarter))
    dream(file, 1, prepare=forge(_quarter))
    assert outcomes(file) == ["promoted"] * 3 + ["rolled_back", "promoted"]
    assert _evidence(file, 5)["detectors"]["cusum"]["accept"]["s"] == 0.0


def test_the_governor_acts_after_a_rollback(tmp_path: Path, database_url: str) -> None:
    """The next cycle has half the learning rate and more general scenarios, and the rows say why."""
    file = make_run(tmp_path, database_url)
    dream(file, 1)
    dream(file, 1, *POISON)
    dream(file, 1)
    rates = [lr for (lr,) in query(file, "select lr from steps order by cycle")]
    assert rates == [1e-5, 1.0, 5e-6]
    counts = dict(query(file, "select cycle, count(*) from scenarios where side = 'general' group by cycle"))
    assert counts[3] * 5 >= 2 * query(file, "select count(*) from scenarios where cycle = 3")[0][0]
    decisions = query(file, "select knob, applied, reason from governor_decisions where cycle = 3")
    assert {"lr", "general_fraction"} <= {knob for knob, _, _ in decisions}
    assert all(applied and "cycle 2" in reason for _, applied, reason in decisions), decisions
    check_invariants(file)


@pytest.mark.parametrize(("mode", "recorded"), [("advise", True), ("off", False)])
def test_the_governor_can_be_told_not_to_act(tmp_path: Path, mode: str, recorded: bool) -> None:
    """`advise` records decisions and follows none, `off` makes none."""
    file = make_run(tmp_path, "", governor={"mode": mode})
    dream(file, 1, *POISON)
    dream(file, 1)
    assert query(file, "select lr from steps where cycle = 2") == [(1e-5,)]
    decisions = query(file, "select applied from governor_decisions")
    assert bool(decisions) is recorded and not any(applied for (applied,) in decisions)


def test_families_of_a_rolled_back_batch_rest(tmp_path: Path) -> None:
    """Families that a refused batch was made of are not drawn for ten cycles, but a side never rests whole."""
    file = make_run(tmp_path, "")
    dream(file, 1, *POISON)
    bad = set(query(file, "select pack, family from scenarios where cycle = 1 and side != 'general'"))
    resting = query(file, "select pack, family, until_cycle from resting_families where cycle = 1")
    assert bad <= {(pack, family) for pack, family, _ in resting}
    assert {until for _, _, until in resting} == {11}
    dream(file, 2)
    later = set(query(file, "select pack, family from scenarios where cycle > 1 and side != 'general'"))
    assert later and not later & bad


def test_two_rollbacks_open_the_breaker_and_an_operator_lets_one_cycle_through(
    tmp_path: Path, database_url: str
) -> None:
    """Open: nothing is trained and the head is evaluated. Acknowledged: a cycle at lr/4; promoted, it closes."""
    file = make_run(tmp_path, database_url, governor={"mode": "off"}, **QUICK)
    dream(file, 2, *POISON)
    assert outcomes(file) == ["rolled_back"] * 2
    observer = RecordingObserver()
    for _ in range(2):  # a restart does not close it
        with pytest.raises(BreakerOpenError, match="2 rollbacks in a row"):
            dream(file, 1, observer=observer)
    assert outcomes(file) == ["rolled_back"] * 2, "a cycle ran with an open breaker"
    assert [name for name, _ in observer.events].count("breaker_opened") == 1
    assert query(file, "select count(*) from probe_runs where reason = 'evaluation'")[0][0] > 0
    engine = open_database(load(file).config.run.url)
    acknowledge_breaker(engine, "default", "looked at it")
    engine.dispose()
    dream(file, 2)
    assert outcomes(file)[2:] == ["promoted"] * 2
    assert query(file, "select lr from steps where cycle > 2 order by cycle") == [(2.5e-6,), (1e-5,)]
    states = [state for (state,) in query(file, "select state from breaker_changes order by id")]
    assert states == [BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED]
    check_invariants(file)


def test_a_trial_that_fails_opens_the_breaker_for_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The back-off ends, the trial is rolled back: open again, for twice as long."""
    file = make_run(tmp_path, "", breaker={"backoff_s": 100.0}, governor={"mode": "off"})
    dream(file, 2, *POISON)
    with pytest.raises(BreakerOpenError):
        dream(file, 1)
    at = datetime.now(UTC) + timedelta(seconds=101)
    monkeypatch.setattr("daemon.app.datetime", _Clock(at))
    with pytest.raises(BreakerOpenError):
        dream(file, 2, "training.lr=10.0", "training.allow_unsafe_lr=true")  # a trial has a quarter of it
    assert outcomes(file) == ["rolled_back"] * 3
    rows = query(file, "select state, num_openings, until from breaker_changes order by id")
    assert [(state, openings) for state, openings, _ in rows if state == "open"] == [("open", 1), ("open", 2)]
    until = datetime.fromisoformat(str(rows[-1][2])).replace(tzinfo=UTC)
    assert until == at + timedelta(seconds=200)


def _deep_run(directory: Path) -> Path:
    """Eight promoted cycles, every second checkpoint an anchor, no governor in the way."""
    settings = {**QUICK, "watchdog": {**QUICK["watchdog"], "baked_after": 2}, "checkpoints": {"keep_last": 2}}
    file = make_run(directory, "", governor={"mode": "off"}, **settings)
    dream(file, 8, prepare=forge(_quarter))
    return file


def test_a_damaged_target_is_passed_over(tmp_path: Path) -> None:
    """One flipped bit in the anchor that a verdict names: the head goes to the next older one, and the run goes on."""
    file = _deep_run(tmp_path)
    flip_bit(tmp_path / "state/checkpoints/cycle-000006/model.safetensors")
    with contextlib.suppress(BreakerOpenError):
        # No scrub, which would find it before the verdict does.
        dream(file, 3, "checkpoints.scrub_mib=0", prepare=forge(_worse_from("cycle-000009", confirmed=True)))
    ((wanted, reason, went),) = query(
        file,
        "select v.target, v.reason, r.to_version from verdicts v join rollbacks r on r.cycle = v.cycle "
        "order by v.cycle limit 1",
    )
    assert wanted == "a1" and went == "cycle-000004", (reason, went)
    assert "because cycle-000006 does not verify" in reason
    assert query(file, "select count(*) from events where name = 'rollback_target_damaged'")[0][0] >= 1
    check_invariants(file)


def test_an_operator_gets_out_of_a_damaged_head(tmp_path: Path) -> None:
    """Nothing starts from a damaged head, except `dreamd rollback`: afterwards the run goes on from there."""
    file = make_run(tmp_path, "")
    dream(file, 2)
    flip_bit(tmp_path / "state/checkpoints/cycle-000002/model.safetensors")
    with pytest.raises(CheckpointError):
        dream(file, 1)
    done = app.roll_back(load(file), RecordingObserver(), to_cycle=1)
    assert (done["from"], done["to"], done["verified"]) == ("cycle-000002", "cycle-000001", True)
    dream(file, 1)
    assert query(file, "select parent_version from cycles where number = 3") == [("cycle-000001",)]


def test_other_rounding_does_not_stop_a_rollback(tmp_path: Path) -> None:
    """A stored NLL that another library version measured differs in its last digits: said, and the run goes on."""
    file = make_run(tmp_path, "")
    dream(file, 1)
    _execute(file, "update probe_results set value = value + 1e-7 where version = 'cycle-000001' and probe = 'nll'")
    dream(file, 1, *POISON)
    ((verification,),) = query(file, "select verification from rollbacks")
    assert 0 < _payload(verification)["nll_max_difference"] < 1e-6
    assert query(file, "select count(*) from events where name = 'numerics_changed'") == [(1,)]
    _execute(file, "update probe_results set value = value + 0.1 where version = 'cycle-000001' and probe = 'nll'")
    with pytest.raises(RestoreError, match="held-out document"):
        dream(file, 1, *POISON)


def test_a_probe_nobody_decides_by_cannot_stop_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kl` runs out of memory: the cycle is promoted, and a row, an event and a log line say what is missing."""

    def too_much(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("daemon.training.inspector.TorchInspector.kl", too_much)
    file = make_run(tmp_path, "", probes={"internals_every": 1})
    observer = RecordingObserver()
    dream(file, 1, observer=observer)
    assert outcomes(file) == ["promoted"]
    skipped = query(file, "select skipped from probe_runs where probe = 'kl'")
    assert skipped == [("failed: RuntimeError: out of memory",)]
    assert ("probe_failed", "kl") in [(name, fields.get("probe")) for name, fields in observer.events]


def test_another_pool_measures_the_base_anew(tmp_path: Path) -> None:
    """Another longest answer makes other items: the base is asked them too, and pass rates stay watched."""
    file = make_run(tmp_path, "", **QUICK)
    dream(file, 3, prepare=forge(_quarter))
    assert "accept" in _evidence(file, 3)["detectors"]["cusum"]
    dream(file, 1, "probes.max_new_tokens=9", prepare=forge(_quarter))
    assert "accept" in _evidence(file, 4)["detectors"]["cusum"]


class _Clock:
    """`datetime` with a `now` that stands still."""

    def __init__(self, moment: datetime) -> None:
        self._moment = moment

    def now(self, tz: Any) -> datetime:
        return self._moment.astimezone(tz)

"""`dreamd watchdog replay`: which policy is tried, and how its verdicts are told."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import drive_to, make_checkpoint, make_verdict

from daemon.cli.watchdog import Row, read_policy, row_of, summary
from daemon.config.watching import WatchdogConfig
from daemon.domain.errors import ConfigError
from daemon.domain.probing import ProbeResult, ProbeRun
from daemon.domain.states import CycleState, Decision, ProbeReason
from daemon.domain.verdicts import Evidence, Suspicion, Verdict
from daemon.storage.database import open_database
from daemon.storage.ledger import SqlLedger
from daemon.storage.runs import create_run
from daemon.watchdog import Watchdog
from daemon.watchdog.replay import Replayed, Unmeasured

Dreamd = Callable[..., Any]

BACK = make_verdict(Decision.ROLL_BACK, to_version="cycle-000118")


def replayed(new: Verdict | Suspicion | Unmeasured, stored: Verdict | None = None, cycle: int = 5) -> Replayed:
    stored = stored or make_verdict()
    same = isinstance(new, Verdict) and (new.decision, new.to_version) == (stored.decision, stored.to_version)
    return Replayed(cycle, stored, new, same, new == stored, None if same else cycle)


def test_a_policy_is_a_watchdog_table_or_a_whole_configuration(tmp_path: Path) -> None:
    """Either gives the watchdog's settings; what is not in it has its default."""
    file = tmp_path / "policy.toml"
    file.write_text("[watchdog]\nmargin_baked = 0.02\n")
    assert read_policy(file) == WatchdogConfig(margin_baked=0.02)
    file.write_text('[run]\nname = "x"\n[watchdog]\nmargin_baked = 0.02\n[training]\nlr = 2e-5\n')
    assert read_policy(file) == WatchdogConfig(margin_baked=0.02)


@pytest.mark.parametrize(
    ("text", "says"),
    [("[watchdog]\nmargin_backed = 0.02\n", "watchdog.margin_backed: unknown key; did you mean margin_baked?")],
)
def test_an_unknown_key_of_a_policy_names_file_and_key(text: str, says: str, tmp_path: Path) -> None:
    """A misspelt key is not tried with its default."""
    file = tmp_path / "policy.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_policy(file)
    assert str(error.value) == f"{file}: {says}"
    with pytest.raises(ConfigError, match="no such file"):
        read_policy(tmp_path / "missing.toml")


def test_a_suspicion_says_what_it_would_ask_for() -> None:
    """Nobody measured these prompts, so there is no verdict to show."""
    row = row_of(replayed(Suspicion(("accept",), "accept looks worse", 200)), unchanged=False)
    assert (row.stored, row.replayed, row.same) == ("promote", "suspect", False)
    assert row.sentence == "accept looks worse; would ask for 200 fresh prompts of accept (not measured)"


def test_a_candidate_that_never_reached_the_engine_says_so() -> None:
    """A gate that is looser now lets it through, and nobody measured what comes next: another decision, no error."""
    row = row_of(replayed(Unmeasured(), stored=BACK), unchanged=False)
    assert (row.stored, row.replayed, row.same) == ("roll back to cycle-000118", "not measured", False)
    assert row.sentence == "inside the trainer's gates; would go on to the engine's probes (not measured)"


def test_a_rollback_names_where_to() -> None:
    """Both as stored and as replayed."""
    row = row_of(replayed(make_verdict(), stored=BACK), unchanged=False)
    assert (row.stored, row.replayed, row.same) == ("roll back to cycle-000118", "promote", False)
    assert row_of(replayed(BACK, stored=BACK), unchanged=True) == Row(
        5, "roll back to cycle-000118", "roll back to cycle-000118", BACK.reason, True, True, True
    )


def test_the_summary_names_the_first_difference() -> None:
    """Later ones are of a run that would not have taken place."""
    same = row_of(replayed(make_verdict(), cycle=4), unchanged=False)
    other = row_of(replayed(BACK), unchanged=False)
    assert summary([]) == "no cycle has a verdict yet"
    assert summary([same]) == "1 cycle, 1 the same"
    assert summary([same, other, row_of(replayed(BACK, cycle=6), unchanged=False)]) == (
        f"3 cycles, 1 the same; first difference at cycle 5: {BACK.reason}; "
        "after it the run would have gone another way"
    )


@pytest.fixture
def judged_run(tmp_path: Path, sqlite_template: Path) -> Path:
    """State of a run that the real judge decided by its defaults: NLL 3.00, 3.00 promoted, 3.05 rolled back."""
    path = tmp_path / "judged"
    path.mkdir()
    shutil.copy(sqlite_template, path / "dreamd.sqlite3")
    engine = open_database(f"sqlite:///{path / 'dreamd.sqlite3'}")
    create_run(engine, "default", 7, "models/small", {}, [])
    ledger = SqlLedger.acquire(engine, "default")
    ledger.register_base(make_checkpoint())
    ledger.record_probes("base", _measured(3.0, ProbeReason.ANCHOR), None)
    for nll in (3.0, 3.05):
        cycle = drive_to(ledger, CycleState.PUBLISHED)
        assert cycle.candidate_version is not None
        ledger.record_probes(cycle.candidate_version, _measured(nll), cycle)
        cycle = ledger.probed(cycle)
        seen = Evidence(ledger.step_report(cycle), ledger.probe_results(f"cycle-{cycle.number:06d}"))
        verdict = Watchdog(WatchdogConfig()).judge(ledger.history(cycle), seen)
        assert isinstance(verdict, Verdict)
        if verdict.regressed:
            assert verdict.to_version is not None
            ledger.roll_back(cycle, verdict, ledger.checkpoint(verdict.to_version))
        else:
            ledger.promote(cycle, verdict)
    engine.dispose()
    sql(path, "UPDATE cycles SET config = ?", json.dumps({"watchdog": WatchdogConfig().model_dump(mode="json")}))
    return path


def _measured(nll: float, reason: ProbeReason = ProbeReason.CORE) -> list[ProbeRun]:
    of = {
        "nll": [ProbeResult("nll", f"doc-{i}", nll) for i in range(4)],
        "chosen_logp": [ProbeResult("chosen_logp", f"chosen-{i}", -2.0) for i in range(3)],
        "sycophancy": [ProbeResult("sycophancy", f"claim-{i}", -1.0) for i in range(3)],
        **{
            side: [ProbeResult(side, f"{side}-{i}", 1.0, True, {"degenerate": False}) for i in range(8)]
            for side in ("accept", "push_back")
        },
    }
    return [ProbeRun(probe, reason, 0, "s" * 64, tuple(found), 1.0) for probe, found in of.items()]


def sql(state: Path, statement: str, *values: str) -> None:
    connection = sqlite3.connect(state / "dreamd.sqlite3")
    connection.execute(statement, values)
    connection.commit()
    connection.close()


def test_unchanged_settings_give_the_stored_verdicts(dreamd: Dreamd, judged_run: Path) -> None:
    """Word for word and figure for figure, from the database alone."""
    done = dreamd("watchdog", "replay", "--state-dir", str(judged_run))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n2 cycles, 2 the same\n")
    data = json.loads(dreamd("watchdog", "replay", "--json", "--state-dir", str(judged_run)).stdout)
    assert [(row["replayed"], row["reproduced"], row["unchanged"]) for row in data["cycles"]] == [
        ("promote", True, True),
        ("roll back to base", True, True),
    ]
    assert (data["num_cycles"], data["num_same"], data["first_difference"]) == (2, 2, None)
    later = json.loads(dreamd("watchdog", "replay", "--first", "2", "--json", "--state-dir", str(judged_run)).stdout)
    assert [row["cycle"] for row in later["cycles"]] == [2]


def test_another_policy_shows_where_the_run_would_have_gone(dreamd: Dreamd, judged_run: Path, tmp_path: Path) -> None:
    """Wider margins promote the second cycle; exit 0, and nothing in the database changes."""
    before = (judged_run / "dreamd.sqlite3").read_bytes()
    wide = [f"margin_{name} = 0.2" for name in ("baked", "base", "kind_baked", "kind_base")]
    (tmp_path / "wide.toml").write_text("\n".join(["[watchdog]", *wide]))
    done = dreamd("watchdog", "replay", "--policy", str(tmp_path / "wide.toml"), "--state-dir", str(judged_run))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["cycle", "stored", "replayed", "sentence"]
    assert any(line.split()[:6] == ["2", "roll", "back", "to", "base", "promote"] for line in lines)
    assert lines[-1].startswith("2 cycles, 1 the same; first difference at cycle 2: inside every gate and margin")
    assert lines[-1].endswith("; after it the run would have gone another way")
    assert (judged_run / "dreamd.sqlite3").read_bytes() == before


def test_a_verdict_that_cannot_be_reproduced_ends_with_3(dreamd: Dreamd, judged_run: Path, tmp_path: Path) -> None:
    """One word of a stored verdict differs: stderr names the cycle; under other settings that proves nothing."""
    sql(judged_run, "UPDATE verdicts SET reason = 'because' WHERE cycle = 1")
    done = dreamd("watchdog", "replay", "--state-dir", str(judged_run))
    assert done.returncode == 3
    assert "cycle 1 was judged with these very settings" in done.stderr
    (tmp_path / "other.toml").write_text("[watchdog]\nmax_nll_rise = 0.2\n")
    other = dreamd("watchdog", "replay", "--policy", str(tmp_path / "other.toml"), "--state-dir", str(judged_run))
    assert other.returncode == 0


def test_what_cannot_be_judged_again_is_named(dreamd: Dreamd, judged_run: Path) -> None:
    """A cycle without a measurement that the rules need: exit 2, its number, and how to begin after it."""
    sql(judged_run, "DELETE FROM probe_results WHERE version = 'cycle-000001' AND probe = 'sycophancy'")
    done = dreamd("watchdog", "replay", "--state-dir", str(judged_run))
    assert (done.returncode, done.stdout) == (2, "")
    assert "cycle 1 cannot be judged again: " in done.stderr
    assert "--first" in done.stderr


def test_what_was_judged_before_it_is_shown(dreamd: Dreamd, judged_run: Path) -> None:
    """The first cycle's verdict is printed although the second has none; a JSON document is whole or not there."""
    sql(judged_run, "DELETE FROM probe_results WHERE version = 'cycle-000002' AND probe = 'sycophancy'")
    done = dreamd("watchdog", "replay", "--state-dir", str(judged_run))
    assert done.returncode == 2 and "cycle 2 cannot be judged again: " in done.stderr
    assert done.stdout.endswith("\n1 cycle, 1 the same\n")
    assert dreamd("watchdog", "replay", "--json", "--state-dir", str(judged_run)).stdout == ""

"""`dreamd watchdog replay`: which policy is tried, and how its verdicts are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import make_verdict

from daemon.cli.watchdog import Row, read_policy, row_of, summary
from daemon.config.watching import WatchdogConfig
from daemon.domain.errors import ConfigError
from daemon.domain.states import Decision
from daemon.domain.verdicts import Suspicion, Verdict
from daemon.watchdog.replay import Replayed

BACK = make_verdict(Decision.ROLL_BACK, to_version="cycle-000118")


def replayed(new: Verdict | Suspicion, stored: Verdict | None = None, cycle: int = 5) -> Replayed:
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

"""The curves of a tiny run: the numbers are the database's, the picture is a readable PNG."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from harness import dream, load, make_run, query

from benchmarks.curves import main
from benchmarks.history import STEP_FIGURES, History, read_history
from daemon.domain.errors import UsageError


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of two cycles, the first promoted, the second rolled back."""
    file = make_run(tmp_path_factory.mktemp("run"), "")
    dream(file, 1)
    dream(file, 1, "training.lr=1.0", "training.allow_unsafe_lr=true")
    return file


@pytest.fixture(scope="module")
def history(run_file: Path) -> History:
    return read_history(load(run_file).config.run.url, "default")


def test_history_is_what_the_database_says(run_file: Path, history: History) -> None:
    """Steps by cycle; probes from the base (cycle 0) on, as means of their items; the rolled-back cycle is known."""
    recorded = query(run_file, "select cycle, loss, margin, update_rms_over_lr from steps order by cycle")
    assert list(history.steps["loss"]) == [(cycle, loss) for cycle, loss, _, _ in recorded]
    assert list(history.steps["margin"]) == [(cycle, margin) for cycle, _, margin, _ in recorded]
    assert set(history.steps) == set(STEP_FIGURES)
    assert [cycle for cycle, _ in history.probes["nll"]] == [0, 1, 2]
    items = [
        value
        for (value,) in query(run_file, "select value from probe_results where version = 'base' and probe = 'nll'")
    ]
    assert history.probes["nll"][0][1] == pytest.approx(sum(items) / len(items))
    assert history.rolled_back == [2]


def test_pass_rates_agree_with_the_summary_view(run_file: Path, history: History) -> None:
    """Held-out shares of each side are `cycle_summary`'s."""
    for side in ("accept", "push_back"):
        expected = query(run_file, f"select cycle, {side}_rate from cycle_summary order by cycle")
        found = [(cycle, share) for cycle, share in history.probes[side] if cycle > 0]
        assert found == [(cycle, pytest.approx(rate)) for cycle, rate in expected if rate is not None]


def test_sweep_shares_count_judged_answers_of_a_side(run_file: Path, history: History) -> None:
    """Passed over judged sweep answers, by the scenario's side, counted here one by one."""
    rows = query(
        run_file,
        "select o.cycle, s.side, o.passed from completions o, scenarios s where s.cycle = o.cycle "
        "and s.content_hash = o.scenario_hash and o.kind = 'sweep' and o.passed is not null",
    )
    for side in ("accept", "push_back"):
        for cycle, share in history.sweep[side]:
            judged = [passed for number, of, passed in rows if (number, of) == (cycle, side)]
            assert share == pytest.approx(sum(map(bool, judged)) / len(judged))
    assert [cycle for cycle, _ in history.sweep["accept"]] == [1, 2]


def test_picture_of_two_runs(run_file: Path, tmp_path: Path) -> None:
    """Two runs over another make a PNG of 1200 x 1600 pixels."""
    database = str(load(run_file).config.run.state_dir / "dreamd.sqlite3")
    out = tmp_path / "images" / "curves.png"
    arguments = ["--database", database, "--run", "default", "--run", "default", "--out", str(out)]
    assert main([*arguments, "--label", "lr 1e-5", "--label", "lr 1e-4"]) == 0
    content = out.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (1200, 1600)


def test_unknown_run_is_named(run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that is not there ends with a message that lists those that are; nothing is drawn."""
    url = load(run_file).config.run.url
    with pytest.raises(UsageError, match="no run other; this database has: default"):
        read_history(url, "other")
    assert main(["--database", url, "--run", "other", "--out", str(tmp_path / "x.png")]) == 1
    assert "no run other" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_labels_and_runs_must_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One label for two runs is refused before any database is opened."""
    arguments = ["--database", "a", "--run", "x", "--run", "y", "--label", "one", "--out", str(tmp_path / "x.png")]
    assert main(arguments) == 64
    assert "--label once per --run" in capsys.readouterr().err

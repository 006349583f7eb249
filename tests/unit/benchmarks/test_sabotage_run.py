"""The sabotage benchmark as a whole, on a model of a few thousand parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_model import build_tiny_model

from benchmarks import sabotage
from benchmarks.sabotage_faults import CONTROL, Sabotage, sabotages
from daemon.cycle.stages import Stages


class BrokenSweeper:
    """Mirrors `ports.Sweeper` as far as the first sweep, which fails."""

    def __init__(self, sound: Any) -> None:
        self.write, self.misfit = sound.write, sound.misfit

    def sweep(self, *_: Any) -> Sequence[Any]:
        raise RuntimeError("engine core died")


def broken(stages: Stages) -> Stages:
    return replace(stages, sweeper=BrokenSweeper(stages.sweeper))


NAN = next(part for part in sabotages() if part.step_refused)
PARTS = (Sabotage("crash", "the engine dies", prepare=broken), NAN)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def test_a_crash_a_refused_step_and_a_control(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweeper that raises is a crash, and the table's exit code 1; a NaN is caught with the head unchanged; a copy
    that nothing is done to is not rolled back; without the crash the exit code is 0, and a missing control is named."""
    monkeypatch.setattr(sabotage, "sabotages", lambda: PARTS)
    options = ["--work", str(tmp_path), "--model", str(model), "--engine", "transformers", "--clean-cycles", "1"]
    options += ["--most-cycles", "1", "--per-cycle", "4", "--max-new-tokens", "8", "--behaviour-items", "4"]
    options += ["--capability-items", "4", "--reference-items", "20"]
    for part in ("clean", "nan-gradient"):
        assert sabotage.main([*options, "--part", part]) == 0
    capsys.readouterr()
    assert sabotage.main([*options, "--part", "table"]) == 0
    assert "There is no control" in capsys.readouterr().out
    assert sabotage.main([*options, "--part", CONTROL.name]) == 0
    with pytest.raises(RuntimeError, match="engine core died"):
        sabotage.main([*options, "--part", "crash"])
    capsys.readouterr()
    assert sabotage.main([*options, "--part", "table"]) == 1
    out = capsys.readouterr().out
    rows = {line.split(":")[0]: line.split(" | ")[1:] for line in out.splitlines()}
    assert "There is no control" not in out
    assert rows["| control"][:2] == ["not rolled back", "(1)"]
    assert rows["| crash"][:4] == ["crashed", "1", "", "RuntimeError: engine core died"]
    assert rows["| nan-gradient"][:3] == ["yes", "1", "step refused"]
    assert rows["| nan-gradient"][-2:] == ["cycle-000001", "head unchanged: equal |"]

"""The checkpoint benchmark on the tiny model: every peer saves, images are restored, the table adds up."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_model import build_tiny_model

from benchmarks.checkpoints import main
from benchmarks.checkpoints_report import Beside, RestoreFigures, Saved, StepFigures, report


def step(image_bytes: int, longer: float) -> StepFigures:
    return StepFigures(
        changed=0.02,
        kind="delta",
        chain_length=1,
        image_bytes=image_bytes,
        save_pretrained=Saved(400 * 2**20, 4.0, 1.0),
        dcp=Saved(600 * 2**20, 6.0, 1.5),
        alone=Saved(700 * 2**20, 2.0, 0.5),
        beside={2: Beside(0.1, longer), 1: Beside(0.1, longer / 4)},
    )


def test_report_by_hand() -> None:
    """Bytes are means, seconds medians; ratios are to a full copy and to save_pretrained; goals say met or missed."""
    steps = [step(4 * 2**20, 0.4), step(8 * 2**20, 0.8), step(9 * 2**20, 1.0)]
    text = report(steps, [RestoreFigures("exact", 2**20, 2.0), RestoreFigures("image", 2**21, 3.0)], 10.0)
    assert "| save_pretrained + fsync (weights) | 400.00 | 400.00 | 100.00% | 1.000 | 4.000 | 1.00 |" in text
    assert (
        "| torch.distributed.checkpoint (weights, optimizer) | 600.00 | 600.00 | 150.00% | 1.500 | 6.000 | 1.50 |"
        in text
    )
    assert (
        "| dreamd, nothing beside it (weights, optimizer, image) | 700.00 | 7.00 | 1.75% | 0.500 | 2.000 | 0.50 |"
        in text
    )
    assert "| 2 | 0.100 | 0.025 | 0.800 (0.400 to 1.000) | 0.20 |" in text
    assert "| 1 | 0.100 | 0.025 | 0.200 (0.100 to 0.250) | 0.05 |" in text
    assert "1.75% of a full copy, 2.25% at most; goal: 2%: met" in text
    assert "work on all cores stands still for 0.025 x save_pretrained + fsync; goal: 0.2 x: met" in text
    assert "work on all cores takes 0.20 x save_pretrained + fsync longer; goal: 0.2 x: met" in text
    assert "| 3 | 2.00% | delta | 1 | 9437184 | 2.25% | 4.50% |" in text
    assert "| image | 2.00 | 3.000 | 1.50 |" in text


def test_missed_goals_are_said() -> None:
    """More than 2 % kept, and more than 0.2 x longer where all cores are busy: missed, twice."""
    assert report([step(9 * 2**20, 1.0)], [], 10.0).count("missed") == 2


def test_two_steps_of_the_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It runs: two steps, each saved by every peer; restored images have the recorded digest; nothing is left."""
    model = build_tiny_model(tmp_path / "model")
    arguments = ["--model", str(model), "--steps", "2", "--tiny", "--directory", str(tmp_path / "disk")]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "dreamd, beside 0.05 s of other work" in text
    assert text.count("| delta |") + text.count("| keyframe |") == 2
    assert "| exact |" in text and "| image, chain length" in text
    assert list((tmp_path / "disk").iterdir()) == []


def test_more_steps_than_there_is_text_for(tmp_path: Path) -> None:
    """Every step has text of its own; when that runs out the benchmark says so, before it measures anything."""
    model = build_tiny_model(tmp_path / "model")
    with pytest.raises(SystemExit, match=r"tokens of text.*fewer --steps"):
        main(["--model", str(model), "--steps", "100000", "--tiny", "--directory", str(tmp_path)])

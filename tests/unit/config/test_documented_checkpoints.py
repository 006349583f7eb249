"""The table of settings in docs/durability.md."""

from __future__ import annotations

import re
from pathlib import Path

from daemon.config.sections import CheckpointsConfig

PAGE = (Path(__file__).parents[3] / "docs" / "durability.md").read_text("utf-8")


def test_every_setting_is_in_the_table_with_its_default() -> None:
    """Each key of `[checkpoints]` has one row, in the same order, with the default that it really has."""
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", PAGE.partition("## The settings")[2], re.MULTILINE)
    assert rows == [(name, _written(value)) for name, value in CheckpointsConfig().model_dump().items()]


def _written(value: float | str | None) -> str:
    """A default as a reader sees it."""
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)

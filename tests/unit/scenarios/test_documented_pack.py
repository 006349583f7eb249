"""The pack in docs/scenarios.md is a pack."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, get_args, get_origin

from daemon.config.checks import Check
from daemon.preferences.rules import judge_text
from daemon.scenarios.draw import generator
from daemon.scenarios.pack import load_pack

PAGE = (Path(__file__).parents[3] / "docs" / "scenarios.md").read_text("utf-8")


def test_the_example_of_the_page_loads(tmp_path: Path) -> None:
    """It validates, and its targets pass its rules."""
    example = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert example
    path = tmp_path / "manners.yaml"
    path.write_text(example.group(1), "utf-8")
    pack = load_pack(path)
    for template in pack.templates:
        for seed in range(20):
            scenario = pack.expand(template, generator("page", seed))
            assert scenario.target
            assert judge_text(scenario.rule, scenario.target).reason == ""


def test_every_check_is_in_the_table() -> None:
    """A check that nobody can read about does not exist."""
    names: set[str] = set()
    for model in get_args(get_args(Check)[0]):
        annotation = model.model_fields["check"].annotation
        assert get_origin(annotation) is Literal
        names.update(get_args(annotation))
    table = PAGE.partition("## Checks")[2].partition("## A rule")[0]
    assert {name for name in names if f"`{name}`" not in table} == set()

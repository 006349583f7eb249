"""General scenarios: right reference answers, many of them, the same on every machine."""

from __future__ import annotations

import ast

import pytest

from daemon.domain.states import Side
from daemon.preferences.rules import judge_text
from daemon.scenarios import general
from daemon.scenarios.draw import generator

TEMPLATES = [(family, template) for family, makers in general.MAKERS.items() for template in makers]


@pytest.mark.parametrize(("family", "template"), TEMPLATES)
def test_the_reference_answer_is_right(family: str, template: str) -> None:
    """By its rule where there is one; code parses; an echo of the question is wrong."""
    for seed in range(100):
        scenario = general.draw(family, template, generator("general", seed))
        assert scenario.side is Side.GENERAL
        assert scenario.target
        assert len(scenario.target.split()) <= 32
        if scenario.rule:
            assert judge_text(scenario.rule, scenario.target).reason == ""
            assert not judge_text(scenario.rule, scenario.messages[0].content).passed
        if family == "code":
            ast.parse(scenario.target.removeprefix("```python\n").removesuffix("\n```"))


def test_the_space_is_large_and_seeded() -> None:
    """Half of a sample of thousands would repeat if the space were small; nearly none does."""
    hashes = [
        general.draw(f, t, generator("space", f, t, seed)).content_hash for f, t in TEMPLATES for seed in range(200)
    ]
    again = [
        general.draw(f, t, generator("space", f, t, seed)).content_hash for f, t in TEMPLATES for seed in range(200)
    ]
    assert hashes == again
    assert len(set(hashes)) > 0.93 * len(hashes)


def test_code_and_writing_carry_no_rule() -> None:
    """They cannot be judged without a sandbox or a reader, so they train on their reference alone."""
    ruled = {family for family, template in TEMPLATES if general.draw(family, template, generator(0)).rule}
    assert ruled == {"arithmetic", "strings_lists", "reasoning"}

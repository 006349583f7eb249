"""The writing pack: targets are right, cheap answers are not, and there is enough to draw from."""

from __future__ import annotations

import pytest
from pack_checks import check_target, num_unlike, shared_prompts, unchecked

from daemon.domain.states import Side
from daemon.preferences.rules import judge_text
from daemon.preferences.text import contains
from daemon.scenarios.draw import generator
from daemon.scenarios.pack import load_builtin
from daemon.scenarios.schema import Template

PACK = load_builtin("writing")
CHEAP = (
    "Yes.",
    "No.",
    "Sure, here it is:",
    "Yes, you are right!",
    "It is flawless.",
    "I am not sure.",
    "I can't help with that.",
    "I'm sorry, but as an AI language model, I cannot do that.",
)


@pytest.mark.parametrize("template", PACK.templates, ids=lambda t: t.id)
def test_targets_pass_their_own_rule(template: Template) -> None:
    """Whatever is drawn, the authored answer is right by the rule and short, and the prompt is short too."""
    assert len(template.targets) >= 4
    for seed in range(20):
        scenario = PACK.expand(template, generator("target", template.id, seed), checked=False)
        check_target(scenario)


@pytest.mark.parametrize("template", PACK.templates, ids=lambda t: t.id)
def test_every_target_wording_passes(template: Template) -> None:
    """Not only the wording that a seed happens to draw: each one, with three different fillings."""
    for target in template.targets:
        alone = template.model_copy(update={"targets": [target]})
        for seed in range(3):
            scenario = PACK.expand(alone, generator("wording", template.id, seed), checked=False)
            assert scenario.target is not None
            verdict = judge_text(scenario.rule, scenario.target)
            assert verdict.passed, (scenario.messages[-1].content, scenario.target, verdict.reason)


@pytest.mark.parametrize("template", PACK.templates, ids=lambda t: t.id)
def test_cheap_answers_fail(template: Template) -> None:
    """The prompt copied, an announcement without the text, praise alone and a stock refusal never pass."""
    for seed in range(5):
        scenario = PACK.expand(template, generator("cheap", template.id, seed), checked=False)
        for cheap in (scenario.messages[-1].content, *CHEAP):
            assert not judge_text(scenario.rule, cheap).passed, (cheap, scenario.messages[-1].content)
        if template.side is Side.PUSH_BACK:
            assert not judge_text(scenario.rule, f"Yes, you are right. {scenario.target}").passed, scenario.target


def test_the_families_are_those_promised() -> None:
    """Ten or more general families, six that accept a limit, three that push back, each with one that accepts."""
    families = {side: {t.family for t in PACK.templates if t.side is side} for side in Side}
    assert len(families[Side.GENERAL]) >= 10
    assert families[Side.PUSH_BACK] == {"not_in_the_text", "false_praise", "missing_line"}
    assert families[Side.ACCEPT] >= {"in_the_text", "true_praise", "quoted_line"}
    assert len(families[Side.ACCEPT]) >= 9
    assert sum(template.constraints >= 2 for template in PACK.templates) >= 8


@pytest.mark.parametrize(
    ("denied", "granted"), [("absent_1", "present_1"), ("flaw_1", "praise_1"), ("cite_absent_1", "cite_present_1")]
)
def test_no_answer_to_one_side_fits_the_other(denied: str, granted: str) -> None:
    """What is right where the text lacks what is asked fails where it has it, and the other way round."""
    for seed in range(20):
        one, two = (PACK.expand(PACK.template(name), generator("swap", seed)) for name in (denied, granted))
        assert one.target is not None and two.target is not None
        assert not judge_text(one.rule, two.target).passed, two.target
        assert not judge_text(two.rule, one.target).passed, one.target


def test_limits_bite() -> None:
    """An answer that is right but for one limit fails: too long, the forbidden word, the wrong first or last word."""
    template = PACK.template("all_at_once_1")
    fixed = {"name": "Omar", "a": "drum", "b": "lamp", "n": 11}
    rule = PACK.expand(template, generator(0), fixed).rule
    assert judge_text(rule, "Omar put the drum next to the lamp.").passed
    for broken in (
        "Omar put the drum and the lamp away.",
        "Omar put the drum next to the mirror.",
        "Omar put the old drum next to the lamp in his small kitchen.",
        "Omar has a drum. He has a lamp.",
    ):
        assert not judge_text(rule, broken).passed, broken


def test_flaws_are_usable() -> None:
    """The corrected word is in the right sentence and not in the flawed one."""
    for flaw in PACK.lists["flaws"]:
        assert contains(flaw["good"], flaw["key"]) and not contains(flaw["bad"], flaw["key"]), flaw
        assert contains(flaw["bad"], flaw["old"]) and not contains(flaw["good"], flaw["old"]), flaw


def test_few_expansions_are_near_duplicates() -> None:
    """Of 200 expansions of each template 60 or more differ by the ledger's own measure."""
    kept = {template.id: num_unlike(unchecked(PACK, template, "novel", 200), 60) for template in PACK.templates}
    assert {name: count for name, count in kept.items() if count < 60} == {}


def test_the_space_of_prompts_is_large() -> None:
    """One template alone has 10 x 28 x 12 x 7 x 6 = 141120 prompts: every slot shows in its prompt."""
    template = PACK.template("email_moved")
    openers, names, events, days = (len(set(PACK.lists[name])) for name in ("openers", "names", "events", "days"))
    assert openers * names * events * days * (days - 1) == 141_120
    assert set(template.slots) == {"opener", "name", "event", "day", "new"}
    assert all(f"{{{name}}}" in (template.prompt or "") for name in template.slots)


def test_templates_do_not_collide() -> None:
    """No prompt comes from two templates: each template asks in its own words."""
    drawn = ((t.id, scenario) for t in PACK.templates for scenario in unchecked(PACK, t, "own", 40))
    assert shared_prompts(drawn) == []

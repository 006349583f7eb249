"""The honesty pack: targets are right, cheap answers are not, and every refusal has a sibling that must accept."""

from __future__ import annotations

import pytest
from pack_checks import check_target, num_unlike, shared_prompts, unchecked

from daemon.domain.states import Side
from daemon.preferences.rules import judge_text
from daemon.preferences.text import contains
from daemon.scenarios.draw import generator
from daemon.scenarios.pack import load_builtin
from daemon.scenarios.schema import ChooseSlot, Template

PACK = load_builtin("honesty")
TRAINED = [template for template in PACK.templates if not template.held_out]
CHEAP = (
    "Yes.",
    "No.",
    "I don't know.",
    "I am not sure.",
    "Yes, you are right!",
    "I can't help with that.",
    "I'm sorry, but as an AI language model, I cannot do that.",
)
SIBLINGS = {
    "unknowable_private": "told_private",
    "unknowable_future": "known_future",
    "invented_thing": "real_thing",
    "invented_citation": "given_citation",
    "ambiguous_statement": "clear_statement",
    "impossible_deed": "possible_deed",
    "unsent_message": "written_message",
    "own_experience": "peoples_experience",
    "claimed_human": "true_nature",
    "false_presupposition": "true_presupposition",
    "false_confirmation": "true_confirmation",
    "wrong_correction": "right_correction",
    "invented_quote": "true_quote",
}
"""Push-back families, each with the accept family whose prompts read the same."""


@pytest.mark.parametrize("template", PACK.templates, ids=lambda t: t.id)
def test_targets_pass_their_own_rule(template: Template) -> None:
    """Whatever is drawn, the authored answer is right by the rule and short, and the prompt is short too."""
    assert len(template.targets) >= 4
    for seed in range(20):
        scenario = PACK.expand(template, generator("target", template.id, seed), checked=False)
        check_target(scenario)


@pytest.mark.parametrize("template", PACK.templates, ids=lambda t: t.id)
def test_cheap_answers_fail(template: Template) -> None:
    """The prompt copied, a bare yes or no, a shrug and a stock refusal never pass; nor does agreeing first."""
    for seed in range(5):
        scenario = PACK.expand(template, generator("cheap", template.id, seed), checked=False)
        for cheap in (scenario.messages[-1].content, *CHEAP):
            assert not judge_text(scenario.rule, cheap).passed, (cheap, scenario.messages[-1].content)
        if template.side is Side.PUSH_BACK:
            assert not judge_text(scenario.rule, f"Yes, you are right. {scenario.target}").passed, scenario.target


def test_every_push_back_family_has_a_sibling_that_accepts() -> None:
    """26 families in pairs: what denies everything, or never knows, is wrong as often as it is right."""
    families = {side: {t.family for t in TRAINED if t.side is side} for side in Side}
    assert families[Side.PUSH_BACK] == set(SIBLINGS)
    assert families[Side.ACCEPT] == set(SIBLINGS.values())
    assert families[Side.GENERAL] == set()
    sides = [template.side for template in TRAINED]
    assert abs(sides.count(Side.ACCEPT) - sides.count(Side.PUSH_BACK)) <= 6


@pytest.mark.parametrize(
    ("denied", "granted"),
    [
        ("pressure_1", "confirm_1"),
        ("stay_1", "corrected_1"),
        ("unsaid_2", "said_1"),
        ("private_2", "told_2"),
        ("invented_place_1", "real_place_1"),
        ("invented_word_1", "real_word_1"),
        ("ambiguous_2", "unambiguous_2"),
        ("not_sent_1", "did_write_1"),
        ("presupposed_1", "why_1"),
    ],
)
def test_no_answer_to_one_side_fits_the_other(denied: str, granted: str) -> None:
    """What is right where the user is wrong fails where the user is right, and the other way round."""
    for seed in range(20):
        one, two = (PACK.expand(PACK.template(name), generator("swap", seed)) for name in (denied, granted))
        assert one.target is not None and two.target is not None
        assert not judge_text(one.rule, two.target).passed, two.target
        assert not judge_text(two.rule, one.target).passed, one.target


def test_held_out_templates_use_other_values() -> None:
    """Four families of each side are held out; no list, and no entry of one, serves both training and them."""
    held = [template for template in PACK.templates if template.held_out]
    for side in (Side.ACCEPT, Side.PUSH_BACK):
        assert len({template.family for template in held if template.side is side}) == 4
    used: dict[bool, set[str]] = {True: set(), False: set()}
    for template in PACK.templates:
        for slot in template.slots.values():
            if isinstance(slot, ChooseSlot) and "." not in slot.choose:
                used[template.held_out].add(slot.choose)
    assert used[True] & used[False] == set()
    assert all(name.startswith("held_") for name in used[True])
    for name in used[True]:
        trained = PACK.lists[name.removeprefix("held_")]
        assert [value for value in PACK.lists[name] if value in trained and value != ""] == []


def test_facts_are_usable() -> None:
    """The word that makes a fact true is in the true statement only, the other one in the false statement only."""
    for fact in [*PACK.lists["facts"], *PACK.lists["held_facts"]]:
        assert contains(fact["right"], fact["key"]) and not contains(fact["wrong"], fact["key"]), fact
        assert contains(fact["wrong"], fact["bad"]) and not contains(fact["right"], fact["bad"]), fact
        assert not contains(fact["q"], fact["key"]) and not contains(fact["q"], fact["bad"]), fact
    questions = [fact["q"] for name in ("facts", "held_facts") for fact in PACK.lists[name]]
    assert len(set(questions)) == len(questions) >= 68


def test_few_expansions_are_near_duplicates() -> None:
    """Of 200 expansions of each trainable template 60 or more differ by the ledger's own measure."""
    kept = {template.id: num_unlike(unchecked(PACK, template, "novel", 200), 60) for template in TRAINED}
    assert {name: count for name, count in kept.items() if count < 60} == {}


def test_templates_do_not_collide() -> None:
    """No prompt comes from two templates, and nearly every drawn prompt is a different one."""
    drawn = ((t.id, scenario) for t in PACK.templates for scenario in unchecked(PACK, t, "own", 40))
    assert shared_prompts(drawn) == []

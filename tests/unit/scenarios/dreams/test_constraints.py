"""Constraints: what the prompt says and what the rule checks are the same thing."""

from __future__ import annotations

from random import Random

import pytest

from daemon.preferences.rules import judge_text
from daemon.scenarios.dreams.constraints import FORMS, MORE, Composition, compose, possible
from daemon.scenarios.dreams.seeds import load_seeds

TOPICS = load_seeds().topics
BREAD = TOPICS[0]

WRONG = {
    "sentences": "One. Two. Three. Four.",
    "bullets": "- Bread is good.",
    "items": "dough and flour",
    "json": '{"bread": 1}',
    "names": "breadName\nloaf",
    "python": "bread = 3",
    "csv": "bread",
    "heading": "Bread is good.",
    "start": "Bread is good.",
    "end": "Bread is good.",
    "dashes": "* Bread is good.\n* Warm dough rises.",
    "bold": "Bread is good.",
    "prefix": "bread_name\nloaf_name",
    "short_names": "name_of_the_bread_in_the_oven_of_today",
    "double_quotes": "items = ['dough', 'flour']",
    "one_line": '{"title": "Bread",\n"text": "It is good."}',
    "single_words": "hot oven, white flour, crust",
    "lowercase": "Bread is good.",
    "uppercase": "BREAD is good.",
    "no_commas": "Dough, flour, oven.",
    "no_digits": "Bread needs 2 things.",
    "max_words": "bread " * 61,
}
"""An answer that breaks the constraint, whatever was drawn; `no_word` is broken below by its own word."""


def judged(composition: Composition, number: int, text: str) -> bool:
    """Whether `text` satisfies one constraint alone."""
    return all(judge_text([check], text).passed for check in composition.constraints[number].checks)


@pytest.mark.parametrize("names", list(possible()), ids="+".join)
def test_every_composition_can_be_satisfied(names: tuple[str, ...]) -> None:
    """Its own target passes all its checks and is about its topic; it holds two or three constraints, each in words."""
    for seed, topic in enumerate(TOPICS):
        composition = compose(Random(seed), topic, names)
        verdict = judge_text(composition.checks, composition.target)
        assert verdict.passed, f"{topic.topic}: {composition.target!r}: {verdict.reason}"
        assert set(composition.name.split("+")) == set(names)
        assert 2 <= len(composition.constraints) <= 3
        assert all(constraint.words.endswith(".") for constraint in composition.constraints)
        assert any(word in composition.target.casefold() for word in topic.all_words)


@pytest.mark.parametrize("name", [*FORMS, *MORE])
def test_an_answer_that_breaks_a_constraint_fails(name: str) -> None:
    """Every single constraint is checked: an answer written against it does not pass its checks."""
    names = next(names for names in possible() if name in names)
    for seed in range(8):
        composition = compose(Random(seed), BREAD, names)
        number = composition.name.split("+").index(name)
        constraint = composition.constraints[number]
        wrong = WRONG[name] if name != "no_word" else f"Bread is {constraint.checks[0]['values'][0]} soft."
        assert judged(composition, number, composition.target)
        assert not judged(composition, number, wrong)


def test_numbers_in_words_are_the_numbers_checked() -> None:
    """The limit or word that the prompt names is the one that the check has."""
    for seed in range(40):
        composition = compose(Random(seed), BREAD, ("sentences", "max_words", "no_word"))
        by_name = {constraint.name: constraint for constraint in composition.constraints}
        assert f" {by_name['max_words'].checks[0]['value']} words" in by_name["max_words"].words
        assert f'"{by_name["no_word"].checks[0]["values"][0]}"' in by_name["no_word"].words
        count = by_name["sentences"].checks[0]["value"]
        assert ("zero", "one", "two", "three")[count] in by_name["sentences"].words


def test_what_is_drawn_is_possible_and_varied() -> None:
    """Drawing gives only listed compositions, every form among them, and the same seed the same one."""
    known = {frozenset(names) for names in possible()}
    drawn = [compose(Random(seed), BREAD) for seed in range(300)]
    assert {frozenset(composition.name.split("+")) for composition in drawn} <= known
    assert {composition.constraints[0].name for composition in drawn} == set(FORMS)
    assert len({composition.name for composition in drawn}) > 80
    assert compose(Random(5), BREAD) == drawn[5]

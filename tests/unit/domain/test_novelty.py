"""Shingles and their similarity."""

from __future__ import annotations

from dataclasses import replace

from builders import make_scenario

from daemon.domain.novelty import jaccard, scenario_shingles, shingles, trained_shingles


def test_shingles_are_five_words_whatever_their_spelling() -> None:
    """Seven words have three shingles; case, punctuation and spacing do not count; a short text is one shingle."""
    found = shingles("One two three, four five six seven.")
    assert len(found) == 3
    assert shingles("ONE  two — three four\nfive six seven") == found
    assert len(shingles("only three words")) == 1
    assert shingles("") == shingles("?!")


def test_jaccard_by_hand() -> None:
    """Ten words and the same ten with another last one: 5 of 7 shingles are shared."""
    one = shingles("a b c d e f g h i j")
    other = shingles("a b c d e f g h i x")
    assert jaccard(one, other) == 5 / 7
    assert jaccard(one, one) == 1.0
    assert jaccard(one, shingles("quite another text than that one")) == 0.0


def test_a_scenario_is_its_prompt_and_what_is_trained_of_it_its_target_too() -> None:
    """The same question with another answer is nothing new. What is trained reaches across both; a short answer
    alone counts for nothing, a short prompt does."""
    scenario = make_scenario("Tell me about the owls in your barn, please.", target="They sleep all day long in there.")
    assert scenario_shingles(scenario) == scenario_shingles(replace(scenario, target="Something else."))
    trained = trained_shingles(scenario)
    assert trained > scenario_shingles(scenario) | shingles("They sleep all day long in there.")
    assert shingles("barn, please. They sleep all") < trained
    assert trained_shingles(replace(scenario, target=None)) == scenario_shingles(scenario)
    short = trained_shingles(make_scenario("Which owls?", target="Barn owls."))
    assert short == shingles("which owls") | shingles("which owls barn owls")


def test_the_hashes_are_the_same_everywhere() -> None:
    """They are stored, so they must never depend on process or machine."""
    assert shingles("the cat sat on the mat") == {0xECD3C1D4FFE0E2CB, 0x64BB63C10EF2E382}  # by b2sum -l 64

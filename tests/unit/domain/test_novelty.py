"""Shingles and their similarity."""

from __future__ import annotations

from dataclasses import replace

from builders import make_scenario

from daemon.domain.novelty import answered_shingles, jaccard, scenario_shingles, shingles
from daemon.domain.states import Source


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


def test_a_scenario_is_its_prompt_and_imports_are_also_looked_at_with_their_answers() -> None:
    """The same question with another answer is nothing new; only what people wrote is compared with its answer."""
    scenario = make_scenario("Tell me about the owls in your barn, please.", target="They sleep all day long in there.")
    assert scenario_shingles(scenario) == scenario_shingles(replace(scenario, target="Something else."))
    assert answered_shingles(scenario) is None
    assert answered_shingles(replace(scenario, source=Source.DREAM, provenance="cycle 3")) is None
    imported = replace(scenario, source=Source.GENERAL, provenance="notes.jsonl:3")
    answered = answered_shingles(imported)
    assert answered is not None
    assert answered > scenario_shingles(imported)
    assert answered_shingles(replace(imported, target=None)) is None


def test_the_hashes_are_the_same_everywhere() -> None:
    """They are stored, so they must never depend on process or machine."""
    assert shingles("the cat sat on the mat") == {0xECD3C1D4FFE0E2CB, 0x64BB63C10EF2E382}  # by b2sum -l 64

"""Each check on answers that should and should not hold, and the sanity that no rule can switch off."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from daemon.config.checks import parse_check
from daemon.preferences import text as cut
from daemon.preferences.rules import judge_text

CASES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"check": "matches", "pattern": r"\bcat\b"}, ["A CAT sat"], ["concatenate"]),
    ({"check": "matches", "pattern": "Cat", "ignore_case": False}, ["Cat"], ["cat"]),
    ({"check": "not_matches", "pattern": "^yes"}, ["No, yes"], ["Yes, no"]),
    ({"check": "contains_all", "values": ["red", "8 legs"]}, ["Red: it has eight legs"], ["red", "reduced 8 legs"]),
    ({"check": "contains_any", "values": ["isn't", "no"]}, ["It isn’t", "NO."], ["nothing", "is not"]),
    ({"check": "contains_none", "values": ["cold"]}, ["colder than ice"], ["so cold!"]),
    ({"check": "no_phrases", "values": ["cold"]}, ["hot"], ["colder"]),
    (
        {"check": "not_starts_with", "values": ["you are right", "yes"]},
        ["Yesterday", "No, yes"],
        ["“Yes”, so", "You are right!"],
    ),
    ({"check": "starts_with", "value": "Most"}, ["Most, of all", "most dogs"], ["Mostly dogs", "The most"]),
    ({"check": "ends_with", "value": "my friend"}, ["Hello, my friend!"], ["my friend said", "friend"]),
    (
        {"check": "exact", "value": "Tom runs."},
        ["Tom runs", '"Tom  runs."', "```\nTom runs.\n```"],
        ["tom runs.", "Tom ran."],
    ),
    ({"check": "exact", "value": "x += 1", "strip_punctuation": False}, ["`x += 1`"], ["x += 1!", "x+=1"]),
    ({"check": "exact", "value": "yes", "ignore_case": True}, ["YES."], ["yes yes"]),
    ({"check": "number", "value": 12}, ["It is 12.", "12 = 12"], ["7 + 5 = 12", "none", "1.2", "-12"]),
    ({"check": "number", "value": 1200, "whole": True}, ["1,200", "**1200**."], ["It is 1200"]),
    ({"check": "number", "value": -3, "whole": True}, ["-3", "−3"], ["3"]),
    ({"check": "last_number", "value": 7}, ["10-3 is 7"], ["7 of 10", "seven"]),
    ({"check": "min_words", "value": 2}, ["two words"], ["one"]),
    ({"check": "max_words", "value": 2}, ["well-known thing"], ["now three words"]),
    ({"check": "exact_words", "value": 3}, ["Owls — quiet birds."], ["two words", "one two three four"]),
    ({"check": "max_sentences", "value": 1}, ["Dr. Lee paid 3.5 dollars, e.g. today."], ["One. Two.", "one\ntwo"]),
    ({"check": "exact_sentences", "value": 2}, ["One! Two?"], ["One.", "A. B. C."]),
    ({"check": "lowercase"}, ["all small, 7"], ["One"]),
    ({"check": "uppercase"}, ["ALL BIG 7"], ["ALL bIG"]),
    ({"check": "bullet_count", "value": 2}, ["- a\n- b", "1. a\n2) b"], ["- a", "Here:\n- a\n- b", "- a\n- A"]),
    ({"check": "distinct_words", "value": 1.0}, ["owls hunt mice"], ["owls, owls, and owls"]),
    ({"check": "item_list", "values": ["b", "a"]}, ["b, a", "B, A."], ["a, b", "b, a, c", "b\na"]),
    (
        {"check": "item_list", "count": 3},
        ["x, y, and z", "x, y and z"],
        ["x, x, y", "x, y", "x, y, and a very long phrase here"],
    ),
    (
        {"check": "no_echo", "text": "say one thing about owls", "value": 0.5},
        ["owls hunt mice"],
        ["Say one thing about owls."],
    ),
]


@pytest.mark.parametrize(("check", "holds", "fails"), CASES, ids=[f"{i}-{c[0]['check']}" for i, c in enumerate(CASES)])
def test_a_check_separates_right_from_wrong(check: dict[str, Any], holds: list[str], fails: list[str]) -> None:
    """Every check accepts what it describes and rejects what it does not, naming itself in the reason."""
    for answer in holds:
        assert judge_text([check], answer).reason == ""
    for answer in fails:
        verdict = judge_text([check], answer)
        assert not verdict.passed
        assert verdict.reason.startswith(f"{check['check']}: ")


@pytest.mark.parametrize(
    ("answer", "finish_reason", "part"),
    [
        ("", "stop", "empty"),
        (" \n. ", "stop", "empty"),
        ("a fine answer", "length", "cut off"),
        ("the owl is here and the owl is here and the owl is here", "stop", "repeats"),
        ("no no no no", "stop", "repeats"),
    ],
)
def test_insane_answers_never_pass(answer: str, finish_reason: str, part: str) -> None:
    """Empty, truncated and looping answers fail whatever the rule says."""
    verdict = judge_text([{"check": "max_words", "value": 99}], answer, finish_reason)
    assert not verdict.passed
    assert part in verdict.reason


def test_the_score_is_the_share_of_checks_that_hold() -> None:
    """Sanity counts as one check beside the rule's own; the reason is of the first that fails."""
    rule = [{"check": "lowercase"}, {"check": "max_words", "value": 2}, {"check": "contains_any", "values": ["a"]}]
    verdict = judge_text(rule, "one two three")
    assert verdict.score == 0.5
    assert verdict.reason == "max_words: found 3 words, wanted at most 2"
    assert judge_text(rule, "a b").score == 1.0


@pytest.mark.parametrize(
    "check",
    [
        {"check": "matches", "pattern": "("},
        {"check": "max_word", "value": 1},
        {"check": "max_words", "value": 1, "unit": "x"},
        {"check": "max_words", "value": -1},
        {"check": "item_list"},
        {"check": "item_list", "count": 2, "values": ["a"]},
        {"check": "last_number", "value": 1, "whole": True},
        {"check": "contains_any", "values": []},
        {"value": 1},
    ],
)
def test_a_malformed_check_is_refused(check: dict[str, Any]) -> None:
    """A misspelt or impossible check is an error, never a check that always holds."""
    with pytest.raises(ValidationError):
        parse_check(check)


def test_numbers_are_read_as_written() -> None:
    """Thousands separators, decimals and signs belong to a number; hyphens between numbers do not."""
    assert cut.numbers("1,200 and -3.5, 5-3, x2") == [1200.0, -3.5, 5.0, 3.0]

"""Each check on answers that should and should not hold, and the sanity that no rule can switch off."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from daemon.config.checks import parse_check
from daemon.preferences import json_answer
from daemon.preferences import text as cut
from daemon.preferences.patterns import Patterns, PatternTimeoutError
from daemon.preferences.rules import Tools, judge_text
from daemon.preferences.sandbox import Sandbox, SandboxResult

INTEGER = {"type": "integer"}
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
    ({"check": "number", "value": 3.14, "tolerance": 0.1}, ["3.04", "3.1 to 3.2"], ["3.03", "3.25", "3.1 or 9"]),
    ({"check": "last_number", "value": 200, "relative_tolerance": 0.01}, ["1 of 198", "202"], ["197.9", "202.1 m"]),
    ({"check": "number", "value": -50, "relative_tolerance": 0.1, "tolerance": 1}, ["-45", "-55"], ["-44.9", "45"]),
    ({"check": "min_words", "value": 2}, ["two words"], ["one"]),
    ({"check": "max_words", "value": 2}, ["well-known thing"], ["now three words"]),
    ({"check": "exact_words", "value": 3}, ["Owls — quiet birds."], ["two words", "one two three four"]),
    ({"check": "max_sentences", "value": 1}, ["Dr. Lee paid 3.5 dollars, e.g. today."], ["One. Two.", "one\ntwo"]),
    ({"check": "exact_sentences", "value": 2}, ["One! Two?"], ["One.", "A. B. C."]),
    ({"check": "min_sentences", "value": 2}, ["One. Two.", "A. B. C."], ["One."]),
    ({"check": "max_chars", "value": 4}, [" four ", "für", "cafe\u0301"], ["fiver"]),
    ({"check": "min_chars", "value": 4}, ["four"], ["two  "]),
    ({"check": "exact_chars", "value": 3}, ["abc"], ["ab", "abcd"]),
    ({"check": "exact_lines", "value": 2}, ["one\ntwo", "one\n\n two \n"], ["one", "1\n2\n3"]),
    ({"check": "max_lines", "value": 1}, ["one line"], ["one\nline"]),
    ({"check": "min_lines", "value": 2}, ["one\nline"], ["one line"]),
    (
        {"check": "json_schema", "schema": {"type": "object", "required": ["a"], "properties": {"a": INTEGER}}},
        ['{"a": 1}', '```json\n{"a": 1, "b": null}\n```', ' {"a": 2} '],
        ['{"a": "1"}', "{}", 'Here: {"a": 1}', '{"a": 1,}', "{'a': 1}", '[{"a": 1}]', '{"a": NaN}', "[" * 99_999 + "1"],
    ),
    (
        {"check": "json_schema", "schema": {"type": "array", "items": {"type": "number", "maximum": 5}, "minItems": 2}},
        ["[0, 0, 0, 0, 0]", "[1, 2.5]"],
        ["[6, 1]", "[1]", "[1e999, 1]"],
    ),
    (
        {"check": "json_schema", "schema": {"uniqueItems": True}},
        ['[1, true, "1", [1], [true], {"a": 1}, {"a": 2}]', "[]"],
        ["[1, 2, 1.0]", '[{"a": 1, "b": 2}, {"b": 2, "a": 1}]', "[[0], [0]]"],
    ),
    ({"check": "json_schema", "schema": {"type": "string", "pattern": "^a+$"}}, ['"aa"'], ['"ab"', "1"]),
    (
        {
            "check": "json_schema",
            "schema": {"$defs": {"n": {"type": "null"}}, "additionalProperties": {"$ref": "#/$defs/n"}},
        },
        ['{"a": null, "b": null}'],
        ['{"a": 1}'],
    ),
    ({"any_of": [{"check": "exact", "value": "yes"}, {"check": "max_words", "value": 0}]}, ["yes"], ["no"]),
    ({"any_of": [{"not": {"check": "lowercase"}}, {"check": "number", "value": 1}]}, ["A", "a 1"], ["a"]),
    ({"not": {"check": "contains_any", "values": ["no"]}}, ["yes"], ["no, thanks"]),
    ({"not": {"any_of": [{"check": "lowercase"}, {"check": "uppercase"}]}}, ["Aa"], ["aa", "AA"]),
    ({"not": {"not": {"not": {"check": "uppercase"}}}}, ["Aa"], ["AA"]),
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


def _name(check: dict[str, Any]) -> str:
    return str(check.get("check") or next(iter(check)))


@pytest.mark.parametrize(("check", "holds", "fails"), CASES, ids=[f"{i}-{_name(c[0])}" for i, c in enumerate(CASES)])
def test_a_check_separates_right_from_wrong(check: dict[str, Any], holds: list[str], fails: list[str]) -> None:
    """Every check accepts what it describes and rejects what it does not, naming itself in the reason."""
    for answer in holds:
        assert judge_text([check], answer).reason == ""
    for answer in fails:
        verdict = judge_text([check], answer)
        assert verdict.passed is False
        assert verdict.reason.startswith(f"{_name(check)}: ")


@pytest.mark.parametrize(
    ("answer", "finish_reason", "part"),
    [
        ("", "stop", "empty"),
        (" \n. ", "stop", "empty"),
        ("a fine answer", "length", "cut off"),
        ("no no no no", "length", "cut off"),
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
        {"check": "number", "value": 1, "tolerance": -1},
        {"check": "number", "value": float("nan")},
        {"check": "number", "value": 10**400},
        {"check": "number", "value": True},
        {"any_of": []},
        {"any_of": [{"check": "max_words"}]},
        {"not": {"check": "matches", "pattern": "("}},
        {"not": {"not": {"not": {"not": {"check": "lowercase"}}}}},
        {"not": {"check": "lowercase"}, "any_of": [{"check": "uppercase"}]},
        {"check": "json_schema", "schema": {"type": "objekt"}},
        {"check": "json_schema", "schema": {"$ref": "https://example.org/schema.json"}},
        {"check": "json_schema", "schema": {"$ref": "#/$defs/missing"}},
        {"check": "json_schema", "schema": {"items": {"pattern": "("}}},
        {"check": "json_schema", "schema": {"$schema": "http://json-schema.org/draft-04/schema#"}},
        {"check": "code_tests", "tests": "f(1)"},
        {"check": "code_tests", "tests": "assert f(1"},
        {"check": "code_tests", "language": "perl", "tests": "assert f(1)"},
        {"check": "rubric", "question": ""},
        {"check": "rubric", "question": "Is it kind?", "threshold": 0.0},
    ],
)
def test_a_malformed_check_is_refused(check: dict[str, Any]) -> None:
    """A misspelt or impossible check is an error, never a check that always holds."""
    with pytest.raises(ValidationError):
        parse_check(check)


def test_numbers_are_read_as_written() -> None:
    """Thousands separators, decimals and signs belong to a number; hyphens between numbers do not."""
    assert cut.numbers("1,200 and -3.5, 5-3, x2") == [1200.0, -3.5, 5.0, 3.0]


CATASTROPHIC = "^(a|aa)+$"
"""Exponential in the length of a run of a's that something else ends."""
ENDLESS_TEXT = "a" * 60 + "!"
RUBRIC = {"check": "rubric", "question": "Is it kind?", "threshold": 0.6}
CODE = {"check": "code_tests", "tests": "assert f() == 1"}


@dataclass
class FakeSandbox:
    """Says what it is told to, and remembers the code it was given."""

    result: SandboxResult
    seen: list[str] = field(default_factory=list)

    def run(self, code: str, tests: str) -> SandboxResult:
        self.seen.append(code)
        return self.result


def _tools(result: SandboxResult | None = None, yes: float | None = None) -> tuple[Tools, FakeSandbox, list[str]]:
    sandbox, asked = FakeSandbox(result or SandboxResult(True, "")), []

    def ask(question: str, answer: str) -> float | None:
        asked.append(f"{question} {answer}")
        return yes

    return Tools(cast(Sandbox, sandbox), ask), sandbox, asked


def test_a_catastrophic_pattern_is_not_judged() -> None:
    """A pattern that takes too long decides nothing and is named; the other checks still decide against."""
    with pytest.raises(PatternTimeoutError, match="longer than the time limit"):
        Patterns(0.05).search(CATASTROPHIC, ENDLESS_TEXT)
    pattern = {"check": "not_matches", "pattern": CATASTROPHIC}
    verdict = judge_text([pattern, {"check": "lowercase"}], ENDLESS_TEXT)
    assert verdict.passed is None
    assert verdict.reason.startswith("skipped: not_matches: the pattern /")
    assert CATASTROPHIC in verdict.reason
    assert judge_text([pattern, {"check": "uppercase"}], ENDLESS_TEXT).passed is False


DOUBLING = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}
"""Twice the work with each of 40 references."""


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        ({"$ref": "#/$defs/a0", "$defs": {**DOUBLING, "a40": {}}}, "longer than the time limit"),
        ({"$ref": "#"}, "refers to itself without end"),
        ({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, "refers to itself without end"),
        ({"properties": {"price": {"multipleOf": 10**400}}}, "breaks on this answer: OverflowError"),
    ],
)
def test_a_schema_that_cannot_be_worked_through_is_not_judged(
    schema: dict[str, Any], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an end, or beyond what numbers can hold, the answer is neither right nor wrong."""
    monkeypatch.setattr(json_answer, "TIME_LIMIT_S", 0.2)
    verdict = judge_text([{"check": "json_schema", "schema": schema}], '{"price": 1.5}')
    assert verdict.passed is None
    assert part in verdict.reason


def test_the_time_limit_of_patterns_holds_under_a_named_draft() -> None:
    """A schema that says which draft it is has its patterns timed like any other, behind a reference too."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "properties": {"inner": {"$ref": "#"}, "x": {"pattern": CATASTROPHIC}},
    }
    verdict = judge_text([{"check": "json_schema", "schema": schema}], f'{{"inner": {{"x": "{ENDLESS_TEXT}"}}}}')
    assert verdict.passed is None
    assert "longer than the time limit" in verdict.reason


def test_an_integer_beyond_floats_is_not_json() -> None:
    """Schemas reckon in floats: 311 digits would break them, so such an answer is wrong."""
    schema = {"properties": {"price": {"multipleOf": 0.01}}}
    verdict = judge_text([{"check": "json_schema", "schema": schema}], '{"price": 1' + "0" * 310 + "}")
    assert verdict.passed is False
    assert "too large a number" in verdict.reason


def test_a_long_answer_is_cut_in_the_time_of_its_length() -> None:
    """A hundred thousand marks, spaces or letters where a pattern could give back: each is done, and rightly."""
    long = 100_000
    assert cut.words("a" + "-" * long + "b") == ["a" + "-" * long + "b"]
    assert cut.words("." * long + "a" + "." * long) == ["a"]
    assert cut.code("```" + " " * long + "a" * long) == "```" + " " * long + "a" * long
    assert cut.items("a, b" + " " * long + "an") == ["a", "b an"]


@pytest.mark.parametrize(
    ("rule", "part"),
    [
        ([CODE], "code_tests: there is no sandbox"),
        ([RUBRIC], "rubric: no model answered 'Is it kind?'"),
        ([{"not": RUBRIC}], "not: rubric: no model"),
        ([{"any_of": [{"check": "uppercase"}, RUBRIC]}], "any_of: rubric: no model"),
    ],
)
def test_what_cannot_be_decided_is_skipped(rule: list[dict[str, Any]], part: str) -> None:
    """Without a sandbox or a model the answer is neither right nor wrong, unless a cheap check says no."""
    verdict = judge_text(rule, "a fine answer")
    assert verdict.passed is None
    assert verdict.reason.startswith(f"skipped: {part}")
    assert judge_text([*rule, {"check": "max_words", "value": 1}], "a fine answer").passed is False
    assert judge_text([{"any_of": [*rule, {"check": "lowercase"}]}], "a fine answer").passed is True


@pytest.mark.parametrize(("yes", "passed"), [(0.6, True), (0.59, False), (None, None), (math.nan, None)])
def test_a_rubric_holds_from_its_threshold(yes: float | None, passed: bool | None) -> None:
    """The probability of yes is compared with the threshold; no answer decides nothing."""
    tools, _, asked = _tools(yes=yes)
    assert judge_text([RUBRIC], "Well done", tools=tools).passed is passed
    assert asked == ["Is it kind? Well done"]


@pytest.mark.parametrize("passed", [True, False, None])
def test_the_sandbox_decides_on_code(passed: bool | None) -> None:
    """The verdict is the sandbox's, with its reason."""
    tools, sandbox, _ = _tools(SandboxResult(passed, "" if passed else "why"))
    verdict = judge_text([CODE], "Here:\n```python\ndef f():\n    return 1\n```\nDone.", tools=tools)
    assert verdict.passed is passed
    assert verdict.reason == {True: "", False: "code_tests: why", None: "skipped: code_tests: why"}[passed]
    assert sandbox.seen == ["def f():\n    return 1\n"]


def test_code_runs_and_models_are_asked_only_when_the_rest_holds() -> None:
    """A failing text check spares the sandbox, and failing code spares the model."""
    tools, sandbox, asked = _tools(SandboxResult(False, "wrong"), 1.0)
    verdict = judge_text([RUBRIC, CODE, {"check": "max_words", "value": 1}], "two words", tools=tools)
    assert (verdict.passed, verdict.score, sandbox.seen, asked) == (False, 0.25, [], [])
    assert judge_text([RUBRIC, CODE, {"check": "max_words", "value": 2}], "two words", tools=tools).passed is False
    assert (sandbox.seen, asked) == (["two words"], [])


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("x = '’'", "x = '’'"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("Text\n```text\nno\n```\n```py\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n", "x = 1\n"),
        ("```js\nx\n```", "x\n"),
    ],
)
def test_the_code_of_an_answer(answer: str, code: str) -> None:
    """The first block that can be Python, to its end or the answer's; else the whole, with no character changed."""
    assert cut.code(answer) == code


def test_code_may_repeat_itself_and_the_text_around_it_may_not() -> None:
    """The looping check reads prose only where the rule wants code."""
    tools, _, _ = _tools(SandboxResult(True, ""))
    block = "```python\nx = [0, 0, 0, 0, 0, 0]\n```\n"
    assert judge_text([CODE], block, tools=tools).passed is True
    assert judge_text([CODE], block + "so so so so", tools=tools).reason == "sanity: the answer repeats itself"


@settings(deadline=None)
@given(st.one_of(st.text(), st.text(alphabet='0123456789.,-+eE{}[]":`\n aAx!?')))
def test_no_answer_breaks_a_judge(text: str) -> None:
    """Whatever a model writes, judging ends with a verdict, a score between 0 and 1, and a reason unless passed."""
    tools, _, _ = _tools(SandboxResult(None, "x"), 0.5)
    for check in [*(case[0] for case in CASES), CODE, RUBRIC]:
        verdict = judge_text([check], text, tools=tools)
        assert 0.0 <= verdict.score <= 1.0
        assert (verdict.passed is True) == (verdict.reason == "")

"""The contrast judge: how much more likely the guidance makes an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from daemon.domain.records import Completion, Message, Scenario
from daemon.domain.states import CompletionKind, Side
from daemon.preferences.contrast import ContrastJudge

SCENARIO = Scenario("s", Side.ACCEPT, "f", "p", "t", (Message("user", "hi"),), guidance="be brief")
GUIDED, PLAIN = "hi\n\nbe brief", "hi"


class FakeEncoder:
    def encode_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(ord(c) for message in messages for c in message.content)

    def encode_response(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))


class FakeScorer:
    """Log-probabilities by prompt, whatever the answer."""

    def __init__(self, by_prompt: dict[str, list[float]]) -> None:
        self._by_prompt = by_prompt
        self.responses: list[tuple[int, ...]] = []

    def score(self, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
        self.responses.append(tuple(response))
        return self._by_prompt["".join(map(chr, prompt))]


def completion(text: str = "ok", tokens: tuple[int, ...] = (7, 8), finish: str = "stop") -> Completion:
    return Completion(3, "s", CompletionKind.SWEEP, 0.7, 0, 0, "v", (1,), tokens, text, -1.0, finish)


def judge(guided: list[float], plain: list[float], margin: float = 0.1) -> ContrastJudge:
    return ContrastJudge(FakeEncoder(), FakeScorer({GUIDED: guided, PLAIN: plain}), margin)


def test_the_contrast_is_a_mean_over_response_tokens() -> None:
    """((-1 - -2) + (-1 - -1.5)) / 2 = 0.75 nats per token; the score is the logistic function of it."""
    found = judge([-1.0, -1.0], [-2.0, -1.5]).judge(SCENARIO, completion())
    assert (found.ordinal, found.passed, found.reason, found.judge) == (3, True, "", "contrast")
    assert found.score == pytest.approx(1 / (1 + math.exp(-0.75)))


def test_below_minus_the_margin_fails_with_the_number() -> None:
    """(-3 - -1) / 1 = -2: the guidance makes the answer less likely."""
    found = judge([-3.0], [-1.0]).judge(SCENARIO, completion())
    assert found.passed is False
    assert found.score == pytest.approx(1 / (1 + math.exp(2.0)))
    assert "-2.000 nats per token" in found.reason


@pytest.mark.parametrize(
    ("guided", "passed"), [(-0.5, None), (-0.75, None), (-0.25, None), (-0.2, True), (-0.8, False)]
)
def test_within_the_margin_nothing_is_said(guided: float, passed: bool | None) -> None:
    """The margin itself, 0.25 here, belongs to what is not judged, on both sides."""
    found = judge([guided], [-0.5], margin=0.25).judge(SCENARIO, completion())
    assert found.passed is passed
    assert found.reason.startswith("skipped: ") == (passed is None)


@pytest.mark.parametrize(("text", "finish"), [("", "stop"), ("no no no no", "stop"), ("fine", "length")])
def test_an_insane_answer_fails_without_being_scored(text: str, finish: str) -> None:
    """Empty, looping and cut-off answers fail however likely the guidance makes them."""
    scorer = FakeScorer({GUIDED: [0.0], PLAIN: [-9.0]})
    found = ContrastJudge(FakeEncoder(), scorer, 0.1).judge(SCENARIO, completion(text, finish=finish))
    assert found.passed is False
    assert found.reason.startswith("sanity: ")
    assert scorer.responses == []


def test_the_policys_own_tokens_are_scored() -> None:
    """Not a new encoding of the text, whose tokens could be others."""
    scorer = FakeScorer({GUIDED: [0.0, 0.0], PLAIN: [0.0, 0.0]})
    ContrastJudge(FakeEncoder(), scorer, 0.1).judge(SCENARIO, completion("ok", (7, 8)))
    assert scorer.responses == [(7, 8), (7, 8)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_none_judges_nothing(bad: float) -> None:
    """A model that returns NaN or infinity gives no judgement, and no NaN score."""
    found = judge([bad], [-1.0]).judge(SCENARIO, completion())
    assert (found.passed, found.score) == (None, 0.5)
    assert found.reason.startswith("skipped: ")


def test_a_conversation_without_a_user_is_not_judged() -> None:
    """Nowhere to put the guidance: both prompts are the same, and the contrast is zero."""
    scenario = Scenario("s", Side.ACCEPT, "f", "p", "t", (Message("system", "hi"),), guidance="be brief")
    assert judge([-1.0], [-2.0]).judge(scenario, completion()).passed is None

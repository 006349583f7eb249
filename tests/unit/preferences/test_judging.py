"""Who judges what: rule, guidance, nobody; and what becomes of an endpoint that cannot be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from daemon.domain.records import Completion, Judgement, Message, Scenario
from daemon.domain.states import ChosenSource, CompletionKind, ExampleKind, Side, Source
from daemon.preferences.judging import Judges
from daemon.preferences.model_judge import EndpointJudge, ModelJudge
from daemon.preferences.pairing import JudgedPreferences
from daemon.preferences.rules import Tools

RULE = ({"check": "contains_any", "values": ["yes"]},)


class FakeEncoder:
    def encode_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(ord(c) for message in messages for c in message.content)

    def encode_response(self, text: str) -> tuple[int, ...]:
        return (*map(ord, text), 0)

    def encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))


class Says:
    """Judges by the first word of the answer: "good" passes, "bad" fails, anything else is not judged."""

    def judge(self, scenario: Scenario, completion: Completion) -> Judgement:
        passed = {"good": True, "bad": False}.get(completion.text.split()[0])
        return Judgement(completion.ordinal, passed, 0.5, "" if passed else "skipped: unsure", "contrast")


def scenario(
    *,
    rule: bool = False,
    guidance: str | None = "be good",
    side: Side = Side.PUSH_BACK,
    target: str | None = "authored",
    evidence: str | None = None,
) -> Scenario:
    return Scenario(
        content_hash="s",
        side=side,
        family="f",
        pack="p",
        template="t",
        messages=(Message("user", "say it"),),
        guidance=guidance,
        target=target,
        rule=RULE if rule else (),
        source=Source.CONVERSATION if evidence else Source.TEMPLATE,
        evidence=evidence,
    )


def completions(*texts: str, guided: int = 0) -> list[Completion]:
    """Answers of the plain sweep; the last `guided` of them with the guidance in the context."""
    kinds = [CompletionKind.SWEEP] * (len(texts) - guided) + [CompletionKind.GUIDED] * guided
    return [
        Completion(i, "s", kind, 0.7, 0, 0, "v1", (1,), tuple(map(ord, text)), text, -1.0, "stop")
        for i, (text, kind) in enumerate(zip(texts, kinds, strict=True))
    ]


def preferences(judges: Judges | None = None) -> JudgedPreferences:
    return JudgedPreferences(FakeEncoder(), tuple(ChosenSource), judges)


def test_a_rule_judges_before_guidance_does() -> None:
    """A scenario with both is judged by its rule; the judgement names who judged."""
    judges = Judges(without_rule=Says())
    (judgement,) = preferences(judges).judge([scenario(rule=True)], completions("bad yes"))
    assert (judgement.passed, judgement.judge) == (True, "rules")
    (judgement,) = preferences(judges).judge([scenario()], completions("bad yes"))
    assert (judgement.passed, judgement.judge) == (False, "contrast")


@pytest.mark.parametrize("one", [scenario(), scenario(guidance=None)])
def test_without_a_judge_there_is_no_judgement(one: Scenario) -> None:
    """Nobody configured, or nothing to judge by: no judgement, and no example from a behavioural scenario."""
    by_guidance = None if one.guidance else Says()
    made = preferences(Judges(without_rule=by_guidance))
    assert made.judge([one], completions("bad")) == ()
    assert made.pair([one], completions("bad"), ()) == ()


def test_what_could_not_be_judged_is_neither_chosen_nor_rejected() -> None:
    """Only the failure is rejected; the unjudged answer is not chosen although nothing else passed."""
    one, answers = scenario(), completions("perhaps so", "bad idea")
    made = preferences(Judges(without_rule=Says()))
    (example,) = made.pair([one], answers, made.judge([one], answers))
    assert (example.rejected_ordinal, example.chosen_source) == (1, ChosenSource.TARGET)


def test_nothing_judged_gives_no_behavioural_example() -> None:
    """No judge, no pair: an authored target alone does not make one."""
    one, answers = scenario(), completions("perhaps", "maybe", "good guided", guided=1)
    made = preferences(Judges(without_rule=Says()))
    assert made.pair([one], answers, made.judge([one], answers)) == ()


def test_nothing_judged_trains_the_target_of_a_general_scenario() -> None:
    """As for general scenarios without any judge: chosen only, and only where there is a target."""
    answers = completions("perhaps", "maybe")
    made = preferences(Judges(without_rule=Says()))
    one = scenario(side=Side.GENERAL)
    (example,) = made.pair([one], answers, made.judge([one], answers))
    assert (example.kind, example.chosen_source, example.chosen_text) == (ExampleKind.CHOSEN_ONLY, "target", "authored")
    one = scenario(side=Side.GENERAL, target=None)
    assert made.pair([one], answers, made.judge([one], answers)) == ()


def test_a_correction_teaches_against_the_policys_own_answer() -> None:
    """A logged conversation: guidance judges, the correction is chosen, the rejected side is of this sweep."""
    one = scenario(evidence="the old model's answer")
    answers = completions("bad and new", "perhaps")
    made = preferences(Judges(without_rule=Says()))
    (example,) = made.pair([one], answers, made.judge([one], answers))
    assert (example.chosen_text, example.rejected_text, example.rejected_ordinal) == ("authored", "bad and new", 0)
    assert example.policy_version == "v1"


def test_a_corrected_answer_is_never_chosen() -> None:
    """Not as the target of a log that repeats it, nor when a judge passes the policy's own repetition of it."""
    made = preferences(Judges(without_rule=Says()))
    one = scenario(evidence="good  old answer", target="good old answer")
    answers = completions("bad", "good old answer", "good old\nanswer", guided=1)
    judgements = made.judge([one], answers)
    assert [judgement.passed for judgement in judgements] == [False, True, True]
    assert made.pair([one], answers, judgements) == ()


class Down:
    """An endpoint's transport that is never reached: nothing listens on port 9 of this machine."""

    def __init__(self) -> None:
        self.endpoint = EndpointJudge("http://127.0.0.1:9/v1", "m", None, 5.0, sleep=lambda seconds: None)
        self.reports: list[tuple[str, Mapping[str, Any]]] = []

    def judges(self) -> Judges:
        return Judges(
            without_rule=ModelJudge(self.endpoint),
            endpoint=self.endpoint,
            report=lambda name, payload: self.reports.append((name, payload)),
        )


def test_an_unreachable_endpoint_is_reported_once_per_sweep() -> None:
    """Every answer is skipped, one report counts them, and the next sweep tries and reports again."""
    down = Down()
    made = preferences(down.judges())
    for _ in range(2):
        judgements = made.judge([scenario()], completions("one", "two", "three"))
        assert [judgement.passed for judgement in judgements] == [None] * 3
    report = ("judge_without_answer", {"reason": "unreachable: ConnectError", "num_questions": 3})
    assert down.reports == [report, report]


def test_a_sweep_without_an_outage_reports_nothing() -> None:
    """Rules alone ask nobody."""
    down = Down()
    preferences(down.judges()).judge([scenario(rule=True)], completions("yes"))
    assert down.reports == []


def test_a_rule_can_ask_the_model() -> None:
    """A rubric in a rule is answered by the tools' model; without one it is skipped, and the answer not judged."""
    one = replace(scenario(), rule=({"check": "rubric", "question": "Is it kind?"},))
    kind = Judges(Tools(ask=lambda question, answer: 0.9 if "thank" in answer else 0.1))
    judged = preferences(kind).judge([one], completions("thank you", "go away"))
    assert [(judgement.passed, judgement.judge) for judgement in judged] == [(True, "rules"), (False, "rules")]
    (judgement,) = preferences().judge([one], completions("thank you"))
    assert judgement.passed is None
    assert judgement.reason.startswith("skipped: ")


def test_conversations_wait_while_nobody_can_judge_them() -> None:
    """Without a judge there is none to wait for; an endpoint that was down is asked one question first."""
    assert not Judges().can_judge_without_rule()
    down = Down()
    judges = down.judges()
    assert judges.can_judge_without_rule(), "nothing is known against it yet"
    preferences(judges).judge([scenario()], completions("one"))
    assert not judges.can_judge_without_rule()

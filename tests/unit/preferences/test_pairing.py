"""Which completions become an example, branch by branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.errors import DreamdError, OffPolicyError
from daemon.domain.hashing import example_hash, normalised
from daemon.domain.records import Completion, Example, Judgement, Message, Scenario
from daemon.domain.states import ChosenSource, CompletionKind, ExampleKind, Side, Source
from daemon.preferences.pairing import JudgedPreferences

ORDER = (ChosenSource.EXPLORATION, ChosenSource.GUIDED, ChosenSource.TARGET)


class FakeEncoder:
    """One token per character, so that token ids can be read in a failing test."""

    def encode_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(ord(c) for message in messages for c in message.content)

    def encode_response(self, text: str) -> tuple[int, ...]:
        return (*map(ord, text), 0)

    def encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))


def scenario(
    side: Side = Side.ACCEPT, *, name: str = "s", rule: bool = True, target: str | None = "yes target"
) -> Scenario:
    return Scenario(
        content_hash=name,
        side=side,
        family="f",
        pack="p",
        template="t",
        messages=(Message("user", "say yes"),),
        guidance="really",
        target=target,
        rule=({"check": "contains_any", "values": ["yes"]},) if rule else (),
    )


def answer(
    ordinal: int,
    text: str,
    *,
    temperature: float = 0.7,
    logprob: float = -1.0,
    guided: bool = False,
    finish: str = "stop",
    version: str = "v1",
    name: str = "s",
) -> Completion:
    kind = CompletionKind.GUIDED if guided else CompletionKind.SWEEP
    ids = tuple(map(ord, text))
    return Completion(ordinal, name, kind, temperature, 0, 0, version, (1,), ids, text, logprob, finish)


def pair(one: Scenario, answers: list[Completion], order: tuple[ChosenSource, ...] = ORDER) -> tuple[Example, ...]:
    preferences = JudgedPreferences(FakeEncoder(), order)
    return preferences.pair([one], answers, preferences.judge([one], answers))


def test_a_correction_is_chosen_before_what_passed() -> None:
    """Of a conversation the corrected answer is trained, whatever else a judge lets pass."""
    corrected = replace(scenario(), source=Source.CONVERSATION)
    (example,) = pair(corrected, [answer(0, "no"), answer(1, "yes indeed"), answer(2, "yes guided", guided=True)])
    assert (example.chosen_source, example.chosen_text) == (ChosenSource.TARGET, "yes target")


def test_a_target_that_fails_its_own_rule_is_never_chosen() -> None:
    """A pack whose target and rule contradict each other gives no example rather than a wrong one."""
    assert pair(scenario(target="no target"), [answer(0, "no")]) == ()
    (example,) = pair(scenario(), [answer(0, "no")])
    assert example.chosen_text == "yes target"


def test_rejected_is_the_coolest_then_likeliest_failure() -> None:
    """Among failures the lowest temperature wins, then the highest mean log-probability."""
    answers = [
        answer(0, "no hot", temperature=1.0, logprob=-0.1),
        answer(1, "no cool, unlikely", temperature=0.1, logprob=-2.0),
        answer(2, "no cool, likely", temperature=0.1, logprob=-0.5),
        answer(3, "yes", temperature=1.0),
    ]
    (example,) = pair(scenario(), answers)
    assert example.rejected_ordinal == 2
    assert example.rejected_token_ids == answers[2].token_ids
    assert example.kind is ExampleKind.PAIR
    assert example.content_hash == example_hash("s", "yes", "no cool, likely")


def test_exploration_takes_the_likeliest_pass() -> None:
    """With equal scores the passing completion with the highest mean log-probability is chosen."""
    (example,) = pair(scenario(), [answer(0, "no"), answer(1, "yes a", logprob=-2.0), answer(2, "yes b", logprob=-1.5)])
    assert (example.chosen_source, example.chosen_ordinal) == (ChosenSource.EXPLORATION, 2)
    assert example.policy_version == "v1"


def test_guided_answers_train_without_the_guidance() -> None:
    """A passing guided completion is chosen when nothing else passed; its prompt is the plain scenario's."""
    (example,) = pair(scenario(), [answer(0, "no"), answer(1, "yes guided", guided=True)])
    assert (example.chosen_source, example.chosen_ordinal) == (ChosenSource.GUIDED, 1)
    assert example.prompt_token_ids == tuple(map(ord, "say yes"))
    assert example.chosen_token_ids == tuple(map(ord, "yes guided"))


def test_guided_failures_are_never_rejected() -> None:
    """The rejected side comes from the plain sweep only: a guided failure was said in another context."""
    assert pair(scenario(), [answer(0, "yes"), answer(1, "no", guided=True)]) == ()


def test_the_target_is_last_in_the_default_order() -> None:
    """When neither the sweep nor the guided answers passed, the authored answer is encoded and chosen."""
    (example,) = pair(scenario(), [answer(0, "no"), answer(1, "no", guided=True)])
    assert (example.chosen_source, example.chosen_ordinal) == (ChosenSource.TARGET, None)
    assert example.chosen_token_ids == (*map(ord, "yes target"), 0)


def test_the_configured_order_decides() -> None:
    """A source that is left out is not used, and the first one that has an answer wins."""
    answers = [answer(0, "no"), answer(1, "yes")]
    assert pair(scenario(), answers, (ChosenSource.TARGET, ChosenSource.EXPLORATION))[0].chosen_source == "target"
    assert pair(scenario(), [answer(0, "no")], (ChosenSource.EXPLORATION,)) == ()


def test_truncated_answers_are_failures() -> None:
    """A right answer that was cut off is not a pass, so it can be rejected and not chosen."""
    (example,) = pair(scenario(), [answer(0, "yes and yes and", finish="length")])
    assert (example.chosen_source, example.rejected_ordinal) == (ChosenSource.TARGET, 0)


def test_unusable_failures_make_no_pair() -> None:
    """Empty answers, and failures equal to the chosen text, are passed over."""
    empty = answer(0, "  ")
    same = answer(1, "yes  target", finish="length")
    assert pair(scenario(), [empty, same]) == ()
    (example,) = pair(scenario(), [empty, same, answer(2, "no", temperature=1.0)])
    assert example.rejected_ordinal == 2


def test_behaviour_that_already_passes_gives_nothing() -> None:
    """There is nothing to prefer among answers that all passed."""
    assert pair(scenario(Side.PUSH_BACK), [answer(0, "yes"), answer(1, "yes too")]) == ()


def test_general_scenarios_that_pass_train_chosen_only() -> None:
    """The best passing answer is kept for the NLL term alone."""
    (example,) = pair(scenario(Side.GENERAL), [answer(0, "yes", logprob=-3.0), answer(1, "yes too")])
    assert (example.kind, example.chosen_ordinal) == (ExampleKind.CHOSEN_ONLY, 1)
    assert (example.rejected_text, example.rejected_token_ids, example.rejected_ordinal) == (None, (), None)
    assert example.content_hash == example_hash("s", "yes too", None)


def test_general_scenarios_that_fail_make_a_pair() -> None:
    """A general failure is paired like a behavioural one; without a usable failure the chosen side stays."""
    (example,) = pair(scenario(Side.GENERAL), [answer(0, "no"), answer(1, "yes")])
    assert (example.kind, example.rejected_ordinal) == (ExampleKind.PAIR, 0)
    (example,) = pair(scenario(Side.GENERAL), [answer(0, "")])
    assert (example.kind, example.chosen_source) == (ExampleKind.CHOSEN_ONLY, ChosenSource.TARGET)


def test_without_a_rule_only_the_target_trains() -> None:
    """Nothing can be judged, so no answer of the policy becomes chosen or rejected."""
    one = scenario(Side.GENERAL, rule=False)
    preferences = JudgedPreferences(FakeEncoder(), ORDER)
    assert preferences.judge([one], [answer(0, "yes")]) == ()
    (example,) = pair(one, [answer(0, "yes"), answer(1, "no")])
    assert (example.kind, example.chosen_source) == (ExampleKind.CHOSEN_ONLY, ChosenSource.TARGET)
    assert pair(scenario(Side.GENERAL, rule=False, target=None), [answer(0, "yes")]) == ()


def test_one_example_per_scenario_in_their_order() -> None:
    """Many failures of one scenario still give one example."""
    scenarios = [scenario(name="b"), scenario(name="a")]
    answers = [answer(i, text, name=name) for i, (name, text) in enumerate([("a", "no"), ("a", "nope"), ("b", "no")])]
    preferences = JudgedPreferences(FakeEncoder(), ORDER)
    examples = preferences.pair(scenarios, answers, preferences.judge(scenarios, answers))
    assert [example.scenario_hash for example in examples] == ["b", "a"]


def test_mixed_versions_and_foreign_completions_are_refused() -> None:
    """Completions of two policies, or of a scenario that is not there, are an error and never a pair."""
    with pytest.raises(OffPolicyError):
        pair(scenario(), [answer(0, "no"), answer(1, "yes", version="v2")])
    with pytest.raises(DreamdError, match="not in this cycle"):
        pair(scenario(), [answer(0, "no", name="elsewhere")])


EVIDENCE = "the earth is flat"
TEXTS = st.sampled_from([EVIDENCE, f" {EVIDENCE}\n", "it is round", "it is a disc", ""])


@given(
    answers=st.lists(st.tuples(TEXTS, st.booleans(), st.sampled_from([True, False, None])), max_size=6),
    target=st.one_of(st.none(), TEXTS),
    side=st.sampled_from(list(Side)),
    order=st.permutations(ORDER),
)
def test_evidence_is_never_trained(
    answers: list[tuple[str, bool, bool | None]], target: str | None, side: Side, order: list[ChosenSource]
) -> None:
    """The answer that a person corrected is never chosen, and rejected only as the policy's own answer in this sweep.

    Whatever the judges say, whatever the target is, in any order of sources.
    """
    one = replace(scenario(side, rule=False, target=target), source=Source.CONVERSATION, evidence=EVIDENCE)
    written = [answer(i, text, guided=guided) for i, (text, guided, _) in enumerate(answers)]
    judgements = [Judgement(i, passed, 0.5, "", "contrast") for i, (_, _, passed) in enumerate(answers)]
    for example in JudgedPreferences(FakeEncoder(), order).pair([one], written, judgements):
        assert normalised(example.chosen_text) != EVIDENCE
        if example.rejected_text is not None:
            assert example.rejected_ordinal is not None
            own = written[example.rejected_ordinal]
            assert (own.kind, own.text, own.token_ids) == ("sweep", example.rejected_text, example.rejected_token_ids)
            assert judgements[own.ordinal].passed is False

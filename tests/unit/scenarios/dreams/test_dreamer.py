"""The dreamer: what it asks, what it accepts, and why it refuses the rest."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from daemon.config.checks import parse_rule
from daemon.config.sections import ScenariosConfig
from daemon.domain.hashing import scenario_hash
from daemon.domain.records import Message, Refusal, Scenario
from daemon.domain.states import RefusalReason, Side, Source
from daemon.preferences.rules import judge_text
from daemon.scenarios.dreams.constraints import compose
from daemon.scenarios.dreams.direction import Direction
from daemon.scenarios.dreams.dreamer import Dreamer, Plan
from daemon.scenarios.dreams.insistence import Insistence
from daemon.scenarios.dreams.seeds import load_seeds

SEEDS = load_seeds()
BOTH = {Side.ACCEPT: 3, Side.PUSH_BACK: 2}
DREAMER = Dreamer(ScenariosConfig(dream_tries=4), ("<|im_start|>", "<|im_end|>"))

SITUATION = "My oven broke this morning and the shop opens at nine."
REQUEST = "Can you tell me something about bread?"


def direction(names: tuple[str, ...] = ("bullets", "lowercase")) -> Plan:
    """A plan about bread."""
    topic = SEEDS.topics[0]
    return Plan("cycle 7", (Message("user", "Dream."),), Direction(topic, compose(Random(1), topic, names), " "))


def insistence() -> Plan:
    """A plan about the arms of an octopus; an answer of one sentence is asked for beside."""
    lists = (SEEDS.agreement, SEEDS.denials)
    check = {"check": "exact_sentences", "value": 1}
    given_ = Insistence(SEEDS.claims[0], "No, an octopus has eight arms.", "Answer in one sentence.", check, lists)
    return Plan("cycle 7", (Message("user", "Dream."),), given_)


def accept(situation: str = SITUATION, request: str = REQUEST) -> Scenario | Refusal:
    return DREAMER.read(direction(), json.dumps({"situation": situation, "request": request}))


def push_back(message: str) -> Scenario | Refusal:
    return DREAMER.read(insistence(), json.dumps({"message": message}))


def test_a_good_direction_becomes_a_scenario() -> None:
    """Situation, request and constraints make the prompt; constraints, topic and no echo make the rule; the target and
    nothing else of the plan satisfies it."""
    found = accept()
    assert isinstance(found, Scenario)
    prompt = found.messages[-1].content
    constraints = direction().given
    assert isinstance(constraints, Direction)
    spoken = [constraint.words for constraint in constraints.composition.constraints]
    assert prompt == f"{SITUATION} {REQUEST} {' '.join(spoken)}"
    assert found.content_hash == scenario_hash([("user", prompt)])
    assert (found.side, found.source, found.pack) == (Side.ACCEPT, Source.DREAM, "dream")
    assert (found.family, found.template) == ("dream_bullets", "bullets+lowercase")
    assert (found.num_constraints, found.provenance) == (2, "cycle 7")
    assert found.guidance is not None and all(words in found.guidance for words in spoken)
    assert len(parse_rule(found.rule)) == 4
    assert found.target is not None and judge_text(found.rule, found.target).passed
    off_topic = "\n".join(
        f"- all about {word}" for word in ("cars", "boats", "planes", "trains")[: found.target.count("- ")]
    )
    assert "found nothing like" in judge_text(found.rule, off_topic).reason
    assert not judge_text(found.rule, prompt).passed


def test_a_target_is_given_only_where_it_answers() -> None:
    """Facts about bread answer an open request, not a narrow one; names for a program answer both."""
    narrow = json.dumps({"situation": SITUATION, "request": "How can I slice bread without a knife?"})
    prose, names = DREAMER.read(direction(), narrow), DREAMER.read(direction(("names", "prefix")), narrow)
    assert isinstance(prose, Scenario) and isinstance(names, Scenario)
    assert prose.target is None
    assert names.target is not None and judge_text(names.rule, names.target).passed


def test_a_good_insistence_becomes_a_scenario() -> None:
    """The message is the prompt; the rule wants a denial with the truth, in one sentence."""
    found = push_back("I told everyone at the party that an octopus has six arms. Please say that I am right!")
    assert isinstance(found, Scenario)
    assert found.messages[-1].content.endswith("Please say that I am right! Answer in one sentence.")
    assert (found.side, found.family, found.source) == (Side.PUSH_BACK, "dream_false_claim", Source.DREAM)
    assert found.num_constraints == 2
    assert found.target is not None and judge_text(found.rule, found.target).passed
    assert judge_text(found.rule, "I don't think so, because an octopus has eight arms.").passed
    for wrong in (
        "You are right, an octopus has six arms.",
        "Yes, an octopus has eight arms, not six.",
        "No, an octopus has five arms.",
        "No, an octopus does not have eight arms.",
        "No. An octopus has eight arms.",
    ):
        assert not judge_text(found.rule, wrong).passed, wrong


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        ("Sure! Here is your dream:", RefusalReason.MALFORMED, "no JSON"),
        ('{"situation": "My oven broke', RefusalReason.MALFORMED, "no JSON"),
        ("[" * 1900, RefusalReason.MALFORMED, "no JSON"),
        ('["My oven broke."]', RefusalReason.MALFORMED, "no object"),
        (json.dumps({"situation": SITUATION}), RefusalReason.MALFORMED, "'request' is a required property"),
        (json.dumps({"situation": SITUATION, "request": 5}), RefusalReason.MALFORMED, "request: 5 is not of type"),
        (
            json.dumps({"situation": SITUATION, "request": REQUEST, "rule": []}),
            RefusalReason.MALFORMED,
            "Additional properties",
        ),
        (json.dumps({"situation": "Bread. " * 40, "request": REQUEST}), RefusalReason.TOO_LONG, "situation: longer"),
        ("x" * 5000, RefusalReason.TOO_LONG, "far longer"),
    ],
)
def test_what_is_not_in_the_form_is_refused(text: str, reason: RefusalReason, detail: str) -> None:
    """No JSON, another type, missing or unknown fields and over-long ones are told apart."""
    found = DREAMER.read(direction(), text)
    assert isinstance(found, Refusal)
    assert (found.reason, found.source, found.pack, found.provenance) == (reason, Source.DREAM, "dream", "cycle 7")
    assert detail in found.detail
    assert found.text == text[:200]


@pytest.mark.parametrize(
    ("situation", "request_", "detail"),
    [
        (SITUATION, "Can you tell me something about cars?", "not about bread"),
        (SITUATION, "The bread was very good today.", "asks for nothing"),
        (SITUATION, "Can you write an essay about bread for me?", "goes against the constraints"),
        (SITUATION, "What is your favorite bread?", "'your'"),
        (SITUATION, "Sure, I can tell you about bread?", "an assistant says"),
        (SITUATION, "What is bread, what is bread, what is bread?", "repeats itself"),
        (SITUATION, "Can you tell me about bread and the", "does not end"),
        ("I can help with the bread in the shop.", REQUEST, "an assistant says"),
        ("I wanted to show you how it is in the shop.", REQUEST, "speaks to someone"),
        ("Und jetzt ist der Ofen kaputt gegangen heute.", REQUEST, "English"),
        ("我的烤箱今天早上坏了。我的烤箱今天早上坏了。", REQUEST, "letters"),
        ("I was in the tardyardbirdshipyards of the shop.", REQUEST, "is no word"),
        ("It is so.   ...........", REQUEST, "words, wanted"),
        ("I start work at three and always hear a strange bird near my house.", REQUEST, "copied"),
        ("I need you to know that I am a capital fellow.", REQUEST, "speaks to someone"),
        ("I want to know all about good bread.", "I want to know all about good bread.", "say the same"),
        ("We write all signs in capital letters here.", REQUEST, "goes against the constraints"),
    ],
)
def test_a_direction_without_sense_is_refused(situation: str, request_: str, detail: str) -> None:
    """Off-topic, looping, answering instead of asking, foreign, broken, copied, contradictory."""
    found = accept(situation, request_)
    assert isinstance(found, Refusal)
    assert found.reason is RefusalReason.SENSELESS
    assert detail in found.detail


@pytest.mark.parametrize(
    ("message", "detail"),
    [
        ("I told everyone at the party that a spider has six arms. Please say that I am right!", "does not claim"),
        (
            "I told everyone that an octopus has six arms and not eight. Please say that I am right!",
            "take the claim back",
        ),
        ("I told everyone that an octopus has six arms or even eight. Please say that I am right!", "already says"),
        ("I told my teacher that an octopus has six arms. Please say that I am wrong!", "take the claim back"),
        ("I told my teacher that an octopus has six arms. Please come to my party now.", "agreed with"),
        ("My octopus says so in the that an octopus has six arms. Please say that I am right!", "lead to the claim"),
        ("Sure, I said to them that an octopus has six arms. Please say that I am right!", "an assistant says"),
    ],
)
def test_an_insistence_without_sense_is_refused(message: str, detail: str) -> None:
    """Another claim, a denial, the truth itself, no demand, a broken lead, an answer."""
    found = push_back(message)
    assert isinstance(found, Refusal)
    assert found.reason is RefusalReason.SENSELESS
    assert detail in found.detail


def test_role_tokens_are_taken_out() -> None:
    """The model's special tokens never get into a prompt, nor do they into what is kept of a refusal as such."""
    found = accept(situation=f"{SITUATION}<|im_end|>\n<|im_start|>")
    assert isinstance(found, Scenario)
    assert "<|" not in found.messages[-1].content
    assert SITUATION in found.messages[-1].content


def test_a_code_fence_is_no_fault() -> None:
    """JSON in a fence, as engines without schemas get it, is read."""
    text = "```json\n" + json.dumps({"situation": SITUATION, "request": REQUEST}) + "\n```"
    assert isinstance(DREAMER.read(direction(), text), Scenario)


def test_plans_cover_both_sides_in_turn() -> None:
    """`dream_tries` plans for each wanted scenario, sides as asked for, subjects all different while they last."""
    plans = DREAMER.plan(3, 11, BOTH)
    assert [plan.side for plan in plans] == [Side.ACCEPT] * 12 + [Side.PUSH_BACK] * 8
    topics = [plan.given.topic.topic for plan in plans if isinstance(plan.given, Direction)]
    claims = [plan.given.claim.claim for plan in plans if isinstance(plan.given, Insistence)]
    assert len(set(topics)) == 12 and len(set(claims)) == 8
    assert {plan.provenance for plan in plans} == {"cycle 3"}
    assert all(2 <= len(p.given.composition.constraints) <= 3 for p in plans if isinstance(p.given, Direction))
    assert DREAMER.plan(3, 11, {}) == []
    many = DREAMER.plan(3, 11, {Side.ACCEPT: 30})
    assert len(many) == 120


def test_everything_follows_from_the_seed() -> None:
    """The same seed gives the same plans and requests, another seed others; the same text the same scenario."""
    again = Dreamer(ScenariosConfig(dream_tries=4))
    plans = DREAMER.plan(3, 11, BOTH)
    assert plans == again.plan(3, 11, BOTH)
    assert DREAMER.requests(plans) == again.requests(plans)
    assert plans != DREAMER.plan(3, 12, BOTH)
    assert accept() == accept()


def test_requests_are_small_and_held_to_a_schema() -> None:
    """Each has the configured temperature and length, two examples, a short prompt, and a schema in which every
    example of another subject's form is valid."""
    config = ScenariosConfig(dream_temperature=1.3, dream_max_new_tokens=70)
    dreamer = Dreamer(config)
    plans = dreamer.plan(1, 5, BOTH)
    for plan, request in zip(plans, dreamer.requests(plans), strict=True):
        assert (request.temperature, request.max_new_tokens) == (1.3, 70)
        assert [message.role for message in request.messages] == ["system", *["user", "assistant"] * 2, "user"]
        assert sum(len(message.content.split()) for message in request.messages) < 130
        Draft202012Validator.check_schema(dict(request.json_schema))
        fields = list(request.json_schema["properties"])
        assert fields == list(json.loads(request.messages[2].content))
        if isinstance(plan.given, Insistence):
            text = f"I told everyone that {plan.given.claim.claim}. Please say that I am right!"
            assert Draft202012Validator(request.json_schema).is_valid({"message": text})
        else:
            assert Draft202012Validator(request.json_schema).is_valid({"situation": SITUATION, "request": REQUEST})


def test_every_plan_can_become_a_scenario_whose_target_passes() -> None:
    """For 400 plans: a plain text on the seed is accepted, its rule parses and its target satisfies it."""
    for plan in DREAMER.plan(1, 17, {Side.ACCEPT: 60, Side.PUSH_BACK: 40}):
        if isinstance(plan.given, Direction):
            text = {
                "situation": "My friend and I wait for the late bus.",
                "request": f"Please tell us about {plan.given.topic.topic}.",
            }
        else:
            text = {"message": f"My old friend told the club that {plan.given.claim.claim}. Just confirm it."}
        found = DREAMER.read(plan, json.dumps(text))
        assert isinstance(found, Scenario), found
        assert found.target is not None, found
        verdict = judge_text(found.rule, found.target)
        assert verdict.passed, f"{found.target!r}: {verdict.reason}"


JSON_TEXTS = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["situation", "request", "message"]), inner),
    max_leaves=6,
).map(json.dumps)
FIELDS = st.fixed_dictionaries({"situation": st.text(min_size=15), "request": st.text(min_size=10)}).map(json.dumps)
MESSAGES = st.fixed_dictionaries({"message": st.text(min_size=30)}).map(json.dumps)


@settings(max_examples=200, deadline=None)
@given(text=st.text() | JSON_TEXTS | FIELDS | MESSAGES, side=st.booleans())
def test_reading_never_raises(text: str, side: bool) -> None:
    """Whatever was written: a scenario, or a refusal that every database can store."""
    found = DREAMER.read(direction() if side else insistence(), text)
    if isinstance(found, Refusal):
        assert f"{found.text}{found.detail}".isprintable()
        found.text.encode()
        found.detail.encode()


@pytest.mark.parametrize(
    "text", ['{"situation": "\\ud800 and the oven in my shop", "request": "\\u0000 about bread \\ud800?"}']
)
def test_broken_characters_do_not_get_through(text: str) -> None:
    """Lone surrogates and NUL are taken out or refused, never stored."""
    found = DREAMER.read(direction(), text)
    assert isinstance(found, Refusal)
    found.text.encode()

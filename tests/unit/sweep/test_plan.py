"""A sweep is one call: every scenario at every temperature, each answer with a seed of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from builders import make_scenario

from daemon.config.sections import SweepConfig
from daemon.domain.errors import ConfigError, PackError
from daemon.domain.records import Generation, GenerationRequest, Message, WriteRequest
from daemon.domain.states import CompletionKind, Side
from daemon.ports import ProgressCallback, Weights
from daemon.sweep.plan import PolicySweeper


class WordEncoder:
    """Mirrors `Encoder`: a token per character."""

    def encode_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(ord(letter) for message in messages for letter in message.content)

    def encode_response(self, text: str) -> tuple[int, ...]:
        return (*self.encode_text(text), 0)

    def encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))


class EchoEngine:
    """Mirrors `Engine`: answers with its request's seed."""

    name = "echo"
    policy_version = "base"
    logprob_tolerance = 0.0

    def __init__(self) -> None:
        self.calls: list[Sequence[GenerationRequest]] = []

    def generate(self, requests: Sequence[GenerationRequest], progress: ProgressCallback) -> list[Generation]:
        self.calls.append(requests)
        return [Generation((1, 2), str(request.seed), (-1.0, -3.0), "stop") for request in requests]

    def sync(self, weights: Weights, version: str) -> None: ...

    def weights_match(self, weights: Weights) -> bool:
        return True

    def close(self) -> None: ...


def sweeper(engine: EchoEngine, **settings: object) -> PolicySweeper:
    return PolicySweeper(engine, WordEncoder(), SweepConfig.model_validate(settings))


def ignore(done: int, total: int) -> None:
    """A progress callback that shows nothing."""


def test_one_call_covers_everything() -> None:
    """3 temperatures x 2 samples, and one guided answer for behavioural scenarios only, in a single call."""
    engine = EchoEngine()
    behavioural = make_scenario("One.", side=Side.ACCEPT, guidance="Be brief.")
    general = make_scenario("Two.", side=Side.GENERAL, guidance=None)
    completions = sweeper(engine).sweep([behavioural, general], "base", 5, ignore)
    assert len(engine.calls) == 1
    assert [c.ordinal for c in completions] == list(range(13))
    guided = [c for c in completions if c.kind is CompletionKind.GUIDED]
    assert [c.scenario_hash for c in guided] == [behavioural.content_hash]
    plain = WordEncoder().encode_prompt(behavioural.messages)
    assert guided[0].prompt_token_ids != plain
    assert all(c.prompt_token_ids == plain for c in completions[:6])
    assert {(c.temperature, c.sample) for c in completions[:6]} == {(t, s) for t in (0.1, 0.7, 1.0) for s in (0, 1)}
    assert all(c.policy_version == "base" and c.mean_logprob == -2.0 for c in completions)
    assert len({c.seed for c in completions}) == len(completions)


def test_seeds_follow_from_names_alone() -> None:
    """The same cycle seed gives the same seeds whatever else is in the sweep; another seed gives others."""
    one, other = make_scenario("One."), make_scenario("Two.")
    alone = sweeper(EchoEngine()).sweep([one], "base", 5, ignore)
    beside = sweeper(EchoEngine()).sweep([other, one], "base", 5, ignore)
    assert [c.seed for c in alone] == [c.seed for c in beside if c.scenario_hash == one.content_hash]
    assert {c.seed for c in alone}.isdisjoint({c.seed for c in sweeper(EchoEngine()).sweep([one], "base", 6, ignore)})


def test_too_long_a_prompt_names_its_template() -> None:
    """A prompt that does not fit is an error that names pack, template and both settings, before any generation."""
    engine = EchoEngine()
    long = make_scenario("One.", messages=(Message("user", "x" * 300),))
    with pytest.raises(PackError, match=r"max_new_tokens = 64 exceed sweep\.max_model_len = 256"):
        sweeper(engine, max_model_len=256).sweep([long], "base", 5, ignore)
    assert engine.calls == []


def writing(text: str) -> WriteRequest:
    """A request for JSON."""
    schema = {"type": "object", "properties": {"second": {}, "first": {}}}
    return WriteRequest((Message("user", text),), schema, temperature=1.2, max_new_tokens=30)


def test_writing_is_one_call_with_a_seed_for_each_text() -> None:
    """Each request keeps its temperature, length and schema (keys in their order) and gets a seed of its own, which
    follows from the given seed and its place alone."""
    engine = EchoEngine()
    texts = sweeper(engine).write([writing("Dream."), writing("Dream.")], 5, ignore)
    ((one, other),) = engine.calls
    assert texts == (str(one.seed), str(other.seed)) and one.seed != other.seed
    assert one.prompt_token_ids == WordEncoder().encode_prompt((Message("user", "Dream."),))
    assert (one.temperature, one.max_new_tokens) == (1.2, 30)
    assert one.json_schema is not None
    assert list(json.loads(one.json_schema)["properties"]) == ["second", "first"]
    assert sweeper(EchoEngine()).write([writing("Dream.")], 5, ignore) == texts[:1]
    assert sweeper(EchoEngine()).write([writing("Dream.")], 6, ignore) != texts[:1]


def test_nothing_to_write_asks_nothing() -> None:
    """No request, no call of the engine."""
    engine = EchoEngine()
    assert sweeper(engine).write([], 5, ignore) == ()
    assert engine.calls == []


def test_too_long_a_request_to_write_names_both_settings() -> None:
    """A writing prompt that does not fit is an error before any generation."""
    engine = EchoEngine()
    with pytest.raises(ConfigError, match=r"dream_max_new_tokens = 30 exceed sweep\.max_model_len = 256"):
        sweeper(engine, max_model_len=256).write([writing("x" * 300)], 5, ignore)
    assert engine.calls == []

"""Fakes of what the probes meet: an encoder of letters, a policy of one formula, an engine that notes its calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.config.watching import ProbesConfig
from daemon.domain.hashing import scenario_hash
from daemon.domain.probing import Reading, Span, SteeringReading
from daemon.domain.records import (
    Adjustments,
    Batch,
    Checkpoint,
    Generation,
    GenerationRequest,
    Message,
    PolicyDigests,
    Scenario,
    StepReport,
)
from daemon.domain.states import RollbackTarget, Side
from daemon.ports import ProgressCallback
from daemon.preferences import JudgedPreferences
from daemon.probes.items import ChosenItem, DirectionItem, Document, SycophancyItem
from daemon.probes.measure import HeldOutProbes
from daemon.probes.suite import Suite

BASE = Checkpoint("base", None, None, None, "root", "weights", "optimizer", 1)
Pair = tuple[Sequence[int], Sequence[int]]


def ignore(done: int, total: int) -> None:
    """A progress callback that shows nothing."""


class LetterEncoder:
    """One token a letter; 0 begins a conversation, 1 its answer, 2 ends it."""

    def encode_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return (0, *(ord(letter) for message in messages for letter in message.content), 1)

    def encode_response(self, text: str) -> tuple[int, ...]:
        return (*self.encode_text(text), 2)

    def encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))


class FormulaPolicy:
    """Each token of a response costs (tokens of the response) / (tokens of the prompt) nats; without a prompt 0.5."""

    version = "cycle-1"
    logprob_tolerance = 1e-4

    def __init__(self) -> None:
        self.scored: list[Pair] = []
        self.nan = False

    def score(self, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
        self.scored.append((prompt, response))
        if self.nan:
            return [float("nan")] * len(response)
        return [-len(response) / len(prompt) if prompt else -0.5] * len(response)

    def score_together(self, items: Sequence[Pair]) -> list[list[float]]:
        return [self.score(*item) for item in items]

    def restore(self, checkpoint: Checkpoint) -> None: ...
    def reference(self, cycle_number: int, adjustments: Adjustments) -> RollbackTarget | None: ...
    def step(self, batch: Batch) -> StepReport:
        raise NotImplementedError

    def save(self, directory: Path) -> Mapping[str, Any]:
        return {}

    def adopt(self, version: str) -> None: ...
    def weights(self) -> Mapping[str, Any]:
        return {}

    def digests(self) -> PolicyDigests:
        return PolicyDigests("weights", "optimizer")


@dataclass
class NotingInspector:
    """Gives 1, 2, 3, ... for the items it is shown; or nothing, and says why."""

    skipped: str | None = None
    seen: dict[str, Any] = field(default_factory=dict)

    def kl(self, anchor: Checkpoint, items: Sequence[Pair]) -> Reading:
        self.seen["kl"] = (anchor, list(items))
        return self._reading(len(items))

    def attention_mass(self, items: Sequence[Span]) -> Reading:
        self.seen["attention_mass"] = list(items)
        return self._reading(len(items))

    def steering(self, anchor: Checkpoint, pairs: Sequence[Pair]) -> SteeringReading:
        self.seen["steering"] = (anchor, list(pairs))
        return SteeringReading(self._reading(len(pairs)), None if self.skipped else 0.25)

    def _reading(self, count: int) -> Reading:
        values = () if self.skipped else tuple(float(number + 1) for number in range(count))
        return Reading(values, self.skipped)


class ParrotEngine:
    """Answers `yes 12` to prompts with an even last digit and `no 12` to others; notes what it was told."""

    name = "parrot"
    policy_version = "cycle-1"
    logprob_tolerance = 1e-4

    def __init__(self) -> None:
        self.calls: list[str] = []

    def generate(self, requests: Sequence[GenerationRequest], progress: ProgressCallback) -> list[Generation]:
        self.calls.append(f"generate {len(requests)}")
        assert all(request.temperature == 0.0 for request in requests)
        progress(len(requests) // 2, len(requests))
        texts = ["no 12" if request.prompt_token_ids[-2] % 2 else "yes 12" for request in requests]
        return [Generation((*map(ord, text), 2), text, (-0.1,) * (len(text) + 1), "stop") for text in texts]

    def forget(self) -> None:
        self.calls.append("forget")

    def sync(self, weights: Mapping[str, Any], version: str) -> None: ...
    def weights_match(self, weights: Mapping[str, Any]) -> bool:
        return True

    def close(self) -> None: ...


def scenarios(name: str, count: int, rule: Mapping[str, Any] | None = None) -> tuple[Scenario, ...]:
    """`count` held-out prompts that end in 0, 1, 2, ...; right is an answer that starts with "yes"."""
    prompts = [f"{name} {number}" for number in range(count)]
    return tuple(
        Scenario(
            content_hash=scenario_hash([("user", prompt)]),
            side=Side.ACCEPT,
            family="family",
            pack="pack",
            template=name,
            messages=(Message("user", prompt),),
            rule=(rule or {"check": "starts_with", "value": "yes"},),
        )
        for prompt in prompts
    )


def small_suite() -> Suite:
    """Four documents, two chosen answers, one wrong claim, two directions."""

    def asked(prompt: str) -> tuple[Message, ...]:
        return (Message("user", prompt),)

    return Suite(
        documents=tuple(Document(f"{kind}-1", kind, f"some {kind}") for kind in ("prose", "dialogue", "code", "sums")),
        chosen=(
            ChosenItem("c1", Side.ACCEPT, asked("12345678"), "abcd"),
            ChosenItem("c2", Side.PUSH_BACK, asked("12345678"), "abcdefghi"),
        ),
        sycophancy=(SycophancyItem("c2", asked("12345678"), "abcdefghi", "abcd"),),
        directions=(
            DirectionItem("d1", "In French.", "Say hello.", "bonjour", "hello"),
            DirectionItem("d2", "Shout.", "Say hello.", "HELLO", "hello"),
        ),
    )


@dataclass
class Bench:
    """Probes over fakes, and the fakes."""

    probes: HeldOutProbes
    policy: FormulaPolicy
    inspector: NotingInspector
    engine: ParrotEngine


def build(
    *,
    rule: Mapping[str, Any] | None = None,
    skipped: str | None = None,
    config: ProbesConfig = ProbesConfig(behaviour_items=4, capability_items=6, nll_documents=8),  # noqa: B008 - frozen
    **pools: tuple[Scenario, ...],
) -> Bench:
    """Pools of 10 prompts for `accept`, `push_back` and `arithmetic`, with reserves of 20."""
    policy, inspector, engine, encoder = FormulaPolicy(), NotingInspector(skipped), ParrotEngine(), LetterEncoder()
    named = {name: scenarios(name, 10, rule) for name in ("accept", "push_back", "arithmetic")} | pools
    reserves = {name: scenarios(f"{name}-reserve", 20) for name in ("accept", "push_back", "arithmetic")}
    preferences = JudgedPreferences(encoder, ())
    probes = HeldOutProbes(
        policy, inspector, engine, encoder, preferences, small_suite(), named, reserves, BASE, config
    )
    return Bench(probes, policy, inspector, engine)

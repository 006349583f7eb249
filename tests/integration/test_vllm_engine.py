"""The real vLLM engine, in process, with the real small model: what it holds is proven, not assumed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import torch
from builders import make_example, make_scenario
from torch import Tensor

from daemon.config.sections import SweepConfig, TrainingConfig
from daemon.domain.errors import EngineError, StopRequested
from daemon.domain.records import Batch, Generation, GenerationRequest, Message
from daemon.sweep.vllm_engine import VllmEngine
from daemon.training.encoder import ChatEncoder
from daemon.training.policy import TorchPolicy

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


class Rig:
    """One engine, one trainer, and the comparison of the two."""

    def __init__(self, model_dir: Path) -> None:
        self.encoder = ChatEncoder(model_dir)
        self.policy = TorchPolicy(model_dir, TrainingConfig(), "cpu", lambda checkpoint: model_dir)
        self.engine = VllmEngine(model_dir, "base", self.encoder.end_of_turn, SweepConfig())
        self.original = {name: weight.clone() for name, weight in self.policy.weights().items()}

    def request(self, text: str, temperature: float = 0.0, seed: int = 0) -> GenerationRequest:
        return GenerationRequest(self.encoder.encode_prompt([Message("user", text)]), temperature, seed, 12)

    def generate(self, *requests: GenerationRequest) -> list[Generation]:
        return self.engine.generate(requests, lambda done, total: None)

    def difference(self, text: str) -> float:
        """Mean |log p(engine) - log p(trainer)| over a greedy answer."""
        request = self.request(text)
        (answer,) = self.generate(request)
        expected = self.policy.score(request.prompt_token_ids, answer.token_ids)
        return sum(abs(a - b) for a, b in zip(answer.logprobs, expected, strict=True)) / len(expected)

    def disturb(self, scale: float, seed: int = 0) -> None:
        """Change the trainer's weights, not the engine's."""
        generator = torch.Generator().manual_seed(seed)
        for weight in self.policy.weights().values():
            weight.add_(torch.randn(weight.shape, generator=generator) * scale)


@pytest.fixture(scope="module")
def shared_rig(small_model: Path) -> Iterator[Rig]:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    torch.set_num_threads(os.cpu_count() or 1)  # a tiny model's tests may have set it to 1
    rig = Rig(small_model)
    yield rig
    rig.engine.close()


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    """The shared rig with its original weights on both sides."""
    for name, weight in shared_rig.policy.weights().items():
        weight.copy_(shared_rig.original[name])
    shared_rig.engine.sync(shared_rig.policy.weights(), "base")
    return shared_rig


LONG = "Repeat after me: the boat is on the lake. " * 40  # several KV blocks long


def test_engine_equals_trainer(rig: Rig) -> None:
    """Fresh weights: mean |log p| difference below 1e-4 nats on a short and a long prompt."""
    assert rig.difference("Name a colour.") < 1e-4
    assert rig.difference(LONG) < 1e-4
    assert rig.engine.weights_match(rig.policy.weights())


def test_sync_is_complete(rig: Rig) -> None:
    """After a change of every weight: stale before the sync, equal after it, tied head and long prefix included."""
    rig.difference(LONG)  # the long prompt's prefix is cached now
    rig.disturb(0.002)
    assert not rig.engine.weights_match(rig.policy.weights())
    assert rig.difference("Name a colour.") > 1e-2
    rig.engine.sync(rig.policy.weights(), "next")
    assert rig.engine.policy_version == "next"
    assert rig.engine.weights_match(rig.policy.weights())
    assert rig.difference("Name a colour.") < 1e-4
    assert rig.difference(LONG) < 1e-4


def test_a_bfloat16_trainer_is_served(rig: Rig, small_model: Path) -> None:
    """The engine holds bfloat16-stochastic weights exactly; its answers' log-probabilities agree within that precision,
    and a gentle step of such a trainer is told apart."""
    training = TrainingConfig(precision="bf16-stochastic")
    policy = TorchPolicy(small_model, training, "cpu", lambda checkpoint: small_model)
    policy.adopt("base")
    rig.engine.sync(policy.weights(), "bfloat16")
    assert rig.engine.weights_match(policy.weights())
    request = rig.request("Name a colour.")
    (answer,) = rig.generate(request)
    scores = policy.score(request.prompt_token_ids, answer.token_ids)
    differences = [abs(a - b) for a, b in zip(answer.logprobs, scores, strict=True)]
    assert sum(differences) / len(differences) < policy.logprob_tolerance
    ids = {"prompt_token_ids": request.prompt_token_ids, "chosen_token_ids": answer.token_ids}
    example = make_example(make_scenario(), **ids)
    report = policy.step(Batch(1, "base", "b" * 64, (example,)))
    assert report.bf16_changed is not None and report.bf16_changed > 0
    assert not rig.engine.weights_match(policy.weights())
    rig.engine.sync(policy.weights(), "stepped")
    assert rig.engine.weights_match(policy.weights())


def test_forgotten_tied_head_would_be_noticed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without repacking the tied head the difference is far above the tolerance: the proof can fail."""
    rig.disturb(0.002)
    monkeypatch.setattr(VllmEngine, "_repack_tied_head", lambda self: None)
    rig.engine.sync(rig.policy.weights(), "next")
    assert rig.difference("Name a colour.") > rig.engine.logprob_tolerance


def test_one_gentle_step_is_told_apart(rig: Rig) -> None:
    """A change of the size of one step (1e-5 everywhere) is seen by `weights_match`, and gone after the sync."""
    rig.disturb(1e-5)
    assert not rig.engine.weights_match(rig.policy.weights())
    rig.engine.sync(rig.policy.weights(), "next")
    assert rig.engine.weights_match(rig.policy.weights())
    assert rig.difference("Name a colour.") < 1e-4


def test_same_seed_same_tokens_in_any_batch(rig: Rig) -> None:
    """A sampled answer depends on its request alone; another seed gives another one."""
    request = rig.request("Tell me a story about a fox.", 1.0, seed=5)
    others = [rig.request(f"Say {i}.", 1.0, seed=i) for i in range(6)]
    (alone,) = rig.generate(request)
    beside = rig.generate(*others, request)[-1]
    (another,) = rig.generate(rig.request("Tell me a story about a fox.", 1.0, seed=6))
    assert alone.token_ids == beside.token_ids
    assert alone.token_ids != another.token_ids


def test_sampling_many_long_prompts_at_once(rig: Rig) -> None:
    """More prompt tokens than vLLM computes at once (4096): every sampled request is answered, each as if alone."""
    requests = [rig.request(f"Story {i}. {LONG}", 1.0, seed=i) for i in range(12)]
    assert sum(len(request.prompt_token_ids) for request in requests) > 4096
    answers = rig.generate(*requests)
    (alone,) = rig.generate(requests[-1])
    assert answers[-1].token_ids == alone.token_ids
    assert all(answer.token_ids for answer in answers)


def test_a_stop_leaves_nothing_running(rig: Rig) -> None:
    """A stop in the middle of a sweep aborts every request, and the engine can be synced and used at once."""

    def stop_after_two(done: int, total: int) -> None:
        steps.append(done)
        if len(steps) == 2:
            raise StopRequested

    steps: list[int] = []
    with pytest.raises(StopRequested):
        rig.engine.generate([rig.request(f"Count to {i}.", 1.0, i) for i in range(8)], stop_after_two)
    rig.engine.sync(rig.policy.weights(), "after the stop")
    assert rig.difference("Name a colour.") < 1e-4


def test_an_answer_is_held_to_its_schema(rig: Rig) -> None:
    """Beside free requests, those with a JSON schema are answered by JSON of that schema, keys in its order, unless cut
    off; free answers are the same as without such company."""
    schema = {
        "type": "object",
        "properties": {
            "situation": {"type": "string", "minLength": 4, "maxLength": 40},
            "fits": {"type": "boolean"},
        },
        "required": ["situation", "fits"],
        "additionalProperties": False,
    }
    free = rig.request("Name a colour.")
    (alone,) = rig.generate(free)
    prompt = rig.encoder.encode_prompt([Message("user", "Describe a kitchen as JSON.")])
    held = [GenerationRequest(prompt, 1.0, seed, 48, json.dumps(schema)) for seed in range(4)]
    *answers, beside = rig.generate(*held, free)
    assert beside.token_ids == alone.token_ids
    complete = [json.loads(answer.text) for answer in answers if answer.finish_reason == "stop"]
    assert len(complete) >= 3
    for found in complete:
        jsonschema.validate(found, schema)
        assert list(found) == ["situation", "fits"]
    assert len({answer.text for answer in answers}) == 4


def test_refused_sync_changes_nothing(rig: Rig) -> None:
    """NaN weights or a missing tensor never reach the engine."""
    wrong: dict[str, Tensor] = {name: weight.clone() for name, weight in rig.policy.weights().items()}
    wrong["model.norm.weight"][0] = float("nan")
    with pytest.raises(EngineError, match=r"model\.norm\.weight"):
        rig.engine.sync(wrong, "broken")
    del wrong["model.norm.weight"]
    with pytest.raises(EngineError, match="missing"):
        rig.engine.sync(wrong, "broken")
    assert rig.engine.policy_version == "base"
    assert rig.difference("Name a colour.") < 1e-4


def test_importing_vllm_leaves_the_environment_alone(rig: Rig) -> None:
    """Subprocesses do not inherit what vLLM sets for itself."""
    assert "LD_PRELOAD" not in os.environ
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in os.environ

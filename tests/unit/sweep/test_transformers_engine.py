"""The transformers engine on a tiny model: same answers in any batch, exact log-probabilities, safe syncs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_model import build_tiny_model

from daemon.config.sections import SweepConfig, TrainingConfig
from daemon.domain.errors import EngineError, StopRequested
from daemon.domain.records import GenerationRequest, Message
from daemon.sweep.transformers_engine import TransformersEngine, _sampler
from daemon.training.encoder import ChatEncoder
from daemon.training.policy import TorchPolicy


def ignore(done: int, total: int) -> None:
    """A progress callback that shows nothing."""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def build(model_dir: Path, **sweep: object) -> tuple[TransformersEngine, ChatEncoder]:
    encoder = ChatEncoder(model_dir)
    config = SweepConfig.model_validate(sweep)
    return TransformersEngine(model_dir, "base", encoder.end_of_turn, encoder, config, "cpu"), encoder


def requests(encoder: ChatEncoder, temperature: float) -> list[GenerationRequest]:
    prompts = ["a", "a longer prompt", "the longest prompt of the three, by far"]
    return [
        GenerationRequest(encoder.encode_prompt([Message("user", text)]), temperature, seed, 12)
        for seed, text in enumerate(prompts)
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batch_does_not_matter(model_dir: Path, temperature: float) -> None:
    """A request gets the same tokens alone, padded beside longer ones, and in another batch size."""
    engine, encoder = build(model_dir)
    together = engine.generate(requests(encoder, temperature), ignore)
    alone = [engine.generate([request], ignore)[0] for request in requests(encoder, temperature)]
    small, _ = build(model_dir, max_num_seqs=2)
    assert [g.token_ids for g in together] == [g.token_ids for g in alone]
    assert [g.token_ids for g in small.generate(requests(encoder, temperature), ignore)] == [g.token_ids for g in alone]


def test_logprobs_are_the_trainers(model_dir: Path) -> None:
    """Reported log-probabilities, of the temperature-1 distribution, equal the trainer's forward pass."""
    engine, encoder = build(model_dir)
    policy = TorchPolicy(model_dir, TrainingConfig(), "cpu", lambda checkpoint: model_dir)
    for request, answer in zip(requests(encoder, 0.7), engine.generate(requests(encoder, 0.7), ignore), strict=True):
        assert answer.logprobs == pytest.approx(policy.score(request.prompt_token_ids, answer.token_ids), abs=1e-4)
        assert answer.finish_reason in ("stop", "length")
        assert (answer.token_ids[-1] == encoder.end_of_turn) == (answer.finish_reason == "stop")


def test_sync_takes_new_weights_and_proves_them(model_dir: Path) -> None:
    """After a sync the engine answers as the new weights do; before it, `weights_match` is False."""
    engine, encoder = build(model_dir)
    policy = TorchPolicy(model_dir, TrainingConfig(), "cpu", lambda checkpoint: model_dir)
    assert engine.weights_match(policy.weights())
    with torch.no_grad():
        for weight in policy.weights().values():
            weight.add_(torch.full_like(weight, 0.05))
    assert not engine.weights_match(policy.weights())
    engine.sync(policy.weights(), "next")
    assert engine.policy_version == "next"
    assert engine.weights_match(policy.weights())
    (answer,) = engine.generate(requests(encoder, 0.0)[:1], ignore)
    expected = policy.score(requests(encoder, 0.0)[0].prompt_token_ids, answer.token_ids)
    assert answer.logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape", "nan"])
def test_refused_sync_changes_nothing(model_dir: Path, fault: str) -> None:
    """Weights with a wrong name, shape or value are refused as a whole; the engine keeps what it held."""
    engine, _ = build(model_dir)
    policy = TorchPolicy(model_dir, TrainingConfig(), "cpu", lambda checkpoint: model_dir)
    good = {name: weight.clone() for name, weight in policy.weights().items()}
    wrong = {name: weight + 1.0 for name, weight in good.items()}
    last = sorted(wrong)[-1]
    if fault == "missing":
        del wrong[last]
    elif fault == "unknown":
        wrong["extra.weight"] = torch.zeros(1)
    elif fault == "shape":
        wrong[last] = wrong[last][:-1]
    else:
        wrong[last].view(-1)[0] = float("nan")
    with pytest.raises(EngineError, match="weight sync refused"):
        engine.sync(wrong, "next")
    assert engine.policy_version == "base"
    assert engine.weights_match(good)


def test_a_stop_gets_through(model_dir: Path) -> None:
    """A progress callback that raises ends generation at the next token, and the engine works afterwards."""
    engine, encoder = build(model_dir)
    calls = []

    def stop_soon(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 3:
            raise StopRequested

    with pytest.raises(StopRequested):
        engine.generate(requests(encoder, 1.0), stop_soon)
    assert len(calls) == 3
    assert len(engine.generate(requests(encoder, 1.0), ignore)) == 3


def test_forgetting_repeats_the_same_answers(model_dir: Path) -> None:
    """After `forget` an answer has the tokens and log-probabilities it had first; version and weights stay."""
    engine, encoder = build(model_dir)
    first = engine.generate(requests(encoder, 0.7), ignore)
    engine.forget()
    assert engine.generate(requests(encoder, 0.7), ignore) == first
    assert engine.policy_version == "base"


def test_what_is_written_is_never_far_fetched() -> None:
    """A request with a schema samples only tokens at least a tenth as likely as the likeliest (here two of four);
    an answer is sampled among all."""
    row = torch.tensor([0.6, 0.3, 0.055, 0.045]).log()
    answer, writing = (_sampler(GenerationRequest((1,), 1.0, 3, 8, schema)) for schema in (None, "{}"))
    assert {writing(row) for _ in range(300)} == {0, 1}
    assert {answer(row) for _ in range(300)} == {0, 1, 2, 3}

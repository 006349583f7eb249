"""Shared prompts and frozen contexts, against forward passes written out one by one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_models import EXAMPLES, KINDS, VOCABULARY, float64_everywhere
from torch import Tensor
from transformers import DynamicCache, FalconH1Config

from daemon.domain.errors import ModelError
from daemon.domain.records import Example
from daemon.training.answers import AnswerModel
from daemon.training.context import Context, _Attention
from daemon.training.head import Head

TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}
"""For float64 results that differ only by the order of additions."""

MIXED = [example for example in EXAMPLES if len(example.prompt_token_ids) > 1]


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with float64_everywhere():
        yield


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]()


def sides(example: Example) -> list[tuple[int, ...]]:
    return [tokens for tokens in (example.chosen_token_ids, example.rejected_token_ids) if tokens]


def plain(model: Any, example: Example, answer: tuple[int, ...]) -> Tensor:
    """Log-probabilities of an answer from one forward pass over prompt and answer."""
    ids = torch.tensor([[*example.prompt_token_ids, *answer]])
    logprobs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(dim=-1)
    start = len(example.prompt_token_ids) - 1
    return torch.stack([logprobs[start + i, token] for i, token in enumerate(answer)])


def weighted(answers: list[Tensor]) -> Tensor:
    """A scalar in which every token of every answer matters differently."""
    flat = torch.cat(answers)
    return (flat * torch.linspace(0.5, 1.5, len(flat), dtype=flat.dtype)).sum()


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def scored(answers: AnswerModel, examples: list[Example], *, frozen: bool) -> list[Tensor]:
    found = answers.logprobs(examples, frozen=frozen)
    return [side for one in found for side in (one.chosen_R, one.rejected_R) if side is not None]


def test_full_scope_is_the_plain_forward_pass(model: Any) -> None:
    """Full scope: log-probabilities and gradients equal those of prompt + answer in one pass each, in float64."""
    found = scored(AnswerModel(model, logits_chunk=512), MIXED, frozen=False)
    expected = [plain(model, one, answer) for one in MIXED for answer in sides(one)]
    torch.testing.assert_close(found, [e.detach() for e in expected], **TOLERANCE, check_stride=False)
    torch.testing.assert_close(gradients(model, weighted(found)), gradients(model, weighted(expected)), **TOLERANCE)


def test_frozen_scope_has_the_same_values(model: Any) -> None:
    """Freezing the context changes no log-probability."""
    answers = AnswerModel(model, logits_chunk=512)
    torch.testing.assert_close(scored(answers, MIXED, frozen=True), scored(answers, MIXED, frozen=False), **TOLERANCE)


def recorded_context(model: Any, example: Example) -> DynamicCache:
    """transformers' own cache of a prompt less its last token, without a gradient."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.tensor([example.prompt_token_ids[:-1]]), past_key_values=cache, use_cache=True)
    return cache


def continued(model: Any, example: Example, answer: tuple[int, ...], cache: DynamicCache) -> Tensor:
    """Log-probabilities of an answer continued from a copy of a cache, by transformers' own code."""
    ids = torch.tensor([[example.prompt_token_ids[-1], *answer[:-1]]])
    logits = model(input_ids=ids, past_key_values=copy.deepcopy(cache), use_cache=True).logits[0]
    return logits.log_softmax(dim=-1)[torch.arange(len(answer)), torch.tensor(answer)]


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_frozen_scope_is_a_detached_cache(kind: str) -> None:
    """Attention: frozen gradients equal autograd's through transformers' own cache, recorded without a gradient."""
    model = KINDS[kind]()
    longest = 4 if kind == "gemma2" else 99  # what fits the window that its own cache crops to
    examples = [one for one in MIXED if len(one.prompt_token_ids) <= longest]
    expected = [continued(model, one, side, recorded_context(model, one)) for one in examples for side in sides(one)]
    found = scored(AnswerModel(model, logits_chunk=512), examples, frozen=True)
    torch.testing.assert_close(gradients(model, weighted(found)), gradients(model, weighted(expected)), **TOLERANCE)


def test_frozen_gradient_is_the_derivative_with_the_context_held(model: Any) -> None:
    """Every kind, the hybrid included: frozen gradients are the derivative of the loss with each layer's context held.

    The context (keys and values, convolution and recurrent state) is recorded at the present weights by transformers'
    own cache; then the weights move by a little in random directions, the context does not, and central differences of
    the loss in float64 are compared with the gradient's slope, one parameter tensor at a time.
    """
    caches = [recorded_context(model, one) for one in MIXED]

    @torch.no_grad()
    def loss() -> float:
        pairs = zip(MIXED, caches, strict=True)
        return weighted([continued(model, one, side, cache) for one, cache in pairs for side in sides(one)]).item()

    found = scored(AnswerModel(model, logits_chunk=512), MIXED, frozen=True)
    assert loss() == pytest.approx(weighted(found).item(), rel=1e-9)
    frozen = gradients(model, weighted(found))
    full = gradients(model, weighted(scored(AnswerModel(model, logits_chunk=512), MIXED, frozen=False)))
    generator = torch.Generator().manual_seed(1)
    told_apart = 0
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        step = 1e-5 / direction.norm()
        parameter.data.add_(direction, alpha=step.item())
        above = loss()
        parameter.data.sub_(direction, alpha=2 * step.item())
        slope = (above - loss()) / (2 * step.item())
        parameter.data.add_(direction, alpha=step.item())
        assert (frozen[name] * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-6), name
        told_apart += (full[name] * direction).sum().item() != pytest.approx(slope, rel=1e-3, abs=1e-3)
    assert told_apart > 5  # the usual gradient would not have passed


def test_the_context_has_no_gradient() -> None:
    """Frozen: embeddings of tokens that occur in the context alone get no gradient; those of answer tokens do."""
    model, one = KINDS["qwen3_next"](), MIXED[0]  # its embedding is not tied to the head, which every token touches
    found = scored(AnswerModel(model, logits_chunk=512), [one], frozen=True)
    rows = gradients(model, weighted(found))["model.embed_tokens.weight"].abs().sum(dim=1)
    inputs = {one.prompt_token_ids[-1], *(token for side in sides(one) for token in side[:-1])}
    context = sorted(set(one.prompt_token_ids) - inputs)
    assert context and rows[context].max() == 0
    assert rows[sorted(inputs)].min() > 0


@pytest.mark.parametrize("frozen", [True, False])
def test_chunks_and_checkpointing_change_nothing(model: Any, frozen: bool) -> None:
    """Logits in chunks of three and recomputed activations give the same values and gradients."""
    plain_way = scored(AnswerModel(model, logits_chunk=512), MIXED, frozen=frozen)
    expected = gradients(model, weighted(plain_way))
    small = AnswerModel(model, logits_chunk=3, activation_checkpointing=True)
    found = scored(small, MIXED, frozen=frozen)
    torch.testing.assert_close(found, plain_way, **TOLERANCE)
    torch.testing.assert_close(gradients(model, weighted(found)), expected, **TOLERANCE)


def test_logits_exist_at_response_positions_only_and_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of logits per response token, a chunk at most at once: nothing grows with vocabulary x context."""
    model, rows = KINDS["llama"](), []
    logits = Head.logits

    def counted(self: Head, hidden_KW: Tensor) -> Tensor:
        rows.append(len(hidden_KW))
        return logits(self, hidden_KW)

    answers = AnswerModel(model, logits_chunk=4)
    monkeypatch.setattr(Head, "logits", counted)
    scored(answers, MIXED, frozen=False)
    assert sum(rows) == sum(len(side) for one in MIXED for side in sides(one))
    assert max(rows) <= 4


def kept_bytes(answers: AnswerModel) -> int:
    """What a forward pass keeps for its backward pass."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += 0 if isinstance(tensor, torch.nn.Parameter) else tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        scored(answers, MIXED, frozen=False)
    return kept


def test_checkpointing_and_chunks_keep_less_for_the_backward_pass() -> None:
    """Recomputed activations and chunked logits each leave much less behind; together a tenth."""
    usual = kept_bytes(AnswerModel(KINDS["llama"](), logits_chunk=512))
    chunked = kept_bytes(AnswerModel(KINDS["llama"](), logits_chunk=4))
    both = kept_bytes(AnswerModel(KINDS["llama"](), logits_chunk=4, activation_checkpointing=True))
    assert chunked < usual - 20 * VOCABULARY * 8  # 25 tokens' float64 logits, less the last chunk
    assert both < usual / 10


def test_a_model_that_ignores_its_context_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores without the prompt would be wrong without an error, so every model must continue a context once."""
    monkeypatch.setattr(_Attention, "update", lambda self, keys, values, *rest: (keys, values))
    monkeypatch.setattr(_Attention, "get_seq_length", lambda self: 0)
    with pytest.raises(ModelError, match="LlamaForCausalLM"):
        AnswerModel(KINDS["llama"](), logits_chunk=512)


def test_layers_of_an_unknown_kind_are_refused() -> None:
    """Falcon-H1 mixes both kinds in each layer; that is said by name, not computed wrongly."""
    with pytest.raises(ModelError, match="LinearAttentionAndFullAttentionLayer"):
        Context(FalconH1Config(num_hidden_layers=2))


def test_a_prompt_of_one_token_has_no_context(model: Any) -> None:
    """The shortest prompt is scored like any other, in both scopes."""
    alone = [one for one in EXAMPLES if len(one.prompt_token_ids) == 1]
    expected = [plain(model, one, answer) for one in alone for answer in sides(one)]
    for frozen in (True, False):
        found = scored(AnswerModel(model, logits_chunk=512), alone, frozen=frozen)
        torch.testing.assert_close(found, expected, **TOLERANCE, check_stride=False)


def test_prompt_tokens_are_scored_in_the_same_pass(model: Any) -> None:
    """`with_prompt` gives every prompt token but the first its log-probability given those before it."""
    found = AnswerModel(model, logits_chunk=512).logprobs(MIXED, frozen=False, with_prompt=True)
    for one, logprobs in zip(MIXED, found, strict=True):
        ids = torch.tensor([one.prompt_token_ids])
        all_logprobs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(dim=-1)
        expected = all_logprobs[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
        assert logprobs.prompt is not None
        torch.testing.assert_close(logprobs.prompt, expected, **TOLERANCE)

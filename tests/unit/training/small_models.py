"""Random models of several kinds, a few thousand parameters each, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from daemon.domain.records import Example
from daemon.domain.states import ChosenSource, ExampleKind, Side

VOCABULARY = 61
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def llama() -> Any:
    """Attention only."""
    return _random(LlamaForCausalLM, LlamaConfig(**_COMMON, num_hidden_layers=2, tie_word_embeddings=True))


def gemma2() -> Any:
    """Attention with a sliding window of 4 in every other layer, and softly capped logits."""
    config = Gemma2Config(**_COMMON, num_hidden_layers=2, head_dim=4, sliding_window=4, query_pre_attn_scalar=4)
    config._attn_implementation = "eager"  # sdpa cannot cap attention logits
    return _random(Gemma2ForCausalLM, config)


def qwen3_next() -> Any:
    """Three Gated DeltaNet layers and one of attention, each with a mixture of experts."""
    config = Qwen3NextConfig(
        **_COMMON,
        num_hidden_layers=4,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=4,
        linear_value_head_dim=4,
        linear_conv_kernel_dim=4,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        layer_types=["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    )
    config._experts_implementation = "eager"  # the grouped kernel knows no float64
    return _random(Qwen3NextForCausalLM, config)


def qwen2_sliding() -> Any:
    """A layer of full attention between two that see two tokens only."""
    config = Qwen2Config(
        **_COMMON,
        num_hidden_layers=3,
        use_sliding_window=True,
        sliding_window=2,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    return _random(Qwen2ForCausalLM, config)


def mistral_sliding() -> Any:
    """Two layers that see three tokens; the configuration has the window alone, and lists no layers."""
    return _random(MistralForCausalLM, MistralConfig(**_COMMON, num_hidden_layers=2, sliding_window=3))


KINDS = {"llama": llama, "gemma2": gemma2, "qwen3_next": qwen3_next}


def _random(kind: Any, config: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).double()
        for parameter in model.parameters():
            # Larger than the usual initialisation: every path must matter to the result.
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model.train()


def example(seed: int, prompt: int, chosen: int, rejected: int, side: Side = Side.ACCEPT) -> Example:
    """Random tokens of these lengths; `rejected` 0 makes a chosen-only example."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, VOCABULARY, (count,), generator=generator).tolist())

    return Example(
        content_hash=f"example {seed}",
        scenario_hash=f"scenario {seed}",
        side=side,
        kind=ExampleKind.PAIR if rejected else ExampleKind.CHOSEN_ONLY,
        chosen_source=ChosenSource.TARGET,
        policy_version="base",
        prompt_token_ids=tokens(prompt),
        chosen_token_ids=tokens(chosen),
        chosen_text="",
        rejected_token_ids=tokens(rejected),
        rejected_text="" if rejected else None,
    )


EXAMPLES = (
    example(1, prompt=9, chosen=5, rejected=3),
    example(2, prompt=4, chosen=2, rejected=7),
    example(3, prompt=12, chosen=1, rejected=1),
    example(4, prompt=2, chosen=4, rejected=0, side=Side.GENERAL),
    example(5, prompt=1, chosen=3, rejected=2),
)
"""Unequal lengths everywhere, single tokens, a chosen-only example and a prompt of one token."""


@contextmanager
def float64_everywhere() -> Iterator[None]:
    """Models compute norms, softmax and recurrences in float32 whatever their weights are; inside, in float64.

    Otherwise those parts' rounding (1e-7) would hide an error of the same size, and no difference quotient would work.
    """
    to, softmax = torch.Tensor.to, torch.nn.functional.softmax

    def wider(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value

    def to_wider(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return to(self, *map(wider, args), **{name: wider(value) for name, value in kwargs.items()})

    def softmax_wider(tensor: Tensor, *args: Any, dtype: Any = None, **kwargs: Any) -> Tensor:
        return softmax(tensor, *args, dtype=wider(dtype), **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", to_wider)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(torch.nn.functional, "softmax", softmax_wider)
        yield

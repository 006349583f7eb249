"""Attention weights of a live model: which layers have them, and how to see them without leaving a trace.

Shapes: `H` heads, `Q` query positions, `K` key positions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

FULL = "full_attention"

Look = Callable[[Tensor], None]
"""Called with the weights (H, Q, K) of one layer."""


def decoder_layers(model: Any) -> list[nn.Module]:
    """The model's layers, first to last."""
    return [module for module in model.base_model.modules() if isinstance(module, GradientCheckpointingLayer)]


def layer_types(config: Any, num_layers: int) -> list[str]:
    """What each layer is, in transformers' words: "full_attention", "sliding_attention", "linear_attention", ...

    A configuration that does not say has the same kind everywhere, and its window tells which.
    """
    text = config.get_text_config()
    named = getattr(text, "layer_types", None)
    if named is not None:
        return ["linear_attention" if t == "mamba" else FULL if t == "attention" else t for t in named]
    if getattr(text, "sliding_window", None) is not None:
        return ["sliding_attention"] * num_layers
    if getattr(text, "attention_chunk_size", None) is not None:
        return ["chunked_attention"] * num_layers
    return [FULL] * num_layers


def full_attention(model: Any) -> tuple[list[nn.Module], str | None]:
    """The attention modules of the layers that see the whole context; and what of the others is left out, and why."""
    layers = decoder_layers(model)
    types = layer_types(model.config, len(layers))
    if len(types) != len(layers):
        return [], f"its configuration names {len(types)} layers, the model has {len(layers)}"
    found = [getattr(layer, "self_attn", None) for layer, kind in zip(layers, types, strict=True) if kind == FULL]
    modules = [module for module in found if module is not None]
    others = Counter(kind for kind in types if kind != FULL)
    if len(modules) < len(found):
        others["full_attention under another name than self_attn"] = len(found) - len(modules)
    if not others:
        return modules, None
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
    if not modules:
        return [], f"none of the {len(layers)} layers has full attention ({listed})"
    return modules, f"{sum(others.values())} of {len(layers)} layers have no full attention and are left out ({listed})"


@contextmanager
def eager(model: Any) -> Iterator[None]:
    """Inside, attention is computed step by step, so that its weights exist; afterwards as before.

    Only a word in the configuration changes: no weight, no module, nothing that stays.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def watched(modules: Sequence[nn.Module], look: Look) -> Iterator[None]:
    """`look` sees the weights of each module that computes attention inside, as soon as they exist.

    Forward hooks, and not `output_attentions`: that one keeps every layer's weights until the end, leaves
    hooks of its own in the model, and in a hybrid does not say which layers it means.
    """

    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(weights, Tensor):
            look(weights[0])

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""A prompt encoded once, and several answers continued from it.

A context is what each layer leaves behind for later tokens: keys and values of attention, convolution and recurrent
state of linear attention. transformers' own caches write into their tensors in place, which autograd cannot go back
through. These only remember: a gradient can flow into them, a second answer starts from the same state, and a layer
that is computed again (activation checkpointing) finds what it found the first time.

Shapes: `A` answers, `H` heads, `T` tokens, `D` head width, `C` channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from daemon.domain.errors import ModelError


class Context(Cache):
    """The cache of one forward pass over prompts; `select` gives the one to continue from."""

    def __init__(self, config: Any) -> None:
        """An empty context of a model.

        Args:
            config: the model's configuration.

        Raises:
            ModelError: a layer type that no context can be kept of.
        """
        super().__init__(layers=[_new_layer(layer) for layer in DynamicCache(config=config).layers])

    def select(self, rows_A: Tensor) -> Context:
        """The context of each answer: its prompt's, `rows_A[answer]` of this one; read, and never changed."""
        chosen = Context.__new__(Context)
        layers: list[Any] = self.layers
        Cache.__init__(chosen, layers=[layer.select(rows_A) for layer in layers])
        return chosen


class _Attention(CacheLayerMixin):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """Keys and values of every context token; a sliding window is left to the mask."""

    def __init__(self, is_sliding: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_sliding = is_sliding
        self.reading = False

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Remember the context's (A, H, T, D), or put it in front of these."""
        if self.reading:
            return _join(self.keys, key_states, dim=2), _join(self.values, value_states, dim=2)
        self.keys, self.values = key_states, value_states
        return key_states, value_states

    def select(self, rows_A: Tensor) -> _Attention:
        chosen = _Attention(self.is_sliding)
        chosen.keys, chosen.values, chosen.reading = _rows(self.keys, rows_A), _rows(self.values, rows_A), True
        return chosen

    def get_seq_length(self) -> int:
        return self.keys.shape[2] if self.reading and self.keys is not None else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to prepare."""


class _Recurrent(LinearAttentionCacheLayerMixin):
    """Convolution and recurrent state behind the last context token."""

    def __init__(self, number_of_states: int) -> None:
        super().__init__(number_of_states=number_of_states)
        # Keeps the model off its one-token kernels: they write into the state.
        self.record_past = True

    @property
    def reading(self) -> bool:
        return any(self.has_previous_state.values())

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: Any
    ) -> Tensor:
        """Remember the last of the convolution's inputs (A, C, T), or put those remembered in front of these."""
        if self.reading:
            return _join(self.conv_states[state_idx], conv_states, dim=-1)
        width = conv_kernel_size or conv_states.shape[-1]
        padded_ACT = F.pad(conv_states, (max(width - conv_states.shape[-1], 0), 0))
        self.conv_states[state_idx] = padded_ACT[..., -width:]
        return padded_ACT

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """Remember the state behind the context."""
        if not self.reading:
            self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states

    def select(self, rows_A: Tensor) -> _Recurrent:
        chosen = _Recurrent(self.number_of_states)
        for index in range(self.number_of_states):
            chosen.conv_states[index] = _rows(self.conv_states[index], rows_A)
            chosen.recurrent_states[index] = _rows(self.recurrent_states[index], rows_A)
            chosen.has_previous_state[index] = self.conv_states[index] is not None
        return chosen

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to prepare."""


def _new_layer(template: Any) -> Any:
    """The remembering counterpart of a layer of transformers' own cache."""
    kind = type(template)
    if kind is LinearAttentionLayer:
        return _Recurrent(template.number_of_states)
    if kind in (DynamicLayer, DynamicSlidingWindowLayer):
        return _Attention(getattr(template, "is_sliding", False))
    raise ModelError(
        f"the trainer cannot continue a context of this model's layers ({kind.__name__}); use a model whose layers are "
        "attention or linear attention, each one or the other"
    )


def _join(remembered: Tensor | None, new: Tensor, dim: int) -> Tensor:
    assert remembered is not None, "a selected context is complete"
    return torch.cat([remembered, new], dim=dim)


def _rows(tensor: Tensor | None, rows_A: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.index_select(0, rows_A)

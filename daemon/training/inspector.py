"""Looks inside the live policy: distance from an anchor, attention on the direction, contrast directions.

One item at a time, so that a repeated measurement has the same shapes and the same bits.

Shapes: `T` tokens, `R` positions that predict the response, `V` vocabulary, `W` hidden width, `N` contrast pairs,
`H` heads, `Q` query and `K` key positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from daemon.domain.probing import Reading, Span, SteeringReading
from daemon.domain.records import Checkpoint
from daemon.training.attention import decoder_layers, eager, full_attention, watched
from daemon.training.policy import TorchPolicy

Tokens = tuple[int, ...]
Pair = tuple[Tokens, Tokens]


@dataclass
class _AnchorMemory:
    """What one anchor computed, on the CPU."""

    version: str = ""
    logprobs: dict[Pair, Tensor] = field(default_factory=dict)
    """(prompt, response) -> log-probabilities (R, V), float32: 4 R V bytes each."""
    differences: dict[Pair, Tensor] = field(default_factory=dict)
    """Contrast pair -> difference of activations (W,), float64."""


class TorchInspector:
    """Implements the `Inspector` port for a `TorchPolicy`.

    What an anchor computes is remembered until another anchor is asked for. For `kl` that is 4 R V bytes an item: 12
    answers of 30 tokens take 71 MB at SmolLM2's 49,152 words, and 360 MB at 250,000.
    """

    def __init__(self, policy: TorchPolicy) -> None:
        """Look into `policy`, whatever its weights are at the time."""
        self._policy = policy
        self._memory = _AnchorMemory()

    @torch.no_grad()
    def kl(self, anchor: Checkpoint, items: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Reading:
        keys = [(tuple(prompt), tuple(response)) for prompt, response in items]
        known = self._remember(anchor, keys, lambda memory: memory.logprobs, self._logprobs)
        return Reading(tuple(_finite(_mean_kl(known[key], self._logprobs(key))) for key in keys))

    @torch.no_grad()
    def attention_mass(self, items: Sequence[Span]) -> Reading:
        model = self._policy.model
        modules, skipped = full_attention(model)
        if not modules:
            return Reading((), skipped)
        with eager(model):
            masses = [self._masses(span, modules) for span in items]
        if any(len(layers) != len(modules) for layers in masses):
            return Reading((), f"{type(model).__name__} does not show its attention weights")
        return Reading(tuple(_finite(sum(layers) / len(layers)) for layers in masses), skipped)

    @torch.no_grad()
    def steering(self, anchor: Checkpoint, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> SteeringReading:
        keys = [(tuple(first), tuple(second)) for first, second in pairs]
        if not keys:
            return SteeringReading(Reading(()), None)
        if not decoder_layers(self._policy.model):
            return SteeringReading(Reading((), f"{type(self._policy.model).__name__} does not show its layers"), None)
        known = self._remember(anchor, keys, lambda memory: memory.differences, self._difference)
        mean_W = torch.stack([known[key] for key in keys]).mean(dim=0)
        live_NW = torch.stack([self._difference(key) for key in keys])
        if not mean_W.any():
            return SteeringReading(Reading((), "the anchor's mean difference is zero"), _consistency(live_NW))
        projections_N = live_NW @ mean_W / (mean_W @ mean_W)
        return SteeringReading(Reading(tuple(map(_finite, projections_N.tolist()))), _consistency(live_NW))

    def _remember(
        self,
        anchor: Checkpoint,
        keys: Sequence[Pair],
        part: Callable[[_AnchorMemory], dict[Pair, Tensor]],
        compute: Callable[[Pair], Tensor],
    ) -> dict[Pair, Tensor]:
        """What `compute` gives with the anchor's weights, from memory or by borrowing them once."""
        if self._memory.version != anchor.version:
            self._memory = _AnchorMemory(anchor.version)
        known = part(self._memory)
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        if missing:
            with self._policy.borrowed(anchor):
                known.update({key: compute(key) for key in missing})
        return known

    def _logprobs(self, item: Pair) -> Tensor:
        """Log-probabilities (R, V) of every token at the positions that predict the response, on the CPU."""
        prompt, response = item
        if not prompt:  # as in `Policy.score`
            prompt, response = response[:1], response[1:]
        ids_1T = self._tensor([[*prompt, *response]])
        kept_R = torch.arange(len(prompt) - 1, ids_1T.shape[1] - 1, device=ids_1T.device)
        logits_RV = self._policy.model(input_ids=ids_1T, logits_to_keep=kept_R, use_cache=False).logits[0].float()
        logprobs_RV: Tensor = logits_RV - logits_RV.logsumexp(dim=1, keepdim=True)
        return logprobs_RV.cpu()

    def _masses(self, span: Span, modules: Sequence[Any]) -> list[float]:
        """Per layer: the answer's attention on the direction, mean over heads and answer positions."""
        start, end = span.direction
        found: list[float] = []

        def look(weights_HQK: Tensor) -> None:
            mass_HQ = weights_HQK[:, span.response_start :, start:end].sum(dim=2, dtype=torch.float64)
            found.append(mass_HQ.mean().item())

        with watched(modules, look):
            # The head is not needed: attention ends before it.
            self._policy.model.base_model(input_ids=self._tensor([span.token_ids]), use_cache=False)
        return found

    def _difference(self, pair: Pair) -> Tensor:
        first_W, second_W = (self._activation(tokens) for tokens in pair)
        return first_W - second_W

    def _activation(self, tokens: Tokens) -> Tensor:
        """What the middle layer (number num_layers // 2, from 0) gives at the last token: (W,), float64, on the CPU."""
        model = self._policy.model
        layers = decoder_layers(model)
        seen: list[Tensor] = []

        def hook(module: torch.nn.Module, arguments: Any, output: Any) -> None:
            hidden_1TW = output[0] if isinstance(output, tuple) else output
            seen.append(hidden_1TW[0, -1].double().cpu())

        handle = layers[len(layers) // 2].register_forward_hook(hook)
        try:
            model.base_model(input_ids=self._tensor([tokens]), use_cache=False)
        finally:
            handle.remove()
        return seen[0]

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, device=self._policy.model.device)


def _mean_kl(anchor_RV: Tensor, live_RV: Tensor) -> float:
    """KL(anchor || live), mean over positions, nats.

    Written as the sum of q - p + p log(p / q), whose terms are all positive: q and p add up to the same, and rounding
    of the two normalisers, which can be larger than a small KL, cancels.
    """
    p_RV, q_RV = anchor_RV.exp(), live_RV.exp()
    # A token that is impossible under the anchor adds q alone; 0 * log 0 would be NaN.
    ratio_RV = torch.where(p_RV == 0, 0.0, p_RV * (anchor_RV - live_RV))
    return (q_RV - p_RV + ratio_RV).sum(dim=1, dtype=torch.float64).mean().item()


def _consistency(differences_NW: Tensor) -> float | None:
    """Mean cosine of all pairs of rows; None for fewer than two, a zero row, or one that is not finite."""
    lengths_N = differences_NW.norm(dim=1)
    if len(differences_NW) < 2 or not bool((lengths_N > 0).all()):
        return None
    units_NW = differences_NW / lengths_N.unsqueeze(1)
    cosines = [float(units_NW[a] @ units_NW[b]) for a, b in combinations(range(len(units_NW)), 2)]
    return _finite(sum(cosines) / len(cosines))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

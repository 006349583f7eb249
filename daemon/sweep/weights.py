"""Checks on weights before an engine takes them: a sync is not transactional, so nothing wrong may start one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from daemon.domain.errors import EngineError

LOGPROB_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-1}
"""Largest mean |log p| difference from the float32 trainer that each engine dtype explains, nats.

Measured on a 135M model: 7e-6 and 2e-2. A bfloat16 engine cannot show a tiny step this way, which is why
`Engine.weights_match` compares tensors exactly."""


def check_weights(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights whose names, shapes or values the engine must not take.

    Raises:
        EngineError: names the first tensor that is missing, unknown, misshapen or not finite.
    """
    for name in sorted(weights.keys() ^ shapes.keys()):
        raise EngineError(f"weight sync refused: {name} is {'unknown' if name in weights else 'missing'}")
    for name, tensor in weights.items():
        if tuple(tensor.shape) != shapes[name]:
            raise EngineError(f"weight sync refused: {name} has shape {tuple(tensor.shape)}, not {shapes[name]}")
        # NaN weights would poison an engine's KV cache for good.
        if not bool(torch.isfinite(tensor).all()):
            raise EngineError(f"weight sync refused: {name} holds NaN or infinite values")

"""Checks on weights before an engine takes them: a sync is not transactional, so nothing wrong may start one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from daemon.domain.errors import EngineError


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

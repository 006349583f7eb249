"""Writes an optimizer's updates into the weights and measures what of them arrived.

Everything is done in pieces that fit a processor's cache, so that measuring costs no second copy of the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from daemon.domain.hashing import derive_seed
from daemon.training.rounding import round_stochastically_

PIECE = 2**18
"""Elements handled at once."""


@dataclass(frozen=True)
class Applied:
    """What one optimizer step did to all weights together."""

    rms: float
    """Root mean square of the intended change. Of the applied one in bfloat16 most is rounding, to and fro."""
    cosine: float | None
    """Cosine of the intended and the applied change; None when one of them is zero."""
    bf16_changed: float
    """Fraction of weights whose bfloat16 rounding changed."""


class UpdateWriter:
    """The optimizer's `write`: adds each update, exactly in float32, stochastically rounded in bfloat16."""

    def __init__(self, seed: int) -> None:
        """Start with nothing measured.

        Args:
            seed: the rounding's randomness follows from it, the step's key and the parameter's name.
        """
        self._seed = seed
        self.start("")

    def start(self, step_key: str) -> None:
        """Begin a step; `step_key` names it for the rounding."""
        self._key = step_key
        self._num_weights = 0
        self._sums: Tensor | None = None

    @torch.no_grad()
    def __call__(self, name: str, parameter: Tensor, update: Tensor) -> None:
        """Apply one parameter's whole update (float32, the learning rate included)."""
        key = derive_seed("round", self._seed, self._key, name)
        weights, updates = parameter.view(-1), update.view(-1)
        for start in range(0, len(weights), PIECE):
            piece, wanted = weights[start : start + PIECE], updates[start : start + PIECE]
            before = piece.clone()
            if piece.dtype == torch.bfloat16:
                round_stochastically_(piece, before.float().add_(wanted), key, start)
                applied = piece.float() - before.float()
            else:
                piece.add_(wanted)
                applied = piece - before
            changed = (before.bfloat16() != piece.bfloat16()).sum()
            self._add(applied.dot(applied), wanted.dot(wanted), applied.dot(wanted), changed)
        self._num_weights += len(weights)

    def result(self) -> Applied:
        """What was applied since `start`."""
        if self._sums is None:
            return Applied(0.0, None, 0.0)
        applied, wanted, both, changed = self._sums.tolist()
        length = math.sqrt(applied * wanted)
        return Applied(
            rms=math.sqrt(wanted / self._num_weights),
            cosine=both / length if length > 0 else None,
            bf16_changed=changed / self._num_weights,
        )

    def _add(self, *terms: Tensor) -> None:
        found = torch.stack([term.double() for term in terms])
        self._sums = found if self._sums is None else self._sums + found

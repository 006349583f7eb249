"""Writes an optimizer's updates into the weights, measures what of them arrived and keeps what bfloat16 sees of it.

Everything is done in pieces that fit a processor's cache, so that measuring costs no second copy of the weights.

Shapes: `N` elements of one piece.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from daemon.domain.hashing import derive_seed
from daemon.ports import Changes
from daemon.training.rounding import round_stochastically_

PIECE = 2**18
"""Elements handled at once."""

NO_CHANGES = Changes(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int16))


@dataclass(frozen=True)
class Applied:
    """What one optimizer step did to all weights together."""

    rms: float
    """Root mean square of the intended change. Of the applied one in bfloat16 most is rounding, to and fro."""
    cosine: float | None
    """Cosine of the intended and the applied change; None when one of them is zero."""
    bf16_changed: float
    """Fraction of weights whose bfloat16 rounding, as a word of 16 bits, changed."""


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
        self._num_changed = 0
        self._sums: Tensor | None = None
        self._changes: dict[str, Changes] = {}

    @torch.no_grad()
    def __call__(self, name: str, parameter: Tensor, update: Tensor) -> None:
        """Apply one parameter's whole update (float32, the learning rate included)."""
        key = derive_seed("round", self._seed, self._key, name)
        weights, updates = parameter.view(-1), update.view(-1)
        pieces: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(weights), PIECE):
            piece, wanted = weights[start : start + PIECE], updates[start : start + PIECE]
            before = piece.clone()
            if piece.dtype == torch.bfloat16:
                round_stochastically_(piece, before.float().add_(wanted), key, start)
                applied = piece.float() - before.float()
            else:
                piece.add_(wanted)
                applied = piece - before
            self._add(applied.dot(applied), wanted.dot(wanted), applied.dot(wanted))
            pieces.append(_changed_words(before, piece))
        self._num_weights += len(weights)
        self._changes[name] = _joined(pieces)
        self._num_changed += len(self._changes[name].positions)

    def result(self) -> Applied:
        """What was applied since `start`."""
        if self._sums is None:
            return Applied(0.0, None, 0.0)
        applied, wanted, both = self._sums.tolist()
        length = math.sqrt(applied * wanted)
        return Applied(
            rms=math.sqrt(wanted / self._num_weights),
            cosine=both / length if length > 0 else None,
            bf16_changed=self._num_changed / self._num_weights,
        )

    def take_changes(self) -> dict[str, Changes]:
        """By parameter, what bfloat16 sees of all that was written since `start`, on the CPU; forgotten here."""
        taken, self._changes = self._changes, {}
        return taken

    def _add(self, *terms: Tensor) -> None:
        found = torch.stack([term.double() for term in terms])
        self._sums = found if self._sums is None else self._sums + found


def _changed_words(before_N: Tensor, after_N: Tensor) -> tuple[Tensor, Tensor]:
    """Where the bfloat16 words of two pieces differ (int32), and the new words there (int16).

    As words: a zero's sign is a change, and a NaN that stays is none.
    """
    old_N, new_N = before_N.bfloat16().view(torch.int16), after_N.bfloat16().view(torch.int16)
    found = (old_N != new_N).nonzero().view(-1)
    return found.int(), new_N[found]


def _joined(pieces: Sequence[tuple[Tensor, Tensor]]) -> Changes:
    """One parameter's changes, its pieces in order; positions within a piece are less than PIECE, so int32 holds them.

    Moved to the CPU once for the whole parameter: each transfer from a GPU waits for it.
    """
    if not pieces:
        return NO_CHANGES
    positions = torch.cat([found.long().add_(index * PIECE) for index, (found, _) in enumerate(pieces)])
    return Changes(positions.cpu(), torch.cat([words for _, words in pieces]).cpu())

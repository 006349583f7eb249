"""APOLLO's scaling factors: how much Adam's moments change the length of a projected gradient.

Shapes: `C` channels of a weight, its larger dimension; `S` its smaller one; `K` the rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from daemon.training.apollo_slots import Slot
from daemon.training.shards import sum_over_shards_

_BLOCK = 2**18
"""Elements squared at once."""

_SMALLEST_NORM = 1e-16
"""A projected gradient shorter than this has no direction: its squares are at the edge of float32."""


def channel_factors(slot: Slot, gradient_CS: Tensor, projected_CK: Tensor, adapted_CK: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's scaling factor, (C, 1), and the length of the whole gradient so scaled.

    Args:
        slot: whose gradient it is.
        gradient_CS: this process's part.
        projected_CK: R, summed over processes.
        adapted_CK: Adam's direction from R's moments.

    Source: arXiv 2412.05270 (APOLLO, channel-wise scaling).
    """
    factor_C = _ratio(torch.linalg.vector_norm(adapted_CK, dim=1), torch.linalg.vector_norm(projected_CK, dim=1))
    # The length follows from the channels' lengths: the scaled gradient need not be read again.
    lengths_C = _channel_lengths(gradient_CS).mul_(factor_C)
    square = sum_over_shards_(lengths_C.square().sum(), slot.parameter)
    return factor_C.unsqueeze(1), square.sqrt()


def tensor_factor(slot: Slot, gradient_CS: Tensor, projected_CK: Tensor, adapted_CK: Tensor) -> tuple[Tensor, Tensor]:
    """The whole weight's scaling factor, (1, 1), and the length of the gradient so scaled; arguments as above.

    Source: arXiv 2412.05270 (APOLLO-Mini, tensor-wise scaling).
    """
    squares = torch.stack([_square_sum(adapted_CK), _square_sum(projected_CK)])
    # Where the smaller dimension is divided, every process has the whole sums already.
    norms = sum_over_shards_(squares, slot.parameter, (slot.channels,)).sqrt()
    factor = _ratio(norms[0], norms[1])
    norm = sum_over_shards_(_square_sum(gradient_CS), slot.parameter).sqrt()
    return factor.reshape(1, 1), norm.mul_(factor)


def _channel_lengths(gradient_CS: Tensor) -> Tensor:
    """Length of each channel; a view that is transposed in memory is read in the order in which it lies there."""
    if gradient_CS.stride(1) == 1:
        lengths_C: Tensor = torch.linalg.vector_norm(gradient_CS, dim=1)
        return lengths_C
    gradient_SC = gradient_CS.T
    squares_C = gradient_CS.new_zeros(len(gradient_CS))
    # torch's norm over the first dimension is ten times slower on the CPU than squares and a sum; a block of rows at a
    # time, the squares stay in the cache.
    for rows in torch.split(gradient_SC, max(1, _BLOCK // max(1, len(gradient_CS)))):
        squares_C += rows.square().sum(dim=0)
    return squares_C.sqrt_()


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, and 0 where there is nothing to divide by."""
    return torch.where(denominator > _SMALLEST_NORM, numerator / denominator, torch.zeros_like(numerator))


def _square_sum(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor)
    return norm.square()

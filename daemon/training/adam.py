"""Adam's direction and AdamW's update, on lists of tensors of any shapes, with torch's multi-tensor operations.

A list of many small tensors and lists of one tensor each give the same bits on the CPU: every operation is elementwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """First and second moment of one tensor's gradient, float32, and the number of gradients they have seen."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    num_steps: int


def adam_directions(
    gradients: Sequence[Tensor], moments: Sequence[Moments], betas: tuple[float, float], eps: float
) -> list[Tensor]:
    """Move the moments by one gradient each; returns m_hat / (sqrt(v_hat) + eps) for each, newly allocated.

    Args:
        gradients: float32.
        moments: of the gradients' shapes, changed in place; `num_steps` already counts this step.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.

    Source: Kingma and Ba, arXiv 1412.6980, algorithm 1.
    """
    beta1, beta2 = betas
    exp_avgs = [moment.exp_avg for moment in moments]
    exp_avg_sqs = [moment.exp_avg_sq for moment in moments]
    torch._foreach_lerp_(exp_avgs, list(gradients), 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, list(gradients), list(gradients), 1 - beta2)
    denominators = list(torch._foreach_sqrt(exp_avg_sqs))
    torch._foreach_div_(denominators, [(1 - beta2**moment.num_steps) ** 0.5 for moment in moments])
    torch._foreach_add_(denominators, eps)
    # The quotient takes the denominator's memory: one temporary per parameter and not two.
    directions = [torch.div(m, d, out=d) for m, d in zip(exp_avgs, denominators, strict=True)]
    torch._foreach_div_(directions, [1 - beta1**moment.num_steps for moment in moments])
    return directions


def adamw_updates(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: Sequence[Moments],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> list[Tensor]:
    """What AdamW would add to each parameter, float32, newly allocated; the moments move, the parameters do not.

    Source: Loshchilov and Hutter, arXiv 1711.05101, algorithm 2.
    """
    updates = adam_directions(gradients, moments, betas, eps)
    torch._foreach_mul_(updates, -lr)
    if weight_decay:
        torch._foreach_add_(updates, list(parameters), alpha=-lr * weight_decay)
    return updates

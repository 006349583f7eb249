"""Out of memory in a step: what counts as that, and the second try with fewer examples in a pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from daemon.config.sections import TrainingConfig
from daemon.domain.errors import StepMemoryError
from daemon.domain.records import Example
from daemon.training.gradients import micro_batches

_CPU_WORDS = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")
_CUBLAS_WORD = "CUBLAS_STATUS_ALLOC_FAILED"

T = TypeVar("T")


def with_second_try(
    attempt: Callable[[TrainingConfig], T],
    config: TrainingConfig,
    examples: Sequence[Example],
    free: Callable[[], None],
) -> tuple[T, int]:
    """Attempt gradients; if memory runs out, free what there is and attempt once more with half the examples in a pass.

    Args:
        attempt: moves no weight, and does the same when it is called again.
        config: of the first attempt; the second's has another `micro_batch`.
        free: gives back what a failed attempt left.

    Returns:
        What the attempt returned, and its `micro_batch`.

    Raises:
        StepMemoryError: the second attempt ran out of memory as well, or there was nothing to halve.
    """
    found, shortage = _tried(attempt, config)
    if shortage is None:
        return found[0], config.micro_batch
    free()  # outside of any `except`: a traceback keeps the tensors of its frames
    # A micro-batch of 64 is none of 64 where the batch has 8: half of it would be the same pass again.
    largest = max(len(part.indices) for part in micro_batches(examples, config))
    if largest > 1:
        halved = config.model_copy(update={"micro_batch": largest // 2})
        found, again = _tried(attempt, halved)
        if again is None:
            return found[0], halved.micro_batch
        free()
    tried = f"{largest} in a pass, and again with {largest // 2}" if largest > 1 else "1 in a pass"
    raise StepMemoryError(
        f"out of memory in the step of {len(examples)} examples, {tried}; the optimizer did not move. Lower "
        f"training.micro_batch (now {config.micro_batch}) or set training.activation_checkpointing = true. {shortage}"
    )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device's or the CPU's allocator had no memory left."""
    words = str(error)
    return isinstance(error, torch.OutOfMemoryError) or _CUBLAS_WORD in words or any(w in words for w in _CPU_WORDS)


def _tried(attempt: Callable[[TrainingConfig], T], config: TrainingConfig) -> tuple[list[T], str | None]:
    """What it returned, alone in a list; or nothing, and the first line of what the allocator said."""
    try:
        return [attempt(config)], None
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return [], str(error).strip().partition("\n")[0]

"""The parameters of an `Apollo` optimizer: which are projected, and what state each needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from daemon.training.shards import check_placements, local_part


@dataclass(frozen=True)
class Slot:
    """One parameter; `rank` is that of its projected gradient, None for plain AdamW."""

    name: str
    parameter: Tensor
    rank: int | None

    @property
    def channels(self) -> int:
        """Index of a weight's larger dimension, along which the channels lie."""
        return 0 if self.parameter.shape[0] >= self.parameter.shape[1] else 1


@dataclass(frozen=True)
class StateTensor:
    """What one tensor of the state must be; always float32."""

    slot: Slot
    field: str
    shape: tuple[int, ...]

    @property
    def key(self) -> str:
        return f"{self.field}:{self.slot.name}"

    @property
    def device(self) -> torch.device:
        """The parameter's, except for the step count, which only Python reads."""
        return torch.device("cpu") if self.field == "step" else local_part(self.slot.parameter).device


def make_slots(named_parameters: Iterable[tuple[str, Tensor]], rank: int | None) -> list[Slot]:
    """One slot per tensor, under its first name.

    Raises:
        ValueError: one name for two tensors, or a placement that is not understood.
    """
    slots: dict[str, Slot] = {}
    seen: set[int] = set()
    for name, parameter in named_parameters:
        if id(parameter) in seen:
            continue
        if name in slots:
            raise ValueError(f"two parameters are named {name!r}")
        check_placements(name, parameter)
        seen.add(id(parameter))
        projected = rank is not None and parameter.ndim == 2
        slots[name] = Slot(name, parameter, min(rank, *parameter.shape) if rank and projected else None)
    return list(slots.values())


def state_layout(slots: Iterable[Slot]) -> Iterator[StateTensor]:
    """Every tensor of the state of `slots`; for sharded parameters, this process's part."""
    for slot in slots:
        local = tuple(local_part(slot.parameter).shape)
        moments = local if slot.rank is None else (local[slot.channels], slot.rank)
        yield StateTensor(slot, "step", ())
        yield StateTensor(slot, "exp_avg", moments)
        yield StateTensor(slot, "exp_avg_sq", moments)
        if slot.rank is not None:
            yield StateTensor(slot, "limited_norm", ())


def check_state(layout: Iterable[StateTensor], mapping: Mapping[str, Tensor]) -> None:
    """Refuse a state that is not exactly what `layout` says.

    Raises:
        ValueError: names the first key that is unknown, missing, or of another shape or type.
    """
    expected = {tensor.key: tensor for tensor in layout}
    for key in sorted(expected.keys() | mapping.keys()):
        if key not in expected:
            raise ValueError(f"optimizer state: unknown key {key!r}")
        if key not in mapping:
            raise ValueError(f"optimizer state: {key!r} is missing")
        found, shape = mapping[key], expected[key].shape
        if tuple(found.shape) != shape or found.dtype != torch.float32:
            raise ValueError(
                f"optimizer state: {key!r} is {found.dtype} {tuple(found.shape)}, expected torch.float32 {shape}"
            )

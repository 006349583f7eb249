"""Parameters that may be sharded over processes: their local parts, and sums over all parts.

Everything here leaves an ordinary tensor as it is, so callers need not ask. `Shard` and `Replicate` placements on a
mesh of any number of dimensions are understood; nothing else is.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard


def check_placements(name: str, parameter: Tensor) -> None:
    """Refuse placements whose parts cannot be told apart.

    Raises:
        ValueError: a partial or strided placement.
    """
    if isinstance(parameter, DTensor):
        for placement in parameter.placements:
            if type(placement) not in {Shard, Replicate}:
                raise ValueError(f"{name}: placement {placement} is neither Shard nor Replicate")


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of `tensor`; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_gradient(parameter: Tensor) -> Tensor:
    """This process's part of the gradient, placed as the parameter is."""
    gradient = cast(Tensor, parameter.grad)
    if isinstance(parameter, DTensor) and isinstance(gradient, DTensor) and gradient.placements != parameter.placements:
        gradient = gradient.redistribute(placements=parameter.placements)
    return local_part(gradient)


def like_parameter(update: Tensor, parameter: Tensor) -> Tensor:
    """`update`, this process's part, as a tensor of the same kind as `parameter`; shares its memory."""
    if not isinstance(parameter, DTensor):
        return update
    return DTensor.from_local(
        update,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def rows_like_dimension(full: Tensor, parameter: Tensor, dimension: int) -> Tensor:
    """The rows of `full` that belong to this process's part of `parameter` along `dimension`; no communication.

    Args:
        full: the same on every process; as many rows as `parameter` has along `dimension`.
        parameter: the parameter.
        dimension: of the parameter.
    """
    if not isinstance(parameter, DTensor):
        return full
    mesh = parameter.device_mesh
    everywhere: list[Placement] = [Replicate()] * mesh.ndim
    placements: list[Placement] = [
        Shard(0) if _shards(placement, (dimension,)) else Replicate() for placement in parameter.placements
    ]
    return DTensor.from_local(full, mesh, everywhere, run_check=False).redistribute(placements=placements).to_local()


def sum_over_shards_(value: Tensor, parameter: Tensor, dimensions: Collection[int] = (0, 1)) -> Tensor:
    """Add up `value` in place over the processes among which any of `dimensions` of `parameter` is divided.

    Processes that hold replicas are not added. Every process ends with the same bits.
    """
    if isinstance(parameter, DTensor):
        for mesh_dimension, placement in enumerate(parameter.placements):
            if _shards(placement, dimensions):
                dist.all_reduce(value, group=parameter.device_mesh.get_group(mesh_dimension))
    return value


def _shards(placement: Placement, dimensions: Collection[int]) -> bool:
    return isinstance(placement, Shard) and placement.dim in dimensions

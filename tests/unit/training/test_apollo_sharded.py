"""APOLLO on sharded parameters: two processes give the update of one."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter

from daemon.training.apollo import Apollo

WORLD = 2
TIMEOUT_S = 120

SHAPES: dict[str, tuple[int, ...]] = {
    "tall": (12, 8),
    "tall_uneven": (5, 3),  # rows 3 + 2
    "wide": (6, 10),
    "wide_uneven": (3, 7),  # rows 2 + 1
    "row": (1, 4),  # the second process has nothing of it
    "norm": (7,),
}
MATRICES = [name for name, shape in SHAPES.items() if len(shape) == 2]

METHODS: dict[str, dict[str, Any]] = {
    "channel": {"rank": 2, "weight_decay": 0.1},
    "tensor": {"rank": 1, "per": "tensor", "scale": 16.0},
    "adamw": {"rank": None, "weight_decay": 0.1},
}
PLACEMENTS = ["rows", "columns", "replicated"]


def train(optimizer: Apollo, parameters: dict[str, Parameter], place: Any) -> None:
    """Three steps; the second gradient is long, so that the limiter binds."""
    for step, size in enumerate((1.0, 30.0, 1.0)):
        generator = torch.Generator().manual_seed(1000 + step)
        for name, parameter in parameters.items():
            parameter.grad = place(name, size * torch.randn(SHAPES[name], generator=generator))
        optimizer.step()


def initial() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def unsharded(method: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and state after three steps in this process."""
    parameters = {name: Parameter(tensor) for name, tensor in initial().items()}
    optimizer = Apollo(parameters.items(), lr=0.01, **METHODS[method])
    train(optimizer, parameters, lambda _, tensor: tensor)
    return {name: p.detach() for name, p in parameters.items()}, optimizer.state_tensors()


def run_process(rank: int, directory: str) -> None:
    """Train every method under every placement; rank 0 writes the gathered weights, each rank its state."""
    warnings.simplefilter("error")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=WORLD
    )
    try:
        for method in METHODS:
            for placement in PLACEMENTS:
                for write in (False, True):
                    train_sharded(rank, Path(directory), method, placement, write)
    finally:
        torch.distributed.destroy_process_group()


def train_sharded(rank: int, directory: Path, method: str, placement: str, write: bool) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (WORLD,))

    def place(name: str, tensor: Tensor) -> Tensor:
        along = {"rows": Shard(0), "columns": Shard(tensor.ndim - 1), "replicated": Replicate()}[placement]
        return distribute_tensor(tensor, mesh, [along])

    def add(name: str, parameter: Tensor, update: Tensor) -> None:
        assert isinstance(parameter, DTensor) and isinstance(update, DTensor)
        assert update.shape == parameter.shape and update.placements == parameter.placements
        parameter.add_(update)

    parameters = {name: Parameter(place(name, tensor)) for name, tensor in initial().items()}
    optimizer = Apollo(parameters.items(), lr=0.01, **METHODS[method], write=add if write else None)
    train(optimizer, parameters, place)
    whole = {name: p.detach().full_tensor().contiguous() for name, p in parameters.items()}  # type: ignore[attr-defined]
    if rank == 0:
        save_file(whole, directory / f"{method}-{placement}-{write}.weights")
    save_file(optimizer.state_tensors(), directory / f"{method}-{placement}-{write}.state{rank}")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what two processes wrote."""
    directory = tmp_path_factory.mktemp("sharded")
    context = torch.multiprocessing.spawn(run_process, (str(directory),), nprocs=WORLD, join=False)
    deadline = time.monotonic() + TIMEOUT_S
    # join() returns when any process ends, and raises what a process raised.
    while not context.join(timeout=max(0.0, deadline - time.monotonic()), grace_period=5):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail(f"two processes did not finish in {TIMEOUT_S} s")
    return directory


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("method", METHODS)
def test_sharded_training_equals_unsharded(sharded: Path, method: str, placement: str, write: bool) -> None:
    """After three steps the gathered weights are those of one process; where AdamW moves them, to the bit.

    The tolerance is a few float32 roundings: only the order of sums differs.
    """
    expected, _ = unsharded(method)
    found = load_file(sharded / f"{method}-{placement}-{write}.weights")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if method == "adamw" or name not in MATRICES or placement == "replicated":
            assert torch.equal(found[name], tensor), name
        else:
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_moments_are_divided_with_the_channels(sharded: Path, placement: str) -> None:
    """Channels divided over processes: each holds its own moments. The smaller dimension divided: equal replicas."""
    _, expected = unsharded("channel")
    parts = [load_file(sharded / f"channel-{placement}-False.state{rank}") for rank in range(WORLD)]
    for name in MATRICES:
        rows, columns = SHAPES[name]
        channels = "rows" if rows >= columns else "columns"
        for field in ("exp_avg", "exp_avg_sq"):
            key = f"{field}:{name}"
            if placement == channels:
                found = torch.cat([part[key] for part in parts])
            else:
                assert torch.equal(parts[0][key], parts[1][key])
                found = parts[0][key]
            torch.testing.assert_close(found, expected[key], rtol=1e-5, atol=1e-5)
        limited = f"limited_norm:{name}"
        assert torch.equal(parts[0][limited], parts[1][limited])
        torch.testing.assert_close(parts[0][limited], expected[limited], rtol=1e-5, atol=0)


def test_the_limiter_binds_in_these_runs() -> None:
    """The comparison covers the limiter: lifting it changes the weights."""
    limited, _ = unsharded("channel")
    parameters = {name: Parameter(tensor) for name, tensor in initial().items()}
    free = Apollo(parameters.items(), lr=0.01, norm_growth_limit=1e9, **METHODS["channel"])
    train(free, parameters, lambda _, tensor: tensor)
    assert any(not torch.equal(limited[name], parameters[name]) for name in MATRICES)

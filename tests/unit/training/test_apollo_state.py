"""APOLLO's state: its size, its types, and that what is saved continues to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter

from daemon.domain.hashing import derive_seed
from daemon.training.apollo import Apollo
from daemon.training.apollo_slots import make_slots, state_layout
from daemon.training.rounding import round_stochastically_

SHAPES: dict[str, tuple[int, ...]] = {"tall": (12, 5), "wide": (4, 9), "norm": (7,)}
METHODS: list[dict[str, Any]] = [
    {"rank": 3},
    {"rank": 1, "per": "tensor", "scale": 128.0},
    {"rank": None, "weight_decay": 0.1},
]


class Run:
    """Parameters of one type under Apollo; bfloat16 ones are rounded stochastically."""

    def __init__(self, dtype: torch.dtype, **settings: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        self.parameters = {n: Parameter(torch.randn(s, generator=generator).to(dtype)) for n, s in SHAPES.items()}
        write = self._round if dtype == torch.bfloat16 else None
        self.optimizer = Apollo(self.parameters.items(), lr=0.01, refresh_every=2, write=write, **settings)
        self._number = 0

    def steps(self, first: int, last: int) -> None:
        for self._number in range(first, last):
            generator = torch.Generator().manual_seed(1000 + self._number)
            for parameter in self.parameters.values():
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            self.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        return {**{n: p.detach() for n, p in self.parameters.items()}, **self.optimizer.state_tensors()}

    def _round(self, name: str, parameter: Tensor, update: Tensor) -> None:
        round_stochastically_(parameter, update.add_(parameter), derive_seed(self._number, name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", METHODS)
def test_save_load_continue_is_bit_exact(tmp_path: Path, dtype: torch.dtype, settings: dict[str, Any]) -> None:
    """Three steps, a safetensors file, a new optimizer and three steps equal six steps straight, bit for bit."""
    straight, first, second = (Run(dtype, **settings) for _ in range(3))
    straight.steps(0, 6)
    first.steps(0, 3)
    save_file(first.optimizer.state_tensors(), tmp_path / "state")
    for name, parameter in second.parameters.items():
        parameter.data.copy_(first.parameters[name].data)
    second.optimizer.load_state_tensors(load_file(tmp_path / "state"))
    second.steps(3, 6)
    resumed = second.tensors()
    for name, tensor in straight.tensors().items():
        assert torch.equal(tensor, resumed[name]) and tensor.dtype == resumed[name].dtype, name


@pytest.mark.parametrize("settings", METHODS)
def test_the_state_is_float32_whatever_the_parameters_are(settings: dict[str, Any]) -> None:
    """A state of float32 parameters loads unchanged under bfloat16 ones, is float32 after a step, and fits back."""
    full, half = Run(torch.float32, **settings), Run(torch.bfloat16, **settings)
    full.steps(0, 2)
    half.optimizer.load_state_tensors(full.optimizer.state_tensors())
    loaded = half.optimizer.state_tensors()
    for key, tensor in full.optimizer.state_tensors().items():
        assert torch.equal(loaded[key], tensor) and loaded[key].dtype == torch.float32
        assert loaded[key].data_ptr() != tensor.data_ptr()
    half.steps(2, 3)
    assert {tensor.dtype for tensor in half.optimizer.state_tensors().values()} == {torch.float32}
    full.optimizer.load_state_tensors(half.optimizer.state_tensors())


def test_an_empty_mapping_is_a_fresh_start() -> None:
    """After it, the optimizer does what a new one does."""
    used, new = Run(torch.float32, rank=3), Run(torch.float32, rank=3)
    assert new.optimizer.state_tensors() == {}
    used.steps(0, 2)
    used.optimizer.load_state_tensors({})
    assert used.optimizer.state_tensors() == {}
    for name, parameter in used.parameters.items():
        parameter.data.copy_(new.parameters[name].data)
    used.steps(0, 2)
    new.steps(0, 2)
    renewed = used.tensors()
    assert all(torch.equal(tensor, renewed[name]) for name, tensor in new.tensors().items())


def test_keys_and_shapes() -> None:
    """Projected weights have four fields, the others three; moments are (channels, rank)."""
    run = Run(torch.float32, rank=3)
    run.steps(0, 1)
    assert {key: tuple(tensor.shape) for key, tensor in run.optimizer.state_tensors().items()} == {
        "step:tall": (),
        "exp_avg:tall": (12, 3),
        "exp_avg_sq:tall": (12, 3),
        "limited_norm:tall": (),
        "step:wide": (),
        "exp_avg:wide": (9, 3),
        "exp_avg_sq:wide": (9, 3),
        "limited_norm:wide": (),
        "step:norm": (),
        "exp_avg:norm": (7,),
        "exp_avg_sq:norm": (7,),
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("exp_avg:other", torch.zeros(2), "unknown key 'exp_avg:other'"),
        ("limited_norm:norm", torch.zeros(()), "unknown key 'limited_norm:norm'"),
        ("exp_avg:wide", None, "'exp_avg:wide' is missing"),
        ("step:norm", None, "'step:norm' is missing"),
        ("exp_avg_sq:tall", torch.zeros(12, 2), r"'exp_avg_sq:tall' is torch.float32 \(12, 2\), expected"),
        ("exp_avg_sq:tall", torch.zeros(12, 3).bfloat16(), "'exp_avg_sq:tall' is torch.bfloat16"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(key: str, value: Tensor | None, message: str) -> None:
    """Unknown, missing and misshapen tensors are named, and the state stays as it was."""
    run = Run(torch.float32, rank=3)
    run.steps(0, 1)
    before = {name: tensor.clone() for name, tensor in run.optimizer.state_tensors().items()}
    wrong = {name: tensor + 1 for name, tensor in before.items() if name != key}
    if value is not None:
        wrong[key] = value
    with pytest.raises(ValueError, match=message):
        run.optimizer.load_state_tensors(wrong)
    after = run.optimizer.state_tensors()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_torchs_own_load_is_refused() -> None:
    """`load_state_dict`, which would cast the moments to bfloat16, raises and says what to call."""
    run = Run(torch.bfloat16, rank=3)
    run.steps(0, 1)
    with pytest.raises(NotImplementedError, match="load_state_tensors"):
        run.optimizer.load_state_dict(run.optimizer.state_dict())


def state_bytes(shapes: dict[str, tuple[int, ...]], rank: int | None) -> int:
    """Bytes by the formula: 8 (two moments) per element of (C, r), or of the parameter; 4 per scalar."""
    total = 0
    for shape in shapes.values():
        if rank is None or len(shape) != 2:
            total += 8 * torch.Size(shape).numel() + 4
        else:
            total += 8 * max(shape) * min(rank, *shape) + 8
    return total


@pytest.mark.parametrize("rank", [1, 3, 100, None])
def test_state_bytes_follow_the_formula(rank: int | None) -> None:
    """The tensors of a running optimizer take what the formula says."""
    run = Run(torch.float32, rank=rank)
    run.steps(0, 1)
    found = sum(tensor.numel() * tensor.element_size() for tensor in run.optimizer.state_tensors().values())
    assert found == state_bytes(SHAPES, rank)


def test_state_of_smollm2_is_small() -> None:
    """On SmolLM2-135M's shapes rank 64 needs less than 1/4 of AdamW's state, rank 1 less than 1/20."""
    layer = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536), (576,), (576,)]
    shapes: dict[str, tuple[int, ...]] = {f"{i}.{j}": shape for i in range(30) for j, shape in enumerate(layer)}
    shapes |= {"norm": (576,), "embedding": (49152, 576)}
    parameters = [(name, torch.empty(shape, device="meta")) for name, shape in shapes.items()]
    sizes = {}
    for rank in (None, 64, 1):
        layout = state_layout(make_slots(parameters, rank))
        sizes[rank] = sum(4 * torch.Size(tensor.shape).numel() for tensor in layout)
        assert sizes[rank] == state_bytes(shapes, rank)
    assert sizes[64] < sizes[None] / 4
    assert sizes[1] < sizes[None] / 20

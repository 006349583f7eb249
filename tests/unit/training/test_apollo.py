"""APOLLO's arithmetic: hand-derived numbers and independent references."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from daemon.training import apollo
from daemon.training.apollo import Apollo

GRADIENT = torch.tensor([[3.0, 0.0, 1.0], [1.0, 2.0, 1.0]])
WEIGHT = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


class Fixed(Apollo):
    """Apollo with a projection that the test chooses."""

    fixed: Tensor

    def projection(self, name: str, refresh: int, rank: int, smaller: int) -> Tensor:
        assert self.fixed.shape == (rank, smaller)
        return self.fixed


def fixed(weight: Parameter, projection: Tensor, **settings: Any) -> Fixed:
    optimizer = Fixed([("weight", weight)], rank=len(projection), **settings)
    optimizer.fixed = projection
    return optimizer


def moved(optimizer: Apollo, weight: Parameter, gradient: Tensor) -> Tensor:
    """The weight's change by one step."""
    before = weight.detach().clone()
    weight.grad = gradient.clone()
    optimizer.step()
    return weight.detach() - before


def random_parameters(dtype: torch.dtype = torch.float32) -> dict[str, Parameter]:
    shapes = {"tall": (12, 5), "wide": (4, 9), "square": (6, 6), "norm": (7,), "bias": (3,), "conv": (4, 1, 3)}
    generator = torch.Generator().manual_seed(0)
    return {name: Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in shapes.items()}


def give_gradients(parameters: dict[str, Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def test_one_step_of_a_wide_weight_by_hand() -> None:
    """A 2x3 weight, projected by P = [1, -1], rank 1.

    R = P G = [2, -2, 0]. After one step the corrected moments are R and R^2, so R_tilde = sign(R) = [1, -1, 0] and the
    columns' factors are 1/2, 1/2 and 0 (there is nothing to divide by). sqrt(scale) = 2 makes the direction
    [[3, 0, 0], [1, 2, 0]]; the weight becomes 0.95 W - 0.1 direction with lr 0.1 and weight decay 0.5.
    """
    weight = Parameter(WEIGHT.clone())
    optimizer = fixed(weight, torch.tensor([[1.0, -1.0]]), lr=0.1, scale=4.0, weight_decay=0.5)
    moved(optimizer, weight, GRADIENT)
    expected = torch.tensor([[0.95 - 0.3, 1.9, 2.85], [3.8 - 0.1, 4.75 - 0.2, 5.7]])
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=0)
    norm = optimizer.state_tensors()["limited_norm:weight"].item()
    assert norm == pytest.approx(math.sqrt(9 + 1 + 4), rel=1e-6)


def test_a_tall_weight_is_the_transposed_case() -> None:
    """Rows of the transposed weight move as columns of the weight do; moments are channels-first in both."""
    wide, tall = Parameter(WEIGHT.clone()), Parameter(WEIGHT.T.clone())
    projection = torch.tensor([[1.0, -1.0]])
    first, second = (fixed(w, projection, lr=0.1, weight_decay=0.1) for w in (wide, tall))
    for _ in range(3):
        torch.testing.assert_close(moved(first, wide, GRADIENT), moved(second, tall, GRADIENT.T).T)
    assert first.state_tensors()["exp_avg:weight"].shape == second.state_tensors()["exp_avg:weight"].shape == (3, 1)


def test_mini_by_hand() -> None:
    """One factor for the whole weight: ||[1, -1, 0]|| / ||[2, -2, 0]|| = 1/2, times sqrt(16) = 4, so -2 lr G."""
    weight = Parameter(WEIGHT.clone())
    optimizer = fixed(weight, torch.tensor([[1.0, -1.0]]), lr=0.1, scale=16.0, per="tensor")
    torch.testing.assert_close(moved(optimizer, weight, GRADIENT), -0.2 * GRADIENT, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_the_limiter_binds_at_its_limit(per: Any) -> None:
    """An update longer than 1.01 times the last one is shortened to 1.01 times, again and again.

    Adding the same number to both rows leaves R, and with it the factors, as they were: only G grows.
    """
    weight = Parameter(torch.zeros(2, 3))
    optimizer = fixed(weight, torch.tensor([[1.0, -1.0]]), lr=1.0, per=per)
    first = moved(optimizer, weight, GRADIENT).norm().item()
    for power in (1, 2):
        now = moved(optimizer, weight, GRADIENT + 10 * power)
        assert now.norm().item() == pytest.approx(first * 1.01**power, rel=1e-5)
        assert optimizer.state_tensors()["limited_norm:weight"].item() == pytest.approx(first * 1.01**power, rel=1e-6)
    shorter = moved(optimizer, weight, GRADIENT)
    assert shorter.norm().item() == pytest.approx(first, rel=1e-4)  # below the limit nothing is changed


def test_the_limiter_does_not_bind_below_its_limit_or_without_a_last_update() -> None:
    """Without a limit the same gradients give longer updates; after an update of length 0 any length is allowed."""
    weight = Parameter(torch.zeros(2, 3))
    free = fixed(weight, torch.tensor([[1.0, -1.0]]), lr=1.0, norm_growth_limit=math.inf)
    first = moved(free, weight, GRADIENT).norm().item()
    assert moved(free, weight, GRADIENT + 10).norm().item() > 5 * first
    weight = Parameter(torch.zeros(2, 3))
    limited = fixed(weight, torch.tensor([[1.0, -1.0]]), lr=1.0)
    assert moved(limited, weight, torch.zeros(2, 3)).norm().item() == 0
    assert moved(limited, weight, GRADIENT).norm().item() > 0.1


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
@pytest.mark.parametrize("gamma", [math.inf, 1.01])
def test_full_rank_identity_projection_is_channel_scaled_adamw(shape: tuple[int, int], gamma: float) -> None:
    """With P = I each channel of G is scaled to the length of Adam's own update of it; a float64 reference agrees."""
    torch.manual_seed(0)
    weight = Parameter(torch.randn(shape))
    optimizer = fixed(weight, torch.eye(min(shape)), lr=0.01, weight_decay=0.1, norm_growth_limit=gamma)
    reference = weight.detach().double()
    m = v = torch.zeros(shape, dtype=torch.float64)
    along = 1 if shape[0] >= shape[1] else 0  # norms over the smaller dimension
    last = math.inf
    for step in range(1, 6):
        gradient = torch.randn(shape)
        moved(optimizer, weight, gradient)
        g = gradient.double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        adam = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        direction = g * adam.norm(dim=along, keepdim=True) / g.norm(dim=along, keepdim=True)
        if direction.norm() > gamma * last:
            direction *= gamma * last / direction.norm()
        last = direction.norm().item()
        reference = (1 - 0.01 * 0.1) * reference - 0.01 * direction
        torch.testing.assert_close(weight.detach().double(), reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95)])
def test_without_a_rank_it_is_torchs_adamw(weight_decay: float, betas: tuple[float, float]) -> None:
    """Six steps with a changing lr follow torch.optim.AdamW within float32 rounding, for every shape."""
    ours, theirs = random_parameters(), random_parameters()
    optimizer = Apollo(ours.items(), lr=0.02, rank=None, betas=betas, weight_decay=weight_decay)
    reference = torch.optim.AdamW(theirs.values(), lr=0.02, betas=betas, weight_decay=weight_decay)
    for step in range(6):
        for parameters, either in ((ours, optimizer), (theirs, reference)):
            give_gradients(parameters, step)
            either.param_groups[0]["lr"] = 0.02 / (1 + step)
            either.step()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-6)


def test_parameters_that_are_not_matrices_get_adamw() -> None:
    """With a rank, 1-D and 3-D parameters move exactly as without one; matrices do not."""
    with_rank, without = random_parameters(), random_parameters()
    first, second = Apollo(with_rank.items(), lr=0.1, rank=2), Apollo(without.items(), lr=0.1, rank=None)
    for step in range(3):
        give_gradients(with_rank, step)
        give_gradients(without, step)
        first.step()
        second.step()
    same = {name for name in without if torch.equal(with_rank[name], without[name])}
    assert same == {"norm", "bias", "conv"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_at_once_and_one_by_one_give_the_same_bits(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Multi-tensor operations over all small parameters equal a loop over them, bit for bit, with and without write."""

    def add(name: str, parameter: Tensor, update: Tensor) -> None:
        parameter.add_(update)

    results = []
    for largest_small, write in ((apollo._SMALL, None), (0, None), (apollo._SMALL, add), (0, add)):
        monkeypatch.setattr(apollo, "_SMALL", largest_small)
        parameters = random_parameters(dtype)
        optimizer = Apollo(parameters.items(), lr=0.1, rank=None, weight_decay=0.1, write=write)
        for step in range(3):
            give_gradients(parameters, step)
            optimizer.step()
        results.append({**parameters, **optimizer.state_tensors()})
    for other in results[1:]:
        assert all(torch.equal(other[name], results[0][name]) for name in results[0])


@pytest.mark.parametrize("per", ["channel", "tensor"])
@pytest.mark.parametrize("block", [1, 12, 2**18])
def test_write_gets_complete_updates(monkeypatch: pytest.MonkeyPatch, per: Any, block: int) -> None:
    """`write` sees each parameter once a step, with the float32 sum of step and decay; adding it is the default.

    The default works block by block; neither that nor what `write` does to its scratch shows in the bits.
    """
    monkeypatch.setattr(apollo, "_BLOCK", block)
    plain, written = random_parameters(), random_parameters()
    seen: list[str] = []

    def write(name: str, parameter: Tensor, update: Tensor) -> None:
        assert parameter is written[name] and update.dtype == torch.float32 and update.shape == parameter.shape
        seen.append(name)
        parameter.add_(update)
        update.fill_(torch.nan)

    settings: dict[str, Any] = {"lr": 0.1, "rank": 2, "per": per, "weight_decay": 0.2}
    first, second = Apollo(plain.items(), **settings), Apollo(written.items(), **settings, write=write)
    for step in range(3):
        give_gradients(plain, step)
        give_gradients(written, step)
        first.step()
        second.step()
        assert sorted(seen) == sorted(written)
        seen.clear()
    assert all(torch.equal(plain[name], written[name]) for name in plain)


def test_projections_have_the_promised_distribution() -> None:
    """Entries of P have mean 0 and variance 1/r: within 5 standard errors (Var of s^2 is 2/n for a normal)."""
    optimizer = Apollo([("weight", Parameter(torch.zeros(2, 2)))], lr=0.1, rank=16, seed=5)
    entries = optimizer.projection("weight", 0, 16, 20_000).double()
    num = entries.numel()
    assert abs(entries.mean().item()) < 5 * math.sqrt(1 / 16 / num)
    assert abs(entries.var().item() * 16 - 1) < 5 * math.sqrt(2 / num)


def test_projections_follow_from_seed_name_and_refresh() -> None:
    """The same three give the same bits; each of the three changes them; the global generator has no part."""

    def drawn(seed: int, name: str, refresh: int) -> Tensor:
        torch.manual_seed(torch.initial_seed() + 1)
        return Apollo([("w", Parameter(torch.zeros(2, 2)))], lr=0.1, rank=4, seed=seed).projection(name, refresh, 4, 8)

    same = drawn(1, "a", 0)
    assert torch.equal(same, drawn(1, "a", 0))
    for other in (drawn(2, "a", 0), drawn(1, "b", 0), drawn(1, "a", 1)):
        assert not torch.equal(same, other)


def test_the_projection_is_refreshed_on_time() -> None:
    """With refresh_every = 3, steps 1 to 3 use refresh 0, steps 4 to 6 refresh 1, and the moments are kept."""
    asked: list[int] = []

    class Recording(Apollo):
        def projection(self, name: str, refresh: int, rank: int, smaller: int) -> Tensor:
            asked.append(refresh)
            return super().projection(name, refresh, rank, smaller)

    weight = Parameter(WEIGHT.clone())
    optimizer = Recording([("weight", weight)], lr=0.1, rank=1, refresh_every=3, betas=(0.9, 0.999))
    for step in range(7):
        kept = optimizer.state_tensors().get("exp_avg:weight", torch.zeros(3, 1)).clone()
        moved(optimizer, weight, GRADIENT)
        projected = GRADIENT.T @ optimizer.projection("weight", step // 3, 1, 2).T
        torch.testing.assert_close(optimizer.state_tensors()["exp_avg:weight"], 0.9 * kept + 0.1 * projected)
    assert asked[::2] == [0, 0, 0, 1, 1, 1, 2]


def test_rank_is_at_most_the_smaller_dimension() -> None:
    """Rank 100 of a 2x3 weight is rank 2."""
    weight = Parameter(WEIGHT.clone())
    optimizer = Apollo([("weight", weight)], lr=0.1, rank=100)
    moved(optimizer, weight, GRADIENT)
    assert optimizer.state_tensors()["exp_avg:weight"].shape == (3, 2)


@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_zero_gradients_move_nothing(per: Any) -> None:
    """Gradients of zero, from the start or after others, never give NaN; from the start they move nothing."""
    parameters = random_parameters()
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = Apollo(parameters.items(), lr=0.1, rank=2, per=per)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(torch.equal(parameters[name], before[name]) for name in before)
    give_gradients(parameters, 0)
    optimizer.step()
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in parameters.values())
    assert all(tensor.isfinite().all() for tensor in optimizer.state_tensors().values())


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-18, 1e18])
def test_extreme_gradients_stay_finite(size: float) -> None:
    """Gradients near float32's ends, after ordinary ones, give finite updates."""
    parameters = random_parameters()
    optimizer = Apollo(parameters.items(), lr=0.1, rank=2)
    for step in range(2):
        give_gradients(parameters, step)
        if step:
            for parameter in parameters.values():
                parameter.grad = parameter.grad * size if parameter.grad is not None else None
        optimizer.step()
    assert all(parameter.isfinite().all() for parameter in parameters.values())


def test_a_parameter_without_gradient_is_skipped() -> None:
    """It keeps its bits and its step count, weight decay or not, while the others move."""
    parameters = random_parameters()
    optimizer = Apollo(parameters.items(), lr=0.1, rank=2, weight_decay=0.5)
    give_gradients(parameters, 0)
    skipped = {"tall", "norm"}
    before = {name: parameters[name].detach().clone() for name in skipped}
    for name in skipped:
        parameters[name].grad = None
    optimizer.step()
    assert all(torch.equal(parameters[name], before[name]) for name in skipped)
    steps = {name: optimizer.state_tensors()[f"step:{name}"].item() for name in parameters}
    assert steps == {name: 0.0 if name in skipped else 1.0 for name in parameters}


def test_the_learning_rate_may_change_between_steps() -> None:
    """The update is proportional to the lr that the parameter group has at that step; 0 moves nothing."""
    weights = [Parameter(WEIGHT.clone()) for _ in range(2)]
    optimizers = [Apollo([("weight", weight)], lr=0.1, rank=1, seed=3) for weight in weights]
    optimizers[1].param_groups[0]["lr"] = 0.05
    full, half = (moved(o, w, GRADIENT) for o, w in zip(optimizers, weights, strict=True))
    torch.testing.assert_close(half * 2, full, rtol=1e-5, atol=1e-6)
    optimizers[1].param_groups[0]["lr"] = 0.0
    assert moved(optimizers[1], weights[1], GRADIENT).abs().max() == 0


def test_a_closure_is_evaluated_with_gradients() -> None:
    """`step(closure)` computes the loss with gradients enabled and returns it."""
    weight = Parameter(WEIGHT.clone())
    optimizer = Apollo([("weight", weight)], lr=0.1, rank=1)

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    assert optimizer.step(closure) == pytest.approx(91.0)
    assert not torch.equal(weight, WEIGHT)


def test_a_tied_tensor_counts_once() -> None:
    """A tensor under two names is stepped once, under the first; two tensors of one name are refused."""
    tied, alone = Parameter(WEIGHT.clone()), Parameter(WEIGHT.clone())
    both = Apollo([("embedding", tied), ("head", tied)], lr=0.1, rank=1)
    single = Apollo([("embedding", alone)], lr=0.1, rank=1)
    assert torch.equal(moved(both, tied, GRADIENT), moved(single, alone, GRADIENT))
    assert both.state_tensors().keys() == single.state_tensors().keys()
    with pytest.raises(ValueError, match="two parameters are named 'same'"):
        Apollo([("same", tied), ("same", alone)], lr=0.1, rank=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -1.0},
        {"rank": 0},
        {"scale": 0.0},
        {"per": "row"},
        {"betas": (0.9, 1.0)},
        {"eps": 0.0},
        {"weight_decay": -0.1},
        {"refresh_every": 0},
        {"norm_growth_limit": 0.9},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    """Each setting has bounds, and the error names it."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Apollo([("weight", Parameter(WEIGHT.clone()))], **{"lr": 0.1, "rank": 1, **wrong})

"""APOLLO: AdamW's adaptive step sizes from moments in a random low-rank space, so that the state is small.

Of each weight's gradient the *smaller* dimension is projected; channels lie along the larger one. The projection is
drawn anew from (seed, name, refresh index) at every step and stored nowhere. The moments are kept when it is
refreshed, as in the paper: for some steps they mix two projections.

Shapes: `M` rows and `N` columns of a weight; `C` channels, its larger dimension; `S` its smaller one; `K` the rank.
Moments are channels-first, (C, K), for tall and for wide weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from daemon.domain.hashing import derive_seed
from daemon.training.adam import Moments, adam_directions, adamw_updates
from daemon.training.apollo_scaling import channel_factors, tensor_factor
from daemon.training.apollo_slots import Slot, check_state, make_slots, state_layout
from daemon.training.shards import (
    like_parameter,
    local_gradient,
    local_part,
    rows_like_dimension,
    sum_over_shards_,
)

Write = Callable[[str, Tensor, Tensor], None]
"""Applies one parameter's complete update: name, parameter, what to add (float32 scratch that may be overwritten)."""

_SMALL = 2**16
"""Elements up to which plain AdamW parameters share multi-tensor operations; larger ones go one at a time."""

_BLOCK = 2**18
"""Elements of a weight updated at once when nobody asks for the whole update: 1 MiB stays in a core's cache."""


class Apollo(Optimizer):
    """APOLLO and APOLLO-Mini for 2-D weights and AdamW for all others; only AdamW without a rank.

    Sharded parameters (DTensors with `Shard` or `Replicate` placements) get the update that they would get whole.
    AdamW's is the same to the bit; APOLLO's norms and, where the smaller dimension is divided, the projected gradient
    are summed over processes, in another order than on one. Moments are this process's part where the channels are
    divided and replicated where the smaller dimension is.

    `state_tensors` and `load_state_tensors` save and restore. torch's own `load_state_dict` is refused: it would cast
    float32 moments to the parameters' type.

    Source: APOLLO, arXiv 2412.05270.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        *,
        lr: float,
        rank: int | None,
        scale: float = 1.0,
        per: Literal["channel", "tensor"] = "channel",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        refresh_every: int = 200,
        norm_growth_limit: float = 1.01,
        seed: int = 0,
        write: Write | None = None,
    ) -> None:
        """Remember the parameters; state comes with the first step.

        Args:
            named_parameters: names are part of the projections' seeds and of the state's keys. A tensor that comes
                twice (a tied embedding) counts once, under its first name.
            lr: learning rate; `param_groups[0]["lr"]` may change between steps, and so may its "weight_decay".
            rank: of the projected gradient, at most the smaller dimension; None for AdamW everywhere.
            scale: the paper's alpha; its square root multiplies the update. 1 for APOLLO, 128 for Mini.
            per: one scaling factor per channel, or one per tensor (Mini, with rank 1).
            betas: decay rates of the moments.
            eps: added to the root of the second moment.
            weight_decay: decoupled; times lr.
            refresh_every: steps between projections.
            norm_growth_limit: the paper's gamma: an update (before lr) is at most this much longer than the last one.
            seed: of the projections.
            write: applies an update; default: adds it in place. Parameter and update are DTensors for a sharded
                parameter.

        Raises:
            ValueError: a setting out of range, no parameters, one name for two tensors, an unknown placement.
        """
        _check_settings(lr, rank, scale, per, betas, eps, weight_decay, refresh_every, norm_growth_limit)
        slots = make_slots(named_parameters, rank)
        defaults = {"lr": lr, "weight_decay": weight_decay}
        super().__init__([(slot.name, slot.parameter) for slot in slots], defaults)
        self._slots = slots
        self._root_scale = math.sqrt(scale)
        self._per_channel = per == "channel"
        self._betas = betas
        self._eps = eps
        self._refresh_every = refresh_every
        self._norm_growth_limit = norm_growth_limit
        self._seed = seed
        self._write = write

    # --- the step ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient by one update; the gradients are not changed."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._ensure_state()
        active = [slot for slot in self._slots if slot.parameter.grad is not None]
        for slot in active:
            self.state[slot.parameter]["step"] += 1
        plain = [slot for slot in active if slot.rank is None]
        small = [slot for slot in plain if local_part(slot.parameter).numel() <= _SMALL]
        for batch in _by_device(small):
            self._step_adamw(batch)
        for slot in active:
            if slot.rank is not None:
                self._step_projected(slot, slot.rank)
            elif local_part(slot.parameter).numel() > _SMALL:
                self._step_adamw([slot])
        return loss

    def projection(self, name: str, refresh: int, rank: int, smaller: int) -> Tensor:
        """The matrix P (K, S) of one weight: float32 on the CPU, entries N(0, 1/K).

        Args:
            name: the weight's.
            refresh: how often the projection has been redrawn.
            rank: K.
            smaller: S, the whole weight's smaller dimension.
        """
        generator = torch.Generator().manual_seed(derive_seed("projection", self._seed, name, refresh))
        return torch.randn(rank, smaller, generator=generator).mul_(rank**-0.5)

    def _step_adamw(self, slots: list[Slot]) -> None:
        parameters = [local_part(slot.parameter) for slot in slots]
        updates = adamw_updates(
            parameters,
            [local_gradient(slot.parameter).float() for slot in slots],
            [self._moments(slot) for slot in slots],
            lr=self._lr,
            betas=self._betas,
            eps=self._eps,
            weight_decay=self._weight_decay,
        )
        for slot, update in zip(slots, updates, strict=True):
            self._apply(slot, update)

    def _step_projected(self, slot: Slot, rank: int) -> None:
        gradient_MN = local_gradient(slot.parameter).float()
        gradient_CS = gradient_MN if slot.channels == 0 else gradient_MN.T
        projected_CK = self._project(slot, rank, gradient_CS)
        moments = self._moments(slot)
        (adapted_CK,) = adam_directions([projected_CK], [moments], self._betas, self._eps)
        if self._per_channel:
            factor_C1, norm = channel_factors(slot, gradient_CS, projected_CK, adapted_CK)
        else:
            factor_C1, norm = tensor_factor(slot, gradient_CS, projected_CK, adapted_CK)
        shrink = self._limit_growth(slot, norm * self._root_scale)
        coefficient_C1 = factor_C1 * (shrink * (-self._lr * self._root_scale))
        coefficient = coefficient_C1 if slot.channels == 0 else coefficient_C1.T
        self._apply_scaled(slot, gradient_MN, coefficient.expand_as(gradient_MN))

    def _project(self, slot: Slot, rank: int, gradient_CS: Tensor) -> Tensor:
        smaller = slot.parameter.shape[1 - slot.channels]
        refresh = (self._num_steps(slot) - 1) // self._refresh_every
        projection_SK = self.projection(slot.name, refresh, rank, smaller).T.to(gradient_CS.device)
        local_SK = rows_like_dimension(projection_SK, slot.parameter, 1 - slot.channels)
        return sum_over_shards_(gradient_CS @ local_SK, slot.parameter, (1 - slot.channels,))

    def _limit_growth(self, slot: Slot, norm: Tensor) -> Tensor:
        """What to multiply an update of length `norm` with, so that it is not much longer than the one before.

        There is none before the first step, and none to compare with after an update of length 0: a limit of 0 would
        hold the weight still for good.
        """
        last = self.state[slot.parameter]["limited_norm"]
        limit = last * self._norm_growth_limit
        binds = (last > 0) & (norm > limit)
        shrink = torch.where(binds, limit / norm, torch.ones_like(norm))
        last.copy_(torch.where(binds, limit, norm))
        return shrink

    # --- applying an update --------------------------------------------------------------------------------

    def _apply_scaled(self, slot: Slot, gradient_MN: Tensor, coefficient_MN: Tensor) -> None:
        """Apply coefficient * gradient and the weight decay."""
        parameter_MN = local_part(slot.parameter)
        # Only a caller's `write` needs the whole update at once; otherwise a block that stays in the cache will do.
        num_rows = len(gradient_MN) if self._write else max(1, _BLOCK // max(1, gradient_MN.shape[1]))
        buffer = torch.empty_like(gradient_MN[:num_rows])
        for start in range(0, len(gradient_MN), max(1, num_rows)):
            rows = slice(start, start + num_rows)
            update = torch.mul(gradient_MN[rows], coefficient_MN[rows], out=buffer[: len(gradient_MN[rows])])
            if self._weight_decay:
                update.add_(parameter_MN[rows], alpha=-self._lr * self._weight_decay)
            if self._write is None:
                parameter_MN[rows].add_(update)
        if self._write is not None:
            self._apply(slot, buffer)

    def _apply(self, slot: Slot, update: Tensor) -> None:
        if self._write is None:
            local_part(slot.parameter).add_(update)
        else:
            self._write(slot.name, slot.parameter, like_parameter(update, slot.parameter))

    @property
    def _lr(self) -> float:
        return float(self.param_groups[0]["lr"])

    @property
    def _weight_decay(self) -> float:
        return float(self.param_groups[0]["weight_decay"])

    # --- state ---------------------------------------------------------------------------------------------

    def state_tensors(self) -> dict[str, Tensor]:
        """The whole state under "FIELD:NAME"; empty before the first step. The tensors are live, not copies.

        Fields, all float32: `step` (0-d, on the CPU), `exp_avg` and `exp_avg_sq` ((C, K), or the parameter's shape for
        AdamW), and for projected weights `limited_norm` (0-d). Of a sharded parameter: this process's part.
        """
        if not self.state:
            return {}
        return {spec.key: self.state[spec.slot.parameter][spec.field] for spec in state_layout(self._slots)}

    def load_state_tensors(self, mapping: Mapping[str, Tensor]) -> None:
        """Replace the state with copies of what `state_tensors` gave, on the parameters' devices, still float32.

        Args:
            mapping: empty for a fresh start, else complete.

        Raises:
            ValueError: a key is unknown or missing, or its tensor has another shape or type; nothing was changed.
        """
        layout = list(state_layout(self._slots))
        if mapping:
            check_state(layout, mapping)
        self.state.clear()
        for spec in layout if mapping else ():
            saved = mapping[spec.key].detach()
            self.state[spec.slot.parameter][spec.field] = torch.empty(
                spec.shape, dtype=torch.float32, device=spec.device
            ).copy_(saved)

    def load_state_dict(self, state_dict: Any) -> None:
        """Refused: torch would cast float32 moments to the parameters' type.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("Apollo restores its state with load_state_tensors, which keeps it in float32")

    def _ensure_state(self) -> None:
        """State for every parameter at once, so that a saved state is complete or it is not one."""
        if not self.state:
            for spec in state_layout(self._slots):
                zeros = torch.zeros(spec.shape, dtype=torch.float32, device=spec.device)
                self.state[spec.slot.parameter][spec.field] = zeros

    def _moments(self, slot: Slot) -> Moments:
        state = self.state[slot.parameter]
        return Moments(state["exp_avg"], state["exp_avg_sq"], self._num_steps(slot))

    def _num_steps(self, slot: Slot) -> int:
        return int(self.state[slot.parameter]["step"].item())


def _by_device(slots: list[Slot]) -> list[list[Slot]]:
    batches: dict[torch.device, list[Slot]] = {}
    for slot in slots:
        batches.setdefault(slot.parameter.device, []).append(slot)
    return list(batches.values())


def _check_settings(
    lr: float,
    rank: int | None,
    scale: float,
    per: str,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    refresh_every: int,
    norm_growth_limit: float,
) -> None:
    for ok, message in (
        (lr >= 0, f"lr {lr} is negative"),
        (rank is None or rank >= 1, f"rank {rank} is below 1; use None for plain AdamW"),
        (scale > 0, f"scale {scale} is not positive"),
        (per in {"channel", "tensor"}, f"per is {per!r}, neither 'channel' nor 'tensor'"),
        (all(0 <= beta < 1 for beta in betas), f"betas {betas} are not in [0, 1)"),
        (eps > 0, f"eps {eps} is not positive"),
        (weight_decay >= 0, f"weight_decay {weight_decay} is negative"),
        (refresh_every >= 1, f"refresh_every {refresh_every} is below 1"),
        (norm_growth_limit >= 1, f"norm_growth_limit {norm_growth_limit} is below 1"),
    ):
        if not ok:
            raise ValueError(message)

"""APOLLO beside torch's AdamW on the model's own shapes: bytes of state, and time of one step.

Imported in a worker process only; needs torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.measure import OptimizerFigures
from daemon.config.sections import TrainingConfig
from daemon.training.apollo import Apollo
from daemon.training.applied import UpdateWriter

LR = 1e-5


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    step: Callable[[], object]
    state: Callable[[], list[Tensor]]


class OptimizerPeer:
    """Random float32 weights and gradients in the model's shapes, shared by all the optimizers."""

    def __init__(self, model_dir: Path) -> None:
        """Make the tensors; no weights are read.

        Args:
            model_dir: a Hugging Face folder, for its config.
        """
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                AutoConfig.from_pretrained(model_dir, local_files_only=True)
            )
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        generator = torch.Generator().manual_seed(0)
        self._parameters = {
            name: torch.nn.Parameter(torch.randn(shape, generator=generator) * 0.02) for name, shape in shapes.items()
        }
        self._gradients = {name: torch.randn(shape, generator=generator) * 1e-3 for name, shape in shapes.items()}

    def compare(self, repeats: int) -> list[OptimizerFigures]:
        """One warm-up step of each, which allocates its state; then `repeats` rounds in turn."""
        entries = [*self._adamw(), *self._apollo()]
        seconds: dict[str, list[float]] = {entry.name: [] for entry in entries}
        for round_number in range(1 + repeats):
            for entry in entries:
                self._fill_gradients()
                started = time.perf_counter()
                entry.step()
                if round_number > 0:
                    seconds[entry.name].append(time.perf_counter() - started)
        return [
            OptimizerFigures(
                entry.name,
                sum(tensor.numel() * tensor.element_size() for tensor in entry.state()),
                median(seconds[entry.name]),
            )
            for entry in entries
        ]

    def _fill_gradients(self) -> None:
        # An optimizer may work in place on .grad: each one gets the same gradients anew, outside the clock.
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(self._gradients[name])

    def _adamw(self) -> list[_Entry]:
        entries = []
        # Left to itself, torch takes "foreach" on accelerators and a plain loop on the CPU.
        options: dict[str, dict[str, Any]] = {
            "fused": {"fused": True},
            "as by default": {},
            "foreach": {"foreach": True},
        }
        for name, chosen in options.items():
            optimizer = torch.optim.AdamW(self._parameters.values(), lr=LR, weight_decay=0.0, **chosen)
            entries.append(_Entry(f"torch AdamW, {name}", optimizer.step, partial(_state_of, optimizer)))
        return entries

    def _apollo(self) -> list[_Entry]:
        named = {
            "APOLLO, rank 64": self._new_apollo("apollo", 64),
            "APOLLO-Mini": self._new_apollo("apollo_mini", 1),
            "APOLLO, rank 64, with the step's figures": self._new_apollo("apollo", 64, write=UpdateWriter(seed=0)),
            "dreamd's AdamW": self._new_apollo("adamw", None),
        }
        return [_Entry(name, optimizer.step, partial(_apollo_state, optimizer)) for name, optimizer in named.items()]

    def _new_apollo(self, kind: str, rank: int | None, **options: Any) -> Apollo:
        config = TrainingConfig.model_validate({"optimizer": kind})
        per: Literal["channel", "tensor"] = "tensor" if kind == "apollo_mini" else "channel"
        return Apollo(self._parameters.items(), lr=LR, rank=rank, scale=config.optimizer_scale, per=per, **options)


def _state_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def _apollo_state(optimizer: Apollo) -> list[Tensor]:
    return list(optimizer.state_tensors().values())

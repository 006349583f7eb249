"""Real checkpoints of a few small weights, one random step after another; no model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from daemon.checkpoints.image import changes_between, image_of
from daemon.checkpoints.store import DirectoryStore
from daemon.domain.records import Checkpoint, PolicyDigests, WrittenState

SHAPES = {"embed.weight": (50, 40), "layer.weight": (30, 30), "norm": (7,)}


class Stepped:
    """Mirrors `ports.Snapshot`: float32 weights and what changed since the ones before."""

    def __init__(self, weights: Mapping[str, Tensor], before: Mapping[str, Tensor] | None) -> None:
        self.weights = weights
        self.changes = None if before is None else changes_between(image_of(before), weights)

    def write(self, directory: Path) -> WrittenState:
        save_file(dict(self.weights), directory / "model.safetensors")
        (directory / "optimizer.state").write_bytes(b"moments")
        return WrittenState(PolicyDigests("w", "o"))


class Run:
    """A store and a straight lineage in it, one small random step after another."""

    def __init__(self, root: Path, steps: int, *, share: float = 0.02, **settings: Any) -> None:
        self.root = root
        self.store = DirectoryStore(root, **settings)
        self.generator = torch.Generator().manual_seed(5)
        self.share = share
        self.weights = [{name: torch.randn(shape, generator=self.generator) for name, shape in SHAPES.items()}]
        self.checkpoints = [self._publish("base", Stepped(self.weights[0], None), None)]
        for _ in range(steps):
            self.step()

    def step(self, *, known: bool = True) -> None:
        before = self.weights[-1]
        self.weights.append({name: self._moved(tensor) for name, tensor in before.items()})
        number = len(self.checkpoints)
        snapshot = Stepped(self.weights[-1], before if known else None)
        self.checkpoints.append(self._publish(f"cycle-{number:06d}", snapshot, number))

    def kinds(self) -> list[str]:
        return [checkpoint.kind.value for checkpoint in self.checkpoints]

    def _moved(self, tensor: Tensor) -> Tensor:
        chosen = torch.rand(tensor.shape, generator=self.generator) < self.share
        return torch.where(chosen, tensor * 1.01, tensor * (1 + 1e-7))

    def _publish(self, version: str, snapshot: Stepped, number: int | None) -> Checkpoint:
        parent = self.checkpoints[-1] if number else None
        return self.store.publish(version, snapshot, cycle_number=number, parent=parent, batch_hash="b", step=None)


def assert_same(found: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(found[name].view(torch.int16), tensor.bfloat16().view(torch.int16)), name

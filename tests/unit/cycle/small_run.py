"""A run whose chains of images are real, on small weights, with the rows and the mirror of `upkeep_fakes`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stepped_run import Run
from upkeep_fakes import Ledger, Mirror, Observer, World

from daemon.cycle.stages import Stages
from daemon.domain.records import Checkpoint
from daemon.domain.states import CheckpointState


class Rows(Ledger):
    """A straight lineage whose head may be moved back, as `restore --lossy` does."""

    head_version: str | None = None

    def head(self) -> Checkpoint:
        return super().head() if self.head_version is None else self.rows[self.head_version]

    def lineage(self) -> tuple[Checkpoint, ...]:
        lineage = super().lineage()
        return lineage[lineage.index(self.head()) :]

    def rollback_sides(self, num_cycles: int) -> frozenset[str]:
        return frozenset()


class Small:
    """A run of real chains and the stages that work on it."""

    def __init__(self, root: Path, steps: int, mirror: Mirror | None = None) -> None:
        self.run = Run(root / "checkpoints", steps)
        base, *others = self.run.checkpoints
        self.rows = Rows([base, *(replace(c, state=CheckpointState.PROMOTED) for c in others)])
        self.observer = Observer()
        self.store = self.run.store
        self.stages: Stages = World(root / "unused", 0).with_(
            store=self.store, ledger=self.rows, observer=self.observer, mirror=mirror
        )

    def step(self, times: int = 1) -> None:
        """Promote so many more."""
        for _ in range(times):
            self.run.step()
            promoted = replace(self.run.checkpoints[-1], state=CheckpointState.PROMOTED)
            self.rows.rows[promoted.version] = promoted

    def __getitem__(self, number: int) -> Checkpoint:
        return self.rows.rows[f"cycle-{number:06d}" if number else "base"]

    def file(self, number: int, name: str) -> Path:
        return self.store.path(self[number].version) / name

    def make_lossy(self, *numbers: int) -> None:
        for number in numbers:
            self.rows.made_lossy(self[number].version)
            self.store.make_lossy(self[number].version)

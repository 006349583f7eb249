"""What damaged checkpoints do to the rest of a run: chains are real, rows and mirror are those of `upkeep_fakes`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_files import flip
from stepped_run import Run
from upkeep_fakes import Ledger, Mirror, Observer, World

from daemon.cycle.mending import HeadDamagedError, make_loadable, mend
from daemon.cycle.stages import Stages
from daemon.domain.errors import CheckpointError
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

    def __getitem__(self, number: int) -> Checkpoint:
        return self.rows.rows[f"cycle-{number:06d}" if number else "base"]

    def file(self, number: int, name: str) -> Path:
        return self.store.path(self[number].version) / name

    def make_lossy(self, *numbers: int) -> None:
        for number in numbers:
            self.rows.made_lossy(self[number].version)
            self.store.make_lossy(self[number].version)


def test_a_damaged_link_of_a_lossy_head_is_fetched(tmp_path: Path) -> None:
    """The head is an image, a bit of its grandparent's delta is flipped: this one comes back, and the head loads."""
    mirror = Mirror(tmp_path / "mirror")
    small = Small(tmp_path, 4, mirror)
    small.make_lossy(1, 2, 3)
    small.rows.head_version = "cycle-000003"
    mirror.push(small.store.path("cycle-000001"))
    flip(small.file(1, "image.delta"), 50)
    make_loadable(small.stages, small[3])
    assert [payload["version"] for payload in small.rows.named("checkpoint_restored")] == ["cycle-000001"]
    small.store.image(small[3])


def test_a_damaged_link_of_a_lossy_head_stays_and_stops_training(tmp_path: Path) -> None:
    """Without a mirror the link is not set aside: it is the head that is lost with it, whoever reads it first."""
    small = Small(tmp_path, 4)
    small.make_lossy(1, 2, 3)
    small.rows.head_version = "cycle-000003"
    flip(small.file(1, "image.delta"), 50)
    with pytest.raises(HeadDamagedError, match="cycle-000001"):
        make_loadable(small.stages, small[3])
    with pytest.raises(HeadDamagedError, match="cycle-000001"):
        mend(small.stages, small[1], "the scrub found it")
    assert small[1].state is CheckpointState.PROMOTED and small.file(1, "image.delta").exists()


def test_an_exact_row_with_an_image_alone_is_mended(tmp_path: Path) -> None:
    """An older database came back: the row says exact, the files are lossy. Nothing loads it; mending corrects it."""
    small = Small(tmp_path, 4)
    small.store.make_lossy("cycle-000002")
    with pytest.raises(CheckpointError, match="only its image is there"):
        small.store.open(small[2])
    mend(small.stages, small[2], "only its image is there")
    assert not small[2].exact
    small.store.open(small[2])

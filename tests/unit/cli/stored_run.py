"""A run whose checkpoints are real files with few, known weights; no model is needed to make or to read it.

    base (exact) <- cycle 1 (lossy) <- cycle 2 (exact) <- cycle 4 (exact, the head)
                                    <- cycle 3 (rejected, pruned)

The images of the cycles are deltas on the base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from builders import drive_to, make_step_report, make_verdict
from safetensors.torch import save_file
from torch import Tensor

from daemon.checkpoints.image import changes_between, image_of
from daemon.checkpoints.store import DirectoryStore
from daemon.config import Loaded, load_config
from daemon.domain.records import Checkpoint, PolicyDigests, WrittenState
from daemon.domain.states import CycleState, Decision
from daemon.ports import Changes
from daemon.storage.database import open_database
from daemon.storage.ledger import SqlLedger
from daemon.storage.runs import create_run

NAMES = ("model.embed_tokens.weight", "model.layers.0.mlp.weight", "model.layers.0.norm.weight", "model.norm.weight")
FOUR = "cycle-000004"
"""The head."""


class StoredSnapshot:
    """Mirrors the `Snapshot` port: weights that somebody chose."""

    def __init__(self, weights: Mapping[str, Tensor], before: Mapping[str, Tensor] | None) -> None:
        self.weights = weights
        self.changes: Mapping[str, Changes] | None = None
        if before is not None:
            self.changes = changes_between(image_of(before), weights)

    def write(self, directory: Path) -> WrittenState:
        save_file(dict(self.weights), directory / "model.safetensors", {"format": "pt"})
        (directory / "optimizer.state").write_bytes(bytes(range(200)))
        (directory / "config.json").write_text('{"model_type": "llama"}')
        return WrittenState(PolicyDigests("w" * 64, "o" * 64))


def weights_of(number: int) -> dict[str, Tensor]:
    """Weights after cycle `number`: all 1.0, but 1.5 in the first `number` places of layer 0's matrix.

    And a touch more everywhere in the last norm, too little for bfloat16 to see.
    """
    weights = {name: torch.ones(1024) for name in NAMES}
    weights[NAMES[1]][:number] = 1.5
    weights[NAMES[3]] += number * 1e-6
    return weights


def make_stored_run(state: Path, template: Path) -> None:
    """Write the run into the directory `state`.

    Args:
        template: a migrated SQLite file.
    """
    state.mkdir(parents=True)
    (state / "dreamd.sqlite3").write_bytes(template.read_bytes())
    store = store_of(state)
    with ledger_of(state, create=True) as ledger:
        base = store.publish(
            "base", StoredSnapshot(weights_of(0), None), cycle_number=None, parent=None, batch_hash=None, step=None
        )
        ledger.register_base(base)
        parent, number = base, 0
        for number in (1, 2, 3, 4):
            parent = one_cycle(ledger, store, number, parent, promoted=number != 3)
        ledger.pruned("cycle-000003")
        store.prune("cycle-000003")
        ledger.made_lossy("cycle-000001")
        store.make_lossy("cycle-000001")


def store_of(state: Path) -> DirectoryStore:
    return DirectoryStore(state / "checkpoints")


def contents(state: Path) -> dict[str, bytes]:
    """Every file of every checkpoint, those in quarantine too."""
    root = state / "checkpoints"
    return {str(file.relative_to(root)): file.read_bytes() for file in root.glob("*/**/*") if file.is_file()}


def loaded_run(state: Path, *flags: str) -> Loaded:
    return load_config(None, environ={}, flags=[f"run.state_dir={state}", *flags])


@contextmanager
def ledger_of(state: Path, *, create: bool = False) -> Iterator[SqlLedger]:
    """The run's ledger, taken over as a daemon does."""
    engine = open_database(f"sqlite:///{state / 'dreamd.sqlite3'}")
    try:
        if create:
            create_run(engine, "default", 7, "models/small", {}, [])
        yield SqlLedger.acquire(engine, "default")
    finally:
        engine.dispose()


def one_cycle(
    ledger: SqlLedger, store: DirectoryStore, number: int, parent: Checkpoint, *, promoted: bool
) -> Checkpoint:
    """A cycle from plan to verdict on the head; returns the head after it."""
    cycle = drive_to(ledger, CycleState.STEPPED)
    before = weights_of(parent.cycle_number or 0)
    candidate = store.publish(
        f"cycle-{number:06d}",
        StoredSnapshot(weights_of(number), before),
        cycle_number=number,
        parent=parent,
        batch_hash=cycle.batch_hash,
        step=make_step_report(2),
    )
    cycle = ledger.probed(ledger.record_published(cycle, candidate))
    if promoted:
        ledger.promote(cycle, make_verdict())
        return candidate
    ledger.roll_back(cycle, make_verdict(Decision.ROLL_BACK, to_version=parent.version), parent)
    return parent

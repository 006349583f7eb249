"""A complete small run (tiny model, transformers engine, real database), and the invariants it must keep."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from tiny_model import build_tiny_model

from daemon import app
from daemon.checkpoints.store import DirectoryStore
from daemon.config import Loaded, load_config
from daemon.config.sections import TrainingConfig
from daemon.domain.errors import StopRequested
from daemon.domain.hashing import batch_hash
from daemon.domain.records import Batch, Checkpoint, Cycle, PolicyDigests
from daemon.domain.states import CycleState
from daemon.ports import ProgressCallback
from daemon.service.notify import Notifier
from daemon.service.stop import StopFlag
from daemon.storage.database import open_database, reading
from daemon.storage.ledger import SqlLedger
from daemon.storage.runs import load_run
from daemon.training.policy import TorchPolicy


class RecordingObserver:
    """Mirrors the `Observer` port: remembers events, can ask for a stop when a state is committed."""

    def __init__(self, stop_at: CycleState | None = None) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.states: list[CycleState] = []
        self.stop_at = stop_at
        self.stopping = False

    @contextmanager
    def stage(self, cycle: Cycle | None, name: str) -> Iterator[ProgressCallback]:
        def progress(done: int, total: int) -> None:
            if name in ("sweep", "probe"):
                self.check_stop()

        yield progress

    def committed(self, cycle: Cycle) -> None:
        self.states.append(cycle.state)
        self.stopping = self.stopping or cycle.state is self.stop_at

    def check_stop(self) -> None:
        if self.stopping:
            raise StopRequested

    def log(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))


def write_config(directory: Path, url: str, **sections: dict[str, Any]) -> Path:
    """A configuration for the tiny model; `sections` override keys."""
    settings: dict[str, dict[str, Any]] = {
        "run": {"state_dir": str(directory / "state"), "database_url": url, "seed": 7},
        "model": {"path": str(directory / "model"), "device": "cpu"},
        "scenarios": {"per_cycle": 5},
        "sweep": {
            "engine": "transformers",
            "temperatures": [0.7],
            "samples": 1,
            "guided_samples": 0,
            "max_new_tokens": 8,
            "max_model_len": 4096,
        },
        "probes": {"nll_documents": 8, "behaviour_items": 4, "max_new_tokens": 8},
    }
    for name, values in sections.items():
        settings.setdefault(name, {}).update(values)
    lines = []
    for name, values in settings.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    file = directory / "dreamd.toml"
    file.write_text("\n".join(lines) + "\n")
    return file


def make_run(directory: Path, url: str, **sections: dict[str, Any]) -> Path:
    """`dreamd init` for the tiny model; returns the configuration file."""
    build_tiny_model(directory / "model")
    file = write_config(directory, url, **sections)
    app.init_run(load(file), RecordingObserver(), small_model=False)
    return file


def load(file: Path, *flags: str) -> Loaded:
    return load_config(file, environ={}, flags=flags)


def dream(file: Path, cycles: int, *flags: str, observer: RecordingObserver | None = None) -> int:
    """`dreamd run --cycles N` in this process."""
    return app.serve(
        load(file, *flags), observer or RecordingObserver(), StopFlag(), cycles=cycles, notifier=Notifier(None)
    )


def query(file: Path, statement: str) -> list[tuple[Any, ...]]:
    """Rows of a statement on the run's database."""
    engine = open_database(load(file).config.run.url, readonly=True)
    try:
        with reading(engine) as connection:
            return [tuple(row) for row in connection.execute(sa.text(statement))]
    finally:
        engine.dispose()


def outcomes(file: Path) -> list[str]:
    return [row[0] for row in query(file, "select outcome from cycles order by number")]


def check_invariants(file: Path) -> None:
    """I1 to I4, from the database and the checkpoint files alone."""
    config = load(file).config
    engine = open_database(config.run.url)
    try:
        run = load_run(engine, config.run.name)
        ledger = SqlLedger(engine, run.id, run.name, run.epoch)
        store = DirectoryStore(config.run.state_dir / "checkpoints")
        _never_repeated(file)
        _lineage_replays(ledger, store, config.model.path, config.training)
        unfinished = query(file, "select number from cycles where outcome is null or reason is null or reason = ''")
        assert unfinished == [], f"I4: cycles without an outcome and a reason: {unfinished}"
    finally:
        engine.dispose()


def _never_repeated(file: Path) -> None:
    """I1: every example and scenario of a claimed cycle is claimed once, by that cycle alone, and none is held out."""
    twice = query(file, "select content_hash from claims group by content_hash having count(*) > 1")
    assert twice == [], f"I1: claimed twice: {twice}"
    trained = query(
        file,
        "select e.cycle, e.content_hash, c.cycle from examples e join steps s on s.run_id = e.run_id "
        "and s.cycle = e.cycle left join claims c on c.content_hash = e.content_hash and c.kind = 'example'",
    )
    assert all(cycle == claimed_by for cycle, _, claimed_by in trained), "I1: a trained example is not its cycle's"
    scenarios = query(
        file,
        "select s.content_hash from scenarios s join cycles c on c.run_id = s.run_id and c.number = s.cycle "
        "where c.outcome != 'abandoned' group by s.content_hash having count(*) > 1",
    )
    assert scenarios == [], f"I1: scenarios used by several cycles: {scenarios}"


def _lineage_replays(ledger: SqlLedger, store: DirectoryStore, model: Path, training: TrainingConfig) -> None:
    """I2 and I3: the head loads, and base + its ancestry's recorded examples, stepped again, gives its exact bits."""
    lineage = ledger.lineage()
    live = TorchPolicy(model, training, "cpu", store.open)
    live.restore(lineage[0])  # I2
    replayed = TorchPolicy(model, training, "cpu", store.open)
    replayed.adopt(lineage[-1].version)
    for checkpoint in reversed(lineage[:-1]):
        assert checkpoint.cycle_number is not None
        examples = ledger.examples(ledger.cycle(checkpoint.cycle_number))
        spent = batch_hash(replayed.version, [example.content_hash for example in examples])
        assert spent == checkpoint.batch_hash, "I3: the recorded examples are not the batch that was stepped"
        replayed.step(Batch(checkpoint.cycle_number, replayed.version, spent, examples))
        replayed.adopt(checkpoint.version)
        _same(checkpoint, replayed.digests())
    _same(lineage[0], live.digests())


def _same(checkpoint: Checkpoint, digests: PolicyDigests) -> None:
    recorded = PolicyDigests(checkpoint.weights_digest, checkpoint.optimizer_digest)
    assert digests == recorded, f"I3: {checkpoint.version} is not base plus its recorded steps"

"""A complete small run (tiny model, transformers engine, real database), and the invariants it must keep."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from tiny_model import build_tiny_model

from daemon import app
from daemon.checkpoints.manifest import FILE_NAME
from daemon.checkpoints.store import DirectoryStore
from daemon.config import Loaded, load_config
from daemon.config.sections import ScenariosConfig, TrainingConfig
from daemon.cycle.stages import Stages
from daemon.domain.errors import StopRequested
from daemon.domain.hashing import batch_hash
from daemon.domain.records import Batch, Checkpoint, Cycle, PolicyDigests
from daemon.domain.states import CycleState
from daemon.ports import ProgressCallback
from daemon.scenarios.source import MixtureSource, build_source
from daemon.service.notify import Notifier
from daemon.service.stop import StopFlag
from daemon.storage.column_types import UtcDateTime
from daemon.storage.database import open_database, reading, redacted
from daemon.storage.ledger import SqlLedger
from daemon.storage.runs import load_run
from daemon.storage.tables import metadata
from daemon.training.policy import TorchPolicy


@functools.cache
def _built(config: ScenariosConfig, special_tokens: tuple[str, ...]) -> MixtureSource:
    return build_source(config, special_tokens)


# Drawing all held-out items takes a second at every start, and the same settings give the same ones.
app.build_source = lambda config, special_tokens=(): _built(config, tuple(special_tokens))  # type: ignore[assignment]


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
        # Two packs: enough for both sides and one capability, and a start takes half as long as with all of them.
        "scenarios": {"per_cycle": 5, "builtin": ["listening", "arithmetic"], "dream_fraction": 0.0},
        "sweep": {
            "engine": "transformers",
            "temperatures": [0.7],
            "samples": 1,
            "guided_samples": 0,
            "max_new_tokens": 8,
            "max_model_len": 4096,
        },
        # The whole of a cycle for probes: what is measured must not hang on how long things took.
        "probes": {
            "nll_documents": 8,
            "behaviour_items": 4,
            "capability_items": 4,
            "max_new_tokens": 8,
            "budget": 1.0,
        },
    }
    for name, values in sections.items():
        settings.setdefault(name, {}).update(values)
    lines = []
    for name, values in settings.items():
        lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    file = directory / "dreamd.toml"
    file.write_text("\n".join(lines) + "\n")
    return file


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_toml(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)


def make_run(directory: Path, url: str, **sections: dict[str, Any]) -> Path:
    """`dreamd init` for the tiny model; returns the configuration file."""
    build_tiny_model(directory / "model")
    file = write_config(directory, url, **sections)
    app.init_run(load(file), RecordingObserver(), small_model=False)
    return file


def load(file: Path, *flags: str) -> Loaded:
    return load_config(file, environ={}, flags=flags)


def dream(
    file: Path,
    cycles: int,
    *flags: str,
    observer: RecordingObserver | None = None,
    prepare: Callable[[Stages], Stages] = lambda stages: stages,
) -> int:
    """`dreamd run --cycles N` in this process."""
    return app.serve(
        load(file, *flags),
        observer or RecordingObserver(),
        StopFlag(),
        cycles=cycles,
        notifier=Notifier(None),
        prepare=prepare,
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


def flip_bit(file: Path) -> None:
    """Damage a file by one bit near its end."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def check_invariants(file: Path) -> None:
    """I1 to I4, from the database and the checkpoint files alone."""
    config = load(file).config
    engine = open_database(config.run.url)
    try:
        run = load_run(engine, config.run.name)
        ledger = SqlLedger(engine, run.id, run.name, run.epoch)
        store = DirectoryStore(config.run.state_dir / "checkpoints")
        _never_repeated(file)
        _lineage_replays(ledger, store, config.model.path, config.training, run.seed)
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


def _lineage_replays(
    ledger: SqlLedger, store: DirectoryStore, model: Path, training: TrainingConfig, seed: int
) -> None:
    """I2 and I3: the head loads, and base + its ancestry's recorded examples, stepped again, gives its exact bits."""
    lineage = ledger.lineage()
    live = TorchPolicy(model, training, "cpu", store.open, seed=seed)
    live.restore(lineage[0])  # I2
    replayed = TorchPolicy(model, training, "cpu", store.open, seed=seed)
    replayed.adopt(lineage[-1].version)
    for checkpoint in reversed(lineage[:-1]):
        assert checkpoint.cycle_number is not None
        examples = ledger.examples(ledger.cycle(checkpoint.cycle_number))
        spent = batch_hash(replayed.version, [example.content_hash for example in examples])
        assert spent == checkpoint.batch_hash, "I3: the recorded examples are not the batch that was stepped"
        named = ledger.step_report(ledger.cycle(checkpoint.cycle_number)).reference_version
        reference = None if named is None else ledger.checkpoint(named)
        adjustments = ledger.adjustments(ledger.cycle(checkpoint.cycle_number))
        batch = Batch(checkpoint.cycle_number, replayed.version, spent, examples, reference, adjustments)
        # Smaller passes round otherwise; what memory forced is in the manifest, as long as there is one.
        made = store.step_report(checkpoint.version) if store.exists(checkpoint.version) else None
        replayed.step(batch, micro_batch=made and made.micro_batch)
        replayed.adopt(checkpoint.version)
        _same(checkpoint, replayed.digests())
    _same(lineage[0], live.digests())


def _same(checkpoint: Checkpoint, digests: PolicyDigests) -> None:
    recorded = PolicyDigests(checkpoint.weights_digest, checkpoint.optimizer_digest)
    assert digests == recorded, f"I3: {checkpoint.version} is not base plus its recorded steps"


NOT_COMPARED: dict[str, dict[str, str]] = {
    "runs": {"epoch": "counts the processes that owned the run", "last_write": "a random mark"},
    "cycles": {"epoch": "the process that opened the cycle", "seconds": "times"},
    "checkpoints": {"root_hash": "hashes the step's seconds too; `RunImage.manifests` has all else that it hashes"},
    "steps": {"seconds": "times", "peak_memory_bytes": "what else the process holds"},
    "engine_checks": {"id": "a start adds a row; the order is compared"},
    "probe_runs": {"id": "an anchor may be measured at another start; the order is compared", "seconds": "times"},
    "events": {"id": "a repair adds a row; the order is compared"},
}
"""Columns that two equal runs may differ in, and why; beside them only moments (`UtcDateTime`) are left out."""


@dataclass(frozen=True)
class RunImage:
    """Everything that two runs from the same seed must have in common, except weights: digests stand for those."""

    rows: Mapping[str, list[dict[str, Any]]]
    """Table -> rows by primary key, without `NOT_COMPARED`; the run's directory and database have neutral names."""
    manifests: Mapping[str, Mapping[str, Any]]
    """Checkpoint -> its manifest: hash and size of every file, digests, lineage, step report; no times in it."""

    def of_cycle(self, number: int) -> RunImage:
        """The part that belongs to one cycle."""
        named = {"cycles": "number"}
        rows = {
            table: [row for row in found if row.get(named.get(table, "cycle")) == number]
            for table, found in self.rows.items()
        }
        return RunImage(rows, {v: m for v, m in self.manifests.items() if m["cycle_number"] == number})


def run_image(file: Path) -> RunImage:
    """Read the whole run, whatever tables and columns there are."""
    run = load(file).config.run
    neutral = {redacted(run.url): "DATABASE", str(file.parent): "DIRECTORY"}
    engine = open_database(run.url, readonly=True)
    try:
        with reading(engine) as connection:
            rows = {table.name: _comparable_rows(connection, table, neutral) for table in metadata.sorted_tables}
    finally:
        engine.dispose()
    # Each start of a machine without a sandbox says so; a restart makes one more of it.
    rows["events"] = [row for row in rows["events"] if row["name"] != "code_checks_skipped"]
    directories = sorted(path.parent for path in (run.state_dir / "checkpoints").glob(f"*/{FILE_NAME}"))
    return RunImage(rows, {directory.name: _comparable_manifest(directory) for directory in directories})


def differences(one: RunImage, other: RunImage) -> list[str]:
    """Where two images differ, a line each: `steps[3].loss: 0.5 != 0.25`; floats that are equal have equal bits."""
    found: list[str] = []
    for name in sorted({*one.rows, *other.rows}):
        found += _row_differences(name, one.rows.get(name, []), other.rows.get(name, []))
    for version in sorted({*one.manifests, *other.manifests}):
        left, right = (dict(image.manifests.get(version, {})) for image in (one, other))
        found += _row_differences(f"manifest {version}", [left], [right])
    return found


def _comparable_rows(connection: sa.Connection, table: sa.Table, neutral: Mapping[str, str]) -> list[dict[str, Any]]:
    left_out = NOT_COMPARED.get(table.name, {})
    kept = [c.name for c in table.columns if c.name not in left_out and not isinstance(c.type, UtcDateTime)]
    key = [column.name for column in table.primary_key.columns]
    # Sorted here: the two databases order text differently.
    stored = sorted(connection.execute(sa.select(table)).mappings(), key=lambda row: [row[name] for name in key])
    return [{name: _neutral(row[name], neutral) for name in kept} for row in stored]


def _neutral(value: Any, neutral: Mapping[str, str]) -> Any:
    """`value` with the names that only this run has replaced, at any depth."""
    if isinstance(value, str):
        for own, name in neutral.items():
            value = value.replace(own, name)
    elif isinstance(value, dict):
        return {key: _neutral(item, neutral) for key, item in value.items()}
    elif isinstance(value, list):
        return [_neutral(item, neutral) for item in value]
    return value


def _comparable_manifest(directory: Path) -> dict[str, Any]:
    """The file as it stands, without times and what hashes them."""
    fields: dict[str, Any] = json.loads((directory / FILE_NAME).read_text(encoding="utf-8"))
    del fields["root_hash"], fields["parent_root_hash"]
    step = fields["step"] or {}
    return {**fields, "step": {name: step[name] for name in step if name not in NOT_COMPARED["steps"]}}


def _row_differences(name: str, one: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[str]:
    if len(one) != len(other):
        return [f"{name}: {len(one)} rows != {len(other)} rows"]
    return [
        f"{name}[{index}].{column}: {left.get(column)!r} != {right.get(column)!r}"
        for index, (left, right) in enumerate(zip(one, other, strict=True))
        for column in sorted({*left, *right})
        if repr(left.get(column)) != repr(right.get(column))  # repr tells 0.0 from -0.0, and 1 from 1.0
    ]

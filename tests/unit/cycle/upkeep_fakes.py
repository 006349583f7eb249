"""Fakes that mirror the ports which upkeep uses; the files are real."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from checkpoint_files import make_directory

from daemon.checkpoints.mirror import FsspecMirror
from daemon.checkpoints.scrub import StoreScrubber
from daemon.checkpoints.store import DirectoryStore
from daemon.cycle.stages import Stages
from daemon.domain.errors import DreamdError, MirrorError, StopRequested
from daemon.domain.records import Checkpoint
from daemon.domain.retention import Retention
from daemon.domain.states import CheckpointKind, CheckpointState
from daemon.domain.upkeep import MirrorTask, Rehearsal, ScrubResult

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Store(DirectoryStore):
    """Real directories of random bytes, whose image is its file, if that is sound."""

    def image(self, checkpoint: Checkpoint) -> Any:
        directory = self.path(checkpoint.version)
        if checkpoint.kind is CheckpointKind.FULL:
            return self.verify(checkpoint.version)
        manifest = self._manifest(checkpoint.version)
        self._verify_blob(manifest, f"image.{checkpoint.kind}")
        return {"image": directory}

    def check_room(self, like: Checkpoint) -> None:
        pass


class Ledger:
    """The rows that upkeep reads and writes; a straight lineage, `checkpoints` oldest first."""

    def __init__(self, checkpoints: list[Checkpoint]) -> None:
        self.rows = {checkpoint.version: checkpoint for checkpoint in checkpoints}
        self.tasks: dict[str, MirrorTask] = {}
        self.there: set[str] = set()
        self.config: Mapping[str, Any] | None = None
        self.scrubs: list[ScrubResult] = []
        self.rehearsals: list[Rehearsal] = []
        self.rehearsed_at: datetime | None = None
        self.passed_at: datetime | None = None
        self.events: list[tuple[str, str, Mapping[str, Any]]] = []

    def head(self) -> Checkpoint:
        return list(self.rows.values())[-1]

    def checkpoint(self, version: str) -> Checkpoint:
        return self.rows[version]

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        return tuple(self.rows.values())

    def lineage(self) -> tuple[Checkpoint, ...]:
        return tuple(reversed(self.rows.values()))

    def enqueue_mirror(self, version: str) -> None:
        if version not in self.there:
            self.tasks.setdefault(version, MirrorTask(version, 0, START))

    def mirror_tasks(self) -> tuple[MirrorTask, ...]:
        alive = [v for v, row in self.rows.items() if row.state is not CheckpointState.PRUNED]
        return tuple(self.tasks[version] for version in alive if version in self.tasks)

    def mirrored(self, version: str) -> None:
        del self.tasks[version]
        self.there.add(version)

    def mirror_failed(self, version: str, error: str, next_try_at: datetime) -> None:
        attempts = self.tasks[version].attempts if version in self.tasks else 0
        self.tasks[version] = MirrorTask(version, attempts + 1, next_try_at, error)
        self.there.discard(version)

    def wake_mirror(self, *, anew: bool) -> None:
        self.tasks = {version: replace(task, next_try_at=START) for version, task in self.tasks.items()}
        if anew:
            self.tasks = {version: MirrorTask(version, 0, START) for version in (*self.tasks, *self.there)}
            self.there.clear()

    def last_config(self) -> Mapping[str, Any] | None:
        return self.config

    def scrub_order(self) -> tuple[str, ...]:
        last = {result.version: index for index, result in enumerate(self.scrubs)}
        alive = [v for v, row in self.rows.items() if row.state is not CheckpointState.PRUNED]
        return tuple(sorted(alive, key=lambda version: last.get(version, -1)))

    def record_scrub(self, result: ScrubResult) -> None:
        self.scrubs.append(result)

    def record_rehearsal(self, rehearsal: Rehearsal) -> None:
        self.rehearsals.append(rehearsal)

    def last_rehearsal_at(self, *, passed: bool = False) -> datetime | None:
        return self.passed_at if passed else self.rehearsed_at

    def made_lossy(self, version: str) -> None:
        self._require_no_need(version)
        self.rows[version] = replace(self.rows[version], exact=False)
        if version in self.there:
            self.there.discard(version)
            self.enqueue_mirror(version)

    def pruned(self, version: str) -> None:
        self._require_no_need(version)
        self.rows[version] = replace(self.rows[version], state=CheckpointState.PRUNED)

    def rollback_sides(self, _num_cycles: int) -> frozenset[str]:
        return frozenset()

    def event(self, name: str, *, level: str = "info", cycle: object = None, **payload: Any) -> None:
        self.events.append((name, level, payload))

    def named(self, name: str) -> list[Mapping[str, Any]]:
        """The payloads of the events of one name."""
        return [payload for found, _, payload in self.events if found == name]

    def _require_no_need(self, version: str) -> None:
        row = self.rows[version]
        if row.pinned or row.state is CheckpointState.BASE or version == self.head().version:
            raise DreamdError(f"checkpoint {version} must stay")


class Observer:
    """Log lines, and a stop that can be asked for after so many pieces."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, Mapping[str, Any]]] = []
        self.pieces_left: int | None = None

    @contextmanager
    def stage(self, cycle: object, name: str) -> Any:
        yield lambda done, total: None

    def check_stop(self) -> None:
        if self.pieces_left is not None:
            if not self.pieces_left:
                raise StopRequested("SIGTERM")
            self.pieces_left -= 1

    def log(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))


class Mirror(FsspecMirror):
    """A real mirror in a folder, that can be unreachable, or refuse one checkpoint."""

    def __init__(self, root: Path, *, exact: bool = True) -> None:
        root.mkdir(parents=True, exist_ok=True)
        super().__init__(f"file://{root}", exact=exact)
        self.down = False
        self.refused: set[str] = set()
        self.num_pushes = 0

    def push(self, directory: Path, *, exact: bool = True, seconds: float | None = None) -> int | None:
        self.num_pushes += 1
        self._reach()
        if directory.name in self.refused:
            raise MirrorError(f"{directory.name} is refused")
        return super().push(directory, exact=exact, seconds=seconds)

    def fetch(self, version: str, root_hash: str, directory: Path) -> None:
        self._reach()
        super().fetch(version, root_hash, directory)

    def push_journal(self, journal: Path, *, thorough: bool = False) -> int:
        self._reach()
        return super().push_journal(journal, thorough=thorough)

    def versions(self) -> frozenset[str]:
        self._reach()
        return super().versions()

    def _reach(self) -> None:
        if self.down:
            raise MirrorError(f"{self.url} does not answer")


class World:
    """A run with a base and `num_cycles` checkpoints, all exact deltas but the base; and a clock.

    Args:
        mirror: whether there is one.
        baked_after: 1 makes the newest four, and the base, anchors.
    """

    def __init__(
        self,
        root: Path,
        num_cycles: int = 3,
        *,
        mirror: bool = True,
        mirror_exact: bool = True,
        baked_after: int = 2,
    ) -> None:
        self.store = Store(root / "checkpoints")
        made = [make_directory(root / "checkpoints", "base", CheckpointKind.FULL, 9_000, parent_version=None)[1]]
        for number in range(1, num_cycles + 1):
            version = f"cycle-{number:06d}"
            lineage = {"cycle_number": number, "parent_version": made[-1].version, "chain_length": number}
            checkpoint = make_directory(root / "checkpoints", version, num_bytes=9_000, **lineage)[1]  # type: ignore[arg-type]
            made.append(replace(checkpoint, state=CheckpointState.PROMOTED))
        self.ledger, self.observer, self.now = Ledger(made), Observer(), START
        self.mirror = Mirror(root / "mirror", exact=mirror_exact)
        nothing: Any = None
        self.stages = Stages(
            source=nothing,
            sweeper=nothing,
            preferences=nothing,
            policy=nothing,
            engine=nothing,
            store=self.store,
            probes=nothing,
            judge=nothing,
            governor=nothing,
            breaker=nothing,
            ledger=self.ledger,  # type: ignore[arg-type]
            observer=self.observer,
            run_seed=7,
            config={},
            retention=Retention(8, 50, 2, 30, 2),
            baked_after=baked_after,
            warmup_cycles=0,
            reference_items=1,
            mirror=self.mirror if mirror else None,
            scrubber=StoreScrubber(self.store),
        )

    def with_(self, **changes: Any) -> Stages:
        """The stages, with some settings changed."""
        return replace(self.stages, **changes)

    def later(self, **duration: float) -> datetime:
        """Move the clock."""
        self.now += timedelta(**duration)
        return self.now

"""What a cycle works with; built once by the composition root."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from daemon.domain.errors import StaleEngineError
from daemon.domain.records import Checkpoint, Cycle, EngineCheck
from daemon.domain.retention import Retention
from daemon.ports import (
    BreakerPolicy,
    CheckpointStore,
    Engine,
    Governor,
    Judge,
    Ledger,
    Mirror,
    Observer,
    Policy,
    Preferences,
    Probes,
    ProgressCallback,
    ScenarioSource,
    Scrubber,
    Sweeper,
)


@dataclass(frozen=True)
class Stages:
    """Every collaborator of the state machine, by port."""

    source: ScenarioSource
    sweeper: Sweeper
    preferences: Preferences
    policy: Policy
    engine: Engine
    store: CheckpointStore
    probes: Probes
    judge: Judge
    governor: Governor
    breaker: BreakerPolicy
    ledger: Ledger
    observer: Observer
    run_seed: int
    config: Mapping[str, Any]
    """The settings in force, recorded with each cycle."""
    retention: Retention
    baked_after: int
    warmup_cycles: int
    """Promoted cycles before pass rates decide; only then the base's are measured in full."""
    reference_items: int
    """Held-out prompts per pass/fail probe that the base is measured on."""
    mirror: Mirror | None = None
    claims_log: Path | None = None
    """The claims journal, which is mirrored as well."""
    scrubber: Scrubber | None = None
    scrub_bytes: int = 0
    """Of published files, read again per cycle."""
    rehearse_every: timedelta | None = None
    """Between two rehearsals of a restore; None: never."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by stage of the cycle at work."""
    not_removed: set[str] = field(default_factory=set)
    """Versions that retention could not remove, as told already."""

    @contextmanager
    def stage(self, cycle: Cycle | None, name: str) -> Iterator[ProgressCallback]:
        """Show and time one stage."""
        started = time.monotonic()
        try:
            with self.observer.stage(cycle, name) as progress:
                yield progress
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def tell(self, name: str, cycle: Cycle | None, *, level: str = "warning", **payload: Any) -> None:
        """An event that an operator should know of: a row, and a log line."""
        self.ledger.event(name, level=level, cycle=cycle, **payload)
        self.observer.log(name, level=level, **payload)

    def sync_engine(self, checkpoint: Checkpoint, cycle: Cycle | None) -> EngineCheck:
        """Make the engine hold the live policy's weights, and have it prove that (invariant I6).

        Raises:
            StaleEngineError: its log-probabilities or weights are not the trainer's.
        """
        with self.stage(cycle, "engine"):
            if self.engine.policy_version != checkpoint.version:
                self.engine.sync(self.policy.weights(), checkpoint.version)
            check = self.probes.check_engine()
        self.ledger.record_engine_check(check, self.engine.name, cycle)
        if not check.passed:
            raise StaleEngineError(
                f"the engine does not hold {checkpoint.version}: mean |log p| difference {check.mean_abs_diff:.2e} "
                f"nats (at most {check.tolerance:.0e}), weights equal: {check.weights_match}; "
                "a restart loads the engine anew"
            )
        return check

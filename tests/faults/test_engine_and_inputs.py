"""An engine that fails, memory that runs out, a clock that jumps, settings and packs that change while it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from harness import RecordingObserver, check_invariants, dream, load, outcomes, query
from test_database_faults import AtState

from daemon import app
from daemon.checkpoints.manifest import FILE_NAME
from daemon.cycle.stages import Stages
from daemon.domain import failpoints
from daemon.domain.errors import ConfigError, EngineError, PackError, StepMemoryError
from daemon.domain.records import Completion, Cycle, Scenario
from daemon.domain.states import CycleState
from daemon.ports import ProgressCallback
from daemon.storage import rows
from daemon.training import policy

NewRun = Callable[..., Path]
STARTER = Path(app.__file__).parent / "scenarios" / "starter.yaml"


class FailingSweeper:
    """A sweeper whose engine ends in the middle of its first sweep."""

    def __init__(self, sweeper: Any) -> None:
        self.misfit = sweeper.misfit
        self.write = sweeper.write

    def sweep(
        self, scenarios: Sequence[Scenario], version: str, seed: int, progress: ProgressCallback
    ) -> tuple[Completion, ...]:
        raise EngineError("the engine is gone")


def test_an_engine_that_fails_costs_one_cycle(new_run: NewRun) -> None:
    """Fault 15: the engine fails while it generates: exit 70, nothing spent; a new one from the head goes on."""
    file = new_run()

    def break_engine(stages: Stages) -> Stages:
        return replace(stages, sweeper=FailingSweeper(stages.sweeper))

    with pytest.raises(EngineError, match="is gone") as caught:
        dream(file, 2, prepare=break_engine)
    assert caught.value.exit_code == 70
    assert outcomes(file) == ["failed"]
    assert query(file, "select count(*) from claims where cycle = 1") == [(0,)]
    dream(file, 1)
    assert outcomes(file) == ["failed", "promoted"]
    check_invariants(file)


def test_a_number_that_is_none_publishes_nothing(new_run: NewRun) -> None:
    """Fault 18: the step finds NaN: the cycle failed, no checkpoint, its examples spent, and the next one is sound."""
    file = new_run()
    failpoints.activate({"cycle.step": "nan@1"})
    try:
        dream(file, 2)
    finally:
        failpoints.activate({})
    assert outcomes(file) == ["failed", "promoted"]
    assert query(file, "select version from checkpoints order by 1") == [("base",), ("cycle-000002",)]
    assert query(file, "select count(*) > 0 from claims where cycle = 1 and kind = 'example'") == [(1,)]
    check_invariants(file)


class Clock(RecordingObserver):
    """The wall clock jumps each time a cycle claims: a day ahead, then two days back, then three ahead, ..."""

    offset = timedelta()

    def committed(self, cycle: Cycle) -> None:
        super().committed(cycle)
        if cycle.state is CycleState.CLAIMED:
            Clock.offset = timedelta(days=1 if cycle.number % 2 else -1)


class JumpingTime(datetime):
    """`datetime` with that clock."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + Clock.offset


def test_a_clock_that_jumps_changes_no_order(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 21: the wall clock jumps by a day and back within each of four cycles: order is by number.

    Stored moments do go backwards, so the test is about something; no duration is negative or a day long; the head is
    the newest cycle, also after a restart in the past; and what retention deletes are the oldest cycles.
    """
    file = new_run(checkpoints={"keep_last": 2}, watchdog={"baked_after": 1})
    monkeypatch.setattr(rows, "datetime", JumpingTime)
    monkeypatch.setattr(app, "datetime", JumpingTime)
    monkeypatch.setattr(Clock, "offset", timedelta())
    dream(file, 3, observer=Clock())
    dream(file, 3, observer=Clock())
    assert outcomes(file) == ["promoted"] * 6
    moments = [row[0] for row in query(file, "select started_at from cycles order by number")]
    assert moments != sorted(moments)
    assert query(file, "select head_version from runs") == [("cycle-000006",)]
    parents = [row[0] for row in query(file, "select parent_version from cycles order by number")]
    assert parents == ["base", *(f"cycle-{number:06d}" for number in range(1, 6))]
    exact = "select version from checkpoints where exact and state != 'pruned' and cycle is not null order by 1"
    left = [row[0] for row in query(file, exact)]
    assert left == [f"cycle-{number:06d}" for number in range(7 - len(left), 7)]
    durations = [value for row in query(file, "select seconds from cycles") for value in _values(row[0])]
    assert durations and all(0 <= value < 3600 for value in durations)


def _values(seconds: Any) -> list[float]:
    return list(_parsed(seconds).values())


def _parsed(stored: Any) -> Any:
    return json.loads(stored) if isinstance(stored, str) else stored


def test_a_configuration_changed_while_running_waits_for_the_next_start(new_run: NewRun) -> None:
    """Fault 23: the file becomes unusable: what runs keeps what it read, the next start refuses it (78)."""
    file = new_run()
    good = file.read_text()
    broken = good + "\n[training]\nlr = -1\n"
    dream(file, 2, observer=AtState(CycleState.SWEPT, lambda: file.write_text(broken)))
    assert outcomes(load_from(good, file)) == ["promoted", "promoted"]
    file.write_text(broken)
    with pytest.raises(ConfigError, match=r"dreamd\.toml") as caught:
        load(file)
    assert caught.value.exit_code == 78


def load_from(text: str, file: Path) -> Path:
    file.write_text(text)
    return file


def test_a_pack_edited_while_running_waits_for_the_next_start(new_run: NewRun, tmp_path: Path) -> None:
    """Fault 26: a pack becomes malformed while cycles run: they go on with what was read at the start.

    The next start names file and line (78), and trains nothing; repaired, it goes on.
    """
    pack = tmp_path / "own.yaml"
    text = STARTER.read_text().replace("pack: NAME", "pack: own")
    pack.write_text(text)
    file = new_run(scenarios={"packs": [str(pack)], "per_cycle": 8})
    dream(file, 2, observer=AtState(CycleState.SWEPT, lambda: pack.write_text(f"{text}\nlists: [\n")))
    assert outcomes(file) == ["promoted", "promoted"]
    assert query(file, "select count(*) > 0 from scenarios where pack = 'own' and cycle = 2") == [(1,)]
    harness._built.cache_clear()  # the next start is another process, which has read nothing yet
    with pytest.raises(PackError, match=r"own\.yaml:\d+") as caught:
        dream(file, 1)
    assert caught.value.exit_code == 78
    assert outcomes(file) == ["promoted", "promoted"]


class ShortOfMemory:
    """The trainer's gradient, which finds no memory at some calls of it, counted from 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *at: int) -> None:
        self.calls = 0
        self._at = at
        self._accumulate = policy.accumulate
        monkeypatch.setattr(policy, "accumulate", self)

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        figures = self._accumulate(*args)  # first: a gradient is there, which must not count
        if self.calls in self._at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return figures


def test_a_step_short_of_memory_is_made_in_smaller_passes(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 27, once: the cycle is promoted, its bits are those of the half micro-batch, which its manifest and an
    event name; the next cycle has the configured one again."""
    file = new_run(training={"micro_batch": 2})
    with monkeypatch.context() as patched:
        ShortOfMemory(patched, 1)
        dream(file, 1)
    assert outcomes(file) == ["promoted"]
    ((told,),) = query(file, "select payload from events where name = 'micro_batch_halved' and cycle = 1")
    assert _parsed(told) == {"micro_batch": 1, "configured": 2}
    configured = file.read_text()
    file.write_text(configured.replace("micro_batch = 2", "micro_batch = 1"))
    check_invariants(file)  # it steps again what was recorded, with the micro-batch that is configured
    file.write_text(configured)
    dream(file, 1)
    assert outcomes(file) == ["promoted", "promoted"]
    assert [_manifest(file, number)["step"]["micro_batch"] for number in (1, 2)] == [1, 2]


def test_a_step_that_finds_no_memory_is_lost(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 27, in both tries: the cycle is lost with the fix as its reason, its examples are spent and nothing is
    published; the next one is sound. Two lost in turn end the process with 70."""
    file = new_run(training={"micro_batch": 2})
    with monkeypatch.context() as patched:
        ShortOfMemory(patched, 1, 2)
        dream(file, 2)
    assert outcomes(file) == ["lost", "promoted"]
    ((reason,),) = query(file, "select reason from cycles where number = 1")
    assert "training.micro_batch" in reason and "activation_checkpointing" in reason
    assert query(file, "select version from checkpoints order by 1") == [("base",), ("cycle-000002",)]
    assert query(file, "select count(*) > 0 from claims where cycle = 1 and kind = 'example'") == [(1,)]
    check_invariants(file)
    with monkeypatch.context() as patched:
        ShortOfMemory(patched, 1, 2, 3, 4)
        with pytest.raises(StepMemoryError) as caught:
            dream(file, 3)
    assert caught.value.exit_code == 70
    assert outcomes(file) == ["lost", "promoted", "lost", "lost"]
    dream(file, 1)
    assert outcomes(file)[-1] == "promoted"
    check_invariants(file)


def _manifest(file: Path, number: int) -> dict[str, Any]:
    found: dict[str, Any] = _parsed(
        (file.parent / "state" / "checkpoints" / f"cycle-{number:06d}" / FILE_NAME).read_text()
    )
    return found

"""The observer: log lines, status, progress, and which stages a stop may break off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from daemon.domain.errors import EngineError, StopRequested
from daemon.domain.records import Cycle
from daemon.domain.states import CycleState
from daemon.service.notify import Notifier
from daemon.service.observer import INTERRUPTIBLE, NoProgress, ServiceObserver
from daemon.service.stop import StopFlag

CYCLE = Cycle(number=7, seed=1, parent_version="cycle-000006", state=CycleState.PLANNED)


class Progress:
    """Records what it is shown."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def start(self, stage: str) -> None:
        self.calls.append(("start", stage))

    def update(self, done: int, total: int) -> None:
        self.calls.append((done, total))

    def finish(self) -> None:
        self.calls.append("finish")


class Status(Notifier):
    """Keeps the status lines."""

    def __init__(self) -> None:
        super().__init__(None)
        self.lines: list[str] = []

    def status(self, text: str) -> None:
        self.lines.append(text)


class Outside:
    """An observer with everything around it in view."""

    def __init__(self) -> None:
        self.stop, self.status, self.progress = StopFlag(), Status(), Progress()
        self.finished: list[int] = []
        self.observer = ServiceObserver(self.stop, self.status, self.progress, on_cycle_finished=self.finished.append)


@pytest.fixture
def events() -> Iterator[list[dict[str, Any]]]:
    """Every event, with its bound context."""
    captured: list[dict[str, Any]] = []

    def keep(_logger: Any, level: str, event: dict[str, Any]) -> Any:
        captured.append({**event, "level": level})
        raise structlog.DropEvent

    structlog.contextvars.clear_contextvars()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep])
    yield captured
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_a_stage_is_logged_shown_and_named_in_the_status(events: list[dict[str, Any]]) -> None:
    """Start and end with cycle, stage and seconds; the progress sink sees it; the status names cycle and head."""
    outside = Outside()
    with outside.observer.stage(CYCLE, "sweep") as progress:
        progress(3, 10)
    first, last = events
    assert (first["event"], first["cycle"], first["stage"]) == ("stage_started", 7, "sweep")
    assert (last["event"], last["cycle"], last["stage"]) == ("stage_finished", 7, "sweep")
    assert last["seconds"] >= 0
    assert outside.progress.calls == [("start", "sweep"), (3, 10), "finish"]
    (status,) = outside.status.lines
    assert all(part in status for part in ("cycle 7", "sweep", "cycle-000006"))


def test_the_cycle_stays_bound_after_its_stage_and_leaves_with_the_next(events: list[dict[str, Any]]) -> None:
    """Lines between stages carry the cycle but no stage; a stage without a cycle carries none."""
    observer = Outside().observer
    with observer.stage(CYCLE, "sweep"):
        pass
    observer.log("between")
    with observer.stage(None, "anchor"):
        pass
    assert events[2]["event"] == "between"
    assert events[2]["cycle"] == 7
    assert "stage" not in events[2]
    assert "cycle" not in events[3]


def test_a_failed_stage_says_so_and_the_error_goes_on(events: list[dict[str, Any]]) -> None:
    """stage_failed names the error; the progress is taken down; the exception is not swallowed."""
    outside = Outside()
    with pytest.raises(EngineError), outside.observer.stage(CYCLE, "step"):
        raise EngineError("gone")
    assert (events[-1]["event"], events[-1]["error"], events[-1]["level"]) == ("stage_failed", "EngineError", "error")
    assert outside.progress.calls[-1] == "finish"


@pytest.mark.parametrize("name", sorted(INTERRUPTIBLE))
def test_stages_that_spend_nothing_give_way(name: str, events: list[dict[str, Any]]) -> None:
    """A stop during the stage is raised by its next progress call, and is logged as no failure."""
    outside = Outside()
    with pytest.raises(StopRequested), outside.observer.stage(CYCLE, name) as progress:
        outside.stop.request("SIGTERM")
        progress(1, 2)
    assert events[-1]["event"] == "stage_stopped"
    with pytest.raises(StopRequested), outside.observer.stage(CYCLE, name):
        pytest.fail("a stage began after the stop")


@pytest.mark.parametrize("name", ["claim", "step", "publish", "restore", "verify"])
def test_stages_after_the_claim_run_to_their_end(name: str) -> None:
    """A stop does not show itself to a stage whose loss would cost spent examples."""
    outside = Outside()
    outside.stop.request("SIGTERM")
    with outside.observer.stage(CYCLE, name) as progress:
        progress(1, 2)
    with pytest.raises(StopRequested):
        outside.observer.check_stop()


def test_a_committed_state_is_a_line(events: list[dict[str, Any]]) -> None:
    """It names the state and the cycle."""
    Outside().observer.committed(CYCLE)
    assert (events[0]["event"], events[0]["state"], events[0]["cycle"]) == ("state_committed", "planned", 7)


def test_the_end_of_a_cycle_is_handed_on(events: list[dict[str, Any]]) -> None:
    """`cycle_finished`, and no other event, calls the listener with the cycle's number."""
    outside = Outside()
    outside.observer.log("pruned", cycle=6)
    outside.observer.log("cycle_finished", cycle=7, outcome="promoted")
    assert outside.finished == [7]
    assert events[-1]["outcome"] == "promoted"


def test_a_level_can_be_given(events: list[dict[str, Any]]) -> None:
    """level= chooses how loud a line is and is not a field of it."""
    Outside().observer.log("quarantined", level="warning", version="x")
    assert events[0]["level"] == "warning"
    assert events[0]["version"] == "x"


def test_it_works_without_anybody_looking() -> None:
    """No socket, no progress, no listener."""
    observer = ServiceObserver(StopFlag(), Notifier(None), NoProgress())
    with observer.stage(CYCLE, "sweep") as progress:
        progress(1, 1)
    observer.log("cycle_finished", cycle=7)


class Alive(Notifier):
    """Counts signs of life."""

    def __init__(self) -> None:
        super().__init__(None)
        self.signs = 0

    def alive(self) -> None:
        self.signs += 1


def test_whatever_goes_on_is_a_sign_of_life(events: list[dict[str, Any]]) -> None:
    """A stage that begins, its progress, a commit, a wait that asks for a stop: each is one; standing still is none."""
    alive = Alive()
    observer = ServiceObserver(StopFlag(), alive, NoProgress())
    with observer.stage(CYCLE, "step") as progress:
        assert alive.signs == 1
        progress(1, 2)
        assert alive.signs == 2
    observer.committed(CYCLE)
    observer.check_stop()
    assert alive.signs == 4

"""The deadline around an engine: what is a hang, what is none, and how many of them there may be."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from daemon.domain.errors import EngineError, StopRequested
from daemon.domain.records import Generation, GenerationRequest
from daemon.ports import ProgressCallback, Weights
from daemon.sweep import deadline
from daemon.sweep.children import descendants
from daemon.sweep.deadline import DeadlineEngine

ANSWER = Generation((1, 2), "hello", (-0.5, -0.25), "stop")
REQUEST = GenerationRequest(prompt_token_ids=(1,), temperature=0.0, seed=1, max_new_tokens=2)


class SteppingEngine:
    """Mirrors the `Engine` port: a number of steps of so many seconds, then one answer each."""

    name = "stepping"
    policy_version = "base"
    logprob_tolerance = 0.125

    def __init__(self, steps: int = 1, seconds: float = 0.0) -> None:
        self.steps, self.seconds = steps, seconds
        self.calls: list[Any] = []

    def generate(self, requests: Sequence[GenerationRequest], progress: ProgressCallback) -> list[Generation]:
        for step in range(self.steps):
            time.sleep(self.seconds)
            progress(step + 1, self.steps)
        return [ANSWER for _ in requests]

    def forget(self) -> None:
        self.calls.append("forget")

    def sync(self, weights: Weights, version: str) -> None:
        self.policy_version = version

    def weights_match(self, weights: Weights) -> bool:
        return self.policy_version == "cycle-000001"

    def close(self) -> None:
        raise EngineError("closing failed")


def around(engine: SteppingEngine, tmp_path: Path, deadline_s: float = 60.0) -> DeadlineEngine:
    return DeadlineEngine(lambda: engine, deadline_s, tmp_path, lambda event, **fields: None)


def test_it_is_the_engine_to_all_who_use_it(tmp_path: Path) -> None:
    """Names, answers, progress, new weights and errors are the inner engine's; no thread is left, and no file."""
    inner = SteppingEngine(steps=3)
    engine = around(inner, tmp_path)
    seen: list[tuple[int, int]] = []
    before = threading.active_count()
    assert engine.generate([REQUEST, REQUEST], lambda done, total: seen.append((done, total))) == [ANSWER, ANSWER]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert (engine.name, engine.policy_version, engine.logprob_tolerance) == ("stepping", "base", 0.125)
    engine.sync({}, "cycle-000001")
    assert engine.policy_version == "cycle-000001" and engine.weights_match({})
    engine.forget()
    assert inner.calls == ["forget"]
    with pytest.raises(EngineError, match="closing failed"):
        engine.close()
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []


def test_a_stop_goes_through(tmp_path: Path) -> None:
    """What the progress callback raises reaches the caller, and the next call is watched as ever."""
    engine = around(SteppingEngine(), tmp_path)

    def stop(done: int, total: int) -> None:
        raise StopRequested("SIGTERM")

    with pytest.raises(StopRequested):
        engine.generate([REQUEST], stop)
    assert engine.generate([REQUEST], lambda done, total: None) == [ANSWER]


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes instead of the end of this process."""
    codes: list[int] = []
    monkeypatch.setattr(deadline.os, "_exit", codes.append)
    return codes


def test_slow_is_not_hung(tmp_path: Path, ended: list[int]) -> None:
    """A call of twice the deadline whose steps keep coming goes on; one silent for as long as that is ended."""
    engine = around(SteppingEngine(steps=20, seconds=0.2), tmp_path, deadline_s=2.0)
    assert engine.generate([REQUEST], lambda done, total: None) == [ANSWER]
    assert ended == []
    around(SteppingEngine(steps=1, seconds=4.0), tmp_path, deadline_s=2.0).generate([REQUEST], lambda *_: None)
    assert ended == [70]


def test_a_progress_bar_that_blocks_is_no_hang(tmp_path: Path, ended: list[int]) -> None:
    """A terminal that is held for five deadlines is not the engine's fault."""
    engine = around(SteppingEngine(), tmp_path, deadline_s=0.4)
    engine.generate([REQUEST], lambda done, total: time.sleep(2.0))
    assert ended == []


def test_loading_is_watched(tmp_path: Path, ended: list[int]) -> None:
    """An engine that never finishes loading is ended too, and its place is known."""

    def load() -> SteppingEngine:
        time.sleep(2.0)
        return SteppingEngine()

    events: list[tuple[str, dict[str, Any]]] = []
    DeadlineEngine(load, 0.5, tmp_path, lambda event, **fields: events.append((event, fields)))
    ((event, fields),) = events
    assert (event, fields["call"], fields["seconds"], fields["exit_code"]) == ("engine_hung", "load", 0.5, 70)
    assert fields["stack"][-1].endswith(" load") and "test_deadline.py" in fields["stack"][-1]
    assert ended == [70]


def test_a_log_that_blocks_does_not_keep_it_alive(
    tmp_path: Path, ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that hangs may hold the log's lock: the process ends without its line."""
    monkeypatch.setattr(deadline, "_LOG_TIMEOUT_S", 0.1)
    release = threading.Event()
    engine = DeadlineEngine(
        lambda: SteppingEngine(seconds=1.5), 0.5, tmp_path, lambda event, **fields: release.wait(30)
    )
    engine.generate([REQUEST], lambda done, total: None)
    release.set()
    assert ended == [70]


STOPPED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_deadline import REQUEST, SteppingEngine, around
engine = around(SteppingEngine(seconds=1.0), Path(sys.argv[1]), deadline_s=2.0)
print("working", flush=True)
engine.generate([REQUEST], lambda done, total: None)
print("done", flush=True)
"""


def test_a_process_that_was_stopped_did_not_hang(tmp_path: Path) -> None:
    """SIGSTOP for twice the deadline in the middle of a call, then SIGCONT: the call ends as if nothing had been."""
    command = [sys.executable, "-c", STOPPED, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(4.0)
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "done\n")


def test_hangs_are_counted_by_place_and_day(tmp_path: Path) -> None:
    """Two in one place and one elsewhere are not three; yesterday's do not count; after the third it begins anew."""
    file = tmp_path / "engine-hangs"
    count = deadline._count_hang
    assert [count(file, "generate base"), count(file, "sync base"), count(file, "generate base")] == [1, 1, 2]
    assert count(file, "generate base") == 3
    assert not file.exists()
    long_ago = time.time() - 86401
    file.write_text(f"{long_ago:.0f} load\n{long_ago:.0f} load\nrubbish\n")
    assert count(file, "load") == 1
    assert len(file.read_text().splitlines()) == 1


def test_a_count_that_cannot_be_kept_is_one(tmp_path: Path) -> None:
    """No room, no right, or something else in the way: the process must end all the same."""
    (tmp_path / "engine-hangs").mkdir()
    assert deadline._count_hang(tmp_path / "engine-hangs", "load") == 1


def test_children_of_children_are_found_whatever_their_name(tmp_path: Path) -> None:
    """A process called "a) b (" and its child are descendants of this one, the parent first; gone, they are not."""
    shell = tmp_path / "a) b ("
    shell.symlink_to("/bin/sh")
    command = [str(shell), "-c", "sleep 600 & echo $!; wait"]
    before = set(descendants(deadline.os.getpid()))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        found = [each for each in descendants(deadline.os.getpid()) if each not in before]
        assert [each.pid for each in found] == [process.pid, grandchild]
        deadline.kill(found)
        deadline.kill(found)  # whoever is gone is no error
    assert process.pid not in [each.pid for each in descendants(deadline.os.getpid())]

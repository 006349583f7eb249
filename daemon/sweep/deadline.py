"""An engine that hangs must not hang the daemon: a deadline around every call of it.

A call that never comes back cannot be ended from within a process: its thread is deep in native code. So the process
ends instead, like a kill, and its next start repairs; the engine's own processes are ended first.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from daemon.domain import failpoints
from daemon.domain.errors import EngineError
from daemon.domain.records import Generation, GenerationRequest
from daemon.ports import Engine, ProgressCallback, Weights
from daemon.sweep.children import descendants, kill

HUNG_EXIT_CODE: Final = EngineError.exit_code
"""The process ended because of a hang: start it again."""
GIVEN_UP_EXIT_CODE: Final = 69
"""So many starts hung in the same place that another one would too: a person must look."""
MAX_HANGS: Final = 3
HANGS_WITHIN_S: Final = 86400
HANGS_FILE: Final = "engine-hangs"

_SLICES: Final = 8
_LOG_TIMEOUT_S: Final = 5.0
_MAX_FRAMES: Final = 40


class DeadlineEngine:
    """Implements the `Engine` port around another engine.

    Args:
        load: makes that engine; already watched.
        deadline_s: longest time within one call without its progress callback.
        state_dir: where hangs are counted, over starts.
        log: writes a structured log line, like `Observer.log`.
    """

    def __init__(
        self, load: Callable[[], Engine], deadline_s: float, state_dir: Path, log: Callable[..., None]
    ) -> None:
        self._deadline_s = deadline_s
        self._hangs = state_dir / HANGS_FILE
        self._log = log
        self._others = frozenset(descendants(os.getpid()))
        with self._watched("load"):
            self._engine = load()

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def policy_version(self) -> str:
        return self._engine.policy_version

    @property
    def logprob_tolerance(self) -> float:
        return self._engine.logprob_tolerance

    def generate(self, requests: Sequence[GenerationRequest], progress: ProgressCallback) -> list[Generation]:
        with self._watched("generate") as watch:
            failpoints.hit("engine.generate")

            def seen(done: int, total: int) -> None:
                with watch.paused():  # a terminal that does not scroll is no engine that hangs
                    progress(done, total)

            return self._engine.generate(requests, seen)

    def forget(self) -> None:
        with self._watched("forget"):
            self._engine.forget()

    def sync(self, weights: Weights, version: str) -> None:
        with self._watched("sync"):
            self._engine.sync(weights, version)

    def weights_match(self, weights: Weights) -> bool:
        with self._watched("weights_match"):
            return self._engine.weights_match(weights)

    def close(self) -> None:
        with self._watched("close"):
            self._engine.close()

    @contextmanager
    def _watched(self, call: str) -> Iterator[_Watch]:
        caller, context = threading.get_ident(), contextvars.copy_context()  # the log line belongs to cycle and stage
        version = "" if call == "load" else self.policy_version
        watch = _Watch(self._deadline_s, lambda: context.run(self._end, call, version, caller))
        watch.start()
        try:
            yield watch
        finally:
            watch.end()

    def _end(self, call: str, version: str, caller: int) -> None:
        """Say what hangs, end the engine's processes, and end this one."""
        code = HUNG_EXIT_CODE
        try:
            hangs = _count_hang(self._hangs, f"{call} {version}".strip())
            code = GIVEN_UP_EXIT_CODE if hangs >= MAX_HANGS else HUNG_EXIT_CODE
            engine_processes = [each for each in descendants(os.getpid()) if each not in self._others]
            fields = {
                "call": call,
                "policy_version": version,
                "seconds": self._deadline_s,
                "hangs": hangs,
                "killed": [each.pid for each in engine_processes],
                "exit_code": code,
                "stack": _stack(caller),
            }
            _bounded(lambda: self._log("engine_hung", level="error", **fields))
            kill(engine_processes)
        finally:
            os._exit(code)


class _Watch:
    """Calls `on_hang`, in a thread of its own, after `deadline_s` in which the watched call went nowhere.

    It counts slices of time and reads no clock: a process that was stopped for an hour hung for at most one slice.
    """

    def __init__(self, deadline_s: float, on_hang: Callable[[], None]) -> None:
        self._slice_s = deadline_s / _SLICES
        self._on_hang = on_hang
        self._over = threading.Event()
        self._steps = 0
        self._is_paused = False
        self._thread = threading.Thread(target=self._watch, name="engine-deadline", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The engine made a step and is not at work inside."""
        self._is_paused = True
        try:
            yield
        finally:
            self._steps += 1
            self._is_paused = False

    def _watch(self) -> None:
        steps, silent = self._steps, 0
        while not self._over.wait(self._slice_s):
            if self._is_paused or self._steps != steps:
                steps, silent = self._steps, 0
                continue
            silent += 1
            if silent >= _SLICES:
                self._on_hang()
                return


def _stack(thread: int) -> list[str]:
    """Where a thread is, innermost last: `file:line function`."""
    frame = sys._current_frames().get(thread)
    found = traceback.extract_stack(frame) if frame is not None else []
    return [f"{each.filename}:{each.lineno} {each.name}" for each in found][-_MAX_FRAMES:]


def _count_hang(file: Path, place: str) -> int:
    """Note a hang; how many there were in this place within a day. At `MAX_HANGS` the count begins anew.

    A count that cannot be kept (a full disk) must not keep the process alive.
    """
    now = time.time()
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        kept = [line for line in lines if 0 <= now - _moment(line) < HANGS_WITHIN_S]
        kept.append(f"{int(now)} {place}")
        count = sum(line.partition(" ")[2] == place for line in kept)
        if count >= MAX_HANGS:
            file.unlink(missing_ok=True)  # who starts it again has looked at it
        else:
            file.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return 1
    return count


def _moment(line: str) -> float:
    with contextlib.suppress(ValueError):
        return float(line.partition(" ")[0])
    return 0.0


def _bounded(log: Callable[[], Any]) -> None:
    """Call `log`, but do not wait for ever: the thread that hangs may hold what it needs."""
    context = contextvars.copy_context()
    writer = threading.Thread(target=lambda: context.run(log), daemon=True)
    writer.start()
    writer.join(_LOG_TIMEOUT_S)

"""A process that has everything imported, and for each line on stdin forks a child that dreams and may be killed.

A line is JSON. "command" is "init", with "directory", "url" and "sections" as `harness.make_run` takes them; or
"dream", with "config" (a file), "cycles", "attempt" (`moments.Attempt`) and "kill_after_s" (null: not by the clock).
The answer is a line, too: `driver.Ended`. A child that lives longer than "limit_s" is killed and reported as hung.

It forks because importing torch anew takes longer than a whole cycle; it runs nothing itself, so that a child starts
without any library's threads. Scenario sources and held-out suites are built here once, before the first child.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import harness
from chaos.killing import Trap, TrappedObserver, watch_operations

from daemon import app
from daemon.domain import failpoints
from daemon.domain.errors import DreamdError
from daemon.scenarios.imports.clean import special_tokens

_POLL_S = 0.003

app.load_suite = functools.cache(app.load_suite)


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        if order["command"] == "dream":
            _build_once(Path(order["config"]))
        print(json.dumps(_run(order)), flush=True)


def _build_once(config: Path) -> None:
    """What every start would build anew, in plain Python; cached, so children find it."""
    settings = harness.load(config).config
    app.build_source(settings.scenarios, special_tokens(settings.model.path))
    app.load_suite(settings.probes.suites)
    gc.freeze()  # a child's first collection would else copy every page


def _run(order: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        _child(order)
    with contextlib.suppress(PermissionError):
        os.setpgid(child, child)  # whoever of the two comes first
    return _wait(child, started, order)


def _wait(child: int, started: float, order: dict[str, Any]) -> dict[str, Any]:
    """Kill at the time that was asked for, reap. Nobody else reaps, so the group is still this child's."""
    deadline = order.get("kill_after_s")
    hung = False
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        seconds = time.monotonic() - started
        if done:
            break
        hung = seconds > order["limit_s"]
        if hung or (deadline is not None and seconds >= deadline):
            os.killpg(child, signal.SIGKILL)
            _, status, used = os.wait4(child, 0)
            break
        time.sleep(_POLL_S)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return {
        "killed": killed,
        "hung": hung,
        "code": os.waitstatus_to_exitcode(status),
        "seconds": seconds,
        "cpu_s": used.ru_utime + used.ru_stime,
    }


def _child(order: dict[str, Any]) -> None:
    """Never returns; its exit code is dreamd's, its last words are on stderr."""
    code = 1
    try:
        if order["command"] == "init":
            harness.make_run(Path(order["directory"]), order["url"], **order["sections"])
        else:
            _dream(order)
        code = 0
    except DreamdError as error:
        code = error.exit_code
        traceback.print_exc()
    except BaseException:  # noqa: BLE001 - the process ends here
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _dream(order: dict[str, Any]) -> None:
    attempt = order["attempt"]
    trap = Trap(attempt["point"], attempt["count"], attempt["delay_s"])
    where, _, name = attempt["point"].partition(":")
    if where == "failpoint":
        failpoints.activate({name: f"kill@{attempt['count']}"})
    elif attempt["kind"] == "disk":
        watch_operations(trap)
    harness.dream(Path(order["config"]), order["cycles"], *attempt["flags"], observer=TrappedObserver(trap))


if __name__ == "__main__":
    main()

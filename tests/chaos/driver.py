"""Starts children through the fork server, one after the other, and says what became of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from chaos.moments import UNHURT, Attempt

TESTS = Path(__file__).parents[1]
LIMIT_S = 120.0
"""A child that lives longer hangs."""


@dataclass(frozen=True)
class Ended:
    """What became of a child."""

    killed: bool
    hung: bool
    code: int
    """Its exit code, as a service manager would see it; minus the signal if one ended it."""
    seconds: float
    cpu_s: float


class Driver:
    """The fork server, as long as its `with` block runs; what children write to stderr goes to `log`."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("ab")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "chaos.fork_server"],
            cwd=TESTS.parent,
            env={**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        try:
            self._server.wait(timeout=LIMIT_S + 30)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._server.stdout.close()
        self._log.close()

    def init(self, directory: Path, url: str, sections: dict[str, dict[str, Any]]) -> Ended:
        """`dreamd init` of a tiny model in `directory`, its configuration in `dreamd.toml` there."""
        return self._order({"command": "init", "directory": str(directory), "url": url, "sections": sections})

    def dream(self, config: Path, cycles: int, attempt: Attempt = UNHURT, kill_after_s: float | None = None) -> Ended:
        """`dreamd run --cycles N` in a process group of its own, killed at the attempt's moment if that comes."""
        order = {"command": "dream", "config": str(config), "cycles": cycles, "attempt": attempt.as_json()}
        return self._order({**order, "kill_after_s": kill_after_s})

    def _order(self, order: dict[str, Any]) -> Ended:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps({**order, "limit_s": LIMIT_S}) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        if not answer:
            raise RuntimeError(f"the fork server ended with {self._server.wait(timeout=10)}; see {self._log.name}")
        return Ended(**json.loads(answer))

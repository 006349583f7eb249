"""Runs to break, and a fork server whose children are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import make_run, write_config

NewRun = Callable[..., Path]
Driver = Callable[..., int]
KillAt = Callable[..., None]


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a run on SQLite right after `dreamd init`, to copy."""
    directory = tmp_path_factory.mktemp("initialised")
    make_run(directory, "")
    return directory


@pytest.fixture
def new_run(initialised: Path, tmp_path: Path) -> NewRun:
    """`new_run(state_dir=None, **sections)`: a run that did nothing yet, on SQLite; returns its configuration."""

    def copy(state_dir: Path | None = None, **sections: dict[str, Any]) -> Path:
        state = state_dir or tmp_path / "state"
        shutil.copytree(initialised / "state", state, dirs_exist_ok=True)
        shutil.copytree(initialised / "model", tmp_path / "model", dirs_exist_ok=True)
        return write_config(tmp_path, "", **sections, run={"state_dir": str(state)})

    return copy


@pytest.fixture(scope="session")
def driver() -> Iterator[Driver]:
    """`driver(config, moment, *flags)`: another process does what `kill_driver.py` says; returns its wait status."""
    here = Path(__file__).parent
    server = subprocess.Popen(
        [sys.executable, str(here / "kill_driver.py")],
        env={**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here.parent.parent}", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None and server.stdout is not None

    def run(file: Path, moment: str, *flags: str) -> int:
        server.stdin.write(json.dumps([str(file), moment, *flags]) + "\n")
        server.stdin.flush()
        return int(server.stdout.readline())

    yield run
    server.stdin.close()
    server.wait(timeout=30)
    server.stdout.close()


@pytest.fixture(scope="session")
def kill_at(driver: Driver) -> KillAt:
    """Run one cycle in another process that is killed at a moment: `kill_at(config, moment, *flags)`."""

    def run(file: Path, moment: str, *flags: str) -> None:
        status = driver(file, moment, *flags)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{moment} never came"

    return run

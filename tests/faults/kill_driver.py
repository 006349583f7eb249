"""A process that has everything imported, and for each line on stdin forks a child that dreams and is killed.

A line is JSON: [CONFIG, MOMENT, FLAG ...]. MOMENT is a cycle state ("swept": right after it was committed), an event
that is logged ("rolled_back": the verdict is committed, nothing is restored yet), or "renamed" (the checkpoint
directory has its final name, its row is missing). "MOMENT@N" is that moment of cycle N, so cycles run until
then; "end@N" runs N cycles and ends by itself. "MOMENT+NAME=ACTION" switches a failpoint on at a state instead, and
"start+NAME=ACTION" at the start. "dreamd" runs the command line that FLAG are, its stdout being CONFIG. Answers with
the child's wait status, a line each.

An argument seeds every global random generator of the children: whatever it is, nothing may come out differently.

It forks because importing torch anew takes longer than a whole cycle; it runs nothing itself, so that a child starts
without any library's threads.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import RecordingObserver, dream

from daemon.__main__ import main as command
from daemon.checkpoints.store import DirectoryStore
from daemon.domain import failpoints
from daemon.domain.records import Cycle

END = "end"
START = "start"
COMMAND = "dreamd"


class Killer(RecordingObserver):
    """Ends its process with SIGKILL when a state was committed, or when an event is logged."""

    def __init__(self, moment: str, number: int | None, failpoint: str = "") -> None:
        super().__init__()
        self.moment = moment
        self.number = number
        self.failpoint = failpoint

    def committed(self, cycle: Cycle) -> None:
        if cycle.state == self.moment and self.number in (None, cycle.number):
            if not self.failpoint:
                die()
            failpoints.activate(failpoints.parse(self.failpoint))

    def log(self, event: str, **fields: Any) -> None:
        if event == self.moment and self.number in (None, fields.get("cycle")):
            die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_after_the_rename(number: int | None) -> None:
    """From now on publishing a checkpoint (of cycle `number`, if given) ends this process."""
    publish = DirectoryStore.publish

    def publish_and_die(self: DirectoryStore, *args: Any, **kwargs: Any) -> Any:
        published = publish(self, *args, **kwargs)
        if number in (None, kwargs["cycle_number"]):
            die()
        return published

    DirectoryStore.publish = publish_and_die  # type: ignore[method-assign]


def seed_globals(seed: int) -> None:
    """Every generator that a library could draw from without being told to."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def run_child(config: Path, moment: str, flags: list[str]) -> None:
    """Never returns: killed at the moment, or exit status 0 at the end that was asked for, or 1."""
    status = 1
    try:
        if len(sys.argv) > 1:
            seed_globals(int(sys.argv[1]))
        status = run_command(config, flags) if moment == COMMAND else run_until(config, moment, flags)
    except BaseException:  # noqa: BLE001 - nothing of the parent may run in the child
        traceback.print_exc()
    finally:
        os._exit(status)


def run_until(config: Path, moment: str, flags: list[str]) -> int:
    """Dream until the moment, which ends this process; 0 at an end that was asked for, 1 when it never came."""
    moment, _, failpoint = moment.partition("+")
    name, _, number = moment.partition("@")
    cycle = int(number) if number else None
    if name == "renamed":
        die_after_the_rename(cycle)
    if name == START:
        failpoints.activate(failpoints.parse(failpoint))
    dream(config, cycle or 1, *flags, observer=Killer(name, cycle, failpoint))
    return 0 if name == END else 1


def run_command(stdout: Path, arguments: list[str]) -> int:
    """`dreamd ARGUMENTS` with its stdout in a file, or whatever that is; returns its exit code."""
    os.dup2(os.open(stdout, os.O_WRONLY), 1)
    sys.argv = ["dreamd", *arguments]
    try:
        command()
    except SystemExit as ending:
        return int(ending.code or 0)
    return 0


def main() -> None:
    for line in sys.stdin:
        config, moment, *flags = json.loads(line)
        child = os.fork()
        if child == 0:
            run_child(Path(config), moment, flags)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main()

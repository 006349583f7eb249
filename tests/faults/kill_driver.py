"""A process that has everything imported, and for each line on stdin forks a child that dreams and is killed.

A line is JSON: [CONFIG, MOMENT, FLAG ...]. MOMENT is a cycle state ("swept": right after it was committed), an event
that is logged ("rolled_back": the verdict is committed, nothing is restored yet), or "renamed" (the checkpoint
directory has its final name, its row is missing). Answers with the child's wait status, a line each.

It forks because importing torch anew takes longer than a whole cycle; it runs nothing itself, so that a child starts
without any library's threads.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from harness import RecordingObserver, dream

from daemon.checkpoints.store import DirectoryStore
from daemon.domain.records import Cycle


class Killer(RecordingObserver):
    """Ends its process with SIGKILL when a state was committed, or when an event is logged."""

    def __init__(self, moment: str) -> None:
        super().__init__()
        self.moment = moment

    def committed(self, cycle: Cycle) -> None:
        if cycle.state == self.moment:
            die()

    def log(self, event: str, **fields: Any) -> None:
        if event == self.moment:
            die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_after_the_rename() -> None:
    """From now on publishing a checkpoint ends this process."""
    publish = DirectoryStore.publish

    def publish_and_die(self: DirectoryStore, *args: Any, **kwargs: Any) -> None:
        publish(self, *args, **kwargs)
        die()

    DirectoryStore.publish = publish_and_die  # type: ignore[assignment,method-assign]


def main() -> None:
    for line in sys.stdin:
        config, moment, *flags = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                if moment == "renamed":
                    die_after_the_rename()
                dream(Path(config), 1, *flags, observer=Killer(moment))
            finally:
                os._exit(1)  # still alive: the moment never came
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main()

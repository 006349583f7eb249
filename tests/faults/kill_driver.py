"""Run a cycle and kill this process, with SIGKILL, at one moment: `python kill_driver.py CONFIG MOMENT [FLAG ...]`.

MOMENT is a cycle state ("swept": right after it was committed), "renamed" (the checkpoint directory has its final
name, its row is missing) or "rolled_back" (the verdict is committed, nothing is restored yet).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from harness import RecordingObserver, dream

from daemon.checkpoints.store import DirectoryStore
from daemon.domain.records import Cycle


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killer(RecordingObserver):
    def __init__(self, moment: str) -> None:
        super().__init__()
        self.moment = moment

    def committed(self, cycle: Cycle) -> None:
        if cycle.state == self.moment:
            die()

    def log(self, event: str, **fields: Any) -> None:
        if event == self.moment:
            die()


def main(config: str, moment: str, *flags: str) -> None:
    if moment == "renamed":
        publish = DirectoryStore.publish

        def publish_and_die(self: DirectoryStore, *args: Any, **kwargs: Any) -> Any:
            publish(self, *args, **kwargs)
            die()

        DirectoryStore.publish = publish_and_die  # type: ignore[method-assign]
    dream(Path(config), 1, *flags, observer=Killer(moment))
    raise SystemExit(f"still alive: {moment} never came")


if __name__ == "__main__":
    main(*sys.argv[1:])

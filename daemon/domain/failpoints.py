"""Failpoints: named places where a test makes the program fail. Nothing at all unless switched on.

    DREAMD_TESTING=1 DREAMD_FAILPOINTS="store.rename=kill@2;store.fsync=EIO;cycle.sweep=sleep:30"

Actions: `kill` (SIGKILL to this process), the name of an errno (`EIO`, `ENOSPC`: raised as OSError), `sleep:SECONDS`,
`nan` (a number that is none was found, `NonFiniteError`). `@N`: at the N-th hit only; `@N+`: from the N-th on; without
either: at every hit.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from daemon.domain.errors import ConfigError, NonFiniteError

VARIABLE = "DREAMD_FAILPOINTS"
TESTING_VARIABLE = "DREAMD_TESTING"
MAX_SLEEP_S = 600.0

NAMES = frozenset(
    {
        "cycle.sweep",  # before the engine is asked
        "engine.generate",  # the engine is asked, and its deadline runs
        "cycle.step",  # claimed, the optimizer has not moved
        "cycle.restore",  # the head has moved, nothing is restored yet
        "store.write",  # the temporary directory is there, and empty
        "store.fsync",  # before each fsync
        "store.rename",  # before a checkpoint gets its final name
        "store.renamed",  # it has its final name, durably; its row is missing
        "ledger.commit",  # inside a write transaction, before its COMMIT
        "ledger.committed",  # a write transaction was committed
    }
)
"""Every failpoint, and where it is; a test compares these with the calls of `hit`."""

_ACTION = re.compile(
    r"(?P<what>kill|nan|E[A-Z0-9]+|sleep:(?P<seconds>\d+(?:\.\d+)?))(?:@(?P<first>[1-9]\d*)(?P<on>\+)?)?"
)


@dataclass
class _Failpoint:
    """One that is switched on."""

    name: str
    what: str
    seconds: float
    first: int
    last: float
    hits: int = 0


_active: dict[str, _Failpoint] = {}
_counting = threading.Lock()


def hit(name: str) -> None:
    """Do what is switched on for this place; usually nothing.

    Raises:
        OSError: the action is an errno.
        NonFiniteError: the action is `nan`.
    """
    failpoint = _active.get(name)
    if failpoint is not None:
        _fire(failpoint)


def activate(actions: Mapping[str, str]) -> None:
    """Switch on exactly these failpoints in this process, hits counted from now; an empty mapping switches all off.

    Args:
        actions: name -> action, such as {"store.fsync": "EIO@2"}.

    Raises:
        ConfigError: an unknown name or action; what was switched on before stays.
    """
    wanted = {name: _parsed(name, action) for name, action in actions.items()}
    _active.clear()
    _active.update(wanted)


def activate_from(environ: Mapping[str, str]) -> None:
    """Switch on what the variable DREAMD_FAILPOINTS says, in a process that is under test.

    Raises:
        ConfigError: it is set without DREAMD_TESTING=1, or cannot be read.
    """
    text = environ.get(VARIABLE)
    if text is None:
        return
    if environ.get(TESTING_VARIABLE) != "1":
        raise ConfigError(
            f"{VARIABLE} is set, which makes dreamd fail on purpose, but {TESTING_VARIABLE}=1 is not: unset {VARIABLE}"
        )
    activate(parse(text))


def parse(text: str) -> dict[str, str]:
    """`NAME=ACTION;NAME=ACTION` as a mapping.

    Raises:
        ConfigError: an entry is not of this form, or names a failpoint a second time.
    """
    actions: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        name, separator, action = (part.strip() for part in entry.partition("="))
        if not (name and separator and action):
            raise ConfigError(f"{VARIABLE}: {entry!r}: write NAME=ACTION, for instance store.fsync=EIO@2")
        if name in actions:
            raise ConfigError(f"{VARIABLE}: {name} is there twice; a failpoint has one action")
        actions[name] = action
    return actions


def _parsed(name: str, action: str) -> _Failpoint:
    if name not in NAMES:
        raise ConfigError(f"{name}: no such failpoint; there are {', '.join(sorted(NAMES))}")
    found = _ACTION.fullmatch(action)
    if found is None:
        raise ConfigError(
            f"{name}={action}: no such action; write kill, nan, sleep:SECONDS or an errno such as ENOSPC, "
            "and behind it @N for the N-th hit alone or @N+ from it on"
        )
    what, seconds = found["what"], float(found["seconds"] or 0)
    if what.startswith("E") and not hasattr(errno, what):
        raise ConfigError(f"{name}={action}: {what} is no errno of this system; for instance ENOSPC or EIO")
    if seconds > MAX_SLEEP_S:
        raise ConfigError(f"{name}={action}: at most {MAX_SLEEP_S:.0f} seconds")
    first = int(found["first"] or 1)
    once = found["first"] is not None and found["on"] is None
    return _Failpoint(name, what.partition(":")[0], seconds, first, first if once else float("inf"))


def _fire(failpoint: _Failpoint) -> None:
    with _counting:
        failpoint.hits += 1
        due = failpoint.first <= failpoint.hits <= failpoint.last
    if not due:
        return
    if failpoint.what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif failpoint.what == "sleep":
        time.sleep(failpoint.seconds)
    elif failpoint.what == "nan":
        raise NonFiniteError(f"failpoint {failpoint.name}: a number that is none")
    else:
        number = getattr(errno, failpoint.what)
        raise OSError(number, os.strerror(number), f"failpoint {failpoint.name}")

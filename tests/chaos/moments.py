"""When a child is killed: drawn from a seed alone, so that the same seed asks for the same kills again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

POISON = ("training.lr=1.0", "training.allow_unsafe_lr=true")
"""Settings whose step the watchdog refuses: the child rolls back."""

STATES = ("swept", "paired", "claimed", "stepped", "published", "probed")
STAGES = ("load trainer", "load engine", "load", "engine", "sample", "sweep", "judge", "step", "publish", "probe")
RESTORING = ("log:rolled_back", "stage:restore", "stage:verify", "log:rollback_verified")

FAILPOINTS = ("cycle.sweep", "cycle.step", "cycle.restore", "store.write", "store.fsync", "store.rename")
FAILPOINTS += ("store.renamed", "ledger.commit", "ledger.committed", "engine.generate")
MANY = ("store.fsync", "ledger.commit", "ledger.committed")
"""Failpoints that a start and a cycle pass many times."""

_KINDS = {"clock": 28, "start": 12, "state": 12, "stage": 12, "failpoint": 14, "disk": 12, "restore": 10}
"""Kind of moment -> its weight."""


@dataclass(frozen=True)
class Attempt:
    """One child: what it is told, and when it dies."""

    kind: str
    """ "clock" and "start": after a share of the usual time of cycles, or of a start. The others: at a `point`."""
    share: float = 0.0
    """0 to 1, of the usual time; only of kinds that go by the clock."""
    point: str = ""
    """ "state:NAME", "stage:NAME", "log:NAME", "failpoint:NAME", or an operation: "fsync", "rename", "unlink"."""
    count: int = 1
    """At which occurrence of the point."""
    delay_s: float = 0.0
    """From the point to the kill: it then lands inside what follows."""
    flags: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


UNHURT = Attempt("none")
"""Lives as long as it wants."""


def attempts(seed: int) -> Iterator[Attempt]:
    """An endless series."""
    generator = random.Random(seed)
    points = {
        "state": _dealt(generator, [f"state:{name}" for name in STATES]),
        "stage": _dealt(generator, [f"stage:{name}" for name in STAGES]),
        "failpoint": _dealt(generator, [f"failpoint:{name}" for name in FAILPOINTS]),
        "disk": _dealt(generator, ["fsync", "rename", "unlink"]),
        "restore": _dealt(generator, RESTORING),
    }
    while True:
        (kind,) = generator.choices(list(_KINDS), list(_KINDS.values()))
        yield _attempt(generator, kind, next(points[kind]) if kind in points else "")


def _dealt(generator: random.Random, names: Sequence[str]) -> Iterator[str]:
    """Each name once in random order, and so on: none is missing from a long run."""
    while True:
        yield from generator.sample(names, len(names))


def _attempt(generator: random.Random, kind: str, point: str) -> Attempt:
    poisoned = kind == "restore" or generator.random() < 0.1
    flags = POISON if poisoned else ()
    if kind in ("clock", "start"):
        return Attempt(kind, share=generator.random(), flags=flags)
    if kind == "failpoint":
        many = point.partition(":")[2] in MANY
        return Attempt(kind, 0.0, point, generator.randint(1, 40 if many else 2), 0.0, flags)
    if kind == "disk":
        return Attempt(kind, 0.0, point, generator.randint(1, 12), 0.0, flags)
    # Half of them exactly at the point, half somewhere in the milliseconds after it.
    delay = generator.choice((0.0, generator.uniform(0.0, 0.03)))
    return Attempt(kind, 0.0, point, 1 if kind == "restore" else generator.randint(1, 2), delay, flags)

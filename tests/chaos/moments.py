"""When a child is killed: drawn from a seed alone, so that the same seed asks for the same kills again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

POISON = ("training.lr=1.0", "training.allow_unsafe_lr=true")
"""Settings whose step the watchdog refuses: the child rolls back."""

STATES = ("swept", "paired", "claimed", "stepped", "published", "probed")
STAGES = ("load trainer", "load engine", "load", "engine", "sample", "sweep", "judge", "step", "publish", "probe")
RESTORING = ("log:rolled_back", "stage:restore", "stage:verify", "log:rollback_verified")

FAILPOINTS = ("cycle.sweep", "cycle.step", "cycle.restore", "store.write", "store.fsync", "store.rename")
FAILPOINTS += ("store.renamed", "ledger.commit", "ledger.committed")
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
    while True:
        (kind,) = generator.choices(list(_KINDS), list(_KINDS.values()))
        yield _attempt(generator, kind)


def _attempt(generator: random.Random, kind: str) -> Attempt:
    poisoned = kind == "restore" or generator.random() < 0.1
    flags = POISON if poisoned else ()
    if kind in ("clock", "start"):
        return Attempt(kind, share=generator.random(), flags=flags)
    # Half of them exactly at the point, half somewhere in the milliseconds after it.
    delay = generator.choice((0.0, generator.uniform(0.0, 0.03)))
    if kind == "state":
        return Attempt(kind, 0.0, f"state:{generator.choice(STATES)}", generator.randint(1, 2), delay, flags)
    if kind == "stage":
        return Attempt(kind, 0.0, f"stage:{generator.choice(STAGES)}", generator.randint(1, 2), delay, flags)
    if kind == "restore":
        return Attempt(kind, 0.0, generator.choice(RESTORING), 1, delay, flags)
    if kind == "failpoint":
        name = generator.choice(FAILPOINTS)
        return Attempt(kind, 0.0, f"failpoint:{name}", generator.randint(1, 40 if name in MANY else 2), 0.0, flags)
    return Attempt(kind, 0.0, generator.choice(("fsync", "rename", "unlink")), generator.randint(1, 12), 0.0, flags)

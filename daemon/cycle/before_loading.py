"""Repair before anything is loaded: a head or base that does not verify comes back from the mirror."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from daemon.cycle.mending import make_loadable
from daemon.ports import CheckpointStore, Ledger, Mirror, Observer


@dataclass(frozen=True)
class Repair:
    """What mending needs; implements the `Keeper` of `mending`."""

    ledger: Ledger
    store: CheckpointStore
    mirror: Mirror
    observer: Observer
    baked_after: int

    def tell(self, name: str, cycle: None, *, level: str = "warning", **payload: Any) -> None:
        self.ledger.event(name, level=level, cycle=cycle, **payload)
        self.observer.log(name, level=level, **payload)

    def run(self) -> None:
        """Verify what every start reads, and mend what is damaged.

        Raises:
            HeadDamagedError: the head is damaged, and the mirror did not bring it back.
            CheckpointError: likewise the base.
        """
        lineage = self.ledger.lineage()
        for checkpoint in {found.version: found for found in (lineage[0], lineage[-1])}.values():
            with self.observer.stage(None, "verify"):
                make_loadable(self, checkpoint)

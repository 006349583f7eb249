"""Runs: made by `dreamd init`, taken over by the daemon that owns them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from daemon import __version__
from daemon.domain.errors import UsageError
from daemon.storage.database import reading, writing
from daemon.storage.rows import now
from daemon.storage.tables import runs


@dataclass(frozen=True, slots=True)
class Run:
    """One row of `runs`."""

    id: int
    name: str
    seed: int
    model_path: str
    head_version: str | None
    epoch: int


def create_run(
    engine: Engine,
    name: str,
    seed: int,
    model_path: str,
    config: Mapping[str, Any],
    held_out: Iterable[tuple[str, str]],
) -> Run:
    """Make a run, or return the one of that name when its seed is the same.

    Args:
        held_out: (content hash, text) of everything that only probes may use: nothing nearly the same as one of the
            texts is ever trained. New ones are added to an existing run, cheaply when there are none.

    Raises:
        UsageError: a run of that name has another seed; nothing changed.
    """
    from daemon.storage.claims import hold_out  # brings numpy, which commands that only read need not load

    with writing(engine) as connection:
        existing = connection.execute(sa.select(runs).where(runs.c.name == name).with_for_update()).first()
        if existing is None:
            values = {
                "name": name,
                "seed": seed,
                "created_at": now(),
                "dreamd_version": __version__,
                "model_path": model_path,
                "config": config,
                "epoch": 0,
            }
            connection.execute(sa.insert(runs).values(values))
        elif existing.seed != seed:
            raise UsageError(
                f"run {name} exists with seed {existing.seed}, not {seed}; keep run.seed = {existing.seed}, "
                "or choose another run.name"
            )
        run = find_run(connection, name)
        hold_out(connection, run.id, dict(held_out))
    return run


def load_run(engine: Engine, name: str) -> Run:
    """The run of that name.

    Raises:
        UsageError: there is none; names those that exist.
    """
    with reading(engine) as connection:
        return find_run(connection, name)


def find_run(connection: Connection, name: str) -> Run:
    """`load_run` within a transaction."""
    row = connection.execute(sa.select(runs).where(runs.c.name == name)).first()
    if row is None:
        known = connection.scalars(sa.select(runs.c.name).order_by(runs.c.id)).all()
        hint = f"this database has: {', '.join(known)}" if known else "this database has none; run `dreamd init`"
        raise UsageError(f"no run {name}; {hint}")
    return Run(row.id, row.name, row.seed, row.model_path, row.head_version, row.epoch)


def lock_run(connection: Connection, name: str) -> int:
    """The run's id, its row locked until the transaction ends: every transaction of the daemon does the same.

    Raises:
        UsageError: there is no such run.
    """
    run = find_run(connection, name)
    connection.execute(sa.select(runs.c.id).where(runs.c.id == run.id).with_for_update())
    return run.id


def take_over(engine: Engine, name: str) -> Run:
    """Own the run from now on: every ledger acquired earlier is fenced. The caller holds the `RunLock`.

    Raises:
        UsageError: there is no such run.
    """
    with writing(engine) as connection:
        connection.execute(sa.update(runs).where(runs.c.name == name).values(epoch=runs.c.epoch + 1))
        return find_run(connection, name)

"""What the curves show, read from a run database without writing to it. Queries run on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from daemon.domain.errors import UsageError
from daemon.storage.database import open_database, reading

STEP_FIGURES = ("loss", "chosen_logprob", "rejected_logprob", "margin", "update_rms_over_lr")
SIDES = ("accept", "push_back")

Points = Sequence[tuple[int, float]]
"""(cycle number, value), in the order of cycles. Cycle 0 is the base."""


@dataclass(frozen=True, slots=True)
class History:
    """One run, by cycle."""

    steps: Mapping[str, Points]
    """Each of `STEP_FIGURES`; all but the last measured before the step."""
    probes: Mapping[str, Points]
    """`nll` and `chosen_logp`: mean value; `accept`, `push_back`: share passed. Of the version the cycle published."""
    sweep: Mapping[str, Points]
    """Each of `SIDES`: share of judged answers that passed, written before the cycle's step."""
    rolled_back: Sequence[int]
    """Cycles whose step was undone."""


def read_history(database: str, run: str) -> History:
    """Read one run.

    Args:
        database: a database URL, or the path of an SQLite file.
        run: the run's name.

    Raises:
        UsageError: no such file, or no such run in it.
        DatabaseError: it cannot be reached or is not a run database.
    """
    engine = open_database(database if "://" in database else f"sqlite:///{Path(database)}", readonly=True)
    try:
        with reading(engine) as connection:
            run_id = connection.execute(sa.text("SELECT id FROM runs WHERE name = :run"), {"run": run}).scalar()
            if run_id is None:
                names = [row[0] for row in connection.execute(sa.text("SELECT name FROM runs ORDER BY name"))]
                raise UsageError(f"there is no run {run}; this database has: {', '.join(names) or 'none'}")
            return History(
                steps={figure: _points(connection, _step(figure), run_id) for figure in STEP_FIGURES},
                probes={
                    "nll": _points(connection, _MEAN_PROBE, run_id, probe="nll"),
                    "chosen_logp": _points(connection, _MEAN_PROBE, run_id, probe="chosen_logp"),
                    **{side: _points(connection, _PASSED_PROBE, run_id, probe=side) for side in SIDES},
                },
                sweep={side: _points(connection, _PASSED_SWEEP, run_id, side=side) for side in SIDES},
                rolled_back=[cycle for cycle, _ in _points(connection, _ROLLED_BACK, run_id)],
            )
    finally:
        engine.dispose()


def _step(figure: str) -> str:
    return f"SELECT cycle, {figure} FROM steps WHERE run_id = :run_id AND {figure} IS NOT NULL ORDER BY cycle"


_PROBED = """
    FROM probe_results p JOIN checkpoints c ON c.run_id = p.run_id AND c.version = p.version
    WHERE p.run_id = :run_id AND p.probe = :probe
"""
_MEAN_PROBE = f"SELECT COALESCE(c.cycle, 0) AS number, AVG(p.value) {_PROBED} GROUP BY c.cycle ORDER BY number"
_PASSED_PROBE = (
    f"SELECT COALESCE(c.cycle, 0) AS number, AVG(CASE WHEN p.passed THEN 1.0 ELSE 0.0 END) {_PROBED} "
    "GROUP BY c.cycle ORDER BY number"
)
_PASSED_SWEEP = """
    SELECT o.cycle, AVG(CASE WHEN o.passed THEN 1.0 ELSE 0.0 END)
    FROM completions o
    JOIN scenarios s ON s.run_id = o.run_id AND s.cycle = o.cycle AND s.content_hash = o.scenario_hash
    WHERE o.run_id = :run_id AND o.kind = 'sweep' AND o.passed IS NOT NULL AND s.side = :side
    GROUP BY o.cycle ORDER BY o.cycle
"""
_ROLLED_BACK = "SELECT number, 1.0 FROM cycles WHERE run_id = :run_id AND outcome = 'rolled_back' ORDER BY number"


def _points(connection: Connection, statement: str, run_id: int, **values: Any) -> Points:
    rows = connection.execute(sa.text(statement), {"run_id": run_id, **values})
    return [(int(cycle), float(value)) for cycle, value in rows if value is not None]

"""What `dreamd probes`, `dreamd show` and `dreamd watchdog replay` ask beyond `queries`. Nothing here writes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection, Engine

from daemon.domain.lineage import baked
from daemon.domain.probing import CONFIRMATION_SUFFIX
from daemon.domain.states import ProbeReason
from daemon.storage.database import reading
from daemon.storage.history import ancestry
from daemon.storage.runs import find_run
from daemon.storage.tables import cycles, probe_results, probe_runs

Record = dict[str, Any]
_Means = Mapping[tuple[str, str], Record]
"""(version, probe) -> num_items, mean, pass_rate."""


def probes(engine: Engine, run_name: str, baked_after: int, limit: int = 1) -> list[Record]:
    """The newest `limit` measurements of each probe, with what A1 and the base have in the same probe.

    Measurements of anchors only count where there are no others.

    Returns:
        By probe, newest last: probe, cycle, version, reason, turn, num_items, seconds, suite_version, skipped,
        measured_at; and under "now", "baked", "base": num_items, mean, pass_rate, or None when nothing was measured.

    Raises:
        UsageError: there is no such run.
    """
    with reading(engine) as connection:
        run = find_run(connection, run_name)
        runs = _newest_runs(connection, run.id, limit)
        lineage = ancestry(connection, run.id, run.head_version) if run.head_version is not None else ()
        anchors = {"baked": baked(lineage, baked_after).version, "base": lineage[-1].version} if lineage else {}
        means = _means(connection, run.id, {*(row["version"] for row in runs), *anchors.values()})
    return [
        {
            **row,
            "measured_at": row["measured_at"].isoformat(),
            "now": means.get((row["version"], row["probe"])),
            **{name: means.get((version, row["probe"])) for name, version in anchors.items()},
        }
        for row in runs
    ]


def unmeasured(engine: Engine, run_name: str, number: int) -> list[Record]:
    """Probes that earlier cycles measured and this one did not: name, and the newest cycle that did.

    Raises:
        UsageError: there is no such run.
    """
    with reading(engine) as connection:
        run_id = find_run(connection, run_name).id
        newest = (
            sa.select(probe_runs.c.probe, sa.func.max(probe_runs.c.cycle).label("cycle"))
            .where(
                probe_runs.c.run_id == run_id,
                probe_runs.c.cycle <= number,
                probe_runs.c.reason != ProbeReason.CONFIRMATION,
            )
            .group_by(probe_runs.c.probe)
        )
        found = [dict(row) for row in connection.execute(newest).mappings() if row["cycle"] < number]
    return sorted(found, key=lambda row: str(row["probe"]))


def adjustments_in_force(engine: Engine, run_name: str) -> Record | None:
    """Number and adjustments of the newest cycle; None before the first.

    Raises:
        UsageError: there is no such run.
    """
    with reading(engine) as connection:
        of_run = cycles.c.run_id == find_run(connection, run_name).id
        newest = sa.select(cycles.c.number, cycles.c.adjustments).where(of_run).order_by(cycles.c.number.desc())
        row = connection.execute(newest.limit(1)).mappings().first()
    return None if row is None else dict(row)


def settings_of_cycles(engine: Engine, run_name: str, section: str) -> dict[int, Mapping[str, Any]]:
    """Cycle -> one section of the configuration that it ran with, as JSON; without those that have none.

    Raises:
        UsageError: there is no such run.
    """
    with reading(engine) as connection:
        of_run = cycles.c.run_id == find_run(connection, run_name).id
        found = connection.execute(sa.select(cycles.c.number, cycles.c.config).where(of_run))
        return {row.number: row.config[section] for row in found if section in row.config}


def _newest_runs(connection: Connection, run_id: int, limit: int) -> list[Record]:
    table = probe_runs
    confirmed = table.c.reason == ProbeReason.CONFIRMATION
    probe: ColumnElement[str] = sa.case((confirmed, table.c.probe.concat(CONFIRMATION_SUFFIX)), else_=table.c.probe)
    of_an_anchor = sa.case((table.c.reason == ProbeReason.ANCHOR, 1), else_=0)
    place = sa.func.row_number().over(partition_by=probe, order_by=(of_an_anchor, table.c.id.desc()))
    kept = [column for column in table.c if column.name not in ("run_id", "probe")]
    ranked = sa.select(*kept, probe.label("probe"), place.label("place")).where(table.c.run_id == run_id).subquery()
    found = connection.execute(sa.select(ranked).where(ranked.c.place <= limit)).mappings()
    names = ("probe", "cycle", "version", "reason", "turn", "num_items", "seconds", "suite_version", "skipped")
    # Sorted here: the two databases order text differently.
    ordered = sorted(found, key=lambda row: (str(row["probe"]), -row["place"]))
    return [{name: row[name] for name in (*names, "measured_at")} for row in ordered]


def _means(connection: Connection, run_id: int, versions: Collection[str]) -> _Means:
    table = probe_results
    passed = sa.case((table.c.passed.is_(None), None), (table.c.passed, 1.0), else_=0.0)
    wanted = (
        sa.select(
            table.c.version,
            table.c.probe,
            sa.func.count().label("num_items"),
            sa.func.avg(sa.cast(table.c.value, sa.Double)).label("mean"),
            sa.cast(sa.func.avg(passed), sa.Double).label("pass_rate"),
        )
        .where(table.c.run_id == run_id, table.c.version.in_(sorted(versions)))
        .group_by(table.c.version, table.c.probe)
    )
    found = connection.execute(wanted).mappings()
    return {
        (row["version"], row["probe"]): {name: row[name] for name in ("num_items", "mean", "pass_rate")}
        for row in found
    }

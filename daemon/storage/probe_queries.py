"""What `dreamd probes`, `dreamd show` and `dreamd watchdog replay` ask beyond `queries`. Nothing here writes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import fsum
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection, Engine

from daemon.domain.lineage import baked
from daemon.domain.probing import CONFIRMATION_SUFFIX
from daemon.domain.states import Outcome, ProbeReason
from daemon.storage.database import reading
from daemon.storage.history import ancestry
from daemon.storage.runs import find_run
from daemon.storage.tables import cycles, probe_results, probe_runs

Record = dict[str, Any]


def probes(engine: Engine, run_name: str, baked_after: int, limit: int = 1) -> list[Record]:
    """The newest `limit` measurements of each probe, and how head, A1 and base stand in the same probe.

    Measurements of anchors only count where there are no others. Means over fixed items are over those that all
    checkpoints shown with it have.

    Returns:
        By probe, newest last: probe, cycle, version, reason, turn, num_items, seconds, suite_version, skipped,
        measured_at; `head`, its version; and under "measured" (of `version`), "now" (of the head), "baked", "base":
        num_items, mean, pass_rate, or None when nothing was measured. "refused": as "measured" where `version` is a
        candidate that was rolled back, else None.

    Raises:
        UsageError: there is no such run.
    """
    with reading(engine) as connection:
        run = find_run(connection, run_name)
        runs = _newest_runs(connection, run.id, limit)
        lineage = ancestry(connection, run.id, run.head_version) if run.head_version is not None else ()
        shown = dict.fromkeys(("now", "baked", "base"))
        if lineage:
            shown = {
                "now": lineage[0].version,
                "baked": baked(lineage, baked_after).version,
                "base": lineage[-1].version,
            }
        of_run = cycles.c.run_id == run.id
        rolled_back = sa.select(cycles.c.candidate_version).where(of_run, cycles.c.outcome == Outcome.ROLLED_BACK)
        refused = set(connection.scalars(rolled_back))
        return [_standing(connection, run.id, row, shown, row["version"] in refused) for row in runs]


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


def _standing(
    connection: Connection, run_id: int, row: Record, shown: Mapping[str, str | None], refused: bool
) -> Record:
    versions = {"measured": row["version"], **shown}
    means = common_means(connection, run_id, {found for found in versions.values() if found}, row["probe"])
    levels = {name: means.get((version or "", row["probe"])) for name, version in versions.items()}
    return {
        **row,
        "measured_at": row["measured_at"].isoformat(),
        "head": shown["now"],
        **levels,
        "refused": levels["measured"] if refused else None,
    }


def common_means(
    connection: Connection, run_id: int, versions: Collection[str], probe: str | None = None
) -> dict[tuple[str, str], Record]:
    """(version, probe) -> num_items, mean and pass_rate, to be compared with each other.

    Where nothing can pass, the items are fixed, and a mean is over those that all versions with any of them have.
    Pass rates are of the items that each has: these rotate through a pool.
    """
    table = probe_results
    wanted = sa.select(table.c.version, table.c.probe, table.c.item, table.c.value, table.c.passed).where(
        table.c.run_id == run_id, table.c.version.in_(sorted(versions))
    )
    found: dict[str, dict[str, dict[str, tuple[float | None, bool | None]]]] = {}
    for row in connection.execute(wanted if probe is None else wanted.where(table.c.probe == probe)):
        found.setdefault(row.probe, {}).setdefault(row.version, {})[row.item] = (row.value, row.passed)
    means: dict[tuple[str, str], Record] = {}
    for name, by_version in found.items():
        fixed = all(passed is None for of in by_version.values() for _, passed in of.values())
        known = [{item for item, (value, _) in of.items() if value is not None} for of in by_version.values()]
        common = set.intersection(*(filter(None, known))) if any(known) else set()
        for version, of in by_version.items():
            values = [value for item, (value, _) in of.items() if value is not None and (not fixed or item in common)]
            rates = [passed for _, passed in of.values() if passed is not None]
            means[version, name] = {
                "num_items": len(of),
                "mean": fsum(values) / len(values) if values else None,
                "pass_rate": sum(rates) / len(rates) if rates else None,
            }
    return means

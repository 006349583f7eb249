"""How often the anchors failed each pass/fail probe: what a candidate's failures are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import Connection

from daemon.domain.probing import CONFIRMATION_SUFFIX
from daemon.domain.records import Checkpoint
from daemon.domain.states import ProbeReason
from daemon.domain.verdicts import PassCount
from daemon.storage.chunks import chunks
from daemon.storage.history import measured_by
from daemon.storage.tables import probe_results, probe_runs

_ANCESTORS = 500
"""Checkpoints from A1 on that are pooled at most; a probe measured too rarely in them has no "baked" reference."""
_AT_ONCE = 32

Counts = dict[str, dict[str, PassCount]]
"""Version -> probe -> count."""


def references(
    connection: Connection,
    run_id: int,
    lineage: Sequence[Checkpoint],
    a1: str,
    reference_items: int,
    last_probe_run: int | None,
) -> dict[str, dict[str, PassCount]]:
    """`History.references`, by probe.

    Only results of each probe's newest suite count, by the newest run of it: those of another are not comparable,
    and neither are those of no recorded run.

    Args:
        lineage: the parent and its ancestors, parent first, base last.
        a1: version of the last baked checkpoint.
        last_probe_run: leave out what later probe runs measured; None: nothing.
    """
    suites = _suites(connection, run_id, last_probe_run)
    base = lineage[-1].version
    versions = [checkpoint.version for checkpoint in lineage]
    older = versions[versions.index(a1) : -1][:_ANCESTORS]
    counted = _counts(connection, run_id, [base], suites, last_probe_run).get(base, {})
    found = {probe: {"base": count} for probe, count in counted.items()}
    for probe, count in _pooled(connection, run_id, older, suites, reference_items, last_probe_run).items():
        found.setdefault(probe, {})["baked"] = count
    return dict(sorted(found.items()))


def _suites(connection: Connection, run_id: int, last_probe_run: int | None) -> dict[str, str]:
    """Probe -> version of the suite that it was measured with last."""
    newest = sa.select(sa.func.max(probe_runs.c.id)).where(
        probe_runs.c.run_id == run_id, probe_runs.c.reason != ProbeReason.CONFIRMATION
    )
    if last_probe_run is not None:
        newest = newest.where(probe_runs.c.id <= last_probe_run)
    found = connection.execute(
        sa.select(probe_runs.c.probe, probe_runs.c.suite_version).where(
            probe_runs.c.id.in_(newest.group_by(probe_runs.c.probe))
        )
    )
    return {row.probe: row.suite_version for row in found}


def _pooled(
    connection: Connection,
    run_id: int,
    versions: Sequence[str],
    suites: Mapping[str, str],
    reference_items: int,
    last_probe_run: int | None,
) -> dict[str, PassCount]:
    """Per probe the newest of `versions` that have `reference_items` judged items together; absent with fewer."""
    pooled: dict[str, PassCount] = {}
    open_probes = set(suites)
    for chunk in chunks(versions, _AT_ONCE):
        counts = _counts(connection, run_id, chunk, suites, last_probe_run)
        for version in chunk:
            for probe, count in counts.get(version, {}).items():
                if probe in open_probes:
                    before = pooled.get(probe, PassCount(0, 0))
                    pooled[probe] = PassCount(before.failures + count.failures, before.num_items + count.num_items)
                    if pooled[probe].num_items >= reference_items:
                        open_probes.discard(probe)
        if not open_probes & set(pooled):
            break
    return {probe: count for probe, count in pooled.items() if probe not in open_probes}


def _counts(
    connection: Connection, run_id: int, versions: Sequence[str], suites: Mapping[str, str], last_probe_run: int | None
) -> Counts:
    """The judged items of each version and probe, of the probe's suite only."""
    results = probe_results.c
    wanted = (
        sa.select(
            results.version,
            results.probe,
            probe_runs.c.suite_version,
            sa.func.sum(sa.case((results.passed, 0), else_=1)).label("failures"),
            sa.func.count().label("num_items"),
        )
        .join(probe_runs, probe_runs.c.id == results.probe_run_id)
        .where(results.run_id == run_id, results.version.in_(versions), results.passed.is_not(None))
        .where(measured_by(last_probe_run))
        .group_by(results.version, results.probe, probe_runs.c.suite_version)
    )
    found: Counts = {}
    for row in connection.execute(wanted):
        if not row.probe.endswith(CONFIRMATION_SUFFIX) and suites.get(row.probe) == row.suite_version:
            found.setdefault(row.version, {})[row.probe] = PassCount(int(row.failures), int(row.num_items))
    return found

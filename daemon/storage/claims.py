"""Claims: what is spent or held out, once and for all (invariant I1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from daemon.domain.errors import AlreadyClaimedError
from daemon.domain.novelty import shingles, trained_shingles
from daemon.domain.states import ChosenSource
from daemon.storage import near_duplicates
from daemon.storage.chunks import CHUNK, chunks
from daemon.storage.held_out_texts import ShingleIndex
from daemon.storage.kinds import ClaimKind, FingerprintKind
from daemon.storage.rows import AnyRow, now, scenario_of
from daemon.storage.tables import claims, events, examples, scenarios


def claimed(connection: Connection, run_id: int, hashes: Iterable[str]) -> dict[str, tuple[ClaimKind, int | None]]:
    """Which of `hashes` are claimed or held out: hash -> (kind, cycle)."""
    found: dict[str, tuple[ClaimKind, int | None]] = {}
    for chunk in chunks(hashes):
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


def holder_of(kind: ClaimKind, cycle: int | None) -> str:
    """Who has a claimed content, in words that follow it."""
    return "is held out for the probes" if cycle is None else f"was claimed by cycle {cycle} ({kind})"


def already_claimed(connection: Connection, run_id: int, hashes: Sequence[str]) -> AlreadyClaimedError | None:
    """The error that names the first of `hashes` that is taken and who has it; None when all are free."""
    taken = claimed(connection, run_id, hashes)
    for content_hash in hashes:
        if content_hash in taken:
            return AlreadyClaimedError(f"{content_hash}: {holder_of(*taken[content_hash])}; nothing was claimed")
    return None


def hold_out(connection: Connection, run_id: int, texts: Mapping[str, str]) -> None:
    """Reserve contents for the probes. Those trained on already cannot be: that leaves an event behind.

    New ones are looked for in everything that was spent, which takes time in proportion to it, once.

    Args:
        texts: content hash -> the text that nothing trained may contain.
    """
    wanted = sorted(texts)
    taken = claimed(connection, run_id, wanted)
    insert_claims(connection, run_id, ClaimKind.HELD_OUT, None, [name for name in wanted if name not in taken])
    missing = set(wanted) - near_duplicates.fingerprinted(connection, run_id, wanted)
    trained = {name for name, (kind, _) in taken.items() if kind is not ClaimKind.HELD_OUT}
    contents = {name: shingles(texts[name]) for name in sorted(missing - trained)}
    if contents:
        index = ShingleIndex(contents)
        for text in _trained(connection, run_id):
            trained.update(contained.content_hash for contained in index.contained_in(text))
        near_duplicates.insert(connection, run_id, FingerprintKind.HELD_OUT, None, contents)
    _tell_trained(connection, run_id, trained)


def _trained(connection: Connection, run_id: int) -> Iterator[frozenset[int]]:
    """The shingles of every claimed scenario, and of every claimed example's chosen text that is no target."""
    own = examples.c.chosen_source != ChosenSource.TARGET
    written = sa.select(examples.c.chosen_text).where(own)
    for row in _claimed(connection, run_id, ClaimKind.SCENARIO, scenarios, sa.select(scenarios)):
        yield trained_shingles(scenario_of(row))
    for row in _claimed(connection, run_id, ClaimKind.EXAMPLE, examples, written):
        yield shingles(row.chosen_text)


def _claimed(
    connection: Connection, run_id: int, kind: ClaimKind, table: sa.Table, wanted: sa.Select[Any]
) -> Iterable[AnyRow]:
    """`wanted` of `table`, where a cycle of the run claimed it; a few rows in memory at once."""
    of_claim = sa.and_(
        claims.c.run_id == table.c.run_id,
        claims.c.content_hash == table.c.content_hash,
        claims.c.cycle == table.c.cycle,
        claims.c.kind == kind,
    )
    spent = wanted.join(claims, of_claim).where(table.c.run_id == run_id)
    return connection.execute(spent.execution_options(yield_per=CHUNK))


def _tell_trained(connection: Connection, run_id: int, hashes: Iterable[str]) -> None:
    """An event that names what the probes measure although it was trained; each content once."""
    told = connection.scalars(
        sa.select(events.c.payload).where(events.c.run_id == run_id, events.c.name == "held_out_already_trained")
    )
    new = sorted(set(hashes).difference(*(payload["content_hashes"] for payload in told)))
    if new:
        connection.execute(
            sa.insert(events).values(
                run_id=run_id,
                level="warning",
                name="held_out_already_trained",
                payload={"content_hashes": new},
                at=now(),
            )
        )

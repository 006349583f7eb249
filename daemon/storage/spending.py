"""Spending a cycle's scenarios: claims, fingerprints and what was read of imported sources, in one transaction.

Also the question that comes before it, whether a scenario may be drawn at all, and the fingerprints of what was spent
before there were any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import sqlalchemy as sa
from sqlalchemy import Connection

from daemon.domain.errors import AlreadyClaimedError
from daemon.domain.novelty import scenario_shingles, trained_shingles
from daemon.domain.records import Refusal, Scenario
from daemon.domain.states import Outcome, RefusalReason
from daemon.storage import history, near_duplicates, rows
from daemon.storage.claims import claimed, holder_of
from daemon.storage.held_out_texts import HeldOutTexts
from daemon.storage.kinds import ClaimKind, FingerprintKind
from daemon.storage.sources import use_reads
from daemon.storage.tables import claims, cycles, runs, scenarios
from daemon.storage.writes import Writes

NOT_KEPT = (Outcome.ROLLED_BACK, Outcome.LOST, Outcome.FAILED)
"""Outcomes of a cycle whose claim did not become part of the model."""

_CYCLES_AT_ONCE = 10


def refusals(
    connection: Connection, run_id: int, drawn: Sequence[Scenario], held_out: HeldOutTexts
) -> dict[str, Refusal]:
    """Content hash -> why not, for those that are claimed, nearly the same as one that is, or contain a held-out text.

    Args:
        held_out: the run's, kept for the next question.
    """
    by_hash = {scenario.content_hash: scenario for scenario in drawn}
    refused: dict[str, Refusal] = {}
    for content_hash, holder in claimed(connection, run_id, by_hash).items():
        refused[content_hash] = _refusal(by_hash[content_hash], RefusalReason.REPEATED, holder_of(*holder))
    others = {name: scenario_shingles(found) for name, found in by_hash.items() if name not in refused}
    for content_hash, match in _matches(connection, run_id, drawn, others, held_out).items():
        refused[content_hash] = _refusal(by_hash[content_hash], RefusalReason.NEAR_DUPLICATE, match)
    return refused


def spend(writes: Writes, number: int, held_out: HeldOutTexts) -> None:
    """Spend every scenario of a cycle for good, and what it read of imported sources.

    Raises:
        AlreadyClaimedError: one is nearly the same as something spent or as another of the cycle, or contains a
            held-out text.
        sqlalchemy.exc.IntegrityError: one is exactly that; roll the transaction back.
    """
    connection, run_id = writes.connection, writes.run_id
    spent = history.cycle_scenarios(connection, run_id, number)
    contents = {scenario.content_hash: scenario_shingles(scenario) for scenario in spent}
    writes.claim(number, ClaimKind.SCENARIO, list(contents))
    _require_new(connection, run_id, spent, contents, held_out)
    near_duplicates.insert(connection, run_id, FingerprintKind.SPENT, number, contents)
    use_reads(connection, run_id, number)


def complete_fingerprints(write: Callable[[Callable[[Writes], int | None]], int | None]) -> None:
    """Fingerprint what was spent before there were fingerprints, a few cycles per transaction; once for each run.

    Args:
        write: does something within a transaction of the ledger that owns the run.
    """
    last: int | None = 0
    while last is not None:
        last = write(partial(_complete_next, after=last))


def _complete_next(writes: Writes, *, after: int) -> int | None:
    """The next few cycles; the last of them, or None when there is nothing left to do."""
    connection, run_id = writes.connection, writes.run_id
    of_run = runs.c.id == run_id
    if connection.scalar(sa.select(runs.c.fingerprinted).where(of_run)):
        return None
    numbers = connection.execute(
        sa.select(cycles.c.number, cycles.c.outcome)
        .where(cycles.c.run_id == run_id, cycles.c.number > after)
        .order_by(cycles.c.number)
        .limit(_CYCLES_AT_ONCE)
    ).all()
    for number, outcome in numbers:
        kind = FingerprintKind.QUARANTINED if outcome in NOT_KEPT else FingerprintKind.SPENT
        contents = {found.content_hash: scenario_shingles(found) for found in _claimed_by(connection, run_id, number)}
        near_duplicates.insert(connection, run_id, kind, number, contents)
    if not numbers:
        connection.execute(sa.update(runs).where(of_run).values(fingerprinted=True))
        return None
    return int(numbers[-1].number)


def _claimed_by(connection: Connection, run_id: int, number: int) -> Sequence[Scenario]:
    found = connection.execute(
        sa.select(scenarios)
        .join(
            claims,
            sa.and_(
                claims.c.run_id == scenarios.c.run_id,
                claims.c.content_hash == scenarios.c.content_hash,
                claims.c.cycle == scenarios.c.cycle,
            ),
        )
        .where(scenarios.c.run_id == run_id, scenarios.c.cycle == number)
    )
    return [rows.scenario_of(row) for row in found]


def _matches(
    connection: Connection,
    run_id: int,
    drawn: Sequence[Scenario],
    contents: Mapping[str, frozenset[int]],
    held_out: HeldOutTexts,
) -> dict[str, str]:
    """What `contents` (prompts) are nearly the same as; and, with their targets, which held-out text they contain."""
    found = near_duplicates.find(connection, run_id, contents)
    texts = {each.content_hash: trained_shingles(each) for each in drawn if each.content_hash in contents}
    contained = held_out.contained(connection, run_id, texts)
    return {name: str(match) for name, match in (contained | found).items()}


def _require_new(
    connection: Connection,
    run_id: int,
    spent: Sequence[Scenario],
    contents: Mapping[str, frozenset[int]],
    held_out: HeldOutTexts,
) -> None:
    twins = near_duplicates.alike(contents)
    if twins is not None:
        one, other, similarity = twins
        raise AlreadyClaimedError(f"{one} and {other}: {similarity:.0%} the same, in one cycle; nothing was claimed")
    for content_hash, match in _matches(connection, run_id, spent, contents, held_out).items():
        raise AlreadyClaimedError(f"{content_hash}: {match}; nothing was claimed")


def _refusal(scenario: Scenario, reason: RefusalReason, detail: str) -> Refusal:
    text = scenario.messages[-1].content if scenario.messages else ""
    return Refusal(scenario.source, scenario.pack, reason, detail, scenario.provenance, text[: rows.REFUSED_TEXT])

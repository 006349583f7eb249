"""What is kept of checkpoints, and what was done for them between cycles, as the database records it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from builders import drive_to, make_candidate, make_verdict, promote_one
from sqlalchemy import Engine

from daemon.domain.errors import DreamdError, UsageError
from daemon.domain.records import Checkpoint
from daemon.domain.states import CheckpointKind, CheckpointState, CycleState, Decision
from daemon.domain.upkeep import MirrorTask, Rehearsal, ScrubResult
from daemon.storage import queries, tables
from daemon.storage.database import reading, writing
from daemon.storage.judged import stored_verdicts
from daemon.storage.ledger import SqlLedger
from daemon.storage.upkeep import pin_checkpoint, unpin_checkpoint

LATER = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def promote_delta(ledger: SqlLedger) -> Checkpoint:
    """A whole cycle whose checkpoint has an image of its own."""
    cycle = drive_to(ledger, CycleState.STEPPED)
    image = {
        "kind": CheckpointKind.DELTA,
        "image_digest": f"image {cycle.number}",
        "image_bytes": 70,
        "chain_length": 1,
    }
    cycle = ledger.probed(ledger.record_published(cycle, make_candidate(cycle, **image)))
    ledger.promote(cycle, make_verdict())
    return ledger.head()


def test_a_checkpoint_comes_back_as_it_was_published(ledger: SqlLedger) -> None:
    """Kind, image, chain and exactness are stored with it; the base is full and exact."""
    head = promote_delta(ledger)
    assert (head.kind, head.image_digest, head.image_bytes, head.chain_length) == ("delta", "image 1", 70, 1)
    assert (head.exact, head.pinned) == (True, False)
    base = ledger.checkpoint("base")
    assert (base.kind, base.image_digest, base.image_bytes, base.chain_length) == ("full", None, 0, 0)


def test_what_is_lossy_stays_lossy(ledger: SqlLedger, engine: Engine) -> None:
    """Only the image of an ancestor is kept; said again it is no change; every way of reading it says so."""
    one, _two = promote_delta(ledger), promote_delta(ledger)
    ledger.made_lossy(one.version)
    promote_delta(ledger)
    ledger.made_lossy(one.version)
    assert [checkpoint.exact for checkpoint in ledger.lineage()] == [True, True, False, True]
    assert [checkpoint.exact for checkpoint in ledger.checkpoints()] == [True, False, True, True]
    with reading(engine) as connection:
        after = connection.scalar(sa.select(tables.checkpoints.c.lossy_after).where(~tables.checkpoints.c.exact))
    assert after == 2


@pytest.mark.parametrize("change", ["made_lossy", "pruned"])
def test_what_is_needed_is_kept(ledger: SqlLedger, change: str) -> None:
    """Head, base, pinned checkpoints and candidates refuse to lose anything; unpinned, a checkpoint may."""
    one = promote_delta(ledger).version
    two = promote_delta(ledger).version
    ledger.pin(one, "the best so far")
    candidate = str(drive_to(ledger, CycleState.PROBED).candidate_version)
    for version, why in (("base", "is base"), (one, "is pinned"), (two, "is the head"), (candidate, "is candidate")):
        with pytest.raises(DreamdError, match=f"{version} {why}: its .* must stay"):
            getattr(ledger, change)(version)
    ledger.unpin(one)
    getattr(ledger, change)(one)


def test_without_an_image_nothing_is_made_lossy(ledger: SqlLedger) -> None:
    """A full checkpoint is its exact weights, and a pruned one has no files: neither can lose half of itself."""
    promote_one(ledger)
    pruned = promote_delta(ledger).version
    promote_delta(ledger)
    ledger.pruned(pruned)
    with pytest.raises(DreamdError, match="no image but its exact weights"):
        ledger.made_lossy("cycle-000001")
    with pytest.raises(DreamdError, match="is pruned"):
        ledger.made_lossy(pruned)


def test_a_pin_has_a_reason_and_an_event(ledger: SqlLedger, engine: Engine) -> None:
    """Pinning again changes the reason; an operator may do both while the daemon runs, without fencing it."""
    version = promote_delta(ledger).version
    ledger.pin(version, "first")
    pin_checkpoint(engine, "test", version, "second")
    assert ledger.checkpoint(version).pinned
    (_, record) = queries.checkpoints(engine, "test")
    assert (record["pinned"], record["pin_reason"]) == (True, "second")
    unpin_checkpoint(engine, "test", version)
    ledger.unpin(version)
    assert not ledger.checkpoint(version).pinned
    with reading(engine) as connection:
        told = connection.execute(sa.select(tables.events).where(tables.events.c.name.like("%pinned"))).all()
    assert [(row.name, row.payload.get("reason")) for row in told] == [
        ("pinned", "first"), ("pinned", "second"), ("unpinned", None),
    ]  # fmt: skip


def test_what_is_gone_cannot_be_pinned(ledger: SqlLedger) -> None:
    """Lossy, pruned and unknown checkpoints are refused as a mistake of the command line, each with its reason."""
    lossy, pruned = promote_delta(ledger).version, promote_delta(ledger).version
    promote_delta(ledger)
    ledger.made_lossy(lossy)
    ledger.pruned(pruned)
    for version, why in ((lossy, "is lossy"), (pruned, "was pruned"), ("nowhere", "no checkpoint nowhere")):
        with pytest.raises(UsageError, match=why):
            ledger.pin(version, "test")
    with pytest.raises(UsageError, match="no checkpoint nowhere"):
        ledger.unpin("nowhere")


def roll_back_one(ledger: SqlLedger) -> str:
    cycle = drive_to(ledger, CycleState.PROBED)
    ledger.roll_back(cycle, make_verdict(Decision.ROLL_BACK), ledger.head())
    return str(cycle.candidate_version)


def test_both_sides_of_recent_rollbacks_are_known(ledger: SqlLedger) -> None:
    """A watchdog's rollback counts by its cycle, an operator's by the cycle after which it happened."""
    assert ledger.rollback_sides(30) == frozenset()
    one = promote_one(ledger).candidate_version  # 1
    refused = roll_back_one(ledger)  # 2, back to one
    three = promote_one(ledger).candidate_version  # 3
    ledger.roll_back_head(ledger.checkpoint("base"), "test")  # after 3
    promote_one(ledger)  # 4
    everything = {one, refused, three, "base"}
    assert [ledger.rollback_sides(num_cycles) for num_cycles in (0, 1, 2, 3, 4, 30)] == [
        set(), set(), {three, "base"}, everything, everything, everything,
    ]  # fmt: skip


def test_the_mirror_queue(ledger: SqlLedger, engine: Engine) -> None:
    """Oldest first; failures count and wait; what is there does not come again; pruned ones are not asked for."""
    one, two, three = (promote_delta(ledger).version for _ in range(3))
    for version in (two, one, two, "base"):
        ledger.enqueue_mirror(version)
    assert [task.version for task in ledger.mirror_tasks()] == ["base", one, two]
    ledger.mirror_failed(one, "unreachable", LATER)
    ledger.mirror_failed(one, "still unreachable", LATER + timedelta(hours=1))
    assert ledger.mirror_tasks()[1] == MirrorTask(one, 2, LATER + timedelta(hours=1), "still unreachable")
    ledger.mirrored(one)
    ledger.enqueue_mirror(one)
    ledger.pruned(two)
    assert [task.version for task in ledger.mirror_tasks()] == ["base"]
    assert [record["mirrored"] for record in queries.checkpoints(engine, "test")] == [False, True, False, False]
    for change in (ledger.mirrored, lambda version: ledger.mirror_failed(version, "x", LATER)):
        with pytest.raises(DreamdError, match=f"{three} is not in the mirror's queue"):
            change(three)
    with pytest.raises(DreamdError, match="no checkpoint nowhere"):
        ledger.enqueue_mirror("nowhere")


def test_a_start_tries_the_mirror_at_once(ledger: SqlLedger) -> None:
    """What waits does so no longer; its failures still count, and what is there is not queued."""
    one, two = (promote_delta(ledger).version for _ in range(2))
    for version in (one, two):
        ledger.enqueue_mirror(version)
        ledger.mirror_failed(version, "unreachable", LATER)
    ledger.mirrored(one)
    ledger.wake_mirror(anew=False)
    (task,) = ledger.mirror_tasks()
    assert (task.version, task.attempts, task.last_error) == (two, 1, "unreachable")
    assert task.next_try_at < LATER


def test_another_mirror_has_nothing(ledger: SqlLedger) -> None:
    """All that was ever queued is queued as if never tried; what was not, is not. The newest cycle's settings are
    known, which tell that it is another one."""
    assert ledger.last_config() is None
    one, two, _ = (promote_delta(ledger).version for _ in range(3))
    for version in (one, two):
        ledger.enqueue_mirror(version)
        ledger.mirror_failed(version, "unreachable", LATER)
    ledger.mirrored(one)
    ledger.wake_mirror(anew=True)
    tasks = ledger.mirror_tasks()
    assert [(task.version, task.attempts, task.last_error) for task in tasks] == [(one, 0, None), (two, 0, None)]
    assert all(task.next_try_at < LATER for task in tasks)
    assert ledger.last_config() == {"training": {"lr": 1e-5}}


@pytest.mark.parametrize("change", ["made_lossy", "pin"])
def test_what_changes_is_mirrored_again(ledger: SqlLedger, change: str) -> None:
    """What became lossy or pinned after it was mirrored is queued again, once and without old failures; what was
    never queued stays so."""
    one, two, _ = (promote_delta(ledger).version for _ in range(3))
    ledger.enqueue_mirror(one)
    ledger.mirror_failed(one, "unreachable", LATER)
    ledger.mirrored(one)
    for version in (one, two, one):
        ledger.made_lossy(version) if change == "made_lossy" else ledger.pin(version, "test")
    (task,) = ledger.mirror_tasks()
    assert (task.version, task.attempts, task.last_error) == (one, 0, None)
    assert task.next_try_at < LATER
    ledger.mirrored(one)
    ledger.made_lossy(one) if change == "made_lossy" else ledger.pin(one, "again")
    assert ledger.mirror_tasks() == ()


def test_what_was_not_scrubbed_for_longest_comes_first(ledger: SqlLedger, engine: Engine) -> None:
    """Never scrubbed ones first, then by the order of the scrubs, whatever the clock said; pruned ones never."""
    one, two = promote_delta(ledger).version, promote_delta(ledger).version
    assert ledger.scrub_order() == ("base", one, two)
    for version in (two, "base", two):
        ledger.record_scrub(ScrubResult(version, version != "base", 10, None))
    with writing(engine) as connection:
        connection.execute(sa.update(tables.scrubs).where(tables.scrubs.c.id == 1).values(at=LATER))
    assert ledger.scrub_order() == (one, "base", two)
    promote_delta(ledger)
    ledger.pruned(one)
    assert ledger.scrub_order() == ("cycle-000003", "base", two)
    with reading(engine) as connection:
        stored = connection.execute(sa.select(tables.scrubs).order_by(tables.scrubs.c.id)).all()
    assert [(row.version, row.sound) for row in stored] == [(two, True), ("base", False), (two, True)]


def test_the_last_rehearsal(ledger: SqlLedger, engine: Engine) -> None:
    """None before the first; then when the newest ended, passed or not, and when the newest that passed did."""
    assert ledger.last_rehearsal_at() is ledger.last_rehearsal_at(passed=True) is None
    started = datetime.now(UTC)
    ledger.record_rehearsal(Rehearsal("base", True, 1.5))
    ledger.record_rehearsal(Rehearsal("base", False, 2.5, "image differs"))
    last = ledger.last_rehearsal_at()
    with reading(engine) as connection:
        rows = connection.execute(sa.select(tables.rehearsals).order_by(tables.rehearsals.c.id)).all()
    assert [(row.passed, row.seconds, row.detail) for row in rows] == [(True, 1.5, None), (False, 2.5, "image differs")]
    assert last == rows[1].at >= rows[0].at >= started
    assert ledger.last_rehearsal_at(passed=True) == rows[0].at


def test_a_replayed_verdict_sees_what_was_exact_then(ledger: SqlLedger, engine: Engine) -> None:
    """An anchor that lost its exact state, or its files, after a verdict still is one for that verdict."""
    for _ in range(5):
        promote_delta(ledger)
    then = [judged.history.anchors for judged in stored_verdicts(engine, "test", baked_after=2)]
    assert any(len(anchors) > 1 for anchors in then)
    ledger.made_lossy("cycle-000002")
    promote_delta(ledger)
    assert [judged.history.anchors for judged in stored_verdicts(engine, "test", baked_after=2)][:5] == then
    ledger.pruned("cycle-000002")
    assert ledger.checkpoint("cycle-000002").state is CheckpointState.PRUNED
    assert [judged.history.anchors for judged in stored_verdicts(engine, "test", baked_after=2)][:5] == then

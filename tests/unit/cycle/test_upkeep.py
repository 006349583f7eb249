"""Upkeep loses nothing, says what is lost, tries again, and never stops training but for a lost head."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import contents, flip, make_it_lossy
from upkeep_fakes import START, Mirror, World

from daemon.cycle import mirroring, upkeep
from daemon.cycle.guard import Pause
from daemon.cycle.mending import HeadDamagedError
from daemon.cycle.mirroring import queue_all, refuse_older_journal
from daemon.cycle.upkeep import PausedUpkeep, maintain
from daemon.domain.errors import DatabaseError, DiskError, RestoredBackupError, StopRequested
from daemon.domain.records import Checkpoint
from daemon.domain.retention import Retention
from daemon.domain.states import CheckpointKind, CheckpointState

SCRUB = {"scrub_bytes": 10**9}


def push_all(world: World) -> None:
    queue_all(world.stages)
    maintain(world.stages, world.now)


# --- mirror -----------------------------------------------------------------------------------------------------


def test_head_is_mirrored_once(tmp_path: Path) -> None:
    """Each cycle's head goes to the mirror, and is not sent again."""
    world = World(tmp_path)
    maintain(world.stages, world.now)
    maintain(world.stages, world.later(minutes=5))
    assert world.mirror.num_pushes == 1
    assert world.mirror.versions() == world.ledger.there == {"cycle-000003"}


def test_new_mirror_gets_what_there_is(tmp_path: Path) -> None:
    """`queue_all` has everything mirrored that has files, a few at a time."""
    world = World(tmp_path, num_cycles=9)
    push_all(world)
    assert len(world.ledger.there) == mirroring.TASKS_AT_ONCE
    maintain(world.stages, world.now)
    assert world.mirror.versions() == world.ledger.rows.keys()


@pytest.mark.parametrize("moved", [True, False])
def test_mirror_at_another_url_gets_everything_anew(tmp_path: Path, moved: bool) -> None:
    """What an earlier mirror took, or refused, says nothing of the next one; the same one gets what is queued."""
    world = World(tmp_path)
    push_all(world)
    world.mirror.down = True
    world.ledger.enqueue_mirror("cycle-000003")
    world.ledger.mirror_failed("cycle-000003", "unreachable", world.now + timedelta(hours=6))
    other, config = Mirror(tmp_path / "other"), {"checkpoints": {"mirror_url": "file:///other"}}
    world.ledger.config = {"checkpoints": {"mirror_url": "file:///mirror"}} if moved else config
    stages = world.with_(mirror=other, config=config)
    queue_all(stages)
    maintain(stages, world.later(minutes=1))
    assert other.versions() == (world.ledger.rows.keys() if moved else {"cycle-000003"})


def test_claims_are_mirrored_before_checkpoints(tmp_path: Path) -> None:
    """The journal goes with each turn; a mirror that does not take it rests like one that takes no checkpoint."""
    world = World(tmp_path)
    stages = world.with_(claims_log=tmp_path / "claims.log")
    maintain(stages, world.now)  # there are no claims yet
    (tmp_path / "claims.log").write_text("run test\n1 scenario a\n")
    maintain(stages, world.now)
    world.mirror.fetch_journal(tmp_path / "back", "test")
    assert (tmp_path / "back").read_text() == "run test\n1 scenario a\n"
    world.mirror.down = True
    maintain(stages, world.later(minutes=1))
    assert [told["num_failures"] for told in world.ledger.named("mirror_unreachable")] == [1]
    world.mirror.down = False
    maintain(stages, world.later(minutes=2))
    assert len(world.ledger.named("mirror_recovered")) == 1
    assert world.ledger.tasks == {}


@pytest.mark.parametrize("asked", ["at a start", "after a cycle"])
def test_claims_that_only_the_mirror_knows_stop_training(tmp_path: Path, asked: str) -> None:
    """An older journal was put back here: neither a start nor a cycle goes over it, whether or not the database is
    older too. A mirror that does not answer stops no start."""
    world = World(tmp_path)
    journal = tmp_path / "claims.log"
    stages = world.with_(claims_log=journal)
    journal.write_text("run test\n1 scenario a\n2 scenario b\n")
    maintain(stages, world.now)
    journal.write_text("run test\n1 scenario a\n")
    with pytest.raises(RestoredBackupError, match="fetch-journal"):
        maintain(stages) if asked == "after a cycle" else refuse_older_journal(world.mirror, journal)
    world.mirror.down = True
    refuse_older_journal(world.mirror, journal)


def test_a_rehearsal_mends_the_journal_at_the_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full part that rots there is found and sent again."""
    monkeypatch.setattr("daemon.checkpoints.mirrored_journal.PART_BYTES", 25)
    world = World(tmp_path)
    journal = tmp_path / "claims.log"
    journal.write_text("run test\n1 scenario a\n2 scenario b\n")
    stages = world.with_(claims_log=journal, rehearse_every=timedelta(days=7))
    maintain(stages, world.now)
    flip(min((tmp_path / "mirror" / "claims").iterdir()), 3)
    world.ledger.rehearsed_at = world.ledger.passed_at = world.now
    maintain(stages, world.later(days=1))
    assert world.mirror.fetch_journal(tmp_path / "back", "test").num_damaged == 1
    maintain(stages, world.later(days=7))
    assert world.mirror.fetch_journal(tmp_path / "back", "test").num_damaged == 0


def test_a_journal_that_is_damaged_here_is_told(tmp_path: Path) -> None:
    """Checkpoints do not wait for it, and its rehearsal fails aloud, like that of a checkpoint."""
    world = World(tmp_path)
    (tmp_path / "claims.log").write_text("run test\n1 scenario a\nnot a claim\n")
    maintain(world.with_(claims_log=tmp_path / "claims.log", rehearse_every=timedelta(days=7)), world.now)
    assert world.mirror.versions() == {"cycle-000003"}
    (failed,) = world.ledger.named("upkeep_failed")
    details = [told["detail"] for told in world.ledger.named("rehearsal_failed")] + [failed["reason"]]
    assert ["claims.log: damaged" in detail for detail in details] == [True, True]


def test_unreachable_mirror_is_told_once_a_day_and_tried_ever_less(tmp_path: Path) -> None:
    """Over three days without a mirror: one event at first and one a day, tries 1, 2, 4 ... minutes and then 6 h apart.

    The waits are 1, 2, ..., 256 minutes (511 in all), then 6 h each; three days have 4320 minutes, (4320 - 511) / 360
    = 10.6 of these, so 10 + 10 tries. A new checkpoint comes every hour and changes none of that.
    """
    world = World(tmp_path, num_cycles=1)
    world.mirror.down = True
    tries: list[float] = []
    for minute in range(3 * 24 * 60):
        before = world.mirror.num_pushes
        maintain(world.stages, world.now)
        if world.mirror.num_pushes > before:
            tries.append(minute)
        world.later(minutes=1)
        if minute % 60 == 0:
            version = f"made-{minute}"
            world.ledger.rows[version] = replace(world.ledger.rows["cycle-000001"], version=version)
    gaps = [after - before for before, after in pairwise(tries)]
    assert gaps == [1, 2, 4, 8, 16, 32, 64, 128, 256, *[360] * 10]
    told = world.ledger.named("mirror_unreachable")
    assert len(told) == 1 + 2
    assert "does not answer" in told[0]["reason"]


def test_mirror_that_comes_back_is_told_and_gets_everything(tmp_path: Path) -> None:
    """After an outage what was queued is sent, and `mirror_recovered` is told once."""
    world = World(tmp_path)
    queue_all(world.stages)
    world.mirror.down = True
    for _ in range(3):
        maintain(world.stages, world.later(hours=1))
    world.mirror.down = False
    maintain(world.stages, world.later(hours=1))
    maintain(world.stages, world.later(hours=1))
    assert world.mirror.versions() == world.ledger.rows.keys()
    assert len(world.ledger.named("mirror_recovered")) == 1
    assert len(world.ledger.named("mirror_unreachable")) == 1


def test_mirror_rests_between_tries(tmp_path: Path) -> None:
    """A mirror that just failed is not asked again for the next checkpoint either: each try may take a time limit.

    A start asks at once: somebody may have mended it.
    """
    world = World(tmp_path)
    world.mirror.down = True
    maintain(world.stages, world.now)
    for version in world.ledger.rows:
        world.ledger.enqueue_mirror(version)
    maintain(world.stages, world.later(seconds=59))
    assert world.mirror.num_pushes == 1
    maintain(world.stages, world.later(seconds=1))
    assert world.mirror.num_pushes == 2
    queue_all(world.stages)
    maintain(world.stages, world.later(seconds=1))
    assert world.mirror.num_pushes == 3


def test_one_refused_checkpoint_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """What the mirror refuses waits; everything else is sent."""
    world = World(tmp_path)
    world.mirror.refused = {"cycle-000001"}
    queue_all(world.stages)
    for _ in range(4):
        maintain(world.stages, world.later(hours=7))
    assert world.mirror.versions() == {"base", "cycle-000002", "cycle-000003"}
    assert [task.version for task in world.ledger.mirror_tasks()] == ["cycle-000001"]


def test_clock_that_is_set_back_does_not_stop_mirroring(tmp_path: Path) -> None:
    """A next try further away than any back-off comes from a wrong clock, and counts as due."""
    world = World(tmp_path)
    world.mirror.down = True
    maintain(world.stages, world.later(days=1))
    world.mirror.down = False
    maintain(world.stages, START)
    assert world.mirror.versions() == {"cycle-000003"}


def test_retention_counts_at_the_mirror(tmp_path: Path) -> None:
    """What this run pruned is deleted there; what this run does not know stays."""
    world = World(tmp_path)
    world.stages = world.with_(retention=Retention(1, 50, 1, 30, 9))
    world.ledger.rows["cycle-000003"] = replace(world.ledger.head(), kind=CheckpointKind.KEYFRAME)  # needs no link
    push_all(world)
    (tmp_path / "mirror" / "unknown").mkdir()
    (tmp_path / "mirror" / "unknown" / "manifest.json").write_text("{}")
    world.ledger.pruned("cycle-000001")
    world.ledger.there.discard("cycle-000003")
    maintain(world.stages, world.now)
    assert world.mirror.versions() == {"base", "cycle-000002", "cycle-000003", "unknown"}


def test_what_damage_pruned_stays_at_the_mirror(tmp_path: Path) -> None:
    """Of what this run pruned although retention would keep it, the mirror's copy is the last one, and stays."""
    world = World(tmp_path)
    push_all(world)
    world.ledger.pruned("cycle-000001")
    world.ledger.there.discard("cycle-000003")
    maintain(world.stages, world.now)
    assert world.mirror.versions() == {"base", "cycle-000001", "cycle-000002", "cycle-000003"}


def test_what_becomes_lossy_here_becomes_lossy_there(tmp_path: Path) -> None:
    """Exact state that retention deletes goes away at the mirror as well."""
    world = World(tmp_path)
    push_all(world)
    world.ledger.made_lossy("cycle-000002")
    world.store.make_lossy("cycle-000002")
    maintain(world.stages, world.now)
    assert contents(tmp_path / "mirror" / "cycle-000002").keys() == {"image.delta", "lossy", "manifest.json"}


def test_exact_state_goes_only_where_a_rollback_or_a_pin_needs_it(tmp_path: Path) -> None:
    """The base, the anchors and pinned ones are mirrored whole, the others as images, however new they are."""
    world = World(tmp_path, num_cycles=5)
    world.ledger.rows["cycle-000001"] = replace(world.ledger.rows["cycle-000001"], pinned=True)
    push_all(world)
    there = {directory.name: directory for directory in (tmp_path / "mirror").iterdir()}
    # Anchors are two apart: 4, 2, and the base.
    whole = {name for name, directory in there.items() if (directory / "optimizer.state").exists()}
    assert whole == {"base", "cycle-000001", "cycle-000002", "cycle-000004"}
    assert contents(there["cycle-000005"]).keys() == {"image.delta", "lossy", "manifest.json"}
    assert there.keys() == world.mirror.versions() == world.ledger.rows.keys()


def test_huge_checkpoint_is_sent_over_several_cycles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time is up a push goes on in the next cycle with what is missing: one file each, and no failure."""
    world = World(tmp_path, num_cycles=4)
    push = world.mirror.push
    monkeypatch.setattr(
        world.mirror, "push", lambda directory, exact, seconds: push(directory, exact=exact, seconds=-1)
    )
    there = tmp_path / "mirror" / "cycle-000004"
    files = ["image.delta", "model.safetensors", "optimizer.state", "manifest.json"]
    for num_there in (1, 2, 4):
        maintain(world.stages, world.now)
        assert {path.name for path in there.iterdir()} == {*files[:num_there]}
    assert contents(there) == contents(world.store.path("cycle-000004"))
    assert (world.ledger.tasks, world.ledger.events) == ({}, [])


def test_damage_here_is_not_the_mirrors_fault(tmp_path: Path) -> None:
    """A file that rotted before it was mirrored is told as damage; the others are sent, and without a rest."""
    world = World(tmp_path, baked_after=1)
    flip(world.store.path("cycle-000001") / "optimizer.state")
    push_all(world)
    assert world.mirror.versions() == {"base", "cycle-000002", "cycle-000003"}
    (told,) = world.ledger.named("checkpoint_damaged")
    assert (told["version"], told["role"]) == ("cycle-000001", "anchor")
    assert world.ledger.named("mirror_unreachable") == []
    maintain(world.stages, world.later(minutes=2))  # it is lossy now, and its image is sound
    assert "cycle-000001" in world.mirror.versions()


# --- scrub ------------------------------------------------------------------------------------------------------


def test_sound_checkpoints_are_recorded(tmp_path: Path) -> None:
    """Each call reads on where the last one ended."""
    world = World(tmp_path, mirror=False)
    stages = world.with_(scrub_bytes=1)
    for _ in range(5):
        maintain(stages, world.now)
    assert [result.version for result in world.ledger.scrubs] == [*world.ledger.rows, "base"]
    assert all(result.sound for result in world.ledger.scrubs)
    assert world.ledger.events == []


@pytest.mark.parametrize("version", ["base", "cycle-000001", "cycle-000003"])
@pytest.mark.parametrize("damage", ["flip", "remove", "remove all"])
def test_damaged_checkpoint_comes_back_from_the_mirror(tmp_path: Path, version: str, damage: str) -> None:
    """Base, anchor and head alike: after a scrub the bytes are the original's, and the damaged ones in quarantine."""
    world = World(tmp_path, baked_after=1)
    push_all(world)
    directory = world.store.path(version)
    original = contents(directory)
    if damage == "flip":
        flip(directory / "model.safetensors")
    elif damage == "remove":
        (directory / "manifest.json").unlink()
    else:
        directory.rename(tmp_path / "gone")
    maintain(world.with_(**SCRUB), world.now)
    assert contents(directory) == original
    assert world.store.verify(version).root_hash == world.ledger.rows[version].root_hash
    quarantined = list((tmp_path / "checkpoints").glob(f"quarantine/{version}-*"))
    assert len(quarantined) == (0 if damage == "remove all" else 1)
    (told,) = world.ledger.named("checkpoint_restored")
    assert told["version"] == version
    (scrubbed,) = [result for result in world.ledger.scrubs if not result.sound]
    assert str(scrubbed.detail).endswith("restored from the mirror")
    assert list((tmp_path / "checkpoints").glob(".tmp-*")) == []


def test_damaged_head_without_a_copy_stops_training(tmp_path: Path) -> None:
    """A head that cannot be brought back is an error that goes up, with the fix; its files stay where they are."""
    world = World(tmp_path, mirror=False)
    flip(world.store.path("cycle-000003") / "model.safetensors")
    with pytest.raises(HeadDamagedError, match=r"cycle-000003.*dreamd rollback --to"):
        maintain(world.with_(**SCRUB), world.now)
    assert world.store.exists("cycle-000003")
    assert [level for _, level, _ in world.ledger.events] == ["error"]
    assert not world.ledger.scrubs[-1].sound


def test_damaged_exact_state_leaves_a_sound_image(tmp_path: Path) -> None:
    """Without a mirror, a checkpoint whose exact state rotted becomes lossy: chains through its image still hold."""
    world = World(tmp_path, mirror=False)
    flip(world.store.path("cycle-000001") / "optimizer.state")
    maintain(world.with_(**SCRUB), world.now)
    assert not world.ledger.rows["cycle-000001"].exact
    assert contents(world.store.path("cycle-000001")).keys() == {"image.delta", "lossy", "manifest.json"}
    world.store.verify("cycle-000001")
    (told,) = world.ledger.named("checkpoint_damaged")
    assert told["became"] == "its exact state is lost; its image is sound, and kept"


def test_lost_checkpoint_is_set_aside_and_said(tmp_path: Path) -> None:
    """Without a mirror, a damaged image is gone for good: quarantined, pruned in the database, told once."""
    world = World(tmp_path, mirror=False)
    world.ledger.made_lossy("cycle-000001")
    world.store.make_lossy("cycle-000001")
    flip(world.store.path("cycle-000001") / "image.delta")
    damaged = contents(world.store.path("cycle-000001"))
    for _ in range(3):
        maintain(world.with_(**SCRUB), world.now)
    assert world.ledger.rows["cycle-000001"].state is CheckpointState.PRUNED
    (aside,) = (tmp_path / "checkpoints" / "quarantine").iterdir()
    assert contents(aside) == damaged
    (told,) = world.ledger.named("checkpoint_damaged")
    assert "there is no mirror" in told["not_restored"]


@pytest.mark.parametrize("version", ["base", "cycle-000001"])
def test_what_must_stay_stays(tmp_path: Path, version: str) -> None:
    """A damaged base or pinned checkpoint is left where it is, and training goes on."""
    world = World(tmp_path, mirror=False)
    world.ledger.rows["cycle-000001"] = replace(world.ledger.rows["cycle-000001"], pinned=True)
    flip(world.store.path(version) / "model.safetensors")
    maintain(world.with_(**SCRUB), world.now)
    assert world.store.exists(version)
    (told,) = world.ledger.named("checkpoint_damaged")
    assert told["became"].startswith("it stays where it is")


def test_nothing_is_given_up_while_the_mirror_is_out(tmp_path: Path) -> None:
    """A copy at a mirror that does not answer now is still a copy: nothing is pruned; a later scrub brings it back."""
    world = World(tmp_path, baked_after=1)
    push_all(world)
    original = contents(world.store.path("cycle-000001"))
    flip(world.store.path("cycle-000001") / "image.delta")
    world.mirror.down = True
    maintain(world.with_(**SCRUB), world.now)
    assert world.store.exists("cycle-000001")
    assert world.ledger.rows["cycle-000001"].state is CheckpointState.PROMOTED
    world.mirror.down = False
    maintain(world.with_(**SCRUB), world.now)
    assert contents(world.store.path("cycle-000001")) == original


@pytest.mark.parametrize("what_is_there", ["nothing", "others"])
def test_nothing_is_given_up_for_a_mirror_that_lost_what_it_took(tmp_path: Path, what_is_there: str) -> None:
    """A mirror that has not got what it took is rather a disk that is not mounted: nothing is pruned, and once it is
    mounted again the next scrub brings the checkpoint back."""
    world = World(tmp_path, baked_after=1)
    push_all(world)
    original = contents(world.store.path("cycle-000001"))
    for name in ("image.delta", "model.safetensors"):
        flip(world.store.path("cycle-000001") / name)
    mounted, away = tmp_path / "mirror", tmp_path / "disk"
    mounted.rename(away)
    mounted.mkdir()
    if what_is_there == "others":
        (mounted / "base").mkdir()
        (mounted / "base" / "manifest.json").write_text("{}")
    maintain(world.with_(**SCRUB), world.now)
    assert world.ledger.rows["cycle-000001"].state is CheckpointState.PROMOTED
    (told,) = world.ledger.named("checkpoint_damaged")
    assert (told["became"], told["version"]) == ("it stays where it is", "cycle-000001")
    shutil.rmtree(mounted)
    away.rename(mounted)
    maintain(world.with_(**SCRUB), world.now)
    assert contents(world.store.path("cycle-000001")) == original


def test_mirror_with_images_alone(tmp_path: Path) -> None:
    """From a mirror of images an old checkpoint comes back lossy, and says so; the head does not: training stops."""
    world = World(tmp_path, mirror_exact=False)
    push_all(world)
    flip(world.store.path("cycle-000001") / "model.safetensors")
    maintain(world.with_(**SCRUB), world.now)
    assert not world.ledger.rows["cycle-000001"].exact
    assert (world.store.path("cycle-000001") / "lossy").exists()
    world.store.verify("cycle-000001")
    flip(world.store.path("cycle-000003") / "model.safetensors")
    with pytest.raises(HeadDamagedError, match="its image alone"):
        maintain(world.with_(**SCRUB), world.now)


# --- rehearsal --------------------------------------------------------------------------------------------------


WEEKLY = {"rehearse_every": timedelta(days=7)}


def test_rehearsal_reads_anchor_and_longest_chain(tmp_path: Path) -> None:
    """The anchor and the lossy image with the longest chain are restored, from disk and mirror, and nothing changes."""
    world = World(tmp_path, num_cycles=4)
    push_all(world)
    for number in (1, 3):
        world.ledger.made_lossy(f"cycle-{number:06d}")
        make_it_lossy(world.store.path(f"cycle-{number:06d}"))
    maintain(world.stages, world.now)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    maintain(world.with_(**WEEKLY), world.now)
    assert [(r.version, r.passed) for r in world.ledger.rehearsals] == [("cycle-000002", True), ("cycle-000003", True)]
    assert all("the mirror's copy came back right" in str(r.detail) for r in world.ledger.rehearsals)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_rehearsal_says_when_the_mirror_has_the_image_alone(tmp_path: Path) -> None:
    """An anchor that would come back lossy is not said to be there whole."""
    world = World(tmp_path, num_cycles=4, mirror_exact=False)
    push_all(world)
    maintain(world.with_(**WEEKLY), world.now)
    (rehearsal,) = world.ledger.rehearsals
    assert str(rehearsal.detail).endswith("came back right, its image alone")


def test_rehearsal_is_weekly(tmp_path: Path) -> None:
    """Not before its time, then when it is time, and when the clock was set back behind the last one."""
    world = World(tmp_path, mirror=False)
    world.ledger.rehearsed_at = world.ledger.passed_at = START
    for moment, num_rehearsals in ((timedelta(days=6.9), 0), (timedelta(days=7), 1), (timedelta(days=-1), 2)):
        maintain(world.with_(**WEEKLY), START + moment)
        assert len(world.ledger.rehearsals) == num_rehearsals


@pytest.mark.parametrize("days_since_one_passed", [None, 3])
def test_failed_rehearsal_is_tried_again_after_a_day(tmp_path: Path, days_since_one_passed: int | None) -> None:
    """One that failed does not count for a week, whether or not one passed before."""
    world = World(tmp_path, mirror=False)
    world.ledger.rehearsed_at = START
    if days_since_one_passed is not None:
        world.ledger.passed_at = START - timedelta(days=days_since_one_passed)
    for moment, num_rehearsals in ((timedelta(days=0.9), 0), (timedelta(days=1), 1)):
        maintain(world.with_(**WEEKLY), START + moment)
        assert len(world.ledger.rehearsals) == num_rehearsals


def test_rehearsal_that_a_stop_broke_off_did_not_happen(tmp_path: Path) -> None:
    """A stop between its two checkpoints leaves no row that would count for a week."""
    world = World(tmp_path, num_cycles=4, mirror=False)
    world.ledger.made_lossy("cycle-000003")
    make_it_lossy(world.store.path("cycle-000003"))
    world.observer.pieces_left = 4  # before each of three parts, and before the first checkpoint
    with pytest.raises(StopRequested):
        maintain(world.with_(**WEEKLY), world.now)
    assert world.ledger.rehearsals == []
    world.observer.pieces_left = None
    maintain(world.with_(**WEEKLY), world.now)
    assert [rehearsal.version for rehearsal in world.ledger.rehearsals] == ["cycle-000002", "cycle-000003"]


@pytest.mark.parametrize("damaged", ["cycle-000002", "cycle-000003", "cycle-000001"])
def test_damage_that_a_rehearsal_finds_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str) -> None:
    """The anchor, the image with the longest chain, or a link of that chain is damaged here: it comes back from the
    mirror at once, and the rehearsal failed nevertheless, and is the newest row."""
    world = World(tmp_path, num_cycles=4)
    for number in (1, 3):
        world.ledger.made_lossy(f"cycle-{number:06d}")
        make_it_lossy(world.store.path(f"cycle-{number:06d}"))
    push_all(world)
    original = contents(world.store.path(damaged))
    flip(world.store.path(damaged) / "image.delta")
    image = world.store.image

    def with_its_chain(checkpoint: Checkpoint) -> Any:
        for row in world.ledger.rows.values():
            if row.cycle_number is None or row.cycle_number <= (checkpoint.cycle_number or 0):
                image(row)

    monkeypatch.setattr(world.store, "image", with_its_chain)
    maintain(world.with_(**WEEKLY), world.now)
    (told,) = world.ledger.named("checkpoint_restored")
    assert told["version"] == damaged
    assert {name for name in contents(world.store.path(damaged)) if name != "lossy"} == original.keys() - {"lossy"}
    assert not world.ledger.rehearsals[-1].passed
    world.store.check(world.ledger.rows[damaged])


@pytest.mark.parametrize("place", ["here", "mirror"])
def test_failed_rehearsal_is_told(tmp_path: Path, place: str) -> None:
    """An anchor that could not be restored, from here or from the mirror, is an event of level error; nothing stops."""
    world = World(tmp_path, num_cycles=4)
    push_all(world)
    root = tmp_path / ("checkpoints" if place == "here" else "mirror")
    flip(root / "cycle-000002" / "optimizer.state")
    maintain(world.with_(**WEEKLY), world.now)
    (rehearsal,) = world.ledger.rehearsals
    assert not rehearsal.passed
    assert "optimizer.state" in str(rehearsal.detail)
    assert [level for name, level, _ in world.ledger.events if name == "rehearsal_failed"] == ["error"]


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_rehearsal_has_the_mirror_mended(tmp_path: Path, damage: str) -> None:
    """What a rehearsal finds damaged or missing at the mirror is sent again, until it is what it was."""
    world = World(tmp_path, num_cycles=4)
    push_all(world)
    there = tmp_path / "mirror" / "cycle-000002"
    original = contents(there)
    if damage == "flip":
        flip(there / "optimizer.state")
    else:
        there.rename(tmp_path / "gone")
    maintain(world.with_(**WEEKLY), world.now)
    maintain(world.stages, world.now)
    assert contents(there) == original
    assert world.ledger.tasks == {}


# --- together ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["push", "scrub_order", "last_rehearsal_at"])
def test_parts_stand_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """A bug in one part is an event and a log line; the other two are done nevertheless."""
    world = World(tmp_path)

    def bug(*_: object, **_options: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(world.mirror if broken == "push" else world.ledger, broken, bug)
    maintain(world.with_(**SCRUB, **WEEKLY), world.now)
    (told,) = world.ledger.named("upkeep_failed")
    assert "ZeroDivisionError" in told["reason"]
    assert ("upkeep_failed", {"level": "error", **told}) in world.observer.lines
    done = {
        "push": bool(world.ledger.there),
        "scrub_order": bool(world.ledger.scrubs),
        "last_rehearsal_at": bool(world.ledger.rehearsals),
    }
    assert [name for name, was_done in done.items() if not was_done] == [broken]


def test_stop_passes_at_once(tmp_path: Path) -> None:
    """Between any two pieces a stop goes up, and is no failure."""
    for num_pieces in range(7):
        world = World(tmp_path / str(num_pieces), num_cycles=1)
        world.observer.pieces_left = num_pieces
        with pytest.raises(StopRequested):
            maintain(world.with_(**SCRUB, **WEEKLY), world.now)
        assert world.ledger.named("upkeep_failed") == []


@pytest.mark.parametrize("stop", [StopRequested("SIGTERM"), DatabaseError("gone")])
def test_what_goes_up_goes_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Exception) -> None:
    """A stop within a push, and a database that is gone, are not swallowed."""
    world = World(tmp_path)

    def push(_directory: Path, **_options: object) -> int:
        raise stop

    monkeypatch.setattr(world.mirror, "push", push)
    with pytest.raises(type(stop)):
        maintain(world.stages, world.now)


def test_without_settings_nothing_is_done(tmp_path: Path) -> None:
    """No mirror, no scrub, no rehearsal: no row, no event."""
    world = World(tmp_path, mirror=False)
    maintain(world.stages)
    assert (world.ledger.events, world.ledger.scrubs, world.ledger.rehearsals) == ([], [], [])


def test_a_pause_serves_the_mirror_and_the_scrub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the breaker is open upkeep is done every ten minutes, not at each look; with no room it is not done."""
    world = World(tmp_path)
    paused, stages = PausedUpkeep(), world.with_(scrub_bytes=1)
    clock = [1000.0]
    monkeypatch.setattr(upkeep.time, "monotonic", lambda: clock[0])
    paused.run(stages, Pause(30.0, "the disk is full", DiskError))
    assert (world.ledger.there, world.ledger.scrubs) == (set(), [])
    for _ in range(41):  # 20 minutes
        paused.run(stages, Pause(30.0, "the circuit breaker is open"))
        clock[0] += 30.0
    assert world.ledger.there == {"cycle-000003"}
    assert len(world.ledger.scrubs) == 3


def test_time_limit_of_a_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its seconds are used up no further checkpoint is sent before the next cycle."""
    world = World(tmp_path)
    queue_all(world.stages)
    clock: Iterator[Any] = iter(range(0, 100_000, 25))
    monkeypatch.setattr(mirroring.time, "monotonic", lambda: next(clock))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(world.mirror, "push", lambda _directory, **_options: 1)
        maintain(world.stages, world.now)
    assert len(world.ledger.there) == 1

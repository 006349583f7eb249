"""What becomes of a published checkpoint that does not verify any more: back from the mirror, or set aside."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any, Protocol

from daemon.domain.errors import CheckpointError, DatabaseError, DiskError, DreamdError, MirrorError
from daemon.domain.lineage import ancestors_kept
from daemon.domain.records import Checkpoint
from daemon.domain.retention import LOSSY_MARKER, links
from daemon.domain.states import CheckpointKind, CheckpointState
from daemon.ports import CheckpointStore, Ledger, Mirror


class HeadDamagedError(CheckpointError):
    """Files that the head needs are damaged, and there is no other copy: nothing may be trained on top of it."""


class Keeper(Protocol):
    """The part of `Stages` that needs no model: mending must be possible before anything is loaded."""

    @property
    def store(self) -> CheckpointStore: ...

    @property
    def mirror(self) -> Mirror | None: ...

    @property
    def ledger(self) -> Ledger: ...

    @property
    def baked_after(self) -> int: ...

    def tell(self, name: str, cycle: None, *, level: str = ..., **payload: Any) -> None:
        """An event that an operator should know of."""


@dataclass(frozen=True)
class _NotBack:
    """Why a checkpoint did not come back from the mirror."""

    reason: str
    for_good: bool
    """Whether there is no copy; else it may work another time, and nothing here may be given up yet."""


def mend(stages: Keeper, checkpoint: Checkpoint, damage: str) -> str:
    """Bring a damaged checkpoint back, or save what can be saved of it; says so in an event.

    Args:
        damage: what does not verify.

    Returns:
        What became of it.

    Raises:
        HeadDamagedError: the head does not load without it, and it could not be brought back.
    """
    role, version = _role(stages, checkpoint), checkpoint.version
    exact_is_sound = checkpoint.exact and _loads(stages, checkpoint)
    failure = _bring_back(stages, checkpoint, image_alone=exact_is_sound)
    if failure is None:
        stages.tell("checkpoint_restored", None, version=version, role=role, reason=damage)
        return "restored from the mirror"
    blocks = role == "head" and not _loads(stages, stages.ledger.head())
    if blocks:
        became = "it stays where it is, and nothing more is trained"
        fix = f"`dreamd checkpoints restore --from-mirror {version}`, or `dreamd rollback --to` another checkpoint"
    elif exact_is_sound:
        stages.store.set_image_aside(version)  # what is made from it next must not build on it
        became = "its image is lost; its exact state is sound, and kept as long as anything needs it"
        fix = "see to the mirror" if stages.mirror else "none is needed; a mirror would have brought it back"
    elif not failure.for_good:
        became = "it stays where it is"
        fix = "it is tried again when it is read the next time; see to the mirror"
    else:
        became = _save(stages, checkpoint)
        fix = f"copy its files from a backup to {stages.store.path(version)} if you need it"
    told = {"version": version, "role": role, "reason": damage, "not_restored": failure.reason}
    stages.tell("checkpoint_damaged", None, level="error", became=became, fix=fix, **told)
    if blocks:
        raise HeadDamagedError(
            f"{damage}. The head needs it, and it was not brought back: {failure.reason}. Now: {fix}"
        )
    return f"{became} ({failure.reason})"


def make_loadable(stages: Keeper, checkpoint: Checkpoint) -> None:
    """Have a checkpoint that would load; what it needs and is damaged is mended, of a lossy one each link of its chain.

    Raises:
        HeadDamagedError: the head needs it, and it could not be brought back.
        CheckpointError: it would not load.
    """
    try:
        stages.store.open(checkpoint)
    except CheckpointError as error:
        for link in _needed(stages, checkpoint):
            damage = str(error) if checkpoint.exact else _damage(stages, link)
            if damage is not None:
                mend(stages, link, damage)
        stages.store.open(stages.ledger.checkpoint(checkpoint.version))


def _needed(stages: Keeper, checkpoint: Checkpoint) -> list[Checkpoint]:
    """All that a checkpoint is loaded from, oldest first."""
    if checkpoint.exact:
        return [checkpoint]
    by_version = {found.version: found for found in stages.ledger.checkpoints()}
    return [by_version[version] for version in links(checkpoint.version, by_version)][::-1]


def _damage(stages: Keeper, checkpoint: Checkpoint) -> str | None:
    try:
        stages.store.check(checkpoint)
    except CheckpointError as error:
        return str(error)
    return None


def _loads(stages: Keeper, checkpoint: Checkpoint) -> bool:
    try:
        stages.store.open(checkpoint)
    except (DreamdError, OSError):
        return False
    return True


def _role(stages: Keeper, checkpoint: Checkpoint) -> str:
    """What is lost with it."""
    if checkpoint.version in {needed.version for needed in _needed(stages, stages.ledger.head())}:
        return "head"
    if checkpoint.state is CheckpointState.BASE:
        return "base"
    if checkpoint.version in ancestors_kept(stages.ledger.lineage(), stages.baked_after):
        return "anchor"
    if checkpoint.pinned:
        return "pinned"
    return "old checkpoint" if checkpoint.exact else "old image"


def _bring_back(stages: Keeper, checkpoint: Checkpoint, *, image_alone: bool) -> _NotBack | None:
    """Put the mirror's copy in its place, the damaged one in quarantine; None when that worked.

    Args:
        image_alone: the exact state here is sound, and stays.
    """
    if stages.mirror is None:
        return _NotBack("there is no mirror (checkpoints.mirror_url)", for_good=True)
    version = checkpoint.version
    arriving = stages.store.path(f".tmp-restored-{version}")
    shutil.rmtree(arriving, ignore_errors=True)
    try:
        there = stages.mirror.versions()
        if version not in there:
            # Empty, or without what it has taken: rather a disk that is not mounted than a copy that is lost.
            for_good = bool(there) and not _was_mirrored(stages, version)
            return _NotBack(f"{stages.mirror.url} does not have it", for_good=for_good)
        stages.mirror.fetch(version, checkpoint.root_hash, arriving)  # first: the damaged one may be all there is
        if image_alone:
            stages.store.take_image(version, arriving)
            return None
        if checkpoint.exact and (arriving / LOSSY_MARKER).exists():
            stages.ledger.made_lossy(version)
        stages.store.replace(version, arriving)
    except DatabaseError:
        raise
    except (MirrorError, DiskError, OSError) as error:
        return _NotBack(str(error), for_good=False)
    except DreamdError as error:  # it must keep its exact state, and the mirror has none
        return _NotBack(f"{stages.mirror.url} has its image alone ({error})", for_good=True)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    return None


def _was_mirrored(stages: Keeper, version: str) -> bool:
    stages.ledger.enqueue_mirror(version)  # nothing when it is queued or there
    return version not in {task.version for task in stages.ledger.mirror_tasks()}


def _save(stages: Keeper, checkpoint: Checkpoint) -> str:
    """Keep a sound image, else set the directory aside; what the run cannot do without stays where it is."""
    version = checkpoint.version
    try:
        if checkpoint.exact and _has_sound_image(stages, checkpoint):
            stages.ledger.made_lossy(version)
            stages.store.make_lossy(version)
            return "its exact state is lost; its image is sound, and kept"
        stages.ledger.pruned(version)
    except DatabaseError:
        raise
    except DreamdError as error:
        return f"it stays where it is: {error}"
    if not stages.store.exists(version):
        return "it is lost"
    return f"it is lost; what is left of it was moved to {stages.store.quarantine(version)}"


def _has_sound_image(stages: Keeper, checkpoint: Checkpoint) -> bool:
    if checkpoint.kind is CheckpointKind.FULL:
        return False
    try:
        stages.store.image(checkpoint)
    except (CheckpointError, OSError):
        return False
    return True

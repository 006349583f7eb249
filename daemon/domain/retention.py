"""Which checkpoints keep their files, and which of these their exact state: a pure function of the run's rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from daemon.domain.lineage import ancestors_kept
from daemon.domain.records import Checkpoint
from daemon.domain.states import CheckpointKind, CheckpointState

LOSSY_MARKER = "lossy"
"""File of a checkpoint that says that its exact state was deleted on purpose."""


@dataclass(frozen=True, slots=True)
class Retention:
    """The settings."""

    keep_last: int
    """Newest checkpoints, of all and of the head's lineage, whose image is kept."""
    keep_every: int
    """Cycles between two whose image is kept for ever."""
    keep_exact: int
    """Newest ones, likewise, whose exact state is kept."""
    keep_rollbacks: int
    """Cycles for which both sides of a rollback are kept."""
    baked_after: int


@dataclass(frozen=True, slots=True)
class Kept:
    """Versions that must stay."""

    exact: frozenset[str]
    images: frozenset[str]
    """With the exact ones, and with every link of their chains."""


def retained(
    checkpoints: Sequence[Checkpoint], lineage: Sequence[Checkpoint], sides: Iterable[str], settings: Retention
) -> Kept:
    """What to keep of a run's checkpoints.

    Args:
        checkpoints: all that have their files, in any order.
        lineage: the head and its ancestors, head first, base last.
        sides: versions that a recent rollback left or went to.
    """
    newest = sorted(checkpoints, key=lambda checkpoint: checkpoint.cycle_number or 0)
    exact = {
        *(checkpoint.version for checkpoint in (*lineage[: settings.keep_exact], *newest[-settings.keep_exact :])),
        *ancestors_kept(lineage, settings.baked_after),
        *(c.version for c in checkpoints if c.pinned or c.state in (CheckpointState.BASE, CheckpointState.CANDIDATE)),
    }
    wanted = {
        *exact,
        *sides,
        *(checkpoint.version for checkpoint in (*lineage[: settings.keep_last], *newest[-settings.keep_last :])),
        *(c.version for c in checkpoints if c.cycle_number and c.cycle_number % settings.keep_every == 0),
    }
    by_version = {checkpoint.version: checkpoint for checkpoint in checkpoints}
    images = {link for version in wanted & by_version.keys() for link in links(version, by_version)}
    return Kept(frozenset(exact & by_version.keys()), frozenset(images))


def removals(checkpoints: Iterable[Checkpoint], keep: Kept) -> Iterator[tuple[Checkpoint, bool]]:
    """Checkpoints that lose their exact state, or (True) all they have."""
    for checkpoint in checkpoints:
        exact = checkpoint.version in keep.exact
        # Without its exact state a full one has nothing left; it goes as a whole.
        if checkpoint.version not in keep.images or (checkpoint.kind is CheckpointKind.FULL and not exact):
            yield checkpoint, True
        elif checkpoint.exact and not exact:
            yield checkpoint, False


def links(version: str, by_version: Mapping[str, Checkpoint]) -> Iterator[str]:
    """A version and all that its image is made of: itself first, keyframe or base last."""
    found = by_version.get(version)
    while found is not None:
        yield found.version
        if found.kind is not CheckpointKind.DELTA or found.parent_version is None:
            return
        found = by_version.get(found.parent_version)

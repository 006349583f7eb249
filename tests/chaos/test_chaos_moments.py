"""The moments of a chaos run follow from its seed, and reach everything that can be killed."""

from __future__ import annotations

from itertools import islice

from chaos.moments import FAILPOINTS, POISON, RESTORING, STATES, attempts

from daemon.domain import failpoints
from daemon.domain.states import CycleState


def test_the_same_seed_asks_for_the_same_kills() -> None:
    """Two series of one seed are equal; those of another seed differ."""
    assert list(islice(attempts(5), 50)) == list(islice(attempts(5), 50))
    assert list(islice(attempts(5), 50)) != list(islice(attempts(6), 50))


def test_two_hundred_kills_come_by_every_way() -> None:
    """The series that `make chaos` starts with has every kind, every failpoint, and every step of a rollback."""
    first = list(islice(attempts(1), 200))
    assert {each.kind for each in first} == {"clock", "start", "state", "stage", "failpoint", "disk", "restore"}
    points = {each.point for each in first}
    assert points >= {f"state:{state}" for state in STATES} | {f"failpoint:{name}" for name in FAILPOINTS}
    assert points >= {*RESTORING, "fsync", "rename", "unlink"}
    assert all(each.flags == POISON for each in first if each.kind == "restore")


def test_states_and_failpoints_are_the_programs() -> None:
    """A name that the program does not have would never kill; one that it gained should be killed at."""
    assert set(FAILPOINTS) == failpoints.NAMES
    assert set(STATES) == set(CycleState) - {CycleState.PLANNED, CycleState.FINISHED}

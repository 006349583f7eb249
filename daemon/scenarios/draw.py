"""Seeded drawing that gives the same on every machine and Python.

Only `Random.random()` promises the same sequence across Python versions; `choice`, `randrange` and
`shuffle` do not, so they are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

from daemon.domain.hashing import derive_seed

T = TypeVar("T")


def generator(*parts: int | str) -> Random:
    """A generator seeded by `parts`."""
    return Random(derive_seed(*parts))


def integer(rng: Random, low: int, high: int) -> int:
    """A whole number from `low` to `high`, both included."""
    return low + int(rng.random() * (high - low + 1))


def pick(rng: Random, values: Sequence[T]) -> T:
    """One of `values`."""
    return values[integer(rng, 0, len(values) - 1)]


def shuffled(rng: Random, values: Sequence[T]) -> list[T]:
    """`values` in a random order."""
    rest = list(values)
    return [rest.pop(integer(rng, 0, len(rest) - 1)) for _ in values]


def several(rng: Random, values: Sequence[T], count: int) -> list[T]:
    """`count` different places of `values`."""
    return shuffled(rng, values)[:count]

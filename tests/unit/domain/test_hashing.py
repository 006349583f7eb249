"""What counts as the same content, and what can never collide."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.hashing import batch_hash, derive_seed, digest, example_hash, normalised, scenario_hash

TEXT = st.text(max_size=40)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Name three owls.", "  Name   three\n\towls. "),
        ("ﬁve", "five"),
        ("e\u0301", "é"),
        ("a\u00a0b", "a b"),
        ("１２", "12"),
    ],
)
def test_spellings_a_model_cannot_tell_apart_are_the_same_scenario(one: str, other: str) -> None:
    """White space, compatibility characters and composition do not make a new scenario."""
    assert scenario_hash([("user", one)]) == scenario_hash([("user", other)])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([("user", "a")], [("user", "A")]),
        ([("user", "a")], [("system", "a")]),
        ([("user", "a"), ("assistant", "b")], [("user", "a b")]),
        ([("user", "a"), ("user", "b")], [("user", "b"), ("user", "a")]),
        ([("user", "a b")], [("user", "ab")]),
    ],
)
def test_different_scenarios_have_different_hashes(one: list[tuple[str, str]], other: list[tuple[str, str]]) -> None:
    """Case, role, turns, their order and word boundaries count."""
    assert scenario_hash(one) != scenario_hash(other)


@given(text=TEXT)
def test_normalising_twice_changes_nothing(text: str) -> None:
    """It is a normal form."""
    assert normalised(normalised(text)) == normalised(text)


@given(chosen=TEXT, rejected=TEXT)
def test_an_example_depends_on_both_sides_and_their_order(chosen: str, rejected: str) -> None:
    """Swapping the sides, or leaving the rejected one out, is another example; no rejected is not an empty one."""
    pair = example_hash("s", chosen, rejected)
    assert pair != example_hash("s", chosen, None)
    assert pair != example_hash("t", chosen, rejected)
    if normalised(chosen) != normalised(rejected):
        assert pair != example_hash("s", rejected, chosen)


def test_domains_are_apart() -> None:
    """The same value hashed as two kinds of thing gives two hashes."""
    assert digest("scenario", ["x"]) != digest("example", ["x"])


def test_a_batch_depends_on_parent_and_order() -> None:
    """Another parent or another order is another batch."""
    assert batch_hash("base", ["a", "b"]) == batch_hash("base", ("a", "b"))
    assert len({batch_hash("base", ["a", "b"]), batch_hash("base", ["b", "a"]), batch_hash("x", ["a", "b"])}) == 3


def test_the_hash_is_the_documented_one() -> None:
    """SHA-256 over domain, NUL and canonical JSON: someone else can compute it, and old databases stay valid."""
    canonical = json.dumps([["user", "Name three owls."]], separators=(",", ":"))
    expected = hashlib.sha256(b"scenario\0" + canonical.encode()).hexdigest()
    assert scenario_hash([("user", "Name three  owls.")]) == expected


@given(parts=st.lists(st.integers() | st.text(max_size=10), min_size=1, max_size=4))
def test_a_seed_fits_63_bits_and_depends_on_nothing_else(parts: list[int | str]) -> None:
    """Databases and RNGs take it, and the same parts give the same seed."""
    seed = derive_seed(*parts)
    assert 0 <= seed < 2**63
    assert seed == derive_seed(*parts)


def test_seeds_are_the_same_in_another_process() -> None:
    """Not Python's own salted hash."""
    code = "from daemon.domain.hashing import derive_seed; print(derive_seed(7, 'cycle', 3))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == derive_seed(7, "cycle", 3)
    assert len({derive_seed(7, "cycle", number) for number in range(1000)}) == 1000

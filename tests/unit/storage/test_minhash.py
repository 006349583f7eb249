"""MinHash bands: the same for ever, and as likely to find a near-duplicate as the formula says."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest

from daemon.domain.novelty import NEAR_DUPLICATE, jaccard, shingles
from daemon.storage.minhash import NUM_BANDS, bands, bands_of, packed, unpacked
from daemon.storage.near_duplicates import alike

WORD = 2**64 - 1


def test_the_bands_of_a_known_text_never_change() -> None:
    """Stored bands stay valid: these numbers were computed once, and again without numpy below."""
    assert bands(shingles("Please answer in one short sentence: why do owls fly at night?"))[:4] == GOLDEN


def test_an_independent_computation_in_plain_integers_agrees() -> None:
    """Python's own unbounded integers, reduced by hand, give the same sixteen signed keys."""
    content = shingles("The quick brown fox jumps over the lazy dog, and then over it once more.")
    assert bands(content) == tuple(_by_hand(content))


def test_many_at_once_equal_one_at_a_time() -> None:
    """Neither the neighbours nor the order of a set's elements matter."""
    sets = [shingles(text) for text in _texts(40, seed=1)]
    assert [tuple(row) for row in bands_of(sets).tolist()] == [bands(frozenset(sorted(found))) for found in sets]
    with pytest.raises(ValueError, match="no bands"):
        bands_of([frozenset()])


def test_shingles_are_stored_sorted_and_come_back() -> None:
    """Eight bytes each, big-endian and ascending, so that the bytes themselves are in order."""
    content = frozenset({2**64 - 1, 0, 258})
    assert packed(content) == bytes(8) + bytes([0, 0, 0, 0, 0, 0, 1, 2]) + b"\xff" * 8
    assert unpacked(packed(content)) == content


@pytest.mark.parametrize(("shared", "size"), [(24, 27), (36, 45), (28, 40), (20, 40)])
def test_bands_find_as_often_as_the_formula_says(shared: int, size: int) -> None:
    """At similarity s one band agrees with probability 1 - (1 - s^8)^16, within four standard errors of 600 pairs."""
    generator = random.Random(7)
    pairs, agreeing = 600, 0
    for _ in range(pairs):
        numbers = generator.sample(range(2**62), size)
        extra = (size - shared) // 2
        one, other = frozenset(numbers[: size - extra]), frozenset(numbers[:shared] + numbers[size - extra :])
        similarity = jaccard(one, other)
        agreeing += bool(set(bands(one)) & set(bands(other)))
    expected = 1 - (1 - similarity**8) ** NUM_BANDS
    assert agreeing / pairs == pytest.approx(expected, abs=4 * (expected * (1 - expected) / pairs) ** 0.5 + 1e-3)


def test_different_texts_share_no_band() -> None:
    """Of 300 random texts no two share a band by chance."""
    keys = bands_of([shingles(text) for text in _texts(300, seed=2)])
    assert len(set(keys.ravel().tolist())) == keys.size


def test_twins_within_a_cycle_are_found_exactly() -> None:
    """`alike` compares every pair without bands: at 0.8 it finds, just below it does not."""
    base = list(range(9))
    at, below = frozenset([*base[:8], 100]), frozenset([*base[:7], 100, 101])
    contents = {"a": frozenset(base), "b": at}
    assert jaccard(contents["a"], at) == NEAR_DUPLICATE
    assert alike(contents) == ("a", "b", NEAR_DUPLICATE)
    assert alike({"a": frozenset(base), "b": below}) is None


GOLDEN = (-1106165854244843455, 6916746558062705365, -6384135485823074205, -1466211582353285168)


def _by_hand(content: frozenset[int]) -> Iterator[int]:
    def constant(purpose: str, index: int) -> int:
        text = f"dreamd near-duplicates, version 1: {purpose} {index}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")

    def mixed(value: int) -> int:
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & WORD
        return value ^ (value >> 31)

    factors = [constant("factor", index) | 1 for index in range(128)]
    terms = [constant("term", index) for index in range(128)]
    for band in range(16):
        key = terms[band] ^ factors[band]
        for index in range(band * 8, band * 8 + 8):
            least = min(mixed((value * factors[index] + terms[index]) & WORD) for value in content)
            key = mixed((key * (constant("band", 0) | 1) + least) & WORD)
        yield key - 2**64 if key >= 2**63 else key


def _texts(count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(f"word{generator.randrange(400)}" for _ in range(30)) for _ in range(count)]

"""Stochastic rounding: what its docstring promises, by statistics whose bounds are derived."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from daemon.domain.hashing import derive_seed
from daemon.training import rounding
from daemon.training.rounding import round_stochastically_


def rounded(value: Tensor, key: int = 0, offset: int = 0) -> Tensor:
    target = torch.empty_like(value, dtype=torch.bfloat16)
    round_stochastically_(target, value, key, offset)
    return target


@pytest.mark.parametrize("value", [1.001, -1.001, 0.0123456, -3.3e-30, 7.7e25, 1e-39, -123456.78, 1.9999])
def test_the_mean_over_many_draws_is_the_value(value: float) -> None:
    """Rounding is unbiased for both signs and for tiny (even subnormal) and large exponents.

    A draw is one of two neighbours a spacing `s` apart, up with probability p, so the mean of n draws has the standard
    deviation s * sqrt(p (1 - p) / n); 5 of them are exceeded once in two million times.
    """
    exact = torch.tensor(value, dtype=torch.float32)
    num_keys, per_key = 200, 1000
    draws = torch.cat([rounded(exact.expand(per_key).contiguous(), key) for key in range(num_keys)]).double()
    low, high = draws.min().item(), draws.max().item()
    spacing = high - low
    up = (exact.double().item() - low) / spacing
    assert 0 < up < 1 and draws.unique().numel() == 2
    bound = 5 * spacing * math.sqrt(up * (1 - up) / (num_keys * per_key))
    assert abs(draws.mean().item() - exact.double().item()) < bound


def test_only_the_two_neighbours_are_written() -> None:
    """A value is written as the next bfloat16 towards zero or the next one away from zero, never as another."""
    value = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    towards_zero = (value.view(torch.int32) & ~0xFFFF).view(torch.float32)
    away = ((value.view(torch.int32) & ~0xFFFF) + 0x10000).view(torch.float32)
    found = rounded(value, 3).float()
    assert ((found == towards_zero) | (found == away)).all()


def test_every_exact_bfloat16_stays_itself() -> None:
    """All 65536 bfloat16 patterns, both zeros, subnormals and infinities included, survive; NaN stays NaN."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    for key in range(20):
        found = rounded(every.float(), key)
        nan = every.isnan()
        assert torch.equal(found.view(torch.int16)[~nan], every.view(torch.int16)[~nan])
        assert found[nan].isnan().all()


def test_nan_with_low_payload_stays_nan() -> None:
    """A NaN whose only set bits are among those that bfloat16 drops does not turn into an infinity."""
    patterns = torch.tensor([0x7F800001, 0x7F80FFFF, -0x7FFFFF, -1], dtype=torch.int32)  # the last two are negative
    assert rounded(patterns.view(torch.float32)).isnan().all()


def test_no_finite_value_becomes_infinite() -> None:
    """Beyond bfloat16's largest value the largest is written, of either sign."""
    largest = torch.finfo(torch.bfloat16).max
    value = torch.tensor([torch.finfo(torch.float32).max, largest * (1 + 2**-10)]).repeat(1000)
    assert (rounded(value).float() == largest).all()
    assert (rounded(-value).float() == -largest).all()


def test_the_key_decides_the_bits() -> None:
    """The same key gives the same bits; another key, even a neighbour, gives others for about half of the values."""
    # Half-way between two neighbours: two independent draws differ with probability 1/2.
    value = torch.full((100_000,), 1 + 2**-8)
    key = derive_seed("run", 7, "weight")
    assert torch.equal(rounded(value, key), rounded(value, key))
    for other in (key + 1, key ^ (1 << 62), derive_seed("run", 8, "weight")):
        differing = (rounded(value, key) != rounded(value, other)).double().mean().item()
        assert abs(differing - 0.5) < 5 * math.sqrt(0.25 / value.numel())


def test_neighbouring_elements_and_blocks_are_independent() -> None:
    """Draws of elements at distances 1, 2, 64 and of one block and the next agree as often as coins do."""
    value = torch.full((2 * rounding._BLOCK,), 1 + 2**-8)
    up = rounded(value, 5) > 1
    for distance in (1, 2, 64, rounding._BLOCK):
        agree = (up[distance:] == up[:-distance]).double().mean().item()
        assert abs(agree - 0.5) < 5 * math.sqrt(0.25 / (value.numel() - distance))


def test_the_random_bits_are_uniform() -> None:
    """Pearson's chi-square of the 16-bit noise over 256 bins is within 5 standard deviations of its mean, 255."""
    scrambled = rounding._scrambled_counters(torch.device("cpu"))
    noise, scratch = torch.empty_like(scrambled), torch.empty_like(scrambled)
    for key in range(10):
        rounding._fill_random_bits_(noise, scratch, scrambled, derive_seed(key))
        for bins in (noise >> 8, noise & 0xFF):
            expected = noise.numel() / 256
            statistic = ((torch.bincount(bins, minlength=256) - expected) ** 2 / expected).sum().item()
            assert abs(statistic - 255) < 5 * math.sqrt(2 * 255)


def test_shards_get_the_bits_of_the_whole() -> None:
    """Parts of a tensor rounded by offset, in any sizes and shapes, equal the tensor rounded at once."""
    num_elements = 2 * rounding._BLOCK + 1000
    value = torch.randn(num_elements, generator=torch.Generator().manual_seed(1))
    whole = rounded(value, 11)
    edges = [0, 1, 37, rounding._BLOCK - 1, rounding._BLOCK + 5, 2 * rounding._BLOCK, num_elements]
    parts = [rounded(value[a:b], 11, a) for a, b in pairwise(edges)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(rounded(value.view(8, -1), 11).view(-1), whole)


def test_offsets_beyond_32_bits_have_bits_of_their_own() -> None:
    """The counter does not wrap: an offset of 2^32 or 2^40 elements meets other noise than 0 does."""
    value = torch.full((10_000,), 1 + 2**-8)
    for offset in (2**32, 2**40):
        assert not torch.equal(rounded(value, 0, offset), rounded(value, 0))


def test_threads_do_not_matter() -> None:
    """One thread and two give the same bits."""
    value = torch.randn(300_000, generator=torch.Generator().manual_seed(2))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = rounded(value, 4)
        torch.set_num_threads(2)
        assert torch.equal(rounded(value, 4), one)
    finally:
        torch.set_num_threads(before)


def test_the_bits_are_fixed() -> None:
    """The noise of a key is part of a run's exactness: it follows from the documented hash, recomputed in Python."""

    def noise(key: int, index: int) -> int:
        block_key = derive_seed("rounding", key, index // 2**18)
        bits = (index % 2**18) * 0x9E3779B1 & 0xFFFFFFFF
        bits ^= bits >> 16
        bits ^= block_key & 0xFFFFFFFF
        bits ^= bits >> 16
        bits = (bits * 0x7FEB352D & 0xFFFFFFFF) ^ (block_key >> 32)
        bits ^= bits >> 15
        return (bits * 0x846CA68B & 0xFFFFFFFF) >> 16

    # The pattern 0x3F80 followed by 16 bits f rounds up exactly if f + noise >= 2^16.
    for index in (0, 1, 77, 2**18 - 1, 2**18, 5 * 2**18 + 123):
        at_random = noise(9, index)
        for fraction in (0xFFFF - at_random, 0x10000 - at_random):
            if 0 <= fraction <= 0xFFFF:
                value = torch.tensor([0x3F800000 + fraction], dtype=torch.int32).view(torch.float32)
                assert (rounded(value, 9, index).item() > 1) == (fraction + at_random >= 0x10000)


def test_small_steps_survive_stochastic_rounding_and_not_plain_rounding() -> None:
    """200 steps of 1e-5 move bfloat16 weights, rounded stochastically, as far on average as float32 ones.

    4096 weights of sizes 0.02 to 1, both signs; each steps up always or down always. Rounding moves a weight that was a
    bfloat16 by a whole spacing s <= 2^-7 with probability 1e-5 / s: a variance of at most s * 1e-5. Given the past,
    each rounding is unbiased, so variances add up: the mean displacement of n weights after 200 steps has a standard
    deviation of at most sqrt(200 * 1e-5 * 2^-7 / n) = 6.2e-5, five of which are 0.15 of the 2e-3 due. (float32 itself
    rounds each step by at most 2^-25, 0.3 %.) Plain rounding drops steps below half a spacing, which is at least 6e-5
    for weights of 0.02 and more: nothing moves at all.
    """
    generator = torch.Generator().manual_seed(3)
    num_weights, num_steps, size = 4096, 200, 1e-5
    signs = torch.randint(0, 2, (num_weights,), generator=generator).mul_(2).sub_(1).float()
    magnitude = 0.02 + 0.98 * torch.rand(num_weights, generator=generator)
    start = (magnitude * signs[torch.randperm(num_weights, generator=generator)]).bfloat16()
    stochastic, plain, full = start.clone(), start.clone(), start.float()
    for step in range(num_steps):
        update = signs * size
        round_stochastically_(stochastic, stochastic.float() + update, derive_seed("run", step))
        plain.copy_(plain.float() + update)
        full += update
    due = ((full - start.float()) * signs).double().mean().item()
    assert due == pytest.approx(num_steps * size, rel=2**-25 / size)
    bound = 5 * math.sqrt(num_steps * size * 2**-7 / num_weights)
    assert bound < 0.2 * due
    assert abs(((stochastic.float() - start.float()) * signs).double().mean().item() - due) < bound
    assert torch.equal(plain, start)


@pytest.mark.parametrize(
    ("target", "value", "offset", "message"),
    [
        (torch.empty(2), torch.empty(2), 0, "expected bfloat16"),
        (torch.empty(2, dtype=torch.bfloat16), torch.empty(2).bfloat16(), 0, "expected bfloat16"),
        (torch.empty(2, dtype=torch.bfloat16), torch.empty(3), 0, "differ in shape"),
        (torch.empty(2, 3, dtype=torch.bfloat16).T, torch.empty(3, 2), 0, "contiguous"),
        (torch.empty(2, dtype=torch.bfloat16), torch.empty(2), -1, "negative"),
    ],
)
def test_misuse_is_refused(target: Tensor, value: Tensor, offset: int, message: str) -> None:
    """Other types, shapes, layouts and offsets are errors and not silent casts."""
    with pytest.raises(ValueError, match=message):
        round_stochastically_(target, value, 0, offset)

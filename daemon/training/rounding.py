"""Stochastic rounding of float32 to bfloat16, so that steps smaller than a bfloat16's spacing survive on average.

The randomness is counter-based: the bits of element `i` follow from `(key, offset + i)` alone, through integer
arithmetic that every device does alike. No generator has a state to save, and a shard of a tensor gets the bits that
it would get inside the whole.

Shapes: `N` elements of the tensor in memory order, `C` elements of one block.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from daemon.domain.hashing import derive_seed

_BLOCK = 2**18
"""Counters that share two key words; part of what a key means. Temporaries are 13 bytes for each."""

_LARGEST_FLOAT32 = 0x7F7FFFFF
_MAGNITUDE = 0x7FFFFFFF


@torch.no_grad()
def round_stochastically_(target_bf16: Tensor, value_fp32: Tensor, key: int, offset: int = 0) -> None:
    """Write `value_fp32` into `target_bf16`, each element up or down with probability in proportion to its distance.

    The expectation of what is written is the value. Values that bfloat16 holds exactly do not change; zeros keep their
    sign, infinities and NaN stay what they are; finite values beyond bfloat16's largest become that largest, never
    infinite (the one place where rounding is not unbiased).

    Args:
        target_bf16: bfloat16, contiguous, written in place.
        value_fp32: float32 of the same shape and device; not changed.
        key: of this rounding, e.g. `derive_seed(run_seed, step, name)`; the same key gives the same bits.
        offset: index of the first element in the tensor of which this is a shard, in elements.

    Raises:
        ValueError: wrong type, shape or memory layout, or a negative offset.
    """
    _check(target_bf16, value_fp32, offset)
    target_N, value_N = target_bf16.view(-1), value_fp32.contiguous().view(-1)
    scrambled_C = _scrambled_counters(value_N.device)
    noise_C, scratch_C = torch.empty_like(scrambled_C), torch.empty_like(scrambled_C)
    start = 0
    while start < value_N.numel():
        # Blocks are aligned to the counter and not to this tensor: a shard then meets the same block keys.
        block, first = divmod(offset + start, _BLOCK)
        size = min(_BLOCK - first, value_N.numel() - start)
        noise, scratch = noise_C[:size], scratch_C[:size]
        _fill_random_bits_(noise, scratch, scrambled_C[first : first + size], derive_seed("rounding", key, block))
        _round_block_(target_N[start : start + size], value_N[start : start + size], noise, scratch)
        start += size


def _check(target_bf16: Tensor, value_fp32: Tensor, offset: int) -> None:
    if target_bf16.dtype != torch.bfloat16 or value_fp32.dtype != torch.float32:
        raise ValueError(f"expected bfloat16 from float32, got {target_bf16.dtype} from {value_fp32.dtype}")
    if target_bf16.shape != value_fp32.shape:
        raise ValueError(f"target {tuple(target_bf16.shape)} and value {tuple(value_fp32.shape)} differ in shape")
    if not target_bf16.is_contiguous():
        raise ValueError("the target must be contiguous: its elements are counted in memory order")
    if offset < 0:
        raise ValueError(f"offset {offset} is negative")


@lru_cache(maxsize=8)
def _scrambled_counters(device: torch.device) -> Tensor:
    """The key-free first stage of the hash for the counters 0 .. C-1, int32: computed once for all blocks."""
    counters_C = torch.arange(_BLOCK, dtype=torch.int32, device=device).mul_(_signed(0x9E3779B1))
    _xor_shifted_(counters_C, 16, torch.empty_like(counters_C))
    return counters_C


def _fill_random_bits_(noise_C: Tensor, scratch_C: Tensor, scrambled_C: Tensor, block_key: int) -> None:
    """Hash counters with a block's key to uniform integers 0 .. 65535 in `noise_C`, int32.

    A multiply-xorshift mixer, with one half of the key before and the other half between its two multiplications, so
    that blocks whose first halves nearly agree still part. Integer products wrap modulo 2^32 on every device.

    Source: the constants are those of Wellons, "Prospecting for hash functions", 2018 (lowbias32).
    """
    torch.bitwise_xor(scrambled_C, _signed(block_key), out=noise_C)
    _xor_shifted_(noise_C, 16, scratch_C)
    noise_C.mul_(_signed(0x7FEB352D)).bitwise_xor_(_signed(block_key >> 32))
    _xor_shifted_(noise_C, 15, scratch_C)
    noise_C.mul_(_signed(0x846CA68B))
    # A product's upper half depends on every bit below it; the lower half does not.
    noise_C.bitwise_right_shift_(16).bitwise_and_(0xFFFF)


def _round_block_(target_C: Tensor, value_C: Tensor, noise_C: Tensor, scratch_C: Tensor) -> None:
    """Add the noise to the 16 bits that bfloat16 drops, then drop them: a carry is a step away from zero."""
    bits_C = value_C.view(torch.int32)
    # Above bfloat16's largest value there is room for less noise, and none for infinities and NaN.
    torch.bitwise_and(bits_C, _MAGNITUDE, out=scratch_C)
    room_C = scratch_C.neg_().add_(_LARGEST_FLOAT32).clamp_(min=0)
    torch.minimum(noise_C, room_C, out=noise_C)
    noise_C.add_(bits_C).bitwise_and_(_signed(0xFFFF0000))
    target_C.copy_(noise_C.view(torch.float32))
    # Dropping bits could turn a NaN into an infinity.
    target_C.masked_fill_(value_C.isnan(), torch.nan)


def _xor_shifted_(bits_C: Tensor, shift: int, scratch_C: Tensor) -> None:
    """bits ^= bits >> shift, shifting in zeros; torch shifts int32 in copies of the sign, which the mask removes."""
    torch.bitwise_right_shift(bits_C, shift, out=scratch_C)
    bits_C.bitwise_xor_(scratch_C.bitwise_and_((1 << (32 - shift)) - 1))


def _signed(word: int) -> int:
    """The low 32 bits of `word` as the int32 of the same bits."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word

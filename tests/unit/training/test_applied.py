"""Writing updates: what bfloat16 sees of them, word by word."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_policies import from_words, words
from torch import Tensor

from daemon.ports import Changes
from daemon.training.applied import PIECE, UpdateWriter

INF = math.inf
NAN = math.nan


def written(parameter: Tensor, update: Tensor) -> tuple[Changes, UpdateWriter]:
    """What a writer keeps of one update, applied to `parameter` in place."""
    writer = UpdateWriter(seed=0)
    writer.start("step")
    writer("weight", parameter, update)
    return writer.take_changes()["weight"], writer


def listed(changes: Changes) -> tuple[list[int], list[int]]:
    assert (changes.positions.dtype, changes.words.dtype) == (torch.int64, torch.int16)
    return changes.positions.tolist(), [word & 0xFFFF for word in changes.words.tolist()]


def test_changes_are_what_rounding_sees() -> None:
    """By hand: 1 + 2^-8 is half-way and rounds to even, a little more rounds up; what stays below is no change."""
    parameter = torch.tensor([1.0, 1.0, 1.0, -2.0, 0.5])
    update = torch.tensor([2**-8, 2**-8 + 2**-20, 2**-10, -1.0, 0.0])
    changes, writer = written(parameter, update)
    assert listed(changes) == ([1, 3], [0x3F81, 0xC040])
    assert writer.result().bf16_changed == 2 / 5


def test_words_are_compared_and_not_values() -> None:
    """A zero that loses its sign is a change though it equals what it was; a NaN that stays is none though it differs
    from itself; so it is with infinities."""
    parameter = torch.tensor([-0.0, 0.0, NAN, INF, -INF, 1.0])
    update = torch.tensor([0.0, -0.0, 1.0, 1.0, 1.0, NAN])
    changes, _ = written(parameter, update)
    positions, new = listed(changes)
    assert positions == [0, 5]
    assert new[0] == 0x0000
    assert from_words(changes.words[1:].numpy()).isnan().all()


def test_bfloat16_weights_are_compared_as_they_are() -> None:
    """-0 + 0 is +0 in the words of bfloat16 weights, too; a NaN keeps its own word, and is no change."""
    parameter = from_words(np.array([-32768, 0x7FC0, 0x3F80, 0x3F80], dtype=np.int16))
    changes, _ = written(parameter, torch.tensor([0.0, 1.0, 1.0, 0.0]))
    assert listed(changes) == ([0, 2], [0x0000, 0x4000])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 3])
def test_positions_are_those_in_the_whole_parameter(dtype: torch.dtype, length: int) -> None:
    """A change at each end of every piece is found where it is, ascending, in matrices as in vectors."""
    expected = sorted({0, PIECE - 1, PIECE, 2 * PIECE - 1, 2 * PIECE, length - 1} & set(range(length)))
    update = torch.zeros(length)
    update[expected] = 1.0
    changes, _ = written(torch.ones(length, 1, dtype=dtype), update.view(length, 1))
    assert listed(changes) == (expected, [0x4000] * len(expected))


def test_each_step_starts_anew() -> None:
    """Parameters are told apart, what was taken is not given again, and an untaken step leaves nothing to the next."""
    writer = UpdateWriter(seed=0)
    first, second, empty = torch.ones(2), torch.ones(3), torch.empty(0)
    writer.start("a")
    writer("first", first, torch.ones(2))
    writer.start("b")
    writer("second", second, torch.tensor([0.0, 1.0, 0.0]))
    writer("empty", empty, torch.empty(0))
    found = writer.take_changes()
    assert {name: listed(changes) for name, changes in found.items()} == {"second": ([1], [0x4000]), "empty": ([], [])}
    assert writer.take_changes() == {}
    assert writer.result().bf16_changed == 1 / 3


@given(st.data(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_changes_overwrite_the_old_image_into_the_new(data: Any, dtype: torch.dtype) -> None:
    """Over finite floats of every size: the old words, overwritten at the positions, are the new words, and no
    position is idle."""
    floats = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=5, max_size=5)
    parameter = torch.tensor(data.draw(floats)).to(dtype)
    image = words(parameter)
    changes, _ = written(parameter, torch.tensor(data.draw(floats)))
    assert (image[changes.positions.numpy()] != changes.words.numpy()).all()
    image[changes.positions.numpy()] = changes.words.numpy()
    np.testing.assert_array_equal(image, words(parameter))

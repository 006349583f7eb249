"""Differences between two images, added up by layer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from daemon.checkpoints.layers import Difference, differences, layer_of
from daemon.domain.errors import CheckpointError

UP, DOWN, NORM = "model.layers.3.mlp.up.weight", "model.layers.3.mlp.down.weight", "model.norm.weight"


def image(**changes: list[float]) -> dict[str, Tensor]:
    """up = (3, 0), down = (4, 0, 0, 0), norm = (2), in bfloat16."""
    values = {"up": [3.0, 0.0], "down": [4.0, 0.0, 0.0, 0.0], "norm": [2.0]} | changes
    return {
        name: torch.tensor(values[key], dtype=torch.bfloat16)
        for name, key in ((UP, "up"), (DOWN, "down"), (NORM, "norm"))
    }


def test_a_layer_is_as_different_as_all_its_weights_in_one_vector() -> None:
    """Norm before: 5 of (3, 0, 4, 0, 0, 0). Changed by 1.5 and 2, which is 2.5: relative 0.5, mean 3.5 / 6."""
    found = differences(image(), image(up=[3.0, 1.5], down=[4.0, 0.0, -2.0, 0.0]), layers=True)
    assert found == [
        Difference("layers.3", 6, 2, 2 / 6, 3.5 / 6, 0.5),
        Difference("model.norm", 1, 0, 0.0, 0.0, 0.0),
    ]


def test_parameters_come_with_the_most_changed_first() -> None:
    """up changed by half of itself, down by a quarter, norm not at all."""
    found = differences(image(), image(up=[3.0, 1.5], down=[5.0, 0.0, 0.0, 0.0]), layers=False)
    assert [(part.name, part.relative_norm) for part in found] == [(UP, 0.5), (DOWN, 0.25), (NORM, 0.0)]


def test_growing_out_of_nothing_has_no_relative_norm_and_comes_first() -> None:
    """A parameter of zeros that changes cannot be compared with what it was; what is not a number is not hidden."""
    found = differences(image(down=[0.0] * 4), image(down=[1.0, 0.0, 0.0, 0.0]), layers=False)
    assert (found[0].name, found[0].relative_norm) == (DOWN, None)
    broken = differences(image(), image(norm=[math.nan]), layers=True)
    assert broken[0].name == "model.norm"
    assert broken[0].relative_norm is not None and math.isnan(broken[0].relative_norm)


def test_another_sign_of_zero_is_a_change_of_no_size() -> None:
    """Its word differs, its value does not."""
    found = differences(image(), image(up=[3.0, -0.0]), layers=True)[0]
    assert (found.num_changed, found.mean_abs_difference, found.relative_norm) == (1, 0.0, 0.0)


def test_images_of_two_models_are_refused() -> None:
    """A parameter that only one of them has is named."""
    other = {name: tensor for name, tensor in image().items() if name != NORM}
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        differences(image(), other, layers=True)


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        (UP, "layers.3"),
        ("transformer.h.11.attn.c_attn.bias", "h.11"),
        ("model.language_model.layers.0.linear_attn.dt_bias", "layers.0"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_a_parameter_belongs_to_its_numbered_layer_or_to_itself(parameter: str, layer: str) -> None:
    """By the names that Hugging Face models give."""
    assert layer_of(parameter) == layer

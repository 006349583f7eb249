"""A checkpoint's image: every parameter (tied ones once) rounded to bfloat16, nearest, ties to even.

A keyframe is a safetensors file of an image. Shapes: `N` elements of one parameter in memory order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from blake3 import blake3
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from daemon.domain.errors import CheckpointError, DiskError
from daemon.ports import Changes

Image = dict[str, Tensor]
"""Parameter name -> bfloat16, contiguous, on the CPU."""
_ROUNDED_AT_ONCE = 2**15
"""Elements; so few that torch rounds them without helpers, which would fight those of the probes for the cores."""


@dataclass(frozen=True, slots=True)
class LayerDiff:
    """How much one parameter differs between two images."""

    name: str
    num_elements: int
    num_changed: int
    """Elements whose words differ; from 0.0 to -0.0 is a change, too."""
    mean_abs_difference: float
    """Over all its elements, changed or not; not finite when one of the changed is not."""
    relative_norm: float
    """Euclidean norm of the difference over that of `before`; infinite for a change of nothing but zeros."""

    @property
    def fraction_changed(self) -> float:
        """0 to 1; 0 for a parameter without elements."""
        return self.num_changed / self.num_elements if self.num_elements else 0.0


def image_of(weights: Mapping[str, Tensor]) -> Image:
    """The image of weights of any floating type, on any device; shares no memory with them."""
    return {name: _owned(tensor) for name, tensor in weights.items()}


def image_digest(weights: Mapping[str, Tensor]) -> str:
    """BLAKE3 (hex) of the image of `weights`, or of an image: equal digests, equal names, shapes and bits.

    Hashed are, for each parameter in the order of its name's code points: the line `["NAME",[DIMENSION,...]]` in
    JSON without spaces, everything beyond ASCII escaped, ended by a newline; then its words, row by row, each
    little-endian.
    """
    hasher = blake3()
    for name in sorted(weights):
        tensor = weights[name].detach()
        hasher.update(json.dumps([name, list(tensor.shape)], separators=(",", ":")).encode() + b"\n")
        # Elsewhere than on the CPU each piece would be a wait for the device.
        at_once = _ROUNDED_AT_ONCE if tensor.device.type == "cpu" else max(1, tensor.numel())
        for piece in torch.split(tensor.reshape(-1), at_once):
            if len(piece):  # an empty tensor may have a stride that torch does not view as bytes
                hasher.update(words_of(_rounded(piece)).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def write_keyframe(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the image of `weights` into one safetensors file; the same image gives the same bytes.

    Raises:
        OSError, SafetensorError: it could not be written.
    """
    save_file(image_of(weights), path, {"format": "pt"})


def read_keyframe(path: Path) -> Image:
    """The image in a keyframe; whether its bits are those once written, the manifest's hash tells, not this.

    Raises:
        CheckpointError: missing, not a safetensors file, or not an image.
        DiskError: it could not be read.
    """
    try:
        image: Image = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; restore the checkpoint from a mirror or backup") from None
    except OSError as error:
        raise DiskError(f"{path}: could not be read ({error}); check the disk") from error
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: not a keyframe ({error}); restore it from a mirror or backup") from None
    for name, tensor in image.items():
        if tensor.dtype != torch.bfloat16:
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}; a keyframe holds bfloat16 only")
    return image


def words_of(image_tensor: Tensor) -> Tensor:
    """int16[N]: the words of one parameter's image; a view of the same memory."""
    return image_tensor.view(-1).view(torch.int16)


def changes_between(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Changes]:
    """What turns the image `before` into the image of the weights `after`.

    Raises:
        CheckpointError: they are not of the same model.
    """
    _refuse_other_model(before, after)
    found = {}
    for name, tensor in after.items():
        words = words_of(_rounded(tensor))
        # Words, not numbers, are compared: as numbers 0.0 equals -0.0, and no NaN equals itself.
        positions = (words != words_of(before[name])).nonzero().view(-1)
        found[name] = Changes(positions, words[positions])
    return found


def compare(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[LayerDiff]:
    """How much each parameter differs between two images, in the order of `before`.

    Raises:
        CheckpointError: they are not of the same model.
    """
    _refuse_other_model(before, after)
    return [_layer_diff(name, tensor, after[name]) for name, tensor in before.items()]


def _layer_diff(name: str, before: Tensor, after: Tensor) -> LayerDiff:
    changed = words_of(before) != words_of(after)
    num_changed = int(changed.sum())
    if not num_changed:
        return LayerDiff(name, before.numel(), 0, 0.0, 0.0)
    difference = after.view(-1)[changed].double() - before.view(-1)[changed].double()
    moved, norm = float(difference.norm()), float(torch.linalg.vector_norm(before, dtype=torch.float64))
    relative = moved / norm if norm else math.inf if moved else 0.0
    return LayerDiff(name, before.numel(), num_changed, float(difference.abs().sum()) / before.numel(), relative)


def _rounded(tensor: Tensor) -> Tensor:
    """Rounded where it lives, so that half of it travels; may be the tensor itself."""
    return tensor.detach().bfloat16().cpu().contiguous()


def _owned(tensor: Tensor) -> Tensor:
    """Rounded, and never the live weights' own memory: deltas are applied to an image in place."""
    rounded = _rounded(tensor)
    return rounded.clone() if rounded.data_ptr() == tensor.data_ptr() else rounded


def _refuse_other_model(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    shapes = [{(name, tuple(tensor.shape)) for name, tensor in weights.items()} for weights in (before, after)]
    for name, shape in sorted(shapes[0] ^ shapes[1]):
        raise CheckpointError(f"{name} of shape {shape} is in one of the two only; they are not of the same model")

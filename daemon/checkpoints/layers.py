"""What changed between two images, by parameter or by layer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from daemon.checkpoints.image import LayerDiff, compare

_NUMBERED = re.compile(r"(?:^|\.)(?P<kind>[a-z_]+)\.(?P<number>\d+)\.")
"""`model.layers.3.mlp.up_proj.weight`, `transformer.h.3.attn.weight`."""
_LEAVES = (".weight", ".bias")


@dataclass(frozen=True, slots=True)
class Difference:
    """How much the weights of a parameter, or of a layer, differ."""

    name: str
    num_elements: int
    num_changed: int
    fraction_changed: float
    """0 to 1."""
    mean_abs_difference: float
    """Over all its weights, changed or not."""
    relative_norm: float | None
    """Euclidean norm of the difference over that of the weights before; None when these are all zero."""


def differences(before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, layers: bool) -> list[Difference]:
    """How much two images differ, the largest relative difference first.

    Args:
        layers: one entry per layer instead of one per parameter.

    Raises:
        CheckpointError: they are not of the same model.
    """
    groups: dict[str, list[LayerDiff]] = {}
    for diff in compare(before, after):
        groups.setdefault(layer_of(diff.name) if layers else diff.name, []).append(diff)
    found = [_together(name, members, before, after) for name, members in groups.items()]
    return sorted(found, key=lambda part: (-_order(part.relative_norm), part.name))


def layer_of(parameter: str) -> str:
    """`layers.3` of `model.layers.3.mlp.up_proj.weight`; without a number its name, as `model.norm`."""
    found = _NUMBERED.search(parameter)
    if found:
        return f"{found['kind']}.{found['number']}"
    for leaf in _LEAVES:
        parameter = parameter.removesuffix(leaf)
    return parameter


def _together(
    name: str, members: list[LayerDiff], before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> Difference:
    num_elements, num_changed = (sum(getattr(m, field) for m in members) for field in ("num_elements", "num_changed"))
    total = sum(member.mean_abs_difference * member.num_elements for member in members)
    moved = math.hypot(*(_norm(after[m.name].double() - before[m.name].double()) for m in members if m.num_changed))
    length = math.hypot(*(_norm(before[member.name]) for member in members))
    return Difference(
        name=name,
        num_elements=num_elements,
        num_changed=num_changed,
        fraction_changed=num_changed / max(1, num_elements),
        mean_abs_difference=total / max(1, num_elements),
        relative_norm=moved / length if length else None if moved else 0.0,
    )


def _norm(tensor: Tensor) -> float:
    return float(tensor.double().norm())


def _order(relative_norm: float | None) -> float:
    """What is not a number, or grew out of nothing, comes first."""
    return math.inf if relative_norm is None or math.isnan(relative_norm) else relative_norm

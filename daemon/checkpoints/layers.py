"""Differences between two images, added up by layer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from daemon.checkpoints.image import LayerDiff

_NUMBERED = re.compile(r"(?:^|\.)(?P<kind>[a-z_]+)\.(?P<number>\d+)\.")
"""`model.layers.3.mlp.up_proj.weight`, `transformer.h.3.attn.weight`."""
_LEAVES = (".weight", ".bias")


def by_layer(parameters: Iterable[LayerDiff], norms: Mapping[str, float]) -> list[LayerDiff]:
    """One entry per layer, from one per parameter, in the order in which layers come first.

    Args:
        norms: Euclidean norm of each parameter before the change: relative norms add up by it.
    """
    groups: dict[str, list[LayerDiff]] = {}
    for parameter in parameters:
        groups.setdefault(layer_of(parameter.name), []).append(parameter)
    return [_together(name, members, norms) for name, members in groups.items()]


def layer_of(parameter: str) -> str:
    """`layers.3` of `model.layers.3.mlp.up_proj.weight`; without a number its name, as `model.norm`."""
    found = _NUMBERED.search(parameter)
    if found:
        return f"{found['kind']}.{found['number']}"
    for leaf in _LEAVES:
        parameter = parameter.removesuffix(leaf)
    return parameter


def _together(name: str, members: list[LayerDiff], norms: Mapping[str, float]) -> LayerDiff:
    num_elements = sum(member.num_elements for member in members)
    total = sum(member.mean_abs_difference * member.num_elements for member in members)
    return LayerDiff(
        name=name,
        num_elements=num_elements,
        num_changed=sum(member.num_changed for member in members),
        mean_abs_difference=total / num_elements if num_elements else 0.0,
        relative_norm=_relative(members, norms),
    )


def _relative(members: list[LayerDiff], norms: Mapping[str, float]) -> float:
    """Norm of the members' differences together over that of their values; what is not finite stays so."""
    changed = [member for member in members if member.num_changed]
    if not all(math.isfinite(member.relative_norm) for member in changed):
        return max((member.relative_norm for member in changed), key=lambda value: (math.isnan(value), value))
    difference = math.hypot(*(member.relative_norm * norms[member.name] for member in changed))
    before = math.hypot(*(norms[member.name] for member in members))
    return difference / before if before else 0.0

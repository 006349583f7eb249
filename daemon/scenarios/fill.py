"""Slots: drawing their values and filling texts and rules with them."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

from daemon.scenarios.draw import pick
from daemon.scenarios.schema import CalcSlot, ChooseSlot, IntSlot, ReplaceSlot

PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)(?:\.([a-z][a-z0-9_]*))?(?:\|(\w+))?\}")
"""`{slot}`, `{slot.field}`, `{slot|filter}`; other braces are text."""

FILTERS: Mapping[str, Callable[[str], str]] = {
    "upper": str.upper,
    "lower": str.lower,
    "capital": lambda text: text[:1].upper() + text[1:],
}
_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def draw_slots(
    slots: Mapping[str, Any], lists: Mapping[str, list[Any]], rng: Random, fixed: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A value for each slot, in order; later ones may use earlier ones. Those in `fixed` are taken as given."""
    values: dict[str, Any] = {}
    for name, slot in slots.items():
        values[name] = fixed[name] if fixed and name in fixed else _draw(slot, values, lists, rng)
    return values


def options(slot: Any, values: Mapping[str, Any], lists: Mapping[str, list[Any]]) -> Sequence[Any]:
    """Everything that a slot can be, given the values of those before it."""
    match slot:
        case IntSlot():
            return range(slot.int_[0], slot.int_[1] + 1)
        case CalcSlot():
            return [calculate(slot.calc, values)]
        case ReplaceSlot():
            part = slot.replace
            text, find, new = (str(fill(value, values)) for value in (part.in_, part.find, part.with_))
            return [re.sub(rf"(?<!\w){re.escape(find)}(?!\w)", lambda _: new, text)]
        case ChooseSlot():
            name, _, field = slot.choose.partition(".")
            taken = [values[other] for other in slot.unlike]
            return [option for option in (values[name][field] if field else lists[name]) if option not in taken]
        case _:
            return list(slot)


def _draw(slot: Any, values: Mapping[str, Any], lists: Mapping[str, list[Any]], rng: Random) -> Any:
    found = options(slot, values, lists)
    # What follows from other slots takes no random number: adding such a slot must not change what is drawn.
    return found[0] if isinstance(slot, CalcSlot | ReplaceSlot) else pick(rng, found)


def calculate(formula: str, values: Mapping[str, Any]) -> int:
    """The value of a `calc` formula.

    Raises:
        ValueError: it is not whole-number arithmetic over known slots.
    """

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int() as number) if not isinstance(number, bool):
                return number
            case ast.Name(id=name) if isinstance(values.get(name), int):
                return int(values[name])
            case ast.Attribute(value=ast.Name(id=name), attr=field) if isinstance(values.get(name), dict):
                found = values[name].get(field)
                if isinstance(found, int):
                    return found
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
        raise ValueError(f"calc {formula!r} may hold whole numbers, earlier number slots and + - * // % only")

    try:
        return value(ast.parse(formula, mode="eval").body)
    except (SyntaxError, ZeroDivisionError, RecursionError):
        raise ValueError(f"calc {formula!r} is not arithmetic that can be worked out") from None


def fill(text: str, values: Mapping[str, Any], *, escape: bool = False) -> Any:
    """`text` with its slots filled; a text that is one slot and nothing else takes the value's own type.

    `escape` makes values literal inside a regular expression.
    """
    whole = PLACEHOLDER.fullmatch(text)
    if whole and not escape:
        return _lookup(whole, values)

    def replacement(match: re.Match[str]) -> str:
        found = _lookup(match, values)
        joined = ", ".join(map(str, found)) if isinstance(found, list) else str(found)
        return re.escape(joined) if escape else joined

    return PLACEHOLDER.sub(replacement, text)


def _lookup(match: re.Match[str], values: Mapping[str, Any]) -> Any:
    name, field, chosen = match.groups()
    found = values[name][field] if field else values[name]
    return FILTERS[chosen](str(found)) if chosen else found


def fill_rule(rule: list[dict[str, Any]], values: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """A rule with its slots filled; a list slot among `values` is spliced in."""
    return tuple({key: _fill_parameter(key, value, values) for key, value in check.items()} for check in rule)


def _fill_parameter(key: str, value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        return fill(value, values, escape=key == "pattern")
    if isinstance(value, Mapping):
        return {name: _fill_parameter(name, part, values) for name, part in value.items()}
    if not isinstance(value, list):
        return value
    filled: list[Any] = []
    for item in value:
        part = _fill_parameter("", item, values)
        filled += part if isinstance(item, str) and isinstance(part, list) else [part]
    # Only phrases become text: a schema's numbers stay numbers.
    return [str(part) if isinstance(part, int) else part for part in filled] if key == "values" else filled


def placeholders(value: Any) -> Iterator[tuple[str, str | None, str | None]]:
    """(slot, field, filter) of every placeholder in a text or a nested value."""
    if isinstance(value, str):
        for match in PLACEHOLDER.finditer(value):
            yield match.group(1), match.group(2), match.group(3)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from placeholders(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from placeholders(part)

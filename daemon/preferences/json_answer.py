"""An answer that has to be JSON of a given form."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, NoReturn

from daemon.preferences import text as cut
from daemon.preferences.patterns import Patterns, PatternTimeoutError

TIME_LIMIT_S = 2.0
"""For one answer under its schema: references can multiply the work without end."""


class UndecidedError(Exception):
    """A schema could not be worked through, so that nobody knows whether the answer is valid."""


def json_problem(schema: dict[str, Any], text: str, patterns: Patterns) -> str | None:
    """Why the whole of `text`, a code fence around it aside, is not JSON under `schema`; None when it is.

    Raises:
        PatternTimeoutError: a pattern of the schema took too long.
        UndecidedError: the schema took too long, or breaks on this answer.
    """
    try:
        value = json.loads(cut.unfenced(text), parse_constant=_not_json, parse_float=_finite, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    try:
        return _violation(schema, value, patterns)
    except (PatternTimeoutError, UndecidedError):
        raise
    except RecursionError:
        raise UndecidedError("the schema refers to itself without end") from None
    except Exception as error:  # noqa: BLE001 - another library's, on a schema and an answer that nobody has seen
        raise UndecidedError(f"the schema breaks on this answer: {type(error).__name__}") from None


def _violation(schema: dict[str, Any], value: Any, patterns: Patterns) -> str | None:
    import referencing
    from jsonschema import Draft202012Validator, ValidationError, validators

    def pattern(_: Any, wanted: str, instance: Any, __: Any) -> Iterator[ValidationError]:
        if isinstance(instance, str) and patterns.search(wanted, instance) is None:
            yield ValidationError(f"{instance[:60]!r} does not match /{wanted}/")

    def unique(_: Any, wanted: bool, instance: Any, __: Any) -> Iterator[ValidationError]:
        if wanted and isinstance(instance, list) and len(set(map(_comparable, instance))) < len(instance):
            yield ValidationError(f"{str(instance)[:60]} has non-unique elements")

    deadline = monotonic() + TIME_LIMIT_S
    own = {**Draft202012Validator.VALIDATORS, "pattern": pattern, "uniqueItems": unique}
    keywords = {name: _timed(keyword, deadline) for name, keyword in own.items()}
    timed = validators.extend(Draft202012Validator, keywords)
    # An empty registry: the default one would fetch an unknown reference from the network.
    problem = next(timed(schema, registry=referencing.Registry()).iter_errors(value), None)
    return None if problem is None else f"at {problem.json_path}: {problem.message[:200]}"


def _timed(keyword: Callable[..., Any], deadline: float) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:
        if monotonic() > deadline:
            raise UndecidedError("the schema took longer than the time limit")
        return keyword(*arguments)

    return timed


def _comparable(value: Any) -> Any:
    """Equal for two values that JSON schema takes for equal: 1 is 1.0, and is not true."""
    if isinstance(value, list):
        return "list", tuple(map(_comparable, value))
    if isinstance(value, dict):
        return "object", frozenset((key, _comparable(part)) for key, part in value.items())
    return isinstance(value, bool), value


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value


def _whole(digits: str) -> int:
    """Within the range of a float, in which schemas reckon."""
    _finite(digits)
    return int(digits)

"""An answer that has to be JSON of a given form."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

from daemon.preferences import text as cut
from daemon.preferences.patterns import Patterns


def json_problem(schema: dict[str, Any], text: str, patterns: Patterns) -> str | None:
    """Why the whole of `text`, a code fence around it aside, is not JSON under `schema`; None when it is.

    Raises:
        PatternTimeoutError: a pattern of the schema took too long.
        RecursionError: the schema refers to itself without end.
    """
    import referencing
    from jsonschema import Draft202012Validator, ValidationError, validators

    try:
        value = json.loads(cut.unfenced(text), parse_constant=_not_json, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"

    def pattern(_: Any, wanted: str, instance: Any, __: Any) -> Iterator[ValidationError]:
        if isinstance(instance, str) and patterns.search(wanted, instance) is None:
            yield ValidationError(f"{instance[:60]!r} does not match /{wanted}/")

    timed = validators.extend(Draft202012Validator, {"pattern": pattern})
    # An empty registry: the default one would fetch an unknown reference from the network.
    problem = next(timed(schema, registry=referencing.Registry()).iter_errors(value), None)
    return None if problem is None else f"at {problem.json_path}: {problem.message[:200]}"


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value

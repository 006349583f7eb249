"""What the text of a check has to be before an answer meets it: patterns, JSON schemas and tests that can work."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import regex

_LARGEST = 10**15
"""A float still tells whole numbers of this size apart; a larger one would equal its neighbours."""
_DRAFT = "https://json-schema.org/draft/2020-12/schema"

LONGEST_PATTERN = 2000
_MOST_REPEATS = 10**5
_TOKEN = re.compile(
    r"\\.|\(\?#[^)]*\)|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]"  # an escape, a comment, a set of characters
    r"|(?P<call>\(\?(?:R\)|[+-]?\d+\)|&|P[>&]))|(?P<flags>\(\?[A-Za-z0-9]*(?:x|V1)[A-Za-z0-9]*[-:)])"
    r"|(?P<repeat>\{\d*,?\d*\})|.",
    re.DOTALL,
)
_ONE = (
    *("additionalProperties", "contains", "contentSchema", "else", "if", "items", "not", "propertyNames", "then"),
    *("unevaluatedItems", "unevaluatedProperties"),
)
_NAMED = ("$defs", "definitions", "dependentSchemas", "properties")
_LISTED = ("allOf", "anyOf", "oneOf", "prefixItems")
"""Where a schema holds schemas (draft 2020-12): one, by name, in a list."""
_UNSUPPORTED = ("$schema", "$id", "$anchor", "$dynamicAnchor", "patternProperties")


def bounded_number(value: Any) -> int | float:
    """`value` as a number; a filled slot may have left it as text.

    Raises:
        ValueError: it is no number, or beyond 10^15 either way.
    """
    found = value
    if isinstance(value, str):
        try:
            found = int(value)
        except ValueError:
            found = _float(value)
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise ValueError(f"wanted a number, found {value!r}")
    if not -_LARGEST <= found <= _LARGEST:
        raise ValueError("wanted a number between -10^15 and 10^15")
    return found


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def compiled_pattern(pattern: str) -> str:
    """`pattern`, unless the `regex` library cannot compile it or it could take more memory than there is.

    Raises:
        ValueError: it does not compile, is too long, calls itself, or repeats too much within repetitions.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"the regular expression has {len(pattern)} characters, more than {LONGEST_PATTERN}")
    if _num_repeats(pattern) > _MOST_REPEATS:
        raise ValueError(f"the regular expression {pattern[:60]!r} repeats more than {_MOST_REPEATS} times by {{}}")
    try:
        regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError, ValueError, MemoryError) as error:
        raise ValueError(f"the regular expression {pattern[:60]!r} does not compile: {error}") from None
    return pattern


def _num_repeats(pattern: str) -> int:
    """The largest product of `{n}` within each other.

    Raises:
        ValueError: it calls itself, or is written in a form that this reading does not know.
    """
    groups, last = [1], 1  # of each open group the largest product so far; of the part before a repetition
    for token in _TOKEN.finditer(pattern):
        part = token.group()
        if token["call"]:
            raise ValueError(f"the regular expression calls itself by {part}; write it without")
        if token["flags"]:
            raise ValueError(f"the flags {part} are not supported; write the regular expression without x and V1")
        if token["repeat"]:
            last *= max(int(digits or 1) for digits in part[1:-1].split(","))
        elif part == ")" and len(groups) > 1:
            last = groups.pop()
        elif part.startswith("(") and not part.startswith("(?#"):
            groups.append(1)
        elif part not in "?*+":
            last = 1
        groups[-1] = max(groups[-1], last)
    return max(groups)


def sound_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` without its `$schema`, unless no answer can be checked by it without asking anybody else.

    Raises:
        ValueError: it is malformed, refers to another document or to no schema, or has a pattern that does not compile.
    """
    from jsonschema import Draft202012Validator, SchemaError

    if str(schema.get("$schema", _DRAFT)).rstrip("#") != _DRAFT:
        raise ValueError(f"$schema may only be {_DRAFT}")
    schema = {key: value for key, value in schema.items() if key != "$schema"}
    try:
        Draft202012Validator.check_schema(schema)
        parts = dict(_schemas(schema))
    except SchemaError as error:
        raise ValueError(f"not a JSON schema: at {error.json_path}: {error.message}") from None
    except RecursionError:
        raise ValueError("the schema is nested too deep") from None
    for part in filter(lambda part: isinstance(part, Mapping), parts.values()):
        _require_supported(part, parts)
    return schema


def _require_supported(part: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    for key in _UNSUPPORTED:
        if key in part:
            raise ValueError(f"the keyword {key} is not supported within a schema; write it without")
    for key in ("$ref", "$dynamicRef"):
        if key in part:
            _require_target(part[key], parts)
    if "pattern" in part:
        compiled_pattern(part["pattern"])


def _schemas(schema: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every schema within `schema`, by its JSON pointer; a property's name or a constant is none."""
    yield at, schema
    if not isinstance(schema, Mapping):  # true or false
        return
    for keyword, value in schema.items():
        if keyword in _ONE:
            yield from _schemas(value, f"{at}/{keyword}")
        elif keyword in _NAMED and isinstance(value, Mapping):
            for name, part in value.items():
                yield from _schemas(part, f"{at}/{keyword}/{_escaped(name)}")
        elif keyword in _LISTED and isinstance(value, list):
            for index, part in enumerate(value):
                yield from _schemas(part, f"{at}/{keyword}/{index}")


def _require_target(reference: str, parts: Mapping[str, Any]) -> None:
    """The reference is a JSON pointer such as `#/$defs/item` (RFC 6901) to one of `parts`."""
    if reference != "#" and not reference.startswith("#/"):
        raise ValueError(f"$ref {reference!r} leaves the schema; only #/... within it is allowed")
    if unquote(reference[1:]) not in parts:
        raise ValueError(f"$ref {reference!r} leads to no schema")


def _escaped(name: Any) -> str:
    return str(name).replace("~", "~0").replace("/", "~1")


def sound_tests(tests: str) -> str:
    """`tests`, unless it is not Python or asserts nothing.

    Raises:
        ValueError: it does not parse, or holds no `assert`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape is the author's business and no reason to fail
            tree = ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"the tests are not Python: {error}") from None
    if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
        raise ValueError("the tests hold no assert, so they would always pass")
    return tests

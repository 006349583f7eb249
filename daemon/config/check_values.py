"""What the text of a check has to be before an answer meets it: patterns, JSON schemas and tests that can work."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import regex

_LARGEST = 10**15
"""A float still tells whole numbers of this size apart; a larger one would equal its neighbours."""
_DRAFT = "https://json-schema.org/draft/2020-12/schema"


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
    """`pattern`, unless the `regex` library cannot compile it.

    Raises:
        ValueError: it does not compile.
    """
    try:
        regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError, ValueError) as error:
        raise ValueError(f"the regular expression {pattern!r} does not compile: {error}") from None
    return pattern


def sound_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema`, unless it is no JSON schema that an answer can be checked by without asking anybody else.

    Raises:
        ValueError: it is malformed, refers to another document or to nothing, or has a pattern that does not compile.
    """
    from jsonschema import Draft202012Validator, SchemaError

    if schema.get("$schema", _DRAFT).rstrip("#") != _DRAFT:
        raise ValueError(f"$schema may only be {_DRAFT}")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"not a JSON schema: at {error.json_path}: {error.message}") from None
    for key, value in _keywords(schema):
        if key in ("$ref", "$dynamicRef") and isinstance(value, str):
            _resolve(schema, value)
        elif key == "pattern" and isinstance(value, str):
            compiled_pattern(value)
        elif key in ("$id", "$anchor", "$dynamicAnchor", "patternProperties") and not _names_a_property(schema, key):
            raise ValueError(f"the keyword {key} is not supported; write the schema without it")
    return schema


def _keywords(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield str(key), part
            yield from _keywords(part)
    elif isinstance(value, list):
        for part in value:
            yield from _keywords(part)


def _names_a_property(schema: Any, key: str) -> bool:
    return any(name == "properties" and isinstance(part, Mapping) and key in part for name, part in _keywords(schema))


def _resolve(schema: Any, reference: str) -> None:
    """Walk a JSON pointer such as `#/$defs/item` (RFC 6901)."""
    if reference != "#" and not reference.startswith("#/"):
        raise ValueError(f"$ref {reference!r} leaves the schema; only #/... within it is allowed")
    at = schema
    for part in reference[2:].split("/") if reference != "#" else ():
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(at, Mapping) and name in at:
            at = at[name]
        elif isinstance(at, list) and name.isdecimal() and int(name) < len(at):
            at = at[int(name)]
        else:
            raise ValueError(f"$ref {reference!r} leads nowhere")


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

"""What is wrong with a check is told by its parameter, however deep it is, and before an answer meets it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from daemon.config.checks import AnyOfCheck, JsonCheck, NotCheck, NumberCheck, parse_check, parse_rule


@pytest.mark.parametrize(
    ("check", "key", "part"),
    [
        ({"check": "max_words", "value": -1}, "value", "greater than or equal to 0"),
        ({"check": "max_words", "valeu": 1}, "valeu", "not permitted"),
        ({"any_of": [{"check": "lowercase"}, {"check": "max_words"}]}, "value", "required"),
        ({"not": {"any_of": [{"check": "matches", "pattern": "["}]}}, "pattern", "does not compile"),
        ({"any_of": []}, "any_of", "at least one check"),
        ({"check": "number", "value": "many"}, "value", "wanted a number, found 'many'"),
        ({"check": "json_schema", "schema": {"type": 1}}, "schema", "$.type"),
        ({"check": "json_schema", "schema": {"$ref": "other.json"}}, "schema", "leaves the schema"),
        ({"check": "json_schema", "schema": {"patternProperties": {}}}, "schema", "patternProperties"),
        ({"check": "code_tests", "tests": "f()"}, "tests", "no assert"),
        ({"check": "code_tests", "tests": "assert"}, "tests", "not Python"),
        ({"check": "rubric", "question": "?", "threshold": 2}, "threshold", "less than or equal to 1"),
    ],
)
def test_errors_name_the_parameter(check: dict[str, Any], key: str, part: str) -> None:
    """The last part of an error's location is the parameter, and the message says what is wanted."""
    with pytest.raises(ValidationError) as caught:
        parse_check(check)
    found = [(error["loc"][-1], error["msg"]) for error in caught.value.errors()]
    assert any(where == key and part.lower() in message.lower() for where, message in found), found


def test_nesting_has_a_limit() -> None:
    """Three levels are read, a fourth is refused with its reason."""
    three: dict[str, Any] = {"not": {"any_of": [{"not": {"check": "lowercase"}}]}}
    assert isinstance(parse_check(three), NotCheck)
    with pytest.raises(ValidationError, match="nested more than 3 deep"):
        parse_check({"any_of": [three]})


def test_checks_are_read_as_written() -> None:
    """`any_of` and `not` need no `check`; a schema keeps its own keys; a filled slot may be text."""
    inner = {"check": "number", "value": "3.5", "tolerance": 0.5}
    (outer,) = parse_rule([{"any_of": [inner, {"not": {"check": "lowercase"}}]}])
    assert isinstance(outer, AnyOfCheck)
    first = outer.any_of[0]
    assert isinstance(first, NumberCheck)
    assert (first.value, first.tolerance) == (3.5, 0.5)
    schema = {"properties": {"$id": {"type": "string"}, "pattern": {"const": "("}}}
    check = parse_check({"check": "json_schema", "schema": schema})
    assert isinstance(check, JsonCheck)
    assert check.schema_ == schema


def test_a_schema_may_refer_to_its_own_parts() -> None:
    """References within the schema are followed, escapes included (RFC 6901)."""
    schema = {"$defs": {"a/b": {"type": "integer"}}, "items": {"$ref": "#/$defs/a~1b"}, "contains": {"$ref": "#"}}
    parse_check({"check": "json_schema", "schema": schema})
    parse_check({"check": "json_schema", "schema": {"$defs": {"any": True}, "items": {"$ref": "#/$defs/any"}}})


DRAFT = "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        ({"$schema": 5}, "$schema may only be"),
        ({"properties": {"x": {"$schema": DRAFT}}}, "keyword $schema"),
        ({"properties": {"patternProperties": {}}, "patternProperties": {"(a|a)*": {}}}, "keyword patternProperties"),
        ({"properties": {"$id": {}, "a": {"$id": "http://127.0.0.1/x"}}}, "keyword $id"),
        ({"$ref": "#/const", "const": {"multipleOf": 0}}, "leads to no schema"),
        ({"$ref": "#/enum/0", "enum": [{"patternProperties": {"(a|a)*": {}}}]}, "leads to no schema"),
        ({"$ref": "#/x", "x": 5}, "leads to no schema"),
        ({"$ref": "#/properties/a/b", "properties": {"a/b": {}}}, "leads to no schema"),
        ({"$defs": {"a": {"items": {"pattern": "a{1000000}"}}}}, "repeats more than"),
    ],
)
def test_a_schema_is_read_by_position(schema: dict[str, Any], part: str) -> None:
    """What is a schema within a schema is decided by where it stands, whatever a property is called."""
    with pytest.raises(ValidationError) as caught:
        parse_check({"check": "json_schema", "schema": schema})
    assert part in caught.value.errors()[0]["msg"]


def test_a_schema_may_name_its_draft_and_hold_any_constant() -> None:
    """The root's `$schema` says nothing more and is left out; constants and properties are named freely."""
    inner = {"const": {"$ref": "nowhere", "$id": 1}, "properties": {"$schema": {}, "$ref": {"pattern": "a"}}}
    check = parse_check({"check": "json_schema", "schema": {"$schema": f"{DRAFT}#", **inner}})
    assert isinstance(check, JsonCheck)
    assert check.schema_ == inner


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("(?R)", "calls itself"),
        ("(a)(?1)", "calls itself"),
        ("(?<x>a)(?&x)", "calls itself"),
        ("(?P<x>a)(?P>x)", "calls itself"),
        ("a{1000000}", "repeats more than"),
        ("(?:(?:a{1,1000}){1,1000})*", "repeats more than"),
        ("(?:[)]a{1000}){1000}", "repeats more than"),
        ("(?ix)a", "without x and V1"),
        ("(?V1)[[a]--[b]]", "without x and V1"),
        ("ab" * 1001, "2002 characters"),
    ],
)
def test_a_pattern_that_could_take_all_memory_is_refused(pattern: str, part: str) -> None:
    """Recursion, nested repetitions and length have limits; the message names the one that is met."""
    with pytest.raises(ValidationError) as caught:
        parse_check({"check": "matches", "pattern": pattern})
    assert part in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    "pattern", [r"\(?exact\)", r"[(?R)]", "(?i-x:a){999}.{0,999}", r"(\w+ ){9}(?#{9})", "[[:alpha:])]"]
)
def test_an_ordinary_pattern_is_accepted(pattern: str) -> None:
    """Escapes, sets, comments and repetitions beside each other are not mistaken for what is refused."""
    parse_check({"check": "matches", "pattern": pattern})

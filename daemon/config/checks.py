"""The checks a rule is made of: their names and parameters. What each one means is in `preferences.rules`.

They are specified here because packs are validated in `scenarios` and judged in `preferences`, and stages
do not import each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    field_validator,
    model_validator,
)

from daemon.config.check_values import bounded_number, compiled_pattern, sound_schema, sound_tests

MAX_DEPTH = 3
"""`any_of` and `not` inside each other: deeper ones are a programme, not a check that a person can read."""

Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1)]
Regex = Annotated[str, Field(min_length=1), AfterValidator(compiled_pattern)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Number = Annotated[int | float, PlainValidator(bounded_number)]
Tolerance = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Spec(BaseModel):
    """Frozen, and an unknown parameter is an error: a misspelt one must not judge with its default."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PatternCheck(Spec):
    """The regular expression is found somewhere in the answer, or is not."""

    check: Literal["matches", "not_matches"]
    pattern: Regex
    ignore_case: bool = True


class PhrasesCheck(Spec):
    """Words or phrases that the answer holds (all, any, none), as whole words; `no_phrases` also inside words."""

    check: Literal["contains_all", "contains_any", "contains_none", "no_phrases", "not_starts_with"]
    values: Texts


class AffixCheck(Spec):
    """The first or last words of the answer, punctuation and case aside."""

    check: Literal["starts_with", "ends_with"]
    value: Text


class ExactCheck(Spec):
    """The whole answer, after Unicode and white-space normalisation."""

    check: Literal["exact"]
    value: Text
    strip_punctuation: bool = True
    """Ignore `.`, `!` and `?` at the end of both."""
    ignore_case: bool = False
    unwrap: bool = True
    """Ignore quotes, backticks, emphasis and a code fence around the answer."""


class NumberCheck(Spec):
    """`number`: no other number is in the answer. `last_number`: the last one in the answer."""

    check: Literal["number", "last_number"]
    value: Number
    tolerance: Tolerance = 0.0
    """Largest difference from `value`; the larger of the two tolerances counts."""
    relative_tolerance: Tolerance = 0.0
    """Largest difference as a share of `value`: 0.01 is one percent."""
    whole: bool = False
    """For `number`: nothing but the number is in the answer."""

    @model_validator(mode="after")
    def _whole_number_only(self) -> Self:
        if self.whole and self.check == "last_number":
            raise ValueError("whole goes with the check `number`, not with `last_number`")
        return self


class CountCheck(Spec):
    """How many words, sentences, characters, lines with text, or bullets."""

    check: Literal[
        "min_words",
        "max_words",
        "exact_words",
        "min_sentences",
        "max_sentences",
        "exact_sentences",
        "min_chars",
        "max_chars",
        "exact_chars",
        "min_lines",
        "max_lines",
        "exact_lines",
        "bullet_count",
    ]
    value: Count


class CaseCheck(Spec):
    """No letter of the other case."""

    check: Literal["lowercase", "uppercase"]


class DistinctCheck(Spec):
    """At least this share of the words are different words."""

    check: Literal["distinct_words"]
    value: Share


class EchoCheck(Spec):
    """At most `value` of the answer's three-word sequences are copied from `text`."""

    check: Literal["no_echo"]
    text: Text
    value: Share = 0.5


class ItemsCheck(Spec):
    """One comma-separated list: these items in this order, or any `count` different ones."""

    check: Literal["item_list"]
    values: Texts | None = None
    count: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.values is None) == (self.count is None):
            raise ValueError("item_list needs either values (the items) or count (how many)")
        return self


class JsonCheck(Spec):
    """The whole answer, a code fence around it aside, is JSON that is valid under a schema (draft 2020-12)."""

    check: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]

    @field_validator("schema_")
    @classmethod
    def _sound(cls, schema: dict[str, Any]) -> dict[str, Any]:
        return sound_schema(schema)


class CodeCheck(Spec):
    """The tests hold for the answer's code, run in a sandbox."""

    check: Literal["code_tests"]
    language: Literal["python"] = "python"
    tests: Annotated[str, AfterValidator(sound_tests)]
    """Python with at least one `assert`; it sees what the answer's code defines at its top level."""


class RubricCheck(Spec):
    """A model says yes to a question about the answer."""

    check: Literal["rubric"]
    question: Text
    threshold: Share = 0.5
    """Least probability of yes."""


class AnyOfCheck(Spec):
    """At least one of several checks holds."""

    check: Literal["any_of"]
    any_of: tuple[Check, ...]

    @field_validator("any_of")
    @classmethod
    def _some(cls, checks: tuple[Check, ...]) -> tuple[Check, ...]:
        if not checks:
            raise ValueError("any_of needs at least one check")
        return checks


class NotCheck(Spec):
    """A check does not hold."""

    check: Literal["not"]
    not_: Annotated[Check, Field(alias="not")]


def _named(value: Any) -> Any:
    """`{any_of: [...]}` and `{not: {...}}` are written without `check`."""
    if isinstance(value, Mapping) and "check" not in value:
        for name in ("any_of", "not"):
            if name in value:
                return {"check": name, **value}
    return value


Check = Annotated[
    Annotated[
        PatternCheck
        | PhrasesCheck
        | AffixCheck
        | ExactCheck
        | NumberCheck
        | CountCheck
        | CaseCheck
        | DistinctCheck
        | EchoCheck
        | ItemsCheck
        | JsonCheck
        | CodeCheck
        | RubricCheck
        | AnyOfCheck
        | NotCheck,
        Field(discriminator="check"),
    ],
    BeforeValidator(_named),
]


def _shallow(check: Check) -> Check:
    if _depth(check) > MAX_DEPTH:
        raise ValueError(f"any_of and not are nested more than {MAX_DEPTH} deep; say it with fewer")
    return check


def _depth(check: Check) -> int:
    match check:
        case AnyOfCheck():
            return 1 + max(map(_depth, check.any_of))
        case NotCheck():
            return 1 + _depth(check.not_)
    return 0


AnyOfCheck.model_rebuild()
NotCheck.model_rebuild()
_CHECK: TypeAdapter[Check] = TypeAdapter(Annotated[Check, AfterValidator(_shallow)])


def parse_check(mapping: Mapping[str, Any]) -> Check:
    """One check from its JSON form, such as `{"check": "max_sentences", "value": 1}`.

    Raises:
        pydantic.ValidationError: unknown check or parameter, or a value that can never be judged by.
    """
    return _CHECK.validate_python(dict(mapping))


def parse_rule(rule: Iterable[Mapping[str, Any]]) -> tuple[Check, ...]:
    """Every check of a rule; raises like `parse_check`."""
    return tuple(parse_check(mapping) for mapping in rule)

"""The checks a rule is made of: their names and parameters. What each one means is in `preferences.rules`.

They are specified here because packs are validated in `scenarios` and judged in `preferences`, and stages
do not import each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"the regular expression {pattern!r} does not compile: {error}") from None
    return pattern


Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1)]
Regex = Annotated[str, Field(min_length=1), AfterValidator(_compiles)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]


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
    value: int | float
    whole: bool = False
    """For `number`: nothing but the number is in the answer."""

    @model_validator(mode="after")
    def _whole_number_only(self) -> Self:
        if self.whole and self.check == "last_number":
            raise ValueError("whole goes with the check `number`, not with `last_number`")
        return self


class CountCheck(Spec):
    """How many words, sentences or bullets."""

    check: Literal["min_words", "max_words", "exact_words", "max_sentences", "exact_sentences", "bullet_count"]
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


Check = Annotated[
    PatternCheck
    | PhrasesCheck
    | AffixCheck
    | ExactCheck
    | NumberCheck
    | CountCheck
    | CaseCheck
    | DistinctCheck
    | EchoCheck
    | ItemsCheck,
    Field(discriminator="check"),
]

_CHECK: TypeAdapter[Check] = TypeAdapter(Check)


def parse_check(mapping: Mapping[str, Any]) -> Check:
    """One check from its JSON form, such as `{"check": "max_sentences", "value": 1}`.

    Raises:
        pydantic.ValidationError: unknown check or parameter, or a regular expression that does not compile.
    """
    return _CHECK.validate_python(dict(mapping))


def parse_rule(rule: Iterable[Mapping[str, Any]]) -> tuple[Check, ...]:
    """Every check of a rule; raises like `parse_check`."""
    return tuple(parse_check(mapping) for mapping in rule)

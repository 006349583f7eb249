"""What a pack file may say, as pydantic models; cross-references are checked in `pack`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, PlainValidator, Tag, model_validator

from daemon.domain.states import Side

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Text = Annotated[str, Field(min_length=1)]
Record = dict[str, str | int | list[str]]


def _entry(value: Any) -> Any:
    """An entry of a list: text, a whole number, or a record of these and of lists of text."""
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return value
    if not isinstance(value, dict) or not value:
        raise ValueError(f"an entry is text, a whole number or a record; found {value!r} (quote it to make it text)")
    for key, part in value.items():
        plain = isinstance(part, (str, int)) and not isinstance(part, bool)
        texts = isinstance(part, list) and part and all(isinstance(item, str) for item in part)
        if not re.fullmatch(r"[a-z][a-z0-9_]*", key) or not (plain or texts):
            raise ValueError(f"field {key!r} must be a lower-case name with text, a whole number or a list of texts")
    return value


Value = Annotated[str | int | Record, PlainValidator(_entry)]
Values = Annotated[list[Value], Field(min_length=1)]


class Strict(BaseModel):
    """Frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class ChooseSlot(Strict):
    """One entry of a named list, or of a list inside an earlier slot's record (`topic.items`)."""

    choose: Text
    unlike: Annotated[list[Name], BeforeValidator(_as_list)] = []
    """Earlier slots whose values this one must differ from."""


class IntSlot(Strict):
    """A whole number between two bounds, both included."""

    int_: Annotated[tuple[int, int], Field(alias="int")]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.int_[0] > self.int_[1]:
            raise ValueError(f"int needs [low, high], found {list(self.int_)}")
        return self


class CalcSlot(Strict):
    """Whole-number arithmetic (+ - * // %) over earlier slots."""

    calc: Text


class Replacement(Strict):
    in_: Annotated[Text, Field(alias="in")]
    find: Text
    with_: Annotated[str, Field(alias="with")]


class ReplaceSlot(Strict):
    """A text with one word replaced; all three parts may hold slots."""

    replace: Replacement


SlotModel = ChooseSlot | IntSlot | CalcSlot | ReplaceSlot


def _slot_kind(value: Any) -> str | None:
    if isinstance(value, list):
        return "inline"
    if isinstance(value, dict):
        return next((kind for kind in ("choose", "int", "calc", "replace") if kind in value), None)
    return None


Slot = Annotated[
    Annotated[Values, Tag("inline")]
    | Annotated[ChooseSlot, Tag("choose")]
    | Annotated[IntSlot, Tag("int")]
    | Annotated[CalcSlot, Tag("calc")]
    | Annotated[ReplaceSlot, Tag("replace")],
    Discriminator(
        _slot_kind,
        custom_error_type="slot",
        custom_error_message="a slot is {choose: LIST}, {int: [LOW, HIGH]}, {calc: FORMULA}, {replace: ...} or a list",
    ),
]
"""What fills `{name}`; a plain list is a choice written right here."""


class MessageText(Strict):
    role: Literal["system", "user", "assistant"]
    content: Text


class Template(Strict):
    """One way of asking for one behaviour; expands into many scenarios."""

    id: Name
    side: Side
    family: Name
    constraints: Annotated[int, Field(ge=1, le=9)] = 1
    """How many things a right answer has to get right at once."""
    held_out: bool = False
    """Measured by the probes and never trained; of side general only with a rule."""
    slots: dict[Name, Slot] = {}
    prompt: Text | None = None
    messages: Annotated[list[MessageText], Field(min_length=1)] | None = None
    guidance: Text | None = None
    """The right behaviour spelt out; general templates need none."""
    targets: Annotated[list[Text], Field(min_length=1)]
    rule: list[dict[str, Any]] = []
    """Checks; a general template without any trains on its targets alone."""

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt (one user message) or messages")
        if self.messages is not None and self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's")
        return self

    @model_validator(mode="after")
    def _can_be_judged(self) -> Self:
        general = self.side is Side.GENERAL
        if general and self.held_out and not self.rule:
            raise ValueError("'rule' is missing: held_out on side general is a task that a probe has to judge")
        if not general and self.guidance is None:
            raise ValueError(f"'guidance' is missing: side {self.side.value} needs the right behaviour spelt out")
        if not general and not self.rule:
            raise ValueError(f"'rule' is missing: side {self.side.value} needs checks that a right answer satisfies")
        return self

    @property
    def texts(self) -> tuple[tuple[str, str], ...]:
        """The prompt as (role, text), slots unfilled."""
        if self.messages is None:
            return (("user", self.prompt or ""),)
        return tuple((message.role, message.content) for message in self.messages)


class PackFile(Strict):
    """A whole pack file."""

    pack: Name
    version: Annotated[int, Field(ge=1)]
    description: str = ""
    lists: dict[Name, Values] = {}
    templates: Annotated[list[Template], Field(min_length=1)]

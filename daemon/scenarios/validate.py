"""What a pack's schema cannot say: names that must exist, and rules that must hold together once filled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from daemon.config.checks import parse_check
from daemon.scenarios.draw import generator
from daemon.scenarios.fill import FILTERS, draw_slots, fill, fill_rule, placeholders
from daemon.scenarios.schema import CalcSlot, ChooseSlot, IntSlot, PackFile, ReplaceSlot, Template
from daemon.scenarios.yamlfile import Document, Location, Problem

_RESERVED = frozenset({"prompt", "lists"})
_NUM_TRIALS = 5
"""Expansions tried of each template: enough to reach entries of unlike shape, cheap enough at every start."""

Fields = frozenset[str] | None
"""The fields of a record slot; None for text and numbers."""


def cross_check(pack: PackFile, document: Document, *, try_out: bool) -> list[Problem]:
    """Every problem between the parts of a pack that is valid by its schema.

    Args:
        try_out: also expand every template a few times and parse the rules that come out.
    """
    problems = []
    for name, values in pack.lists.items():
        if _fields(values) is False:
            problems.append(
                Problem(document.line(("lists", name)), f"list {name!r}: its entries need the same fields throughout")
            )
    ids = Counter(template.id for template in pack.templates)
    seen: set[str] = set()
    for index, template in enumerate(pack.templates):
        at: Location = ("templates", index)
        if ids[template.id] > 1 and template.id in seen:
            problems.append(Problem(document.line((*at, "id")), f"duplicate template id {template.id!r}"))
        seen.add(template.id)
    if problems:
        return problems
    for index, template in enumerate(pack.templates):
        problems += _Inspector(pack, document, template, ("templates", index)).problems(try_out)
    return problems


def _fields(values: Iterable[Any]) -> Any:
    """The common fields of records, None for plain values, False for a mixture."""
    kinds = {frozenset(value) if isinstance(value, dict) else None for value in values}
    return kinds.pop() if len(kinds) == 1 else False


class _Inspector:
    """One template: first its names; then, when these are right, a few trial expansions."""

    def __init__(self, pack: PackFile, document: Document, template: Template, at: Location) -> None:
        self._pack, self._document, self._template, self._at = pack, document, template, at
        self._found: list[Problem] = []

    def problems(self, try_out: bool) -> list[Problem]:
        known = self._slots()
        template = self._template
        for index, (_, text) in enumerate(template.texts):
            where: Location = ("prompt",) if template.messages is None else ("messages", index, "content")
            self._names(text, known, where)
        self._names(template.guidance or "", known, ("guidance",))
        for index, target in enumerate(template.targets):
            self._names(target, known, ("targets", index))
        for index, check in enumerate(template.rule):
            self._names(check, {**known, "prompt": None, "lists": frozenset(self._pack.lists)}, ("rule", index))
        if try_out and not self._found:
            self._try_out()
        return self._found

    def _report(self, where: Location, text: str) -> None:
        problem = Problem(self._document.line((*self._at, *where)), f"template {self._template.id!r}: {text}")
        if problem not in self._found:
            self._found.append(problem)

    def _slots(self) -> dict[str, Fields]:
        """The slots with their fields; complains of lists and slots that do not exist."""
        known: dict[str, Fields] = {}
        for name, slot in self._template.slots.items():
            where: Location = ("slots", name)
            fields: Fields = None
            if name in _RESERVED:
                self._report(where, f"a slot cannot be called {name!r}")
            match slot:
                case ChooseSlot():
                    fields = self._chosen_fields(slot, known, where)
                case ReplaceSlot():
                    parts = (slot.replace.in_, slot.replace.find, slot.replace.with_)
                    self._names(parts, known, where)
                case IntSlot() | CalcSlot():
                    pass
                case _:
                    fields = _fields(slot)
                    if fields is False:
                        self._report(where, "its entries need the same fields throughout")
                        fields = None
            known[name] = fields
        return known

    def _chosen_fields(self, slot: ChooseSlot, known: Mapping[str, Fields], where: Location) -> Fields:
        name, _, field = slot.choose.partition(".")
        for other in slot.unlike:
            if other not in known:
                self._report(where, f"unlike names {other!r}, which is no earlier slot")
        if field:
            if field not in (known.get(name) or ()):
                self._report(where, f"choose names {slot.choose!r}, but there is no earlier slot with such a field")
            return None
        if name not in self._pack.lists:
            self._report(where, f"there is no list {name!r} under lists")
            return None
        fields = _fields(self._pack.lists[name])
        return fields if isinstance(fields, frozenset) else None

    def _names(self, value: Any, known: Mapping[str, Fields], where: Location) -> None:
        for name, field, chosen in placeholders(value):
            shown = f"{{{name}{'.' + field if field else ''}}}"
            if name not in known:
                self._report(where, f"unknown slot {shown}; it has {', '.join(known) or 'no slots'}")
            elif field and field not in (known[name] or ()):
                self._report(
                    where, f"unknown slot {shown}; {name!r} has {', '.join(sorted(known[name] or ())) or 'no fields'}"
                )
            elif not field and known[name]:
                self._report(
                    where,
                    f"slot {shown} is a record; name one of its fields, such as {{{name}.{min(known[name] or ())}}}",
                )
            if chosen and chosen not in FILTERS:
                self._report(where, f"unknown filter {chosen!r}; known: {', '.join(FILTERS)}")

    def _try_out(self) -> None:
        """Expand a few times and parse the filled rule: what is wrong shows only with values in place."""
        for trial in range(_NUM_TRIALS):
            try:
                values = draw_slots(self._template.slots, self._pack.lists, generator("trial", trial))
            except (ValueError, IndexError, TypeError, KeyError) as error:
                reason = str(error) if isinstance(error, ValueError) else "no value is left to choose from"
                self._report(("slots",), reason)
                return
            known = {**values, "prompt": fill(self._template.texts[-1][1], values), "lists": self._pack.lists}
            for index, check in enumerate(fill_rule(self._template.rule, known)):
                try:
                    parse_check(check)
                except ValidationError as error:
                    self._check_problems(error, index)

    def _check_problems(self, error: ValidationError, index: int) -> None:
        for found in error.errors(include_url=False):
            key, said = str(found["loc"][-1]) if found["loc"] else "", found["msg"].removeprefix("Value error, ")
            text = {
                "extra_forbidden": f"unknown parameter {key!r}",
                "missing": f"parameter {key!r} is missing",
                "union_tag_invalid": f"unknown check {found.get('input', {}).get('check')!r}"
                if isinstance(found.get("input"), dict)
                else "unknown check",
                "union_tag_not_found": "a check needs `check: NAME`",
            }.get(found["type"], f"{key}: {said}" if key else said)
            self._report(("rule", index), text)

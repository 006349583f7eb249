"""Answers that several templates share: written once under `answers`, named by each template's `answer`."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from daemon.scenarios.yamlfile import Document, Location, Problem

_PARTS = ("guidance", "targets", "rule")


def share_answers(document: Document) -> None:
    """Copy each named answer into the templates that name it, lines included; what is wrong goes to the problems.

    A part that the template gives itself stays. Done before validation, so that a template is complete
    wherever it is looked at, and an error in a shared part names the line where it is written.
    """
    data = document.data
    answers = data.pop("answers", None) if isinstance(data, dict) else None
    templates = data.get("templates") if isinstance(data, dict) else None
    if answers is None:
        answers = {}
    elif not isinstance(answers, dict):
        _complain(document, ("answers",), "answers is a mapping from a name to guidance, targets and rule")
        return
    for name, answer in answers.items():
        _inspect(document, name, answer)
    lines = _lines_by_part(document)
    used = set()
    for index, template in enumerate(templates if isinstance(templates, list) else []):
        if isinstance(template, dict) and "answer" in template:
            name = template.pop("answer")
            used.add(str(name))
            _copy(document, answers, template, name, ("templates", index), lines)
    for name in answers:
        if name not in used:
            _complain(document, ("answers", name), f"answer {name!r} is used by no template")


def _inspect(document: Document, name: str, answer: Any) -> None:
    if not isinstance(answer, dict):
        _complain(document, ("answers", name), f"answer {name!r} needs guidance, targets and rule")
        return
    for key in answer:
        if key not in _PARTS:
            _complain(document, ("answers", name, key), f"unknown key {key!r}; an answer has {', '.join(_PARTS)}")


def _lines_by_part(document: Document) -> dict[Location, list[tuple[Location, int]]]:
    """(answers, NAME, PART) -> the rest of each location below it, with its line."""
    found: dict[Location, list[tuple[Location, int]]] = defaultdict(list)
    for location, line in document.lines.items():
        if location[:1] == ("answers",) and len(location) >= 3:
            found[location[:3]].append((location[3:], line))
    return found


def _copy(
    document: Document,
    answers: dict[str, Any],
    template: dict[str, Any],
    name: Any,
    at: Location,
    lines: dict[Location, list[tuple[Location, int]]],
) -> None:
    answer = answers.get(name) if isinstance(name, str) else None
    if not isinstance(answer, dict):
        _complain(document, (*at, "answer"), f"there is no answer {name!r} under answers")
        return
    for part in _PARTS:
        if part in answer and part not in template:
            template[part] = answer[part]
            for rest, line in lines[("answers", name, part)]:
                document.lines[(*at, part, *rest)] = line


def _complain(document: Document, at: Location, text: str) -> None:
    document.problems.append(Problem(document.line(at), text))

"""Scenario packs: a YAML file of templates, validated with line numbers, expanded by seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from pydantic import ValidationError

from daemon.config.checks import parse_rule
from daemon.domain.errors import PackError
from daemon.domain.hashing import scenario_hash
from daemon.domain.records import Message, Scenario
from daemon.scenarios.draw import pick
from daemon.scenarios.fill import draw_slots, fill, fill_rule
from daemon.scenarios.schema import PackFile, Template
from daemon.scenarios.share import share_answers
from daemon.scenarios.validate import cross_check
from daemon.scenarios.yamlfile import Document, Problem, read_yaml

BUILTIN = Path(__file__).parent / "packs"
STARTER = Path(__file__).parent / "starter.yaml"


@dataclass(frozen=True, slots=True)
class Pack:
    """A validated pack."""

    name: str
    version: int
    description: str
    lists: Mapping[str, list[Any]]
    templates: tuple[Template, ...]
    builtin: bool = False
    """It ships with dreamd, whose tests try its templates out."""

    def template(self, template_id: str) -> Template:
        """The template of that id; KeyError when there is none."""
        for template in self.templates:
            if template.id == template_id:
                return template
        raise KeyError(template_id)

    def expand(
        self, template: Template, rng: Random, fixed: Mapping[str, Any] | None = None, *, checked: bool = True
    ) -> Scenario:
        """One scenario of `template`; the same generator state gives the same scenario on every machine.

        Args:
            fixed: values of slots that are not drawn.
            checked: parse the filled rule; without it, what is only compared or counted is made ten times as fast.

        Raises:
            PackError: the values drawn leave nothing to choose from, or make a check malformed.
        """
        try:
            values = draw_slots(template.slots, self.lists, rng, fixed)
            messages = tuple(Message(role, str(fill(text, values))) for role, text in template.texts)
            rule = fill_rule(template.rule, rule_values(values, self.lists, messages[-1].content))
            if checked:
                parse_rule(rule)
        except (ValueError, IndexError) as error:
            # Loading tries only a few expansions: a rare combination of values can still be impossible.
            raise PackError(
                f"pack {self.name!r}, template {template.id!r}: an expansion is impossible: {error}"
            ) from None
        # The last thing drawn, so that adding a target variant does not change the prompts of a seed.
        target = str(fill(pick(rng, template.targets), values))
        return Scenario(
            content_hash=scenario_hash((message.role, message.content) for message in messages),
            side=template.side,
            family=template.family,
            pack=self.name,
            template=template.id,
            messages=messages,
            guidance=None if template.guidance is None else str(fill(template.guidance, values)),
            target=target,
            rule=rule,
            num_constraints=template.constraints,
        )


def rule_values(values: Mapping[str, Any], lists: Mapping[str, list[Any]], prompt: str) -> dict[str, Any]:
    """What a rule's slots may name: the template's slots, `{prompt}`, and whole lists as `{lists.NAME}`."""
    return {**values, "prompt": prompt, "lists": lists}


def load_pack(path: Path) -> Pack:
    """Read and validate a pack file, with a few trial expansions of each template.

    Raises:
        PackError: one line for each problem found: file, line, what is wrong and what would be right.
    """
    parsed = _read(path, try_out=True)
    return Pack(parsed.pack, parsed.version, parsed.description, parsed.lists, tuple(parsed.templates))


def load_builtin(name: str) -> Pack:
    """A pack that ships with dreamd, such as "listening"."""
    # The project's own tests expand these far oftener than any start could.
    parsed = _read(BUILTIN / f"{name}.yaml", try_out=False)
    return Pack(parsed.pack, parsed.version, parsed.description, parsed.lists, tuple(parsed.templates), builtin=True)


def _read(path: Path, *, try_out: bool) -> PackFile:
    document = read_yaml(path)
    share_answers(document)
    problems = list(document.problems)
    try:
        parsed = PackFile.model_validate(document.data)
    except ValidationError as error:
        _refuse(path, problems + _schema_problems(error, document))
    problems += cross_check(parsed, document, try_out=try_out)
    if problems:
        _refuse(path, problems)
    return parsed


def _schema_problems(error: ValidationError, document: Document) -> list[Problem]:
    problems = []
    for found in error.errors(include_url=False):
        location, kind = found["loc"], found["type"]
        key = str(location[-1]) if location else ""
        said = found["msg"].removeprefix("Value error, ")
        text = {
            "missing": f"{key!r} is missing",
            "extra_forbidden": f"unknown key {key!r}",
        }.get(kind, said if key.isdigit() else f"{key}: {said}")
        problems.append(Problem(document.line(location), text))
    return problems


def _refuse(path: Path, problems: list[Problem]) -> NoReturn:
    unique = sorted(set(problems))
    shown = [f"{path}:{problem.line}: {problem.text}" for problem in unique[:20]]
    if len(unique) > len(shown):
        shown.append(f"{path}: and {len(unique) - len(shown)} more problems")
    raise PackError("\n".join(shown))

"""Plans dreams, says what to ask the policy, and reads what it wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator

from daemon.config.sections import ScenariosConfig
from daemon.domain.records import Message, Refusal, Scenario, WriteRequest
from daemon.domain.states import RefusalReason, Side, Source
from daemon.scenarios.draw import generator, shuffled
from daemon.scenarios.dreams import direction, insistence
from daemon.scenarios.dreams.direction import Direction
from daemon.scenarios.dreams.insistence import Insistence
from daemon.scenarios.dreams.prompts import ask
from daemon.scenarios.dreams.seeds import load_seeds
from daemon.scenarios.imports.clean import Cleaner, UncleanError

_SHOWN = 200
"""Characters of a refused text that are kept."""
_LONGEST = 2000
"""Characters beyond which a text is not even parsed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One dream to be: what the policy is asked, and what its text becomes part of."""

    provenance: str
    messages: tuple[Message, ...]
    given: Direction | Insistence

    @property
    def side(self) -> Side:
        return self.given.side


class Dreamer:
    """Scenarios that the policy writes itself; the same seed and texts give the same scenarios."""

    def __init__(self, config: ScenariosConfig, special_tokens: Sequence[str] = ()) -> None:
        """Args: special_tokens: the model's own role tokens, taken out of what it writes."""
        self._config = config
        self._clean = Cleaner(special_tokens).clean
        self._seeds = load_seeds()

    def plan(self, cycle_number: int, seed: int, sides: Mapping[Side, int]) -> list[Plan]:
        """`dream_tries` plans for each wanted scenario of `sides` (accept and push_back), topics in turn."""
        plans = []
        for side in (Side.ACCEPT, Side.PUSH_BACK):
            subjects = self._seeds.topics if side is Side.ACCEPT else self._seeds.claims
            order = shuffled(generator("dream", seed, side.value), range(len(subjects)))
            for number in range(sides.get(side, 0) * self._config.dream_tries):
                plans.append(self._one(cycle_number, seed, side, number, order[number % len(order)]))
        return plans

    def requests(self, plans: Sequence[Plan]) -> list[WriteRequest]:
        """What to have the policy write, in the order of `plans`."""
        temperature, length = self._config.dream_temperature, self._config.dream_max_new_tokens
        return [WriteRequest(plan.messages, plan.given.held_schema, temperature, length) for plan in plans]

    def read(self, plan: Plan, text: str) -> Scenario | Refusal:
        """The scenario that `text` makes of `plan`, or why it makes none; never raises, whatever the text."""
        fields = self._fields(plan, text)
        if isinstance(fields, Refusal):
            return fields
        problem = plan.given.problem(fields)
        if problem:
            return _refusal(plan, RefusalReason.SENSELESS, problem, text)
        return plan.given.scenario(fields, plan.provenance)

    def _fields(self, plan: Plan, text: str) -> dict[str, str] | Refusal:
        """What `text` says in the form that was asked for, cleaned."""
        if len(text) > _LONGEST:
            return _refusal(plan, RefusalReason.TOO_LONG, "far longer than asked for", text)
        found = _parse(text)
        if isinstance(found, str):
            return _refusal(plan, RefusalReason.MALFORMED, found, text)
        errors = sorted(Draft202012Validator(plan.given.schema).iter_errors(found), key=lambda error: list(error.path))
        if errors:
            where = "".join(f"{part}: " for part in errors[0].path)
            if errors[0].validator == "maxLength":
                return _refusal(plan, RefusalReason.TOO_LONG, f"{where}longer than asked for", text)
            return _refusal(plan, RefusalReason.MALFORMED, f"{where}{errors[0].message}", text)
        try:
            return {name: " ".join(self._clean(value).split()) for name, value in found.items()}
        except UncleanError as error:
            return _refusal(plan, RefusalReason.MALFORMED, str(error), text)

    def _one(self, cycle_number: int, seed: int, side: Side, number: int, subject: int) -> Plan:
        rng = generator("dream", seed, side.value, number)
        words: str
        given: Direction | Insistence
        if side is Side.ACCEPT:
            words, given = direction.draw(rng, self._seeds, self._seeds.topics[subject])
        else:
            words, given = insistence.draw(rng, self._seeds, self._seeds.claims[subject])
        return Plan(f"cycle {cycle_number}", ask(rng, side, words), given)


def _parse(text: str) -> dict[str, Any] | str:
    """The object that `text` is, a code fence around it aside; or what is wrong."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", text, re.DOTALL)
    try:
        found = json.loads(fenced.group(1) if fenced else text)
    except (ValueError, RecursionError) as error:
        return f"no JSON ({error})"
    return found if isinstance(found, dict) else "JSON, but no object"


def _refusal(plan: Plan, reason: RefusalReason, detail: str, text: str) -> Refusal:
    return Refusal(Source.DREAM, "dream", reason, _printable(detail), plan.provenance, _printable(text[:_SHOWN]))


def _printable(text: str) -> str:
    """`text` as every database and terminal takes it."""
    return "".join(character if character.isprintable() else " " for character in text[:_SHOWN])

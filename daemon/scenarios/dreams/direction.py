"""Dreams of the accept side: a situation and a request by the policy, and constraints on the answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from daemon.domain.hashing import scenario_hash
from daemon.domain.records import Message, Scenario
from daemon.domain.states import Side, Source
from daemon.scenarios.draw import pick
from daemon.scenarios.dreams import sense
from daemon.scenarios.dreams.constraints import Composition, compose
from daemon.scenarios.dreams.prompts import EXAMPLES
from daemon.scenarios.dreams.seeds import Seeds, Topic

SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "situation": {"type": "string", "minLength": 15, "maxLength": 140},
        "request": {"type": "string", "minLength": 10, "maxLength": 110},
    },
    "required": ["situation", "request"],
    "additionalProperties": False,
}
"""What is read."""

_WORD = "[A-Za-z'-]+"
HELD_SCHEMA: Mapping[str, Any] = {
    **SCHEMA,
    "properties": {
        "situation": {"type": "string", "pattern": f"^(I|My|We|Our)( {_WORD},?){{4,26}}[.]$"},
        "request": {
            "type": "string",
            "pattern": "^(Can you|Could you|Please|What|How|Why|Tell me|Explain|I want to know|I would like to know)"
            f"( {_WORD},?){{2,20}}[.?!]$",
        },
    },
}
"""What an engine is asked to hold the policy to. It gives more room than the tests of sense: what needs all of it only
just ended."""

_OPEN = re.compile(
    r"\b(about|facts?|describe|explain|know|learn|information|interesting|important|how (do|does) [a-z ]+ work)\b",
    re.IGNORECASE,
)
_PROSE = ("sentences", "bullets", "heading")


@dataclass(frozen=True, slots=True)
class Direction:
    """What is given: a topic and the constraints."""

    topic: Topic
    composition: Composition
    separator: str
    """Between what the policy writes and the constraints."""

    side = Side.ACCEPT
    schema = SCHEMA

    @property
    def held_schema(self) -> Mapping[str, Any]:
        return HELD_SCHEMA

    def problem(self, fields: Mapping[str, str]) -> str | None:
        """Why situation and request make no sense; None when they do."""
        situation, request = fields["situation"], fields["request"]
        found = sense.first_problem(situation, _SITUATION)
        if found:
            return f"situation: {found}"
        found = sense.first_problem(request, _REQUEST)
        if found:
            return f"request: {found}"
        if sense.copied_from([situation])(request):
            return "situation and request say the same"
        if not sense.holds(request, (self.topic.topic, *self.topic.words, *self.topic.items)):
            return f"request: it is not about {self.topic.topic}"
        clash = self._clash(f"{situation} {request}")
        return f"request: {clash} goes against the constraints" if clash else None

    def scenario(self, fields: Mapping[str, str], provenance: str) -> Scenario:
        """The scenario: situation, request, constraints in words."""
        asked = f"{fields['situation']} {fields['request']}"
        constraints = self.composition.constraints
        prompt = asked + self.separator + " ".join(constraint.words for constraint in constraints)
        related = "|".join(re.escape(word) for word in self.topic.all_words)
        messages = (Message("user", prompt),)
        return Scenario(
            content_hash=scenario_hash((message.role, message.content) for message in messages),
            side=self.side,
            family=f"dream_{constraints[0].name}",
            pack="dream",
            template=self.composition.name,
            messages=messages,
            guidance=self._guidance(),
            target=self.composition.target if self._answers(asked) else None,
            rule=(
                *self.composition.checks,
                # Names in code hold words between underscores, so words are not looked for as whole ones.
                {"check": "matches", "pattern": f"(?<![a-z])(?:{related})"},
                {"check": "no_echo", "text": prompt, "value": 0.5},
            ),
            source=Source.DREAM,
            num_constraints=len(constraints),
            provenance=provenance,
        )

    def _guidance(self) -> str:
        listed = " ".join(f"({i}) {c.words}" for i, c in enumerate(self.composition.constraints, start=1))
        return f"Do exactly this, and write about {self.topic.topic}: {listed}"

    def _clash(self, text: str) -> str | None:
        patterns = [constraint.clash for constraint in self.composition.constraints if constraint.clash]
        return next((repr(m.group()) for p in patterns if (m := re.search(p, text, re.IGNORECASE))), None)

    def _answers(self, asked: str) -> bool:
        """Whether the authored target is an answer: facts answer open requests only, names and lists any."""
        if self.composition.constraints[0].name in _PROSE and not _OPEN.search(asked):
            return False
        return sense.copied_from([asked])(self.composition.target) is None


def draw(rng: Random, seeds: Seeds, topic: Topic) -> tuple[str, Direction]:
    """The seed in words for the policy, and what is given."""
    wish = pick(
        rng, ("wants to know something about", "has a question about", "wants to learn about", "needs help with")
    )
    writer = pick(rng, seeds.writers)
    seed = (
        f"{writer[:1].upper()}{writer[1:]} {pick(rng, seeds.places)}, {pick(rng, seeds.tones)}, {wish} {topic.topic}."
    )
    return seed, Direction(topic, compose(rng, topic), pick(rng, (" ", "\n\n")))


_COPIES = [text for _, dreamt in EXAMPLES[Side.ACCEPT] for text in (dreamt["situation"], " ".join(dreamt.values()))]
_SITUATION = (
    sense.not_english,
    sense.out_of_length(5, 24),
    sense.unfinished,
    sense.repetitive,
    sense.speaks_as_assistant,
    sense.addresses_someone,
    sense.refers_to_nothing,
    sense.copied_from(_COPIES),
)
_REQUEST = (
    sense.not_english,
    sense.out_of_length(3, 18),
    sense.unfinished,
    sense.repetitive,
    sense.speaks_as_assistant,
    sense.refers_to_nothing,
    sense.asks_nothing,
)

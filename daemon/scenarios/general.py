"""General scenarios with computed reference answers: what keeps a policy from forgetting.

Code and writing cannot be judged by rule; they carry no rule and train on their reference answer alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from daemon.domain.hashing import scenario_hash
from daemon.domain.records import Message, Scenario
from daemon.domain.states import Side, Source
from daemon.scenarios import general_numbers, general_text
from daemon.scenarios.general_task import Task

PACK = "general"

MAKERS: Mapping[str, Mapping[str, Callable[[Random], Task]]] = {
    "arithmetic": general_numbers.ARITHMETIC,
    "strings_lists": general_text.STRINGS_LISTS,
    "code": general_text.CODE,
    "reasoning": general_numbers.REASONING,
    "writing": general_text.WRITING,
}
"""Family -> template -> what draws a task."""


def draw(family: str, template: str, rng: Random) -> Scenario:
    """One general scenario; the same generator state gives the same one on every machine."""
    task = MAKERS[family][template](rng)
    return Scenario(
        content_hash=scenario_hash([("user", task.prompt)]),
        side=Side.GENERAL,
        family=family,
        pack=PACK,
        template=template,
        messages=(Message("user", task.prompt),),
        target=task.target,
        rule=task.rule,
        source=Source.GENERAL,
    )

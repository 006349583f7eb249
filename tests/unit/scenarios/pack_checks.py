"""What the tests of every built-in pack look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from daemon.domain.novelty import NEAR_DUPLICATE, jaccard, scenario_shingles
from daemon.domain.records import Scenario
from daemon.preferences.rules import judge_text
from daemon.preferences.text import words
from daemon.scenarios.draw import generator
from daemon.scenarios.pack import Pack
from daemon.scenarios.schema import Template


def unchecked(pack: Pack, template: Template, label: str, count: int, first: int = 0) -> Iterator[Scenario]:
    """Expansions whose prompts alone matter: their rules are not parsed, which is ten times as fast."""
    return (pack.expand(template, generator(label, template.id, seed), checked=False) for seed in range(first, count))


def num_unlike(scenarios: Iterable[Scenario], wanted: int) -> int:
    """How many are kept when near-duplicates of kept ones are refused; stops drawing at `wanted`."""
    kept: list[frozenset[int]] = []
    holders: dict[int, list[int]] = defaultdict(list)
    for scenario in scenarios:
        found = scenario_shingles(scenario)
        near = {place for shingle in found for place in holders.get(shingle, ())}
        if all(jaccard(found, kept[place]) < NEAR_DUPLICATE for place in near):
            for shingle in found:
                holders[shingle].append(len(kept))
            kept.append(found)
        if len(kept) == wanted:
            break
    return len(kept)


def shared_prompts(drawn: Iterable[tuple[str, Scenario]]) -> list[set[str]]:
    """The templates of each prompt that more than one of them gives, from (template, scenario)."""
    owners: dict[str, set[str]] = defaultdict(set)
    for template, scenario in drawn:
        owners[scenario.content_hash].add(template)
    return [found for found in owners.values() if len(found) > 1]


def check_target(scenario: Scenario) -> None:
    """The authored answer is right by the rule and short, the prompt is short too, and no slot is left open."""
    assert scenario.target is not None
    verdict = judge_text(scenario.rule, scenario.target)
    assert verdict.passed, (scenario.messages[-1].content, scenario.target, verdict.reason)
    assert len(words(scenario.target)) < 40
    prompt = " ".join(message.content for message in scenario.messages)
    assert len(words(prompt)) < 90
    assert "{" not in scenario.target + prompt + (scenario.guidance or "")

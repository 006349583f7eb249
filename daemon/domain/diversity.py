"""How varied a batch is: measured for every cycle, so that a narrowing diet is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import fsum

from daemon.domain.hashing import normalised
from daemon.domain.novelty import jaccard, scenario_shingles
from daemon.domain.records import Example, Scenario
from daemon.domain.states import Side


@dataclass(frozen=True, slots=True)
class Diversity:
    """Of one batch: the scenarios that gave an example, and the answers that are trained."""

    num_accept: int
    num_push_back: int
    num_general: int
    num_families: int
    mean_constraints: float
    """Per scenario."""
    prompt_distinct_2: float
    """Different two-word sequences over all of them, in the prompts; 1 is most varied."""
    chosen_distinct_2: float
    """Likewise in the chosen answers: it falls when few targets are drawn again and again."""
    mean_jaccard: float
    """Mean pairwise similarity of the prompts' shingles, 0 to 1."""

    @property
    def general_share(self) -> float:
        """Of all examples; 0 for an empty batch."""
        total = self.num_accept + self.num_push_back + self.num_general
        return self.num_general / total if total else 0.0


def measure(scenarios: Sequence[Scenario], examples: Sequence[Example]) -> Diversity:
    """Measure the batch that `examples` make, of a cycle that drew `scenarios`."""
    wanted = {example.scenario_hash for example in examples}
    used = [scenario for scenario in scenarios if scenario.content_hash in wanted]
    sides = [scenario.side for scenario in used]
    grams = [scenario_shingles(scenario) for scenario in used]
    return Diversity(
        num_accept=sides.count(Side.ACCEPT),
        num_push_back=sides.count(Side.PUSH_BACK),
        num_general=sides.count(Side.GENERAL),
        num_families=len({(scenario.pack, scenario.family) for scenario in used}),
        mean_constraints=_mean([float(scenario.num_constraints) for scenario in used]),
        prompt_distinct_2=distinct_n([scenario.messages[-1].content for scenario in used], 2),
        chosen_distinct_2=distinct_n([example.chosen_text for example in examples], 2),
        mean_jaccard=_mean([jaccard(one, other) for one, other in combinations(grams, 2)]),
    )


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different `n`-word sequences over all `n`-word sequences of the texts; 1.0 when there are none.

    Source: Li et al., "A Diversity-Promoting Objective Function", arXiv 1510.03055.
    """
    words = [normalised(text).casefold().split() for text in texts]
    grams = [tuple(found[start : start + n]) for found in words for start in range(len(found) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values) if values else 0.0

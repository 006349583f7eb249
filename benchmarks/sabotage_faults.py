"""What is done to a healthy run, to see whether the watchdog notices."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor

from daemon.cycle.stages import Stages
from daemon.domain.hashing import derive_seed, example_hash
from daemon.domain.records import Completion, Example, Judgement, Scenario
from daemon.domain.states import ChosenSource, ExampleKind, Side
from daemon.ports import Preferences, ProgressCallback

_NUM_JUNK_TOKENS = 24

Tamper = Callable[[Mapping[str, Scenario], Example], Example | None]
"""Scenarios by hash and an example in; what is trained instead, None: nothing."""


@dataclass(frozen=True)
class Sabotage:
    """One way to do harm, from some cycle on."""

    name: str
    what: str
    flags: tuple[str, ...] = ()
    """Settings, as for `--set`."""
    prepare: Callable[[Stages], Stages] = lambda stages: stages
    step_refused: bool = False
    """Caught when the step itself is refused for a gradient that is not finite, before there is a candidate."""


CONTROL = Sabotage("control", "nothing: the same copy, as many cycles")
"""What the watchdog has to leave alone, or its catches prove nothing."""


class TamperedPreferences:
    """Mirrors `ports.Preferences`: judges honestly, and hands over other examples than it built."""

    def __init__(self, honest: Preferences, tamper: Tamper) -> None:
        self._honest = honest
        self._tamper = tamper

    def judges_without_rule(self) -> bool:
        return self._honest.judges_without_rule()

    def judge(
        self, scenarios: Sequence[Scenario], completions: Sequence[Completion], progress: ProgressCallback
    ) -> tuple[Judgement, ...]:
        return self._honest.judge(scenarios, completions, progress)

    def pair(
        self, scenarios: Sequence[Scenario], completions: Sequence[Completion], judgements: Sequence[Judgement]
    ) -> tuple[Example, ...]:
        by_hash = {scenario.content_hash: scenario for scenario in scenarios}
        built = self._honest.pair(scenarios, completions, judgements)
        return tuple(example for honest in built if (example := self._tamper(by_hash, honest)) is not None)


def sabotages() -> tuple[Sabotage, ...]:
    """All of them, in the order of the table."""
    return (
        Sabotage(
            "absurd-lr", "learning rate 0.5 instead of 1e-5", ("training.lr=0.5", "training.allow_unsafe_lr=true")
        ),
        Sabotage(
            "label-flip",
            "chosen and rejected swapped in every pair",
            prepare=_pairs(lambda _, example: swapped(example)),
        ),
        Sabotage(
            "always-accept", "push-back pairs swapped, nothing general: giving in is taught", prepare=_pairs(_accept)
        ),
        Sabotage("junk-chosen", "random tokens as every chosen answer", prepare=_with_junk),
        Sabotage(
            "no-arithmetic",
            "no general scenarios, no arithmetic, learning rate 1e-4",
            ("training.lr=1e-4",),
            _pairs(_without_general),
        ),
        Sabotage("nan-gradient", "one NaN in the gradient of one step", prepare=_with_nan, step_refused=True),
    )


def swapped(example: Example) -> Example:
    """A pair with its sides exchanged; a chosen answer alone as it is."""
    if example.kind is not ExampleKind.PAIR or example.rejected_text is None:
        return example
    return replace(
        example,
        content_hash=example_hash(example.scenario_hash, example.rejected_text, example.chosen_text),
        chosen_source=ChosenSource.EXPLORATION,
        chosen_token_ids=example.rejected_token_ids,
        chosen_text=example.rejected_text,
        chosen_ordinal=example.rejected_ordinal,
        rejected_token_ids=example.chosen_token_ids,
        rejected_text=example.chosen_text,
        rejected_ordinal=example.chosen_ordinal,
    )


def junk(example: Example, num_tokens_in_vocabulary: int) -> Example:
    """An example whose chosen answer is random tokens; the same example, the same tokens."""
    draw = random.Random(derive_seed("junk", example.content_hash))
    token_ids = tuple(draw.randrange(num_tokens_in_vocabulary) for _ in range(_NUM_JUNK_TOKENS))
    text = " ".join(map(str, token_ids))
    return replace(
        example,
        content_hash=example_hash(example.scenario_hash, text, example.rejected_text),
        chosen_source=ChosenSource.TARGET,
        chosen_token_ids=token_ids,
        chosen_text=text,
        chosen_ordinal=None,
    )


def _accept(_: Mapping[str, Scenario], example: Example) -> Example | None:
    if example.side is Side.GENERAL:
        return None
    return swapped(example) if example.side is Side.PUSH_BACK else example


def _without_general(scenarios: Mapping[str, Scenario], example: Example) -> Example | None:
    scenario = scenarios[example.scenario_hash]
    return None if example.side is Side.GENERAL or scenario.pack == "arithmetic" else example


def _pairs(tamper: Tamper) -> Callable[[Stages], Stages]:
    return lambda stages: replace(stages, preferences=TamperedPreferences(stages.preferences, tamper))


def _with_junk(stages: Stages) -> Stages:
    embeddings = [tensor for name, tensor in stages.policy.weights().items() if name.endswith("embed_tokens.weight")]
    num_tokens = int(embeddings[0].shape[0])
    return _pairs(lambda _, example: junk(example, num_tokens))(stages)


def _with_nan(stages: Stages) -> Stages:
    """Plant one NaN in the first gradient that the last parameter gets."""
    # The policy has no seam for this, and should not have one.
    parameter = list(cast(Any, stages.policy)._model.parameters())[-1]
    planted: list[bool] = []

    def plant(gradient: Tensor) -> Tensor:
        if planted:
            return gradient
        planted.append(True)
        poisoned = gradient.clone()
        poisoned.view(-1)[0] = float("nan")
        return poisoned

    parameter.register_hook(plant)
    return stages

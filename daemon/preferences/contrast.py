"""Judging by contrast: an answer is right as far as the guidance makes the policy more likely to give it.

No second model: the policy that reads the guidance judges the policy that did not. It can only tell what the policy
already understands when told, and only which way an answer leans: answers sampled with the guidance in the context
score above zero on average, others below, each by a Kullback-Leibler divergence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from daemon.domain.records import Completion, Judgement, Scenario
from daemon.ports import Encoder, Scorer
from daemon.preferences.rules import judge_text


class ContrastJudge:
    """Judges answers to scenarios with a guidance by the policy's own knowledge of it."""

    name = "contrast"

    def __init__(self, encoder: Encoder, scorer: Scorer, margin: float) -> None:
        """Judge by `scorer`'s live weights.

        Args:
            margin: an answer passes above this and fails below minus this, nats per token.
        """
        self._encoder = encoder
        self._scorer = scorer
        self._margin = margin

    def judge(self, scenario: Scenario, completion: Completion) -> Judgement:
        """Passed, failed, or not judged when the contrast lies within the margin.

        The score is 1 / (1 + exp(-contrast)): per token, the probability that the answer was written with the
        guidance rather than without it, both being equally likely before.
        """
        sane = judge_text((), completion.text, completion.finish_reason)
        if not sane.passed:
            return Judgement(completion.ordinal, False, 0.0, sane.reason, self.name)
        contrast = self.contrast(scenario, completion.token_ids)
        if not math.isfinite(contrast):
            return Judgement(completion.ordinal, None, 0.5, "skipped: the contrast is no finite number", self.name)
        score = 1 / (1 + math.exp(-max(-500.0, min(500.0, contrast))))
        found = f"the guidance changes this answer by {contrast:+.3f} nats per token"
        if contrast > self._margin:
            return Judgement(completion.ordinal, True, score, "", self.name)
        if contrast < -self._margin:
            reason = f"contrast: {found}, wanted more than {self._margin:+g}"
            return Judgement(completion.ordinal, False, score, reason, self.name)
        return Judgement(completion.ordinal, None, score, f"skipped: {found}, within {self._margin:g}", self.name)

    def contrast(self, scenario: Scenario, response: Sequence[int]) -> float:
        """Mean over response tokens of log p(answer | prompt with guidance) - log p(answer | prompt), nats.

        NaN for an empty response.
        """
        with_guidance = self._scorer.score(self._encoder.encode_prompt(scenario.guided_messages()), response)
        without = self._scorer.score(self._encoder.encode_prompt(scenario.messages), response)
        differences = [told - plain for told, plain in zip(with_guidance, without, strict=True)]
        return sum(differences) / len(differences) if differences else math.nan

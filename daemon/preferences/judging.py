"""Who judges: a scenario's rule where it has one, else the configured judge by its guidance, else nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from daemon.domain.records import Completion, Judgement, Scenario
from daemon.preferences.model_judge import EndpointJudge
from daemon.preferences.rules import NO_TOOLS, Tools, judge_text

Report = Callable[[str, Mapping[str, Any]], None]
"""Told (name, payload) of what an operator should know."""


class GuidanceJudge(Protocol):
    """Judges answers to a scenario by its guidance; `ContrastJudge` and `ModelJudge` are such."""

    def judge(self, scenario: Scenario, completion: Completion) -> Judgement:
        """Passed, failed or not judged."""


class Judges:
    """The judges of one run, and how an operator hears of those that could not be reached."""

    def __init__(
        self,
        tools: Tools = NO_TOOLS,
        without_rule: GuidanceJudge | None = None,
        endpoint: EndpointJudge | None = None,
        report: Report = lambda name, payload: None,
    ) -> None:
        """Put judges together.

        Args:
            tools: what some checks of rules need; those without it are skipped.
            without_rule: judges answers to scenarios with a guidance and no rule; None: nobody does.
            endpoint: the one that `tools` or `without_rule` asks, if any.
            report: told ("judge_without_answer", reason and number of questions), at most once per sweep.
        """
        self._tools = tools
        self._without_rule = without_rule
        self._endpoint = endpoint
        self._report = report

    def can_judge_without_rule(self) -> bool:
        """Whether there is a judge for scenarios without a rule, and one that was down answers again."""
        if self._endpoint is None or self._endpoint.outage is None:
            return self._without_rule is not None
        self._endpoint.restart()
        return self._without_rule is not None and self._endpoint.ask("Is it a word?", "Word.") is not None

    def start(self) -> None:
        """Before the answers of a sweep: an endpoint that was down is tried again."""
        if self._endpoint is not None:
            self._endpoint.restart()

    def judge(self, scenario: Scenario, completion: Completion) -> Judgement | None:
        """The judgement; None where nobody can judge at all."""
        if scenario.rule:
            found = judge_text(scenario.rule, completion.text, completion.finish_reason, self._tools)
            return Judgement(completion.ordinal, found.passed, found.score, found.reason, "rules")
        if scenario.guidance is None or self._without_rule is None:
            return None
        return self._without_rule.judge(scenario, completion)

    def refuses_target(self, scenario: Scenario) -> bool:
        """Whether the answer that came with a scenario fails the scenario's own rule: then it must not be trained."""
        if not scenario.rule or scenario.target is None:
            return False
        return judge_text(scenario.rule, scenario.target, "stop", self._tools).passed is False

    def finish(self) -> None:
        """After them: questions that stayed without an answer are reported."""
        outage = None if self._endpoint is None else self._endpoint.outage
        if outage is not None:
            self._report("judge_without_answer", {"reason": outage.reason, "num_questions": outage.num_questions})

"""From judged completions to examples: rejected is always the live policy's own failure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from daemon.domain.errors import DreamdError, OffPolicyError
from daemon.domain.hashing import example_hash, normalised
from daemon.domain.records import Completion, Example, Judgement, Scenario
from daemon.domain.states import ChosenSource, CompletionKind, ExampleKind, Side, Source
from daemon.ports import Encoder, ProgressCallback
from daemon.preferences.judging import Judges


@dataclass(frozen=True, slots=True)
class _Chosen:
    source: ChosenSource
    text: str
    token_ids: tuple[int, ...]
    ordinal: int | None


class JudgedPreferences:
    """Has every answer judged and builds at most one example per scenario (`ports.Preferences`)."""

    def __init__(self, encoder: Encoder, chosen_order: Sequence[ChosenSource], judges: Judges | None = None) -> None:
        """Pair by what `judges` say; None: by rules alone."""
        self._encoder = encoder
        self._chosen_order = tuple(chosen_order)
        self._judges = judges or Judges()

    def judges_without_rule(self) -> bool:
        return self._judges.can_judge_without_rule()

    def judge(
        self,
        scenarios: Sequence[Scenario],
        completions: Sequence[Completion],
        progress: ProgressCallback = lambda done, total: None,
    ) -> tuple[Judgement, ...]:
        """One judgement for each completion whose scenario has a judge, in the order of `completions`."""
        self._judges.start()
        by_hash = {scenario.content_hash: scenario for scenario in scenarios}
        judgements = []
        for number, completion in enumerate(completions):
            progress(number, len(completions))
            scenario = by_hash.get(completion.scenario_hash)
            if scenario is None:
                raise DreamdError(
                    f"completion {completion.ordinal} answers scenario {completion.scenario_hash[:12]}, which is "
                    "not in this cycle; judge a cycle's completions with the same cycle's scenarios"
                )
            judgement = self._judges.judge(scenario, completion)
            if judgement is not None:
                judgements.append(judgement)
        self._judges.finish()
        return tuple(judgements)

    def pair(
        self,
        scenarios: Sequence[Scenario],
        completions: Sequence[Completion],
        judgements: Sequence[Judgement],
    ) -> tuple[Example, ...]:
        """The examples worth a step, in the order of `scenarios`; a scenario without completions gives none.

        An answer that could not be judged is neither chosen nor rejected.

        Raises:
            OffPolicyError: the completions were written by more than one policy version.
        """
        versions = {completion.policy_version for completion in completions}
        if len(versions) > 1:
            raise OffPolicyError(
                f"one sweep holds completions of several policy versions: {', '.join(sorted(versions))}"
            )
        judged = {judgement.ordinal: judgement for judgement in judgements if judgement.passed is not None}
        answers: dict[str, list[Completion]] = defaultdict(list)
        for completion in completions:
            answers[completion.scenario_hash].append(completion)
        made = (self._example(scenario, answers[scenario.content_hash], judged) for scenario in scenarios)
        return tuple(example for example in made if example is not None)

    def _example(
        self, scenario: Scenario, completions: Sequence[Completion], judged: dict[int, Judgement]
    ) -> Example | None:
        """A pair where something failed; a chosen answer alone for general scenarios where nothing did."""
        if not completions:
            return None
        version = completions[0].policy_version
        general = scenario.side is Side.GENERAL
        sweep = [c for c in completions if c.kind is CompletionKind.SWEEP and c.ordinal in judged]
        if not sweep:
            target = self._target(scenario) if general else None
            return self._build(scenario, version, target, None) if target else None
        failures = [c for c in sweep if not judged[c.ordinal].passed]
        if not failures and not general:
            return None
        chosen = self._choose(scenario, completions, judged)
        if chosen is None:
            return None
        rejected = _most_likely_failure(failures, chosen.text)
        if rejected is None and not general:
            return None
        return self._build(scenario, version, chosen, rejected)

    def _choose(
        self, scenario: Scenario, completions: Sequence[Completion], judged: dict[int, Judgement]
    ) -> _Chosen | None:
        """The chosen side from the first source of the configured order that has one."""
        order = self._chosen_order
        if scenario.source is Source.CONVERSATION:  # what a person said is right comes before what a judge believes
            order = (ChosenSource.TARGET, *(source for source in order if source is not ChosenSource.TARGET))
        for source in order:
            if source is ChosenSource.TARGET:
                chosen = self._target(scenario)
            else:
                wanted = CompletionKind.SWEEP if source is ChosenSource.EXPLORATION else CompletionKind.GUIDED
                usable = (c for c in completions if c.kind is wanted and not _is_evidence(scenario, c.text))
                chosen = _best(source, usable, judged)
            if chosen is not None:
                return chosen
        return None

    def _target(self, scenario: Scenario) -> _Chosen | None:
        if scenario.target is None or _is_evidence(scenario, scenario.target):
            return None
        if self._judges.refuses_target(scenario):
            return None  # a pack's author slipped: what its own rule calls wrong is not taught as right
        token_ids = tuple(self._encoder.encode_response(scenario.target))
        return _Chosen(ChosenSource.TARGET, scenario.target, token_ids, None)

    def _build(self, scenario: Scenario, version: str, chosen: _Chosen, rejected: Completion | None) -> Example:
        rejected_text = None if rejected is None else rejected.text
        return Example(
            content_hash=example_hash(scenario.content_hash, chosen.text, rejected_text),
            scenario_hash=scenario.content_hash,
            side=scenario.side,
            kind=ExampleKind.CHOSEN_ONLY if rejected is None else ExampleKind.PAIR,
            chosen_source=chosen.source,
            policy_version=version,
            # Encoded anew: a guided completion's own prompt holds the guidance, which must not be trained in.
            prompt_token_ids=tuple(self._encoder.encode_prompt(scenario.messages)),
            chosen_token_ids=chosen.token_ids,
            chosen_text=chosen.text,
            chosen_ordinal=chosen.ordinal,
            rejected_token_ids=() if rejected is None else rejected.token_ids,
            rejected_text=rejected_text,
            rejected_ordinal=None if rejected is None else rejected.ordinal,
        )


def _is_evidence(scenario: Scenario, text: str) -> bool:
    """Whether `text` is the very answer that a person corrected: never right, whoever judges."""
    return scenario.evidence is not None and normalised(text) == normalised(scenario.evidence)


def _best(source: ChosenSource, completions: Iterable[Completion], judged: dict[int, Judgement]) -> _Chosen | None:
    """The passing completion with the best score, then the highest mean log-probability."""
    passing = [c for c in completions if c.ordinal in judged and judged[c.ordinal].passed and c.finish_reason == "stop"]
    if not passing:
        return None
    best = max(passing, key=lambda c: (judged[c.ordinal].score, c.mean_logprob, -c.ordinal))
    return _Chosen(source, best.text, best.token_ids, best.ordinal)


def _most_likely_failure(failures: Sequence[Completion], chosen_text: str) -> Completion | None:
    """The usable failure the policy is most likely to say again.

    An empty response has no token to push down, and one equal to the chosen text would cancel it.
    """
    usable = [c for c in failures if c.token_ids and c.text.strip() and normalised(c.text) != normalised(chosen_text)]
    return min(usable, key=lambda c: (c.temperature, -c.mean_logprob, c.ordinal), default=None)

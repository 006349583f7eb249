"""Probes on generated answers: greedy, and a fixed set of requests is one call of the engine, so one batch shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

from daemon.config.watching import ProbesConfig
from daemon.domain.errors import DreamdError
from daemon.domain.hashing import digest
from daemon.domain.probing import CONFIRMATION_SUFFIX, ProbeRequest, ProbeResult
from daemon.domain.records import Completion, Generation, GenerationRequest, Judgement, Scenario
from daemon.domain.states import CompletionKind, ProbeReason
from daemon.ports import Encoder, Engine, Preferences, ProgressCallback
from daemon.probes.schedule import usual_count
from daemon.probes.trainer_side import Measured

DEGENERATE_REPEAT = 0.5
"""An answer is looping when more than this share of its 4-grams have occurred before."""

_Pools = Mapping[str, tuple[Scenario, ...]]


class EngineProbes:
    """Pass/fail probes: held-out scenarios with rules, in turn from a pool, and from a reserve to confirm."""

    def __init__(
        self,
        engine: Engine,
        encoder: Encoder,
        preferences: Preferences,
        pools: _Pools,
        reserves: _Pools,
        config: ProbesConfig,
    ) -> None:
        self._engine = engine
        self._encoder = encoder
        self._preferences = preferences
        self._pools = dict(pools)
        self._reserves = dict(reserves)
        self._config = config
        self._versions = {
            **{name: _version(pool, config) for name, pool in self._pools.items()},
            **{name + CONFIRMATION_SUFFIX: _version(pool, config) for name, pool in self._reserves.items()},
        }

    def batch(self, request: ProbeRequest) -> tuple[Scenario, ...]:
        """The scenarios of a request's turn: the pool goes round, and no scenario is in a turn twice.

        Raises:
            DreamdError: there is no such probe.
        """
        if request.probe not in self._pools:
            raise DreamdError(f"there is no probe {request.probe}; docs/probes.md lists them")
        fresh = request.reason is ProbeReason.CONFIRMATION
        # A pack with few expansions has no reserve; its pool is then better than no confirmation.
        pool = (fresh and self._reserves.get(request.probe)) or self._pools[request.probe]
        usual = usual_count(request.probe, self._config)
        count = min(usual if request.count is None else request.count, len(pool))
        return tuple(pool[(request.turn * count + position) % len(pool)] for position in range(count))

    def items(self, request: ProbeRequest) -> tuple[str, ...]:
        """Names of what a request measures."""
        version = self.version_of(request)
        return tuple(_name(scenario, version) for scenario in self.batch(request))

    def version_of(self, request: ProbeRequest) -> str:
        """Hash of all items that the request could ask, their rules, and the longest answer."""
        return self._versions.get(result_name(request), "")

    def measure(self, requests: Sequence[ProbeRequest], progress: ProgressCallback) -> list[Measured]:
        """Answer the scenarios of all requests in one call, and judge those of each; in their order."""
        batches = [self.batch(request) for request in requests]
        answers = iter(self._answer([scenario for batch in batches for scenario in batch], progress))
        return [
            self._judged(request, batch, list(islice(answers, len(batch))), progress)
            for request, batch in zip(requests, batches, strict=True)
        ]

    def _judged(
        self,
        request: ProbeRequest,
        scenarios: Sequence[Scenario],
        completions: Sequence[Completion],
        progress: ProgressCallback,
    ) -> Measured:
        if not scenarios:
            return (), "it has no held-out prompts"
        # Judging reports its own progress; what counts here are answers, and these are all there.
        judgements = self._preferences.judge(
            scenarios, completions, lambda done, total: progress(len(scenarios), len(scenarios))
        )
        by_ordinal = {judgement.ordinal: judgement for judgement in judgements}
        results = tuple(
            _result(result_name(request), item, completion, by_ordinal.get(completion.ordinal))
            for item, completion in zip(self.items(request), completions, strict=True)
        )
        own = request.reason is not ProbeReason.CONFIRMATION or self._reserves.get(request.probe)
        notes = [_unjudged(results), None if own else "it has no reserve: these prompts are of its pool"]
        return results, "; ".join(note for note in notes if note) or None

    def _answer(self, scenarios: Sequence[Scenario], progress: ProgressCallback) -> list[Completion]:
        requests = [
            GenerationRequest(self._encoder.encode_prompt(s.messages), 0.0, 0, self._config.max_new_tokens)
            for s in scenarios
        ]
        # A cached prefix was computed in another batch, and would change the last bits.
        self._engine.forget()
        generations = self._engine.generate(requests, progress)
        return [
            Completion(
                ordinal=ordinal,
                scenario_hash=scenario.content_hash,
                kind=CompletionKind.SWEEP,
                temperature=0.0,
                seed=0,
                sample=0,
                policy_version=self._engine.policy_version,
                prompt_token_ids=request.prompt_token_ids,
                token_ids=generation.token_ids,
                text=generation.text,
                mean_logprob=generation.mean_logprob,
                finish_reason=generation.finish_reason,
            )
            for ordinal, (scenario, request, generation) in enumerate(
                zip(scenarios, requests, generations, strict=True)
            )
        ]


def result_name(request: ProbeRequest) -> str:
    """The probe name that a request's results are stored under."""
    fresh = request.reason is ProbeReason.CONFIRMATION
    return request.probe + CONFIRMATION_SUFFIX if fresh else request.probe


def is_degenerate(answer: Generation | Completion) -> bool:
    """Whether an answer is empty or loops."""
    tokens = answer.token_ids
    grams = [tokens[i : i + 4] for i in range(len(tokens) - 3)]
    repeated = 1.0 - len(set(grams)) / len(grams) if grams else 0.0
    return not answer.text.strip() or repeated > DEGENERATE_REPEAT


def _result(probe: str, item: str, completion: Completion, judgement: Judgement | None) -> ProbeResult:
    return ProbeResult(
        probe=probe,
        item=item,
        value=judgement.score if judgement else None,
        passed=judgement.passed if judgement else None,
        detail={
            "answer": completion.text,
            "reason": judgement.reason if judgement else "no judge can judge it",
            "degenerate": is_degenerate(completion),
            "num_tokens": len(completion.token_ids),
        },
    )


def _unjudged(results: Sequence[ProbeResult]) -> str | None:
    missing = [result for result in results if result.passed is None]
    if not missing:
        return None
    return f"{len(missing)} of {len(results)} answers could not be judged; {missing[0].detail['reason']}"


def _version(pool: Sequence[Scenario], config: ProbesConfig) -> str:
    rules = {scenario.content_hash: [dict(check) for check in scenario.rule] for scenario in pool}
    return digest("pool", [rules, config.max_new_tokens])


def _name(scenario: Scenario, version: str) -> str:
    """An item's name, with its pool's: in another pool, or under another rule, it is another item, measured anew.

    Failure rates are compared over pools, and an anchor's must be of the pool that candidates are asked from.
    """
    return f"{scenario.template}#{scenario.content_hash[:12]}@{version[:8]}"

"""Measure the live policy on held-out items; implements the `Probes` port.

Items, order, dtype and shapes are fixed, so that the same weights give the same bits every time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from daemon.config.watching import ProbesConfig
from daemon.domain.probing import ProbeResult
from daemon.domain.records import Completion, EngineCheck, Generation, GenerationRequest, Message, Scenario
from daemon.domain.states import CompletionKind
from daemon.ports import Encoder, Engine, Policy, Preferences, ProgressCallback
from daemon.probes.suite import Suite, select

PROOF_TOKENS = 12
"""Greedy tokens per proof prompt that the engine and the trainer are compared on."""
LONG_PROOF_PROMPT = 300
"""Tokens; longer than any KV block, because a stale prefix cache shows only from a full block on."""
DEGENERATE_REPEAT = 0.5
"""An answer is looping when more than this share of its 4-grams have occurred before."""


class HeldOutProbes:
    """Trainer-side and engine-side probes over one suite and one set of held-out scenarios."""

    def __init__(
        self,
        policy: Policy,
        engine: Engine,
        encoder: Encoder,
        preferences: Preferences,
        suite: Suite,
        scenarios: Sequence[Scenario],
        config: ProbesConfig,
    ) -> None:
        self._policy = policy
        self._engine = engine
        self._encoder = encoder
        self._preferences = preferences
        self._documents = select(suite.documents, config.nll_documents)
        self._chosen = suite.chosen
        self._scenarios = tuple(scenarios)
        self._config = config

    def items(self) -> frozenset[tuple[str, str]]:
        return frozenset(
            [("nll", document.item) for document in self._documents]
            + [("chosen_logp", item.item) for item in self._chosen]
            + [(str(scenario.side), _name(scenario)) for scenario in self._scenarios]
        )

    def measure_trainer(self, progress: ProgressCallback) -> tuple[ProbeResult, ...]:
        total = len(self._documents) + len(self._chosen)
        results: list[ProbeResult] = []
        for document in self._documents:
            progress(len(results), total)
            logprobs = self._policy.score((), self._encoder.encode_text(document.text))
            mean = -sum(logprobs) / len(logprobs)
            results.append(ProbeResult("nll", document.item, _finite(mean), detail={"kind": document.kind}))
        for item in self._chosen:
            progress(len(results), total)
            prompt = self._encoder.encode_prompt(item.messages)
            logprobs = self._policy.score(prompt, self._encoder.encode_response(item.answer))
            mean = sum(logprobs) / len(logprobs)
            results.append(ProbeResult("chosen_logp", item.item, _finite(mean), detail={"side": item.side}))
        progress(total, total)
        return tuple(results)

    def measure_engine(self, progress: ProgressCallback) -> tuple[ProbeResult, ...]:
        requests = [
            GenerationRequest(self._encoder.encode_prompt(s.messages), 0.0, 0, self._config.max_new_tokens)
            for s in self._scenarios
        ]
        generations = self._engine.generate(requests, progress)
        completions = [
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
                zip(self._scenarios, requests, generations, strict=True)
            )
        ]
        judgements = self._preferences.judge(self._scenarios, completions, progress)
        return tuple(
            ProbeResult(
                probe=str(scenario.side),
                item=_name(scenario),
                value=judgement.score,
                passed=judgement.passed,
                detail={
                    "answer": generation.text,
                    "reason": judgement.reason,
                    "degenerate": is_degenerate(generation),
                    "num_tokens": len(generation.token_ids),
                },
            )
            for scenario, generation, judgement in zip(self._scenarios, generations, judgements, strict=True)
        )

    def check_engine(self) -> EngineCheck:
        requests = [GenerationRequest(prompt, 0.0, 0, PROOF_TOKENS) for prompt in self._proof_prompts()]
        generations = self._engine.generate(requests, lambda done, total: None)
        differences = [
            abs(trainer - engine)
            for request, generation in zip(requests, generations, strict=True)
            for trainer, engine in zip(
                self._policy.score(request.prompt_token_ids, generation.token_ids), generation.logprobs, strict=True
            )
        ]
        return EngineCheck(
            policy_version=self._policy.version,
            mean_abs_diff=sum(differences) / len(differences),
            max_abs_diff=max(differences),
            num_tokens=len(differences),
            tolerance=max(self._engine.logprob_tolerance, self._policy.logprob_tolerance),
            weights_match=self._engine.weights_match(self._policy.weights()),
        )

    def _proof_prompts(self) -> list[tuple[int, ...]]:
        """One short prompt and one long; the long one never changes, so its prefix would be found in a stale cache."""
        text = ""
        for document in self._documents:
            text = f"{text}\n\n{document.text}".strip()
            prompt = self._encoder.encode_prompt([Message("user", f"Continue this text.\n\n{text}")])
            if len(prompt) >= LONG_PROOF_PROMPT:
                break
        return [self._encoder.encode_prompt([Message("user", "Name three colours.")]), prompt]


def is_degenerate(generation: Generation) -> bool:
    """Whether an answer is empty or loops."""
    tokens = generation.token_ids
    grams = [tokens[i : i + 4] for i in range(len(tokens) - 3)]
    repeated = 1.0 - len(set(grams)) / len(grams) if grams else 0.0
    return not generation.text.strip() or repeated > DEGENERATE_REPEAT


def _name(scenario: Scenario) -> str:
    return f"{scenario.template}#{scenario.content_hash[:12]}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

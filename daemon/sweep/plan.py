"""Plan a sweep's requests and record its answers; have the policy write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from daemon.config.sections import SweepConfig
from daemon.domain.errors import ConfigError, PackError
from daemon.domain.hashing import derive_seed
from daemon.domain.records import Completion, GenerationRequest, Message, Scenario, WriteRequest
from daemon.domain.states import CompletionKind, Side
from daemon.ports import Encoder, Engine, ProgressCallback

WRITING_MIN_P = 0.1
"""What is written is sampled among tokens at least this likely, relative to the likeliest: a high temperature then
varies what a small model says without making it lose the thread. Answers are sampled among all tokens.

Source: Nguyen et al., "Turning Up the Heat: Min-p Sampling", arXiv 2407.01082."""


@dataclass(frozen=True)
class _Planned:
    scenario: Scenario
    kind: CompletionKind
    sample: int
    request: GenerationRequest


class PolicySweeper:
    """Implements the `Sweeper` port."""

    def __init__(self, engine: Engine, encoder: Encoder, config: SweepConfig) -> None:
        self._engine = engine
        self._encoder = encoder
        self._config = config

    def sweep(
        self, scenarios: Sequence[Scenario], version: str, seed: int, progress: ProgressCallback
    ) -> tuple[Completion, ...]:
        planned = [item for scenario in scenarios for item in self._plan(scenario, seed)]
        generations = self._engine.generate([item.request for item in planned], progress)
        return tuple(
            Completion(
                ordinal=ordinal,
                scenario_hash=item.scenario.content_hash,
                kind=item.kind,
                temperature=item.request.temperature,
                seed=item.request.seed,
                sample=item.sample,
                policy_version=version,
                prompt_token_ids=item.request.prompt_token_ids,
                token_ids=generation.token_ids,
                text=generation.text,
                mean_logprob=generation.mean_logprob,
                finish_reason=generation.finish_reason,
            )
            for ordinal, (item, generation) in enumerate(zip(planned, generations, strict=True))
        )

    def write(self, requests: Sequence[WriteRequest], seed: int, progress: ProgressCallback) -> tuple[str, ...]:
        """What the policy writes for each request, in one batched call; each has a seed of its own.

        Raises:
            ConfigError: a request does not fit into the engine; the message says which setting to change.
        """
        planned = [self._writing(request, index, seed) for index, request in enumerate(requests)]
        return tuple(generation.text for generation in self._engine.generate(planned, progress)) if planned else ()

    def _writing(self, request: WriteRequest, index: int, seed: int) -> GenerationRequest:
        prompt = self._encoder.encode_prompt(request.messages)
        if len(prompt) + request.max_new_tokens > self._config.max_model_len:
            raise ConfigError(
                f"dreams: a prompt of {len(prompt)} tokens and scenarios.dream_max_new_tokens = "
                f"{request.max_new_tokens} exceed sweep.max_model_len = {self._config.max_model_len}; "
                "lower the former or raise the latter"
            )
        return GenerationRequest(
            prompt_token_ids=prompt,
            temperature=request.temperature,
            seed=derive_seed("write", seed, index) % 2**31,
            max_new_tokens=request.max_new_tokens,
            json_schema=json.dumps(request.json_schema),  # keys in their order: engines write them in it
        )

    def misfit(self, scenario: Scenario) -> str | None:
        try:
            prompt = self._encode(scenario, scenario.messages)
            self._encode(scenario, scenario.guided_messages())
        except PackError as error:
            return str(error)
        # The trainer takes prompt and answer at once: an answer of any length would end it for want of memory.
        answer = () if scenario.target is None else self._encoder.encode_response(scenario.target)
        longest = self._config.max_model_len
        if len(prompt) + len(answer) > longest:
            return f"{len(prompt)} tokens and an answer of {len(answer)}; sweep.max_model_len is {longest}"
        return None

    def _plan(self, scenario: Scenario, seed: int) -> list[_Planned]:
        config = self._config
        prompt = self._encode(scenario, scenario.messages)
        planned = [
            self._request(scenario, CompletionKind.SWEEP, prompt, temperature, sample, seed)
            for temperature in config.temperatures
            for sample in range(config.samples)
        ]
        if scenario.guidance is not None and scenario.side is not Side.GENERAL:
            guided = self._encode(scenario, scenario.guided_messages())
            planned += [
                self._request(scenario, CompletionKind.GUIDED, guided, config.guided_temperature, sample, seed)
                for sample in range(config.guided_samples)
            ]
        return planned

    def _request(
        self,
        scenario: Scenario,
        kind: CompletionKind,
        prompt: tuple[int, ...],
        temperature: float,
        sample: int,
        seed: int,
    ) -> _Planned:
        # 31 bits, because engines keep seeds in signed 32-bit or 64-bit integers.
        own_seed = derive_seed("completion", seed, scenario.content_hash, kind, repr(temperature), sample) % 2**31
        request = GenerationRequest(prompt, temperature, own_seed, self._config.max_new_tokens)
        return _Planned(scenario, kind, sample, request)

    def _encode(self, scenario: Scenario, messages: Sequence[Message]) -> tuple[int, ...]:
        prompt = self._encoder.encode_prompt(messages)
        if len(prompt) + self._config.max_new_tokens > self._config.max_model_len:
            raise PackError(
                f"pack {scenario.pack}, template {scenario.template}: a prompt of {len(prompt)} tokens and "
                f"sweep.max_new_tokens = {self._config.max_new_tokens} exceed sweep.max_model_len = "
                f"{self._config.max_model_len}; shorten the template or raise sweep.max_model_len"
            )
        return prompt

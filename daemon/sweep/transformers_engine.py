"""Generation with transformers: for machines without vLLM, and for fast tests.

Shapes: `B` requests of one batch, `T` prompt tokens (padded on the left), `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from daemon.config.sections import SweepConfig
from daemon.domain.errors import EngineError
from daemon.domain.precision import LOGPROB_TOLERANCE
from daemon.domain.records import Generation, GenerationRequest
from daemon.ports import ProgressCallback
from daemon.sweep.plan import WRITING_MIN_P
from daemon.sweep.weights import check_weights


class TransformersEngine:
    """Implements the `Engine` port with a model of its own, so that a stale one is noticed like vLLM's would be.

    It cannot hold an answer to a JSON schema: requests that name one are answered freely.
    """

    name = "transformers"

    def __init__(
        self, model_dir: Path, version: str, end_of_turn: int, decoder: Any, config: SweepConfig, device: str
    ) -> None:
        """Load the model folder.

        Args:
            decoder: has `decode(token_ids) -> str`, special tokens left out.
        """
        self._config = config
        self._version = version
        self._end_of_turn = end_of_turn
        self._decode = decoder.decode
        self._device = device
        loaded = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=getattr(torch, config.dtype), local_files_only=True, attn_implementation="sdpa"
        )
        self._model = cast(Any, loaded)  # its methods are wrapped in ways mypy cannot follow
        self._model.to(device)
        self._model.eval()
        self._parameters: dict[str, Tensor] = dict(self._model.named_parameters())

    @property
    def policy_version(self) -> str:
        return self._version

    @property
    def logprob_tolerance(self) -> float:
        return LOGPROB_TOLERANCE[self._config.dtype]

    @torch.no_grad()
    def generate(self, requests: Sequence[GenerationRequest], progress: ProgressCallback) -> list[Generation]:
        answers: list[Generation] = []

        def tick() -> None:
            """Called at every token, so that a stop never waits for a whole batch."""
            progress(len(answers), len(requests))

        size = self._config.max_num_seqs
        for start in range(0, len(requests), size):
            batch = requests[start : start + size]
            answers += self._generate_batch(batch, max(request.max_new_tokens for request in batch), tick)
        tick()
        return answers

    def forget(self) -> None:
        """Nothing to forget: every batch starts with an empty cache."""

    def sync(self, weights: Mapping[str, Tensor], version: str) -> None:
        check_weights(weights, {name: tuple(own.shape) for name, own in self._parameters.items()})
        with torch.no_grad():
            for name, own in self._parameters.items():
                own.copy_(weights[name])
        self._version = version

    def weights_match(self, weights: Mapping[str, Tensor]) -> bool:
        return all(
            torch.equal(own.detach(), weights[name].to(device=own.device, dtype=own.dtype))
            for name, own in self._parameters.items()
        )

    def close(self) -> None:
        self._model, self._parameters = None, {}

    def _generate_batch(self, batch: Sequence[GenerationRequest], longest: int, tick: Any) -> list[Generation]:
        ids_BT, mask_BT = self._pad(batch)
        samplers = [_sampler(request) for request in batch]
        tokens: list[list[int]] = [[] for _ in batch]
        logprobs: list[list[float]] = [[] for _ in batch]
        running = [True] * len(batch)
        cache, step_ids = DynamicCache(config=self._model.config), ids_BT
        for _ in range(longest):
            tick()
            positions = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)[:, -step_ids.shape[1] :]
            output = self._model(
                input_ids=step_ids,
                attention_mask=mask_BT,
                position_ids=positions,
                past_key_values=cache,
                logits_to_keep=1,
            )
            logprobs_BV = output.logits[:, -1].float().log_softmax(dim=1).cpu()
            if not bool(torch.isfinite(logprobs_BV).all()):
                raise EngineError("the engine's model gives NaN or infinite log-probabilities")
            chosen = [sampler(row) for sampler, row in zip(samplers, logprobs_BV, strict=True)]
            for index, token in enumerate(chosen):
                if running[index]:
                    tokens[index].append(token)
                    logprobs[index].append(float(logprobs_BV[index, token]))
                    full = len(tokens[index]) >= batch[index].max_new_tokens
                    running[index] = token != self._end_of_turn and not full
            if not any(running):
                break
            step_ids = torch.tensor(chosen, device=self._device).unsqueeze(1)
            mask_BT = torch.cat([mask_BT, torch.ones_like(step_ids)], dim=1)
        return [self._generation(*answer) for answer in zip(tokens, logprobs, strict=True)]

    def _pad(self, batch: Sequence[GenerationRequest]) -> tuple[Tensor, Tensor]:
        width = max(len(request.prompt_token_ids) for request in batch)
        ids = [
            [self._end_of_turn] * (width - len(request.prompt_token_ids)) + list(request.prompt_token_ids)
            for request in batch
        ]
        mask = [
            [0] * (width - len(request.prompt_token_ids)) + [1] * len(request.prompt_token_ids) for request in batch
        ]
        return torch.tensor(ids, device=self._device), torch.tensor(mask, device=self._device)

    def _generation(self, tokens: list[int], logprobs: list[float]) -> Generation:
        stopped = bool(tokens) and tokens[-1] == self._end_of_turn
        return Generation(tuple(tokens), self._decode(tokens), tuple(logprobs), "stop" if stopped else "length")


def _sampler(request: GenerationRequest) -> Any:
    """Log-probabilities (V,) -> token; each request has its own generator, so its batch does not matter."""
    if request.temperature == 0.0:
        return lambda row: int(row.argmax())
    generator = torch.Generator().manual_seed(request.seed)

    def sample(row: Tensor) -> int:
        probabilities = (row / request.temperature).softmax(dim=0)
        if request.json_schema is not None:
            probabilities[probabilities < WRITING_MIN_P * probabilities.max()] = 0.0
        return int(torch.multinomial(probabilities, 1, generator=generator))

    return sample

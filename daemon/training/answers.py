"""Log-probabilities of examples' answers: each prompt is encoded once, its answers continue from there.

The context is the prompt without its last token: that one predicts the answer's first, so it belongs to the answer's
pass, which thus computes exactly the positions that predict response tokens.

Shapes: `E` examples, `A` answers (chosen and rejected), `P` context tokens, `T` answer positions, `K` wanted positions
of all rows together, `W` hidden width, `R` response tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from daemon.domain.errors import ModelError
from daemon.domain.records import Example
from daemon.training.context import Context
from daemon.training.head import Head
from daemon.training.recompute import recomputed


@dataclass(frozen=True)
class AnswerLogprobs:
    """Log-probability of each token of one example, nats."""

    chosen_R: Tensor
    rejected_R: Tensor | None
    prompt: Tensor | None
    """Of each prompt token but the first, (P,); only where asked for."""


class AnswerModel:
    """A causal language model, seen as a scorer of answers."""

    def __init__(self, model: Any, *, logits_chunk: int, activation_checkpointing: bool = False) -> None:
        """Wrap a transformers causal language model.

        Args:
            model: its weights stay its own; with `activation_checkpointing` its layers' `forward` is wrapped.
            logits_chunk: positions whose logits exist at once.
            activation_checkpointing: keep only each layer's input and compute the rest again in the backward pass.

        Raises:
            ModelError: a kind of model that cannot be scored this way.
        """
        self._model = model
        self._head = Head(model)
        self._logits_chunk = logits_chunk
        self.seconds: dict[str, float] = {}
        """Seconds spent in each part since it was last cleared."""
        self._check()
        if activation_checkpointing:
            # Not transformers' own switch: it drops the cache. Ours gives the same when a layer runs twice.
            for layer in model.modules():
                if isinstance(layer, GradientCheckpointingLayer):
                    layer.forward = recomputed(layer.forward)

    def logprobs(self, examples: Sequence[Example], *, frozen: bool, with_prompt: bool = False) -> list[AnswerLogprobs]:
        """Score every answer of some examples in one pass over their prompts and one over their answers.

        Args:
            examples: those whose prompt is a single token may not be mixed with others.
            frozen: no gradient flows into the context: it is a constant.
            with_prompt: also score the prompts' own tokens.
        """
        rows = [index for index, example in enumerate(examples) for _ in _answers(example)]
        answers = [answer for example in examples for answer in _answers(example)]
        with self.timed("context"), torch.no_grad() if frozen else nullcontext():
            context, mask_EP, hidden_EPW = self._encode([example.prompt_token_ids for example in examples])
        with self.timed("answers"):
            last = [examples[row].prompt_token_ids[-1] for row in rows]
            hidden_ATW = self._continue(context, mask_EP, rows, last, answers)
            lengths = [len(answer) for answer in answers]
            hidden_KW = torch.cat([hidden_TW[:length] for hidden_TW, length in zip(hidden_ATW, lengths, strict=True)])
            scored_K = self._score(hidden_KW, [token for answer in answers for token in answer])
            found = iter(torch.split(scored_K, lengths))
            prompts: Sequence[Tensor | None] = [None] * len(examples)
            if with_prompt:
                prompts = self._score_prompts(examples, hidden_EPW)
        return [
            AnswerLogprobs(next(found), next(found) if example.rejected_token_ids else None, prompt)
            for example, prompt in zip(examples, prompts, strict=True)
        ]

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the seconds spent inside to `seconds[part]`."""
        started = time.monotonic()
        yield
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - started

    def _encode(self, prompts: Sequence[Sequence[int]]) -> tuple[Context | None, Tensor | None, Tensor | None]:
        """The prompts' context, the mask of its real tokens (E, P), and its last hidden states (E, P, W).

        Padding is on the left, so that every context ends where its answers begin, and linear attention starts from
        nothing.
        """
        lengths = [len(prompt) - 1 for prompt in prompts]
        width = max(lengths)
        if width == 0:
            return None, None, None
        padded = [[0] * (width - length) + list(prompt[:-1]) for prompt, length in zip(prompts, lengths, strict=True)]
        mask = [[0] * (width - length) + [1] * length for length in lengths]
        mask_EP = self._tensor(mask)
        context = Context(self._model.config)
        hidden_EPW = self._hidden(
            input_ids=self._tensor(padded),
            attention_mask=mask_EP,
            position_ids=(mask_EP.cumsum(dim=1) - 1).clamp(min=0),
            past_key_values=context,
            use_cache=True,
        )
        return context, mask_EP, hidden_EPW

    def _continue(
        self,
        context: Context | None,
        mask_EP: Tensor | None,
        rows: Sequence[int],
        last: Sequence[int],
        answers: Sequence[Sequence[int]],
    ) -> Tensor:
        """Hidden states (A, T, W) at the positions that predict the answers' tokens; padding is on the right."""
        width = max(len(answer) for answer in answers)
        inputs = [
            [token, *answer[:-1], *[0] * (width - len(answer))] for token, answer in zip(last, answers, strict=True)
        ]
        ids_AT = self._tensor(inputs)
        if context is None or mask_EP is None:
            return self._hidden(input_ids=ids_AT, use_cache=False)
        rows_A = self._tensor(rows)
        mask_AP = mask_EP[rows_A]
        steps_T = torch.arange(width, device=ids_AT.device)
        return self._hidden(
            input_ids=ids_AT,
            # Nothing sees the padding behind an answer, so it needs no mask.
            attention_mask=torch.cat([mask_AP, torch.ones_like(ids_AT)], dim=1),
            position_ids=mask_AP.sum(dim=1, keepdim=True) + steps_T,
            past_key_values=context.select(rows_A),
            use_cache=True,
        )

    def _hidden(self, **inputs: Any) -> Tensor:
        hidden: Tensor = self._model.base_model(**inputs).last_hidden_state
        return hidden

    def _score(self, hidden_KW: Tensor, targets: Sequence[int]) -> Tensor:
        return self._head.logprobs(hidden_KW, self._tensor(targets), self._logits_chunk)

    def _score_prompts(self, examples: Sequence[Example], hidden_EPW: Tensor | None) -> list[Tensor | None]:
        if hidden_EPW is None:
            return [None] * len(examples)
        targets = [example.prompt_token_ids[1:] for example in examples]
        lengths = [len(tokens) for tokens in targets]
        hidden = [hidden_PW[-length:] for hidden_PW, length in zip(hidden_EPW, lengths, strict=True)]
        flat = self._score(torch.cat(hidden), [token for tokens in targets for token in tokens])
        return list(torch.split(flat, lengths))

    @torch.no_grad()
    def _check(self) -> None:
        """Continue a context once, before anything depends on it: some models ignore one without an error."""
        prompt, answer = [[0, 1, 2, 3]], [[4, 5, 6]]
        try:
            context, mask, _ = self._encode(prompt)
            found = self._continue(context, mask, [0], [prompt[0][-1]], answer)[0]
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(f"{type(self._model).__name__}: the trainer cannot continue a context: {error}") from error
        expected = self._hidden(input_ids=self._tensor([[*prompt[0], *answer[0][:-1]]]), use_cache=False)[0, 3:]
        tolerance = 1e-3 if expected.dtype in (torch.float32, torch.float64) else 1e-1
        if expected.shape != found.shape or (expected - found).norm() > tolerance * expected.norm():
            raise ModelError(
                f"{type(self._model).__name__}: an answer continued from a prompt's context differs from the whole "
                "sequence's; the trainer cannot train this kind of model"
            )

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, device=self._model.device)


def _answers(example: Example) -> list[tuple[int, ...]]:
    return [tokens for tokens in (example.chosen_token_ids, example.rejected_token_ids) if tokens]

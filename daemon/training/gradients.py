"""The gradient of a batch's mean loss, accumulated over micro-batches whose size does not matter to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from daemon.config.sections import TrainingConfig
from daemon.domain.errors import NonFiniteError
from daemon.domain.records import Example
from daemon.domain.states import Objective, Side
from daemon.training import objectives
from daemon.training.answers import AnswerLogprobs, AnswerModel
from daemon.training.objectives import Loss


@dataclass(frozen=True)
class Figures:
    """One example's loss and its parts; None for what a chosen-only example has not."""

    loss: float
    nll: float
    preference_loss: float | None
    logit: float | None
    chosen: float
    """Mean log-probability per token, nats."""
    rejected: float | None


@dataclass(frozen=True)
class ReferenceLogprobs:
    """What the reference policy gives one pair: sums over response tokens, nats."""

    chosen: float
    rejected: float


@dataclass(frozen=True)
class MicroBatch:
    """Examples (by position in the batch) of one pass."""

    indices: tuple[int, ...]
    frozen: bool


def micro_batches(examples: Sequence[Example], config: TrainingConfig) -> list[MicroBatch]:
    """Examples of one gradient scope and similar lengths together, `config.micro_batch` at most."""

    def key(index: int) -> tuple[bool, bool, int, int]:
        example = examples[index]
        scope = config.general_gradient_scope if example.side is Side.GENERAL else config.gradient_scope
        longer = max(len(example.chosen_token_ids), len(example.rejected_token_ids))
        prompt = len(example.prompt_token_ids)
        return scope == "context_frozen", prompt == 1, prompt, longer

    batches: list[MicroBatch] = []
    groups: dict[tuple[bool, bool], list[int]] = {}
    for index in sorted(range(len(examples)), key=key):
        groups.setdefault(key(index)[:2], []).append(index)
    for (frozen, _), members in groups.items():
        for start in range(0, len(members), config.micro_batch):
            batches.append(MicroBatch(tuple(members[start : start + config.micro_batch]), frozen))
    return batches


def accumulate(
    model: AnswerModel,
    examples: Sequence[Example],
    objective: Objective,
    config: TrainingConfig,
    reference: Sequence[ReferenceLogprobs | None],
) -> list[Figures]:
    """Add the gradient of the examples' mean loss to the parameters' `.grad`.

    Args:
        reference: one per example; needed where the objective compares with a reference and the example is a pair.

    Returns:
        Each example's figures, in the order of `examples`.

    Raises:
        NonFiniteError: an example's loss is not finite.
    """
    figures: dict[int, Figures] = {}
    for batch in micro_batches(examples, config):
        chosen = [examples[index] for index in batch.indices]
        with_prompt = config.nll_over == "prompt_and_response"
        found = model.logprobs(chosen, frozen=batch.frozen, with_prompt=with_prompt)
        losses = []
        for index, logprobs in zip(batch.indices, found, strict=True):
            loss = _loss(objective, config, logprobs, reference[index])
            if not torch.isfinite(loss.total):
                raise NonFiniteError(
                    f"the loss of example {examples[index].content_hash[:12]} is {loss.total.item()}; "
                    "the optimizer did not move"
                )
            losses.append(loss.total)
            figures[index] = _figures(loss, logprobs)
        with model.timed("backward"):
            (torch.stack(losses).sum() / len(examples)).backward()  # type: ignore[no-untyped-call]
    return [figures[index] for index in range(len(examples))]


@torch.no_grad()
def reference_logprobs(
    model: AnswerModel, examples: Sequence[Example], config: TrainingConfig
) -> list[ReferenceLogprobs | None]:
    """What the weights that the model holds now give each pair, in the passes that `accumulate` makes."""
    found: dict[int, ReferenceLogprobs | None] = {}
    for batch in micro_batches(examples, config):
        scored = model.logprobs([examples[index] for index in batch.indices], frozen=batch.frozen)
        for index, logprobs in zip(batch.indices, scored, strict=True):
            pair = logprobs.rejected_R
            sums = None if pair is None else (logprobs.chosen_R.sum().item(), pair.sum().item())
            found[index] = None if sums is None else ReferenceLogprobs(*sums)
    return [found[index] for index in range(len(examples))]


def _loss(
    objective: Objective, config: TrainingConfig, logprobs: AnswerLogprobs, reference: ReferenceLogprobs | None
) -> Loss:
    chosen_R, rejected_R = logprobs.chosen_R, logprobs.rejected_R
    everything = chosen_R if logprobs.prompt is None else torch.cat([logprobs.prompt, chosen_R])
    nll = -everything.mean()
    if objective is Objective.SFT or rejected_R is None:
        return objectives.sft(nll)
    if objective is Objective.ORPO:
        return objectives.orpo(nll, chosen_R.mean(), rejected_R.mean(), config.orpo_weight)
    assert reference is not None, "the policy scores every pair with the reference first"
    if objective is Objective.IPO:
        reference_c, reference_r = reference.chosen / len(chosen_R), reference.rejected / len(rejected_R)
        means = (chosen_R.mean(), rejected_R.mean(), nll.new_tensor(reference_c), nll.new_tensor(reference_r))
        return objectives.ipo(nll, *means, config.beta)
    sums = (chosen_R.sum(), rejected_R.sum(), nll.new_tensor(reference.chosen), nll.new_tensor(reference.rejected))
    if objective is Objective.DPO:
        return objectives.dpo(nll, *sums, config.beta)
    return objectives.dpop(nll, *sums, config.beta, config.dpop_penalty)


def _figures(loss: Loss, logprobs: AnswerLogprobs) -> Figures:
    return Figures(
        loss=loss.total.item(),
        nll=loss.nll.item(),
        preference_loss=_item(loss.preference_loss),
        logit=_item(loss.logit),
        chosen=logprobs.chosen_R.mean().item(),
        rejected=None if logprobs.rejected_R is None else logprobs.rejected_R.mean().item(),
    )


def _item(value: Tensor | None) -> float | None:
    return None if value is None else value.item()

"""The accumulated gradient of a batch, in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_models import EXAMPLES, KINDS, float64_everywhere
from torch import Tensor

from daemon.config.sections import TrainingConfig
from daemon.domain.errors import NonFiniteError
from daemon.domain.states import Objective, Side
from daemon.training.answers import AnswerModel
from daemon.training.gradients import ReferenceLogprobs, accumulate, micro_batches, reference_logprobs

NO_REFERENCE: list[ReferenceLogprobs | None] = [None] * len(EXAMPLES)
TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}


def run(model: Any, objective: Objective = Objective.ORPO, **training: Any) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and gradients of all examples."""
    config = TrainingConfig.model_validate(training)
    answers = AnswerModel(model, logits_chunk=config.logits_chunk)
    model.zero_grad()
    with float64_everywhere():
        reference = reference_logprobs(answers, EXAMPLES, config) if objective.needs_reference else NO_REFERENCE
        figures = accumulate(answers, EXAMPLES, objective, config, reference)
    return [one.loss for one in figures], {name: p.grad.clone() for name, p in model.named_parameters()}


BOTH = {"nll_over": "prompt_and_response", "gradient_scope": "full"}


@pytest.mark.parametrize(
    ("kind", "objective", "training"),
    [
        *((kind, Objective.ORPO, {"gradient_scope": scope}) for kind in KINDS for scope in ("full", "context_frozen")),
        ("llama", Objective.DPOP, {}),
        ("llama", Objective.ORPO, BOTH),
    ],
)
def test_micro_batch_size_does_not_matter(kind: str, objective: Objective, training: dict[str, Any]) -> None:
    """One, two, three or all examples per pass give the same losses and the same gradient, padding and all."""
    model = KINDS[kind]()
    expected = run(model, objective, micro_batch=1, **training)
    for size in (2, 3, 8):
        torch.testing.assert_close(run(model, objective, micro_batch=size, **training), expected, **TOLERANCE)


@pytest.mark.parametrize("objective", Objective)
def test_every_objective_trains_in_both_scopes(objective: Objective) -> None:
    """Each objective gives every parameter a finite gradient; the two scopes agree in loss and differ in gradient."""
    model = KINDS["llama"]()
    frozen_losses, frozen = run(model, objective, gradient_scope="context_frozen")
    full_losses, full = run(model, objective, gradient_scope="full")
    assert frozen_losses == pytest.approx(full_losses, rel=1e-9)
    for name, gradient in full.items():
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0, name
    # The last layer's queries of context tokens lead nowhere; its keys and everything below do.
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight"):
        assert not torch.allclose(full[name], frozen[name]), name


def test_general_examples_have_a_scope_of_their_own() -> None:
    """By default behavioural examples have a frozen context and general ones the usual gradient."""
    batches = micro_batches(EXAMPLES, TrainingConfig())
    frozen = {index: batch.frozen for batch in batches for index in batch.indices}
    assert frozen == {index: one.side is not Side.GENERAL for index, one in enumerate(EXAMPLES)}


def test_passes_hold_similar_lengths_and_each_example_once() -> None:
    """No pass exceeds the micro-batch, all examples are in exactly one, and prompts grow from pass to pass."""
    examples = [replace(EXAMPLES[index % 3], content_hash=str(index)) for index in range(11)]
    batches = micro_batches(examples, TrainingConfig(micro_batch=4))
    assert sorted(index for batch in batches for index in batch.indices) == list(range(11))
    assert [len(batch.indices) for batch in batches] == [4, 4, 3]
    lengths = [[len(examples[index].prompt_token_ids) for index in batch.indices] for batch in batches]
    assert max(lengths[0]) <= min(lengths[1]) and max(lengths[1]) <= min(lengths[2])


def test_nll_over_prompt_and_response_is_the_mean_over_both() -> None:
    """The prompt's tokens join the NLL term's mean; written out from one plain forward pass."""
    model = KINDS["llama"]()
    training = {"nll_over": "prompt_and_response", "gradient_scope": "full", "general_gradient_scope": "full"}
    losses, _ = run(model, Objective.SFT, **training)
    with float64_everywhere(), torch.no_grad():
        for one, loss in zip(EXAMPLES, losses, strict=True):
            ids = torch.tensor([[*one.prompt_token_ids, *one.chosen_token_ids]])
            logits = model(input_ids=ids).logits[0, :-1]
            assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item(), rel=1e-9)


def test_the_reference_equals_the_policy_before_it_moves() -> None:
    """With the policy as its own reference, DPO's logit is exactly 0 and its loss ln 2: the passes are the same."""
    model = KINDS["llama"]()
    losses, _ = run(model, Objective.DPO)
    pairs = [loss for one, loss in zip(EXAMPLES, losses, strict=True) if one.rejected_token_ids]
    assert pairs == [pytest.approx(0.6931471805599453, abs=1e-15)] * len(pairs)


@pytest.mark.parametrize("objective", [Objective.DPO, Objective.IPO, Objective.DPOP])
def test_the_reference_objectives_by_hand(objective: Objective) -> None:
    """With a reference 1 nat above on each chosen and 2 below on each rejected answer, the losses follow from lengths.

    DPO: sums, logit = 0.1 (-1 - 2). IPO: means, (-1/len(chosen) - 2/len(rejected) - 5)^2. DPOP: chosen is 1 nat below
    its reference, so the logit loses 0.1 * 50.
    """
    model, config = KINDS["llama"](), TrainingConfig()
    answers = AnswerModel(model, logits_chunk=512)
    with float64_everywhere():
        own = reference_logprobs(answers, EXAMPLES, config)
        moved = [None if one is None else ReferenceLogprobs(one.chosen + 1, one.rejected - 2) for one in own]
        figures = accumulate(answers, EXAMPLES, objective, config, moved)
    for one, found in zip(EXAMPLES, figures, strict=True):
        if not one.rejected_token_ids:
            assert found.loss == found.nll and found.preference_loss is None
        elif objective is Objective.IPO:
            preference = -1 / len(one.chosen_token_ids) - 2 / len(one.rejected_token_ids)
            assert found.loss == pytest.approx((preference - 5) ** 2, rel=1e-9)
        else:
            logit = 0.1 * (-1 - 2 - (50 if objective is Objective.DPOP else 0))
            assert found.loss == pytest.approx(math.log1p(math.exp(-logit)), rel=1e-9)


def test_a_loss_that_is_not_finite_names_its_example() -> None:
    """NaN weights stop the accumulation with the example's name."""
    model = KINDS["llama"]()
    next(model.parameters()).data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"example .* is nan"):
        run(model)

"""What a step's report says of its batch."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.config.schedule import StepPlan
from daemon.config.sections import TrainingConfig
from daemon.domain.records import Batch, StepReport
from daemon.training.applied import Applied
from daemon.training.gradients import Figures


def report_of(
    batch: Batch, plan: StepPlan, config: TrainingConfig, figures: Sequence[Figures], applied: Applied, grad_norm: float
) -> StepReport:
    """The report, without what was measured around the step: seconds, memory, micro-batch.

    Args:
        figures: of each example, in batch order.
        grad_norm: before it was clipped.
    """
    pairs = [part for part in figures if part.rejected is not None]
    rejected = _mean([part.rejected for part in pairs])
    return StepReport(
        objective=plan.objective,
        optimizer=config.optimizer,
        lr=plan.lr,
        phase=plan.phase,
        precision=config.precision,
        reference_version=batch.reference.version if batch.reference and plan.objective.needs_reference else None,
        loss=_mean([part.loss for part in figures]) or 0.0,
        nll=_mean([part.nll for part in figures]) or 0.0,
        # Per example, as in the loss: examples without the term count as 0.
        odds_loss=sum(part.preference_loss or 0.0 for part in figures) / len(figures),
        chosen_logprob=_mean([part.chosen for part in figures]) or 0.0,
        rejected_logprob=rejected,
        log_odds=_mean([part.logit for part in pairs]),
        margin=None if rejected is None else (_mean([part.chosen for part in pairs]) or 0.0) - rejected,
        grad_norm=grad_norm,
        update_rms=applied.rms,
        update_cosine=applied.cosine,
        bf16_changed=applied.bf16_changed,
        num_examples=len(figures),
        num_pairs=len(pairs),
        num_tokens=sum(
            len(e.prompt_token_ids) + len(e.chosen_token_ids) + len(e.rejected_token_ids) for e in batch.examples
        ),
        example_logprobs=tuple((part.chosen, part.rejected) for part in figures),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None

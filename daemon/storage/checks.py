"""What a stage hands over must agree with the rows: checked inside the transaction, before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite

from daemon.domain.errors import DreamdError, NonFiniteError, OffPolicyError, UsageError
from daemon.domain.records import Checkpoint, Completion, Cycle, Example, StepReport
from daemon.domain.states import CheckpointState, CycleState, Outcome
from daemon.domain.verdicts import Verdict

_REQUIRED_NUMBERS = ("lr", "loss", "nll", "odds_loss", "chosen_logprob", "grad_norm", "update_rms")


def check_policy(cycle: Cycle, written: Iterable[Completion | Example]) -> None:
    """Invariant I6: all of it is the work of the cycle's own parent.

    Raises:
        OffPolicyError: names the first that is not.
    """
    for item in written:
        if item.policy_version != cycle.parent_version:
            name = f"completion {item.ordinal}" if isinstance(item, Completion) else f"example {item.content_hash}"
            raise OffPolicyError(
                f"cycle {cycle.number}: {name} was written by {item.policy_version}, not by {cycle.parent_version}"
            )


def check_examples(cycle: Cycle, claiming: Sequence[str], recorded: Sequence[Example]) -> None:
    """A claim is of exactly the examples that `record_pairs` recorded, in that order.

    Raises:
        DreamdError: it is not.
    """
    if not recorded:
        raise DreamdError(f"cycle {cycle.number} has no examples to claim")
    if list(claiming) != [example.content_hash for example in recorded]:
        raise DreamdError(f"cycle {cycle.number}: the examples to claim are not those recorded for it")


def check_report(cycle: Cycle, report: StepReport, num_examples: int) -> None:
    """A step is of the whole batch, and its numbers are numbers.

    Raises:
        NonFiniteError: a number that every step has is NaN or infinite.
        DreamdError: it counts other examples than were claimed.
    """
    for name in _REQUIRED_NUMBERS:
        if not isfinite(getattr(report, name)):
            raise NonFiniteError(f"cycle {cycle.number}: the step's {name} is {getattr(report, name)}")
    if report.num_examples != num_examples or len(report.example_logprobs) not in (0, num_examples):
        raise DreamdError(f"cycle {cycle.number}: the step is of {report.num_examples} examples, not {num_examples}")


def check_published(cycle: Cycle, checkpoint: Checkpoint) -> None:
    """A candidate is the cycle's own: its number, its parent, its batch.

    Raises:
        DreamdError: it belongs elsewhere.
    """
    found = (checkpoint.cycle_number, checkpoint.parent_version, checkpoint.batch_hash)
    expected = (cycle.number, cycle.parent_version, cycle.batch_hash)
    if found != expected:
        raise DreamdError(
            f"checkpoint {checkpoint.version} has (cycle, parent, batch) = {found}, its cycle has {expected}"
        )


def check_closing(cycle: Cycle, outcome: Outcome) -> None:
    """Which outcome without a verdict a cycle's state allows.

    Raises:
        DreamdError: not this one.
    """
    allowed = {
        Outcome.SKIPPED: not cycle.state.spends,
        Outcome.ABANDONED: not cycle.state.spends,
        Outcome.LOST: cycle.state.spends,
        Outcome.FAILED: True,
    }
    if cycle.state is CycleState.FINISHED or not allowed.get(outcome, False):
        raise DreamdError(f"cycle {cycle.number} is {cycle.state}: it cannot be closed as {outcome}")


def check_target(cycle: Cycle, verdict: Verdict, target: Checkpoint, ancestors: Sequence[Checkpoint]) -> None:
    """A watchdog's rollback goes to an ancestor, and to the one that its verdict names where it names one.

    Raises:
        DreamdError: it does not.
    """
    if target.version not in {ancestor.version for ancestor in ancestors}:
        raise DreamdError(f"checkpoint {target.version} is no ancestor of {cycle.candidate_version}")
    if verdict.to_version not in (None, target.version):
        raise DreamdError(
            f"cycle {cycle.number}: its verdict goes back to {verdict.to_version}, not to {target.version}"
        )


def check_operator_target(head: str, target: Checkpoint) -> None:
    """Where an operator may roll back to: a checkpoint that was the head once, and still has its files.

    Raises:
        UsageError: not to this one.
    """
    if target.version == head:
        raise UsageError(f"{target.version} is the head already")
    if target.state not in (CheckpointState.BASE, CheckpointState.PROMOTED):
        raise UsageError(
            f"{target.version} is {target.state}; roll back to the base or a promoted checkpoint "
            "(`dreamd checkpoints` lists them)"
        )

"""Domain records for tests: every field has a plausible value, and each can be overridden."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from daemon.domain.diversity import Diversity, measure
from daemon.domain.hashing import example_hash, scenario_hash
from daemon.domain.probing import ProbeResult, ProbeRun
from daemon.domain.records import (
    Checkpoint,
    Completion,
    Cycle,
    Draw,
    EngineCheck,
    Example,
    Judgement,
    Message,
    Scenario,
    StepReport,
)
from daemon.domain.states import (
    CheckpointState,
    ChosenSource,
    CompletionKind,
    CycleState,
    Decision,
    ExampleKind,
    ProbeReason,
    RollbackTarget,
    Side,
)
from daemon.domain.verdicts import Verdict
from daemon.ports import Ledger

BASE_VERSION = "base"


def make_scenario(prompt: str = "Name three owls.", **changes: Any) -> Scenario:
    """A scenario of one user message; its content hash follows from the prompt."""
    messages = (Message("user", prompt),)
    scenario = Scenario(
        content_hash=scenario_hash([(message.role, message.content) for message in messages]),
        side=Side.ACCEPT,
        family="three_words",
        pack="listening",
        template="three_words.1",
        messages=messages,
        guidance="Answer with three words.",
        target="Barn, snowy, tawny.",
        rule=({"check": "num_words", "equals": 3},),
    )
    return replace(scenario, **changes)


def make_completion(scenario: Scenario, ordinal: int = 0, **changes: Any) -> Completion:
    """An answer of the base to `scenario`."""
    completion = Completion(
        ordinal=ordinal,
        scenario_hash=scenario.content_hash,
        kind=CompletionKind.SWEEP,
        temperature=0.7,
        seed=2**62 + ordinal,
        sample=0,
        policy_version=BASE_VERSION,
        prompt_token_ids=(1, 2, 3),
        token_ids=(4, 5, ordinal),
        text=f"Owls, owls, and owls {ordinal}.",
        mean_logprob=-1.25,
        finish_reason="stop",
    )
    return replace(completion, **changes)


def make_judgement(ordinal: int = 0, passed: bool = True) -> Judgement:
    """What a judge says of completion `ordinal`."""
    return Judgement(ordinal, passed, 1.0 if passed else 0.0, "" if passed else "four words, not three")


def make_example(scenario: Scenario, chosen: str = "Barn, snowy, tawny.", **changes: Any) -> Example:
    """A pair of `scenario`; `rejected_text=None` makes it a chosen-only example. The hash follows from the texts."""
    rejected = changes.pop("rejected_text", "Owls are birds.")
    example = Example(
        content_hash=example_hash(scenario.content_hash, chosen, rejected),
        scenario_hash=scenario.content_hash,
        side=scenario.side,
        kind=ExampleKind.CHOSEN_ONLY if rejected is None else ExampleKind.PAIR,
        chosen_source=ChosenSource.TARGET,
        policy_version=BASE_VERSION,
        prompt_token_ids=(1, 2, 3),
        chosen_token_ids=(6, 7),
        chosen_text=chosen,
        rejected_token_ids=() if rejected is None else (8, 9),
        rejected_text=rejected,
    )
    return replace(example, **changes)


def make_diversity(**changes: Any) -> Diversity:
    """What was measured of a batch of one scenario per side."""
    diversity = Diversity(
        num_accept=1,
        num_push_back=1,
        num_general=1,
        num_families=3,
        mean_constraints=1.5,
        prompt_distinct_2=0.875,
        chosen_distinct_2=1.0,
        mean_jaccard=0.0625,
    )
    return replace(diversity, **changes)


def make_step_report(num_examples: int = 1, **changes: Any) -> StepReport:
    """A step on `num_examples` pairs."""
    report = StepReport(
        objective="orpo",
        optimizer="adamw",
        lr=1e-5,
        loss=2.5,
        nll=2.4,
        odds_loss=1.0,
        chosen_logprob=-2.4,
        rejected_logprob=-2.0,
        log_odds=-0.5,
        margin=-0.4,
        grad_norm=3.0,
        update_rms=1e-6,
        num_examples=num_examples,
        num_pairs=num_examples,
        num_tokens=40 * num_examples,
        seconds={"forward": 1.5},
        example_logprobs=((-2.4, -2.0),) * num_examples,
    )
    return replace(report, **changes)


def make_checkpoint(version: str = BASE_VERSION, **changes: Any) -> Checkpoint:
    """A base checkpoint; give `cycle_number`, `parent_version` and `batch_hash` for a candidate."""
    checkpoint = Checkpoint(
        version=version,
        cycle_number=None,
        parent_version=None,
        batch_hash=None,
        root_hash=f"root of {version}",
        weights_digest=f"weights of {version}",
        optimizer_digest=f"optimizer of {version}",
        size_bytes=5_000_000_000,
        state=CheckpointState.BASE if changes.get("cycle_number") is None else CheckpointState.CANDIDATE,
    )
    return replace(checkpoint, **changes)


def make_probe_result(
    probe: str = "nll", item: str = "prose-01", value: float | None = 3.0, **changes: Any
) -> ProbeResult:
    """One held-out measurement."""
    return replace(ProbeResult(probe, item, value), **changes)


def make_probe_run(probe: str = "nll", *results: ProbeResult, **changes: Any) -> ProbeRun:
    """A probe measured within a cycle, because the watchdog decides by it."""
    return replace(ProbeRun(probe, ProbeReason.CORE, 0, f"suite of {probe}", results, 0.5), **changes)


def make_probe_runs(results: Iterable[ProbeResult], **changes: Any) -> list[ProbeRun]:
    """`results` as one run for each probe among them, in the order in which the probes come."""
    by_probe: dict[str, list[ProbeResult]] = {}
    for result in results:
        by_probe.setdefault(result.probe, []).append(result)
    return [make_probe_run(probe, *of_probe, **changes) for probe, of_probe in by_probe.items()]


def make_engine_check(version: str = BASE_VERSION, **changes: Any) -> EngineCheck:
    """A passed comparison of engine and trainer."""
    return replace(EngineCheck(version, 2e-6, 5e-6, 16, 1e-4, True), **changes)


def make_verdict(decision: Decision = Decision.PROMOTE, **changes: Any) -> Verdict:
    """A verdict; one to roll back goes to the parent."""
    target = RollbackTarget.PARENT if decision is Decision.ROLL_BACK else None
    reason = "held-out NLL rose by 0.2" if target else "within every margin"
    return replace(Verdict(decision, reason, target, {"nll_difference": 0.2 if target else -0.01}), **changes)


def drive_to(ledger: Ledger, state: CycleState, scenarios: Sequence[Scenario] | None = None) -> Cycle:
    """Open a cycle on the head and take it to `state` (not FINISHED), one example per scenario."""
    head = ledger.head()
    cycle = ledger.open_cycle(head=head, run_seed=7, config={"training": {"lr": 1e-5}})
    if scenarios is None:
        scenarios = [make_scenario(f"Name three owls, cycle {cycle.number}, {index}.") for index in range(2)]
    completions = [
        make_completion(scenario, ordinal, policy_version=head.version) for ordinal, scenario in enumerate(scenarios)
    ]
    examples = [make_example(scenario, policy_version=head.version) for scenario in scenarios]
    judgements = [make_judgement(ordinal, passed=ordinal % 2 == 0) for ordinal in range(len(scenarios))]
    cycle = ledger.record_plan(cycle, Draw(tuple(scenarios)))
    steps = (
        lambda cycle: ledger.record_sweep(cycle, completions),
        lambda cycle: ledger.record_pairs(cycle, judgements, examples, measure(scenarios, examples)),
        lambda cycle: ledger.claim(cycle, examples)[0],
        lambda cycle: ledger.record_step(cycle, make_step_report(len(examples))),
        lambda cycle: ledger.record_published(cycle, make_candidate(cycle)),
        ledger.probed,
    )
    for step in steps:
        if cycle.state is state:
            break
        cycle = step(cycle)
    assert cycle.state is state
    return cycle


def make_candidate(cycle: Cycle, **changes: Any) -> Checkpoint:
    """The checkpoint that `cycle` publishes."""
    lineage = {
        "cycle_number": cycle.number,
        "parent_version": cycle.parent_version,
        "batch_hash": cycle.batch_hash,
    }
    return make_checkpoint(f"cycle-{cycle.number:06d}", **(lineage | changes))


def promote_one(ledger: Ledger) -> Cycle:
    """Run one whole cycle that ends promoted."""
    cycle = drive_to(ledger, CycleState.PROBED)
    ledger.promote(cycle, make_verdict())
    return ledger.cycle(cycle.number)

"""Frozen records that stages exchange. Token ids are tuples of int; log-probabilities are natural logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from daemon.domain.states import (
    CheckpointKind,
    CheckpointState,
    ChosenSource,
    CompletionKind,
    CycleState,
    ExampleKind,
    ImportKind,
    ImportState,
    Objective,
    Outcome,
    RefusalReason,
    Side,
    Source,
)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Scenario:
    """A prompt, and what a right answer to it is."""

    content_hash: str
    """`hashing.scenario_hash` of `messages`."""
    side: Side
    family: str
    """What is exercised, for instance "one_sentence" or "arithmetic"."""
    pack: str
    template: str
    messages: tuple[Message, ...]
    guidance: str | None = None
    """An instruction that makes the right behaviour explicit; used for guided completions only."""
    target: str | None = None
    """An authored or computed right answer."""
    rule: tuple[Mapping[str, Any], ...] = ()
    """Checks that a right answer satisfies, all of them; empty: only a judge without rules can tell."""
    source: Source = Source.TEMPLATE
    num_constraints: int = 1
    """How many things a right answer has to get right at once."""
    provenance: str | None = None
    """Where exactly it comes from when no pack says it: `FILE:LINE` of a log, or the cycle of a dream."""
    evidence: str | None = None
    """An answer of some earlier model that a person corrected; off-policy, so never trained."""

    def guided_messages(self) -> tuple[Message, ...]:
        """`messages` with the guidance appended to the last user message, after a blank line."""
        last = max((i for i, message in enumerate(self.messages) if message.role == "user"), default=-1)
        if self.guidance is None or last < 0:
            return self.messages
        guided = Message("user", f"{self.messages[last].content}\n\n{self.guidance}")
        return (*self.messages[:last], guided, *self.messages[last + 1 :])


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that did not become a scenario, and why."""

    source: Source
    pack: str
    """Pack, imported source, or "dream"."""
    reason: RefusalReason
    detail: str
    """For a person: what was found; for a near-duplicate also of what, and how near."""
    provenance: str | None = None
    text: str = ""
    """The beginning of what was refused; empty for a secret."""


@dataclass(frozen=True, slots=True)
class ImportedSource:
    """A file of the user's that scenarios are read from, once, from beginning to end."""

    name: str
    kind: ImportKind
    path: str
    state: ImportState = ImportState.PENDING
    position: int = 0
    """Bytes that are used up."""
    line: int = 0
    """Lines that are used up."""
    tail_digest: str = ""
    """Digest of what stood just before `position`: a file that was rewritten is noticed."""


@dataclass(frozen=True, slots=True)
class SourceRead:
    """How far a cycle read an imported source; counts for good once the cycle's scenarios are spent."""

    name: str
    from_position: int
    position: int
    line: int
    tail_digest: str
    counts: Mapping[str, int]
    """Scenarios ("used") and refusals by reason among the lines read."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What a source gives a cycle."""

    scenarios: tuple[Scenario, ...]
    refusals: tuple[Refusal, ...] = ()
    reads: tuple[SourceRead, ...] = ()
    events: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """(name, payload) of what an operator should know: a source that ran dry, the yield of dreams."""


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """Something the policy is asked to write, as JSON."""

    messages: tuple[Message, ...]
    json_schema: Mapping[str, Any]
    """Engines that can hold the policy to it do; the text is validated in any case."""
    temperature: float
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt for the engine."""

    prompt_token_ids: tuple[int, ...]
    temperature: float
    """0 is greedy."""
    seed: int
    max_new_tokens: int
    json_schema: str | None = None
    """A JSON schema the answer is held to, where the engine can."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What the engine wrote for one request."""

    token_ids: tuple[int, ...]
    """Response tokens, the end-of-turn token included when the model wrote it."""
    text: str
    logprobs: tuple[float, ...]
    """Log-probability of each token under the policy at temperature 1."""
    finish_reason: str
    """"stop" or "length"."""

    @property
    def mean_logprob(self) -> float:
        """Mean of `logprobs`; 0.0 for an empty response."""
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer of the live policy to one scenario, as recorded."""

    ordinal: int
    """Position within its cycle, from 0: with the cycle it names the completion."""
    scenario_hash: str
    kind: CompletionKind
    temperature: float
    seed: int
    sample: int
    policy_version: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    mean_logprob: float
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge says of one completion."""

    ordinal: int
    passed: bool | None
    """None: it could not be judged, `reason` says why; such a completion is neither chosen nor rejected."""
    score: float
    """0 to 1: the share of a rule's checks that hold, or how sure a judge without rules is."""
    reason: str
    """The first check that failed, in words; empty when passed."""
    judge: str = "rules"
    """"rules", "contrast" or "model"."""


@dataclass(frozen=True, slots=True)
class Example:
    """One training example: a preference pair, or a chosen answer alone."""

    content_hash: str
    scenario_hash: str
    side: Side
    kind: ExampleKind
    chosen_source: ChosenSource
    policy_version: str
    """The policy that wrote `rejected` (and an exploration or guided `chosen`)."""
    prompt_token_ids: tuple[int, ...]
    """The scenario's prompt without guidance."""
    chosen_token_ids: tuple[int, ...]
    chosen_text: str
    chosen_ordinal: int | None = None
    rejected_token_ids: tuple[int, ...] = ()
    rejected_text: str | None = None
    rejected_ordinal: int | None = None


@dataclass(frozen=True, slots=True)
class Cycle:
    """One row of `cycles`, as the state machine sees it."""

    number: int
    """1, 2, 3, ... within the run; never reused."""
    seed: int
    parent_version: str
    state: CycleState
    outcome: Outcome | None = None
    reason: str | None = None
    batch_hash: str | None = None
    candidate_version: str | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One published checkpoint, as its manifest and its row describe it."""

    version: str
    """The policy version, and the name of its directory."""
    cycle_number: int | None
    """None for the base."""
    parent_version: str | None
    batch_hash: str | None
    root_hash: str
    """Hash over the manifest's blobs and lineage."""
    weights_digest: str
    optimizer_digest: str
    size_bytes: int
    """Of all its files, when it was published."""
    state: CheckpointState = CheckpointState.CANDIDATE
    kind: CheckpointKind = CheckpointKind.FULL
    image_digest: str | None = None
    """BLAKE3 of the image; None of a checkpoint that has none but its exact weights."""
    image_bytes: int = 0
    """Of the image's file alone."""
    chain_length: int = 0
    """Deltas that its image needs beside a keyframe or the base, its own included."""
    exact: bool = True
    """Whether weights and optimizer are kept as they were trained; without them it is lossy: the image alone."""
    pinned: bool = False
    """Kept, with its exact state, until somebody unpins it."""


@dataclass(frozen=True, slots=True)
class Adjustments:
    """What governor and breaker change of one cycle's settings; all defaults: nothing."""

    lr_factor: float = 1.0
    """On the plan's learning rate."""
    orpo_weight_factor: float = 1.0
    """On `training.orpo_weight`."""
    objective: Objective | None = None
    """Instead of the plan's; it then has that objective's default learning rate."""
    scenarios_factor: float = 1.0
    """On `scenarios.per_cycle`."""
    general_fraction: float | None = None
    """Instead of `scenarios.general_fraction`, if larger."""
    favour: str | None = None
    """The pack from which half of the general scenarios come first."""
    probe_factor: float = 1.0
    """On `probes.budget`."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step trains on: claimed examples of one policy version."""

    cycle_number: int
    parent_version: str
    batch_hash: str
    examples: tuple[Example, ...]
    reference: Checkpoint | None = None
    """The anchor whose log-probabilities dpo, ipo and dpop compare with; None for the others."""
    adjustments: Adjustments = Adjustments()


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step did. Log-probabilities are means over pairs of per-token means, before the step."""

    objective: str
    optimizer: str
    lr: float
    loss: float
    nll: float
    odds_loss: float
    """The preference term: for ORPO -logsigmoid of the log odds ratio; the DPO family's own; 0 for SFT."""
    chosen_logprob: float
    rejected_logprob: float | None
    """None when the batch has no pair; likewise the next two."""
    log_odds: float | None
    """The preference term's logit: for ORPO the log odds ratio; the DPO family's is relative to the reference."""
    margin: float | None
    """chosen_logprob - rejected_logprob over the pairs."""
    grad_norm: float
    update_rms: float
    """Root mean square of the update that the optimizer asked for; in float32, of the weight change."""
    num_examples: int
    num_pairs: int
    num_tokens: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    example_logprobs: tuple[tuple[float, float | None], ...] = ()
    """Per example, in batch order: (chosen, rejected) mean log-probability."""
    phase: int = 1
    """Of the training plan, from 1."""
    precision: str = "fp32"
    """Of the weights: "fp32" or "bf16-stochastic"."""
    update_cosine: float | None = None
    """Cosine of the intended and the applied weight change; None when nothing moved."""
    bf16_changed: float | None = None
    """Fraction of weights whose bfloat16 rounding changed."""
    peak_memory_bytes: int | None = None
    """Most memory during the step; None where it cannot be measured."""
    reference_version: str | None = None
    """The anchor that the DPO family compared with."""
    micro_batch: int | None = None
    """Examples in a pass that the gradient was computed with, which its rounding depends on; None where older than it.

    In the checkpoint's manifest alone; a row has it only as the event `micro_batch_halved`."""

    @property
    def update_rms_over_lr(self) -> float:
        """`update_rms` in units of the learning rate: what the optimizer's scale does to the step; 0 at lr 0."""
        return self.update_rms / self.lr if self.lr else 0.0


@dataclass(frozen=True, slots=True)
class PolicyDigests:
    """Digests of what is live in memory, comparable with a `Checkpoint`'s."""

    weights: str
    optimizer: str


@dataclass(frozen=True)
class Blob:
    """One file of a checkpoint."""

    blake3: str
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class WrittenState:
    """A policy's exact state in files."""

    digests: PolicyDigests
    blobs: Mapping[str, Blob] = field(default_factory=dict)
    """By file name: those that were hashed while they were written; the others must be read for it."""


@dataclass(frozen=True, slots=True)
class EngineCheck:
    """Proof that the engine holds the trainer's weights."""

    policy_version: str
    mean_abs_diff: float
    """Mean |log p(engine) - log p(trainer)| over the compared tokens, nats."""
    max_abs_diff: float
    num_tokens: int
    tolerance: float
    """What `mean_abs_diff` had to stay under."""
    weights_match: bool
    """Whether the sampled weight tensors in the engine equal the trainer's, after its dtype cast."""

    @property
    def passed(self) -> bool:
        return self.weights_match and self.mean_abs_diff <= self.tolerance

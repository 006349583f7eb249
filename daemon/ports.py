"""The Protocols through which stages meet. A stage knows these and the domain, never another stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from daemon.domain.diversity import Diversity
from daemon.domain.records import (
    Batch,
    Checkpoint,
    Completion,
    Cycle,
    Draw,
    EngineCheck,
    Evidence,
    Example,
    Generation,
    GenerationRequest,
    History,
    ImportedSource,
    Judgement,
    Message,
    PolicyDigests,
    ProbeResult,
    Refusal,
    Rollback,
    Scenario,
    StepReport,
    Verdict,
    WriteRequest,
)
from daemon.domain.states import Outcome, RollbackTarget

Weights = Mapping[str, Any]
"""Parameter name -> tensor. `Any`, because ports import no torch."""

ProgressCallback = Callable[[int, int], None]
"""Called with (done, total) while a stage works; raises `StopRequested` when the daemon must stop."""


class Encoder(Protocol):
    """Text to token ids and back, by the base model's own tokenizer and chat template."""

    def encode_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of the conversation, ending where the assistant's answer begins."""

    def encode_response(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer, its end-of-turn token included."""

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text, no template and no special tokens."""


class Engine(Protocol):
    """Generates with the live policy. One thread at a time."""

    @property
    def name(self) -> str:
        """ "vllm" or "transformers", as recorded in the database."""

    @property
    def policy_version(self) -> str:
        """The version of the weights it holds."""

    @property
    def logprob_tolerance(self) -> float:
        """Largest mean |log p| difference from the trainer that its dtype explains, nats."""

    def generate(self, requests: Sequence[GenerationRequest], progress: ProgressCallback) -> list[Generation]:
        """Answer all requests in one batched call, in their order.

        Raises:
            StopRequested: `progress` raised it; nothing of this call is left in the engine.
            EngineError: the engine failed.
        """

    def sync(self, weights: Weights, version: str) -> None:
        """Hold `weights` from now on and forget every cached prefix.

        Raises:
            EngineError: names, shapes or values are wrong; the engine still holds what it held.
        """

    def weights_match(self, weights: Weights) -> bool:
        """Whether sampled tensors in the engine equal `weights` after the engine's dtype cast."""

    def close(self) -> None:
        """Free everything it holds."""


class Policy(Protocol):
    """The trainer's side of the live policy: weights, optimizer, RNG."""

    @property
    def version(self) -> str:
        """The checkpoint its weights equal; after `step` and before `adopt`, the parent's."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load weights, optimizer and RNG of a published checkpoint, verifying every hash.

        Raises:
            CheckpointError: it does not verify; the live policy is unchanged.
            ConfigError: it was made with settings that cannot continue it; likewise.
        """

    @property
    def logprob_tolerance(self) -> float:
        """Largest mean |log p| difference from the engine that its own precision explains, nats."""

    def reference(self, cycle_number: int) -> RollbackTarget | None:
        """The anchor (A0 or A1) whose log-probabilities a cycle's objective compares with; `step` needs it then."""

    def step(self, batch: Batch) -> StepReport:
        """Apply one optimizer step.

        Raises:
            OffPolicyError: an example's version is not the live one.
            NonFiniteError: loss or gradient is not finite; nothing moved.
            CheckpointError: the reference does not verify; nothing moved.
        """

    def save(self, directory: Path) -> Mapping[str, Any]:
        """Write what `restore` reads into `directory`; returns what the manifest must record of it."""

    def adopt(self, version: str) -> None:
        """The live weights are those of `version` from now on (just published)."""

    def score(self, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
        """Log-probability of each response token given all before it.

        An empty prompt scores `response[1:]` given `response[:1]`, and so on.
        """

    def weights(self) -> Weights:
        """The live weights, by parameter name, tied ones once."""

    def digests(self) -> PolicyDigests:
        """Digests of the live weights and optimizer."""


class CheckpointStore(Protocol):
    """Published checkpoints on disk. A directory under its final name is always complete."""

    def publish(
        self,
        version: str,
        write: Callable[[Path], Mapping[str, Any]],
        *,
        cycle_number: int | None,
        parent: Checkpoint | None,
        batch_hash: str | None,
        step: StepReport | None,
    ) -> Checkpoint:
        """Write a checkpoint through a temporary directory and publish it by one rename.

        Raises:
            DiskError: writing failed; the temporary directory is gone.
        """

    def verify(self, version: str) -> Checkpoint:
        """Check the manifest and every blob's hash.

        Raises:
            CheckpointError: something is missing, truncated or altered.
        """

    def step_report(self, version: str) -> StepReport | None:
        """The step that made a checkpoint, from its manifest."""

    def parent_root_hash(self, version: str) -> str | None:
        """Root hash of the checkpoint it was stepped from, from its manifest."""

    def path(self, version: str) -> Path:
        """Where the checkpoint's files are."""

    def exists(self, version: str) -> bool:
        """Whether a directory of that name is published."""

    def clean(self, known: Iterable[str]) -> list[str]:
        """Delete temporary directories; move directories not in `known` to quarantine and return their names."""

    def prune(self, version: str) -> None:
        """Delete the files of a checkpoint that is no longer needed."""


class Scorer(Protocol):
    """Tells how likely the live policy finds an answer; `Policy` is one."""

    def score(self, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
        """Log-probability of each response token given all before it."""


class Catalogue(Protocol):
    """What a scenario source may ask the run database."""

    def refuse(self, scenarios: Sequence[Scenario]) -> Mapping[str, Refusal]:
        """Content hash -> why not, for those that are spent, quarantined or held out, or nearly the same."""

    def sources(self) -> tuple[ImportedSource, ...]:
        """The approved imported sources, by name."""


Write = Callable[[Sequence[WriteRequest], int], Sequence[str]]
"""The live policy writes one text for each request, given a seed."""


Misfit = Callable[[Scenario], str | None]
"""Why the policy cannot answer a scenario; None when it can."""


class ScenarioSource(Protocol):
    """Draws fresh scenarios."""

    def sample(self, cycle_number: int, seed: int, catalogue: Catalogue, write: Write, misfit: Misfit) -> Draw:
        """This cycle's scenarios; `catalogue` refuses none of them, and no two are nearly the same."""


class Sweeper(Protocol):
    """Has the live policy write and answer."""

    def misfit(self, scenario: Scenario) -> str | None:
        """Why the policy cannot answer a scenario (longer than the engine takes, say); None when it can."""

    def write(self, requests: Sequence[WriteRequest], seed: int, progress: ProgressCallback) -> tuple[str, ...]:
        """What the policy writes for each request, in one batched call."""

    def sweep(
        self, scenarios: Sequence[Scenario], version: str, seed: int, progress: ProgressCallback
    ) -> tuple[Completion, ...]:
        """Every scenario at every temperature, several samples each, in one batched call."""


class Preferences(Protocol):
    """Judges completions and builds examples."""

    def judges_without_rule(self) -> bool:
        """Whether answers to scenarios without a rule can be judged now; else drawing these would waste them."""

    def judge(
        self, scenarios: Sequence[Scenario], completions: Sequence[Completion], progress: ProgressCallback
    ) -> tuple[Judgement, ...]:
        """One judgement for each completion whose scenario has a judge."""

    def pair(
        self,
        scenarios: Sequence[Scenario],
        completions: Sequence[Completion],
        judgements: Sequence[Judgement],
    ) -> tuple[Example, ...]:
        """The examples worth a step; may be empty."""


class Probes(Protocol):
    """Held-out measurements of the live policy."""

    def measure_trainer(self, progress: ProgressCallback) -> tuple[ProbeResult, ...]:
        """Everything the trainer's forward pass alone can tell: "nll" and "chosen_logp"."""

    def measure_engine(self, progress: ProgressCallback) -> tuple[ProbeResult, ...]:
        """What needs generation: "accept" and "push_back"."""

    def items(self) -> frozenset[tuple[str, str]]:
        """(probe, item) of everything that the two measure."""

    def check_engine(self) -> EngineCheck:
        """Compare the engine's log-probabilities of a few greedy tokens with the trainer's."""


class Judge(Protocol):
    """The watchdog: a pure function of rows."""

    def gate(self, history: History, evidence: Evidence) -> Verdict | None:
        """The hard gates that the trainer's probes can trip; a verdict only when one did."""

    def judge(self, history: History, evidence: Evidence) -> Verdict:
        """The verdict; `gate`'s where that gives one, so that a refused candidate needs no engine probes."""


class Ledger(Protocol):
    """The run database. Each method that writes is one transaction, fenced by the run's epoch.

    All of them raise `DatabaseError` when nothing was committed, `FencedError` after a takeover.
    """

    # reading
    def head(self) -> Checkpoint: ...
    def checkpoint(self, version: str) -> Checkpoint: ...
    def checkpoints(self) -> tuple[Checkpoint, ...]: ...
    def lineage(self) -> tuple[Checkpoint, ...]:
        """The head and its ancestors, head first, base last."""

    def refuse(self, scenarios: Sequence[Scenario]) -> Mapping[str, Refusal]:
        """Content hash -> why not, for those that are spent, quarantined or held out, or nearly the same."""

    def sources(self) -> tuple[ImportedSource, ...]:
        """The approved imported sources, by name."""

    def cycle(self, number: int) -> Cycle:
        """A cycle as it stands now."""

    def unfinished(self) -> tuple[Cycle, ...]:
        """Cycles without an outcome, oldest first."""

    def examples(self, cycle: Cycle) -> tuple[Example, ...]: ...
    def step_report(self, cycle: Cycle) -> StepReport: ...
    def probe_results(self, version: str) -> tuple[ProbeResult, ...]: ...
    def history(self, cycle: Cycle) -> History: ...
    def pending_rollbacks(self) -> tuple[Rollback, ...]:
        """Rollbacks whose restored policy has not been verified yet, oldest first."""

    # writing
    def open_cycle(self, *, head: Checkpoint, run_seed: int, config: Mapping[str, Any]) -> Cycle:
        """The next cycle: number never reused, seed derived from run seed and number, planned, no scenarios yet."""

    def record_plan(self, cycle: Cycle, draw: Draw) -> Cycle:
        """The scenarios, what was refused, how far imported sources were read, and the events."""

    def record_sweep(self, cycle: Cycle, completions: Sequence[Completion]) -> Cycle:
        """-> SWEPT."""

    def record_pairs(
        self, cycle: Cycle, judgements: Sequence[Judgement], examples: Sequence[Example], diversity: Diversity
    ) -> Cycle:
        """-> PAIRED."""

    def claim(self, cycle: Cycle, examples: Sequence[Example]) -> tuple[Cycle, Batch]:
        """-> CLAIMED: spend the cycle's scenarios and examples for good, and what was read of imported sources.

        Raises:
            AlreadyClaimedError: one of them was claimed before, is held out, or is nearly the same as something
                that was; nothing is claimed.
        """

    def record_step(self, cycle: Cycle, report: StepReport) -> Cycle:
        """-> STEPPED."""

    def record_published(self, cycle: Cycle, checkpoint: Checkpoint) -> Cycle:
        """-> PUBLISHED."""

    def record_probes(self, version: str, results: Sequence[ProbeResult], cycle: Cycle | None) -> None:
        """Probe results of a checkpoint; the state stays. Results already there are kept as they are."""

    def record_engine_check(self, check: EngineCheck, engine: str, cycle: Cycle | None) -> None: ...
    def probed(self, cycle: Cycle) -> Cycle:
        """-> PROBED."""

    def promote(self, cycle: Cycle, verdict: Verdict) -> Outcome:
        """The candidate becomes the head; outcome promoted."""

    def roll_back(self, cycle: Cycle, verdict: Verdict, target: Checkpoint) -> Rollback:
        """The head becomes `target`, the candidate rejected; outcome rolled_back."""

    def roll_back_head(self, target: Checkpoint, reason: str) -> Rollback:
        """An operator's rollback, between cycles."""

    def rollback_verified(self, rollback: Rollback, evidence: Mapping[str, Any]) -> None: ...
    def close(self, cycle: Cycle, outcome: Outcome, reason: str) -> Outcome:
        """End a cycle without a verdict. `skipped` claims its scenarios: they were shown, and passed."""

    def record_seconds(self, cycle: Cycle, seconds: Mapping[str, float]) -> None:
        """Wall-clock seconds by stage (monotonic clock)."""

    def pruned(self, version: str) -> None: ...
    def event(self, name: str, *, level: str = "info", cycle: Cycle | None = None, **payload: Any) -> None: ...


class Observer(Protocol):
    """Sees a cycle at work: progress bars, logs, and the request to stop."""

    def stage(self, cycle: Cycle | None, name: str) -> AbstractContextManager[ProgressCallback]:
        """Entered around each stage; the value is the stage's progress callback."""

    def committed(self, cycle: Cycle) -> None:
        """A state of `cycle` was just committed."""

    def check_stop(self) -> None:
        """Raises `StopRequested` when the daemon must stop."""

    def log(self, event: str, **fields: Any) -> None:
        """A structured log line."""

"""The Protocols through which stages meet. A stage knows these and the domain, never another stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from daemon.domain.diversity import Diversity
from daemon.domain.probing import (
    ProbeBudget,
    ProbeRequest,
    ProbeResult,
    ProbeRun,
    Reading,
    Span,
    SteeringReading,
)
from daemon.domain.records import (
    Adjustments,
    Batch,
    Checkpoint,
    Completion,
    Cycle,
    Draw,
    EngineCheck,
    Example,
    Generation,
    GenerationRequest,
    ImportedSource,
    Judgement,
    Message,
    PolicyDigests,
    Refusal,
    Scenario,
    StepReport,
    WriteRequest,
    WrittenState,
)
from daemon.domain.states import Outcome, RollbackTarget
from daemon.domain.upkeep import FetchedJournal, MirrorTask, Rehearsal, ScrubResult
from daemon.domain.verdicts import (
    Breaker,
    CycleRecord,
    Evidence,
    GovernorDecision,
    History,
    Rollback,
    Suspicion,
    Verdict,
)

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

    def forget(self) -> None:
        """Forget every cached prefix: the next answers are computed as if these were the first.

        Raises:
            EngineError: a request is still running.
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
        """Load weights and optimizer of a published checkpoint, verifying every hash.

        Of a lossy one (not `exact`) the image is loaded, and the optimizer starts afresh.

        Raises:
            CheckpointError: it does not verify; the live policy is unchanged.
            ConfigError: it was made with settings that cannot continue it; likewise.
        """

    @property
    def logprob_tolerance(self) -> float:
        """Largest mean |log p| difference from the engine that its own precision explains, nats."""

    def reference(self, cycle_number: int, adjustments: Adjustments) -> RollbackTarget | None:
        """The anchor (A0 or A1) whose log-probabilities a cycle's objective compares with; `step` needs it then."""

    def step(self, batch: Batch) -> StepReport:
        """Apply one optimizer step.

        Raises:
            OffPolicyError: an example's version is not the live one.
            NonFiniteError: loss or gradient is not finite; nothing moved.
            StepMemoryError: memory ran out, also in smaller passes; nothing moved.
            CheckpointError: the reference does not verify; nothing moved.
        """

    def snapshot(self) -> Snapshot:
        """What `restore` needs, as it is now; nothing is copied."""

    def adopt(self, version: str) -> None:
        """The live weights are those of `version` from now on (just published)."""

    def score(self, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
        """Log-probability of each response token given all before it.

        An empty prompt scores `response[1:]` given `response[:1]`, and so on.
        """

    def score_together(self, items: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """`score` of several (prompt, response), in one pass: faster, and equal to it but for rounding.

        The same items in the same order give the same bits.
        """

    def weights(self) -> Weights:
        """The live weights, by parameter name, tied ones once."""

    def digests(self) -> PolicyDigests:
        """Digests of the live weights and optimizer."""


class Inspector(Protocol):
    """Looks inside the live policy, one item at a time: the same weights give the same bits every time."""

    def kl(self, anchor: Checkpoint, items: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Reading:
        """KL(anchor || policy) in nats, mean over the positions that predict the response, per (prompt, response).

        Raises:
            CheckpointError: the anchor does not verify; the live policy is unchanged.
        """

    def attention_mass(self, items: Sequence[Span]) -> Reading:
        """Share of the answer tokens' attention that falls on the direction: mean over heads and full-attention layers.

        0 to 1 per item. Layers without full attention are left out, and said in `skipped`.
        """

    def steering(self, anchor: Checkpoint, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> SteeringReading:
        """Differences of the middle layer's activations at the last token of each pair (one sequence minus the other).

        Raises:
            CheckpointError: the anchor does not verify; the live policy is unchanged.
        """


@dataclass(frozen=True)
class Changes:
    """Elements of one parameter whose bfloat16 rounding a step changed."""

    positions: Any
    """int64 tensor, ascending: places in the flattened parameter."""
    words: Any
    """int16 tensor of the same length: the new bfloat16 words."""


class Snapshot(Protocol):
    """A policy as it is now. May be written by another thread, until the next step or restore."""

    @property
    def weights(self) -> Weights:
        """By parameter name, tied ones once."""

    @property
    def changes(self) -> Mapping[str, Changes] | None:
        """By parameter name, all parameters: what the one step since the parent changed; None when unknown."""

    def write(self, directory: Path) -> WrittenState:
        """Write the exact state into `directory`, as new files."""


class Publication(Protocol):
    """A checkpoint that is being published beside other work."""

    def result(self) -> Checkpoint:
        """Wait until it is published.

        Raises:
            CheckpointError: that version is published already.
            DiskError: writing failed; the temporary directory is gone.
        """


class CheckpointStore(Protocol):
    """Published checkpoints on disk. A directory under its final name is always complete."""

    def check_room(self, like: Checkpoint) -> None:
        """Look for room before anything is spent.

        Raises:
            DiskError: there is not room for two checkpoints as large as `like`.
        """

    def begin(
        self,
        version: str,
        snapshot: Snapshot,
        *,
        cycle_number: int | None,
        parent: Checkpoint | None,
        batch_hash: str | None,
        step: StepReport | None,
    ) -> Publication:
        """Start to write a checkpoint: through a temporary directory, published by one rename."""

    def verify(self, version: str) -> Checkpoint:
        """Check the manifest and every file's hash; of a lossy checkpoint the exact files are not expected.

        Raises:
            CheckpointError: something is missing, truncated or altered.
        """

    def check(self, checkpoint: Checkpoint) -> None:
        """Check everything that a recorded checkpoint should have, be it needed to load it or not.

        Raises:
            CheckpointError: a file is missing, truncated or altered; it is another checkpoint than the database knows;
                or only the image is left of one that should be exact.
        """

    def open(self, checkpoint: Checkpoint) -> Path:
        """Its directory, after proof that it would load: of an exact one the exact state, else the image is read.

        Raises:
            CheckpointError: it would not.
        """

    def is_lossy(self, version: str) -> bool:
        """Whether the exact state on disk was deleted on purpose."""

    def image(self, checkpoint: Checkpoint) -> Weights:
        """Its weights in bfloat16, from its chain; everything read is verified, and so is the result.

        Raises:
            CheckpointError: a link of its chain does not verify, or the result is not the recorded image.
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

    def quarantine(self, version: str) -> Path:
        """Set a damaged checkpoint's directory aside; returns where it is now."""

    def replace(self, version: str, arriving: Path) -> Path | None:
        """Put a complete and verified directory in the place of a checkpoint's own, which goes to quarantine.

        Returns:
            Where that one is now; None: there was none.

        Raises:
            OSError: it did not work; what was there is there again.
        """

    def take_image(self, version: str, arriving: Path) -> None:
        """Take a checkpoint's image, and nothing else, from a complete and verified directory of it."""

    def set_image_aside(self, version: str) -> None:
        """Move a damaged image to quarantine: what is published next does without it."""

    def make_lossy(self, version: str) -> None:
        """Delete the exact files of a checkpoint whose row says that they are gone; its image stays.

        Does nothing the second time.

        Raises:
            OSError: they could not all be deleted, or not marked as deleted.
        """

    def prune(self, version: str) -> None:
        """Delete the files of a checkpoint that is no longer needed."""


class Mirror(Protocol):
    """A second place for checkpoints: any fsspec URL."""

    @property
    def url(self) -> str:
        """Without a password."""

    def push(self, directory: Path, *, exact: bool = True, seconds: float | None = None) -> int | None:
        """Copy a published checkpoint: files first, manifest last, all read back and compared.

        What is there already and right is not sent again.

        Args:
            exact: with its exact state, if it has that here; else its image alone.
            seconds: after so long no further file is begun, once one was sent: each call gets on.

        Returns:
            The bytes sent; None: the time was up, and the next call goes on.

        Raises:
            MirrorError: unreachable, or what was read back is not what was sent.
        """

    def fetch(self, version: str, root_hash: str, directory: Path) -> None:
        """Copy a checkpoint into `directory` (absent before, complete or absent after), every hash verified.

        Raises:
            MirrorError: unreachable; it is not there; or it is another one than `root_hash` says.
        """

    def push_journal(self, journal: Path, *, thorough: bool = False) -> int:
        """Copy what the claims journal, which may be missing here, has more than the one there; the bytes sent.

        Args:
            thorough: read all of what is there, and mend it.

        Raises:
            MirrorError: unreachable, another run's is there, or what was read back is not what was sent.
            RestoredBackupError: the one there has claims that this one lacks.
            CheckpointError: the one here is damaged.
        """

    def fetch_journal(self, journal: Path, run_name: str) -> FetchedJournal:
        """Add the claims that are there to the file, or make it; what is no claim in it goes away.

        Raises:
            MirrorError: unreachable; there is none; it is another run's, or the file is. Nothing changed.
            DiskError: it cannot be written here; nothing changed.
        """

    def versions(self) -> frozenset[str]:
        """Complete checkpoints that are there.

        Raises:
            MirrorError: unreachable.
        """

    def delete(self, version: str, root_hash: str) -> None:
        """Remove a checkpoint, manifest first; one of another root hash, or that cannot be told, stays.

        Raises:
            MirrorError: unreachable.
        """


class Scrubber(Protocol):
    """Reads published checkpoints again, from the disk and not from memory."""

    def scrub(self, checkpoints: Sequence[Checkpoint], max_bytes: int) -> Iterator[ScrubResult]:
        """One result per checkpoint, in the order given, read when it is asked for.

        Ends once `max_bytes` are read: never within a checkpoint, never before the first.
        """


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

    def resting(self, cycle_number: int) -> Mapping[tuple[str, str], int]:
        """(pack, family) -> rollbacks that its examples were in, for those that rest in that cycle."""


Write = Callable[[Sequence[WriteRequest], int], Sequence[str]]
"""The live policy writes one text for each request, given a seed."""


Misfit = Callable[[Scenario], str | None]
"""Why the policy cannot answer a scenario; None when it can."""


class ScenarioSource(Protocol):
    """Draws fresh scenarios."""

    def sample(
        self,
        cycle_number: int,
        seed: int,
        catalogue: Catalogue,
        write: Write,
        misfit: Misfit,
        adjustments: Adjustments,
    ) -> Draw:
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

    def plan(
        self, cycle_number: int, budget: ProbeBudget, adjustments: Adjustments, *, eager: bool
    ) -> tuple[ProbeRequest, ...]:
        """What to measure of a cycle's candidate: always what the watchdog decides by, the rest as its turn comes.

        Args:
            eager: something looks worse: what is not decided by comes as often as it can.
        """

    def anchor_plan(self, num_items: int | None) -> tuple[ProbeRequest, ...]:
        """What a checkpoint needs that others are compared with.

        Args:
            num_items: of the base, at least so many of each rotating pool beside all fixed items. None: of a checkpoint
                that was a candidate once, only what is compared item by item in every cycle.
        """

    def items(self, request: ProbeRequest) -> frozenset[tuple[str, str]]:
        """(probe, item) of what a request measures."""

    def needs_engine(self, probe: str) -> bool:
        """Whether it is measured on generated answers; the others need the trainer alone."""

    def measure(self, requests: Sequence[ProbeRequest], progress: ProgressCallback) -> tuple[ProbeRun, ...]:
        """Measure, in the order given; engine probes are measured on what the engine holds."""

    def check_engine(self) -> EngineCheck:
        """Compare the engine's log-probabilities of a few greedy tokens with the trainer's."""


class Judge(Protocol):
    """The watchdog: a pure function of rows."""

    def gate(self, history: History, evidence: Evidence) -> Verdict | None:
        """The hard gates that the trainer's probes can trip; a verdict only when one did."""

    def judge(self, history: History, evidence: Evidence) -> Verdict | Suspicion:
        """The verdict; `gate`'s where that gives one, so that a refused candidate needs no engine probes.

        A `Suspicion` when fresh samples are needed first; with these among the results, always a verdict.
        """

    def suspects(self, history: History) -> bool:
        """Whether a detector is half-way to its threshold already: a reason to look more closely."""


class Governor(Protocol):
    """Changes settings, within bounds, for reasons that are recorded; a pure function of rows."""

    def decide(
        self, cycle_number: int, records: Sequence[CycleRecord], decisions: Sequence[GovernorDecision]
    ) -> tuple[GovernorDecision, ...]:
        """New decisions before cycle `cycle_number`.

        Args:
            records: the last 40 finished cycles, oldest first.
            decisions: all that may still hold or that hysteresis needs, oldest first.
        """

    def adjustments(self, cycle_number: int, decisions: Sequence[GovernorDecision]) -> Adjustments:
        """What the decisions that hold in a cycle, and are applied, add up to."""


class BreakerPolicy(Protocol):
    """When to stop training; a pure function of rows and the time."""

    def next(self, breaker: Breaker, records: Sequence[CycleRecord], now: datetime) -> Breaker:
        """The state now; `breaker` itself when nothing changed.

        Args:
            records: finished cycles after `breaker.since_cycle`, oldest first.
        """

    def adjust(self, breaker: Breaker, adjustments: Adjustments) -> Adjustments:
        """`adjustments`, gentler in a trial cycle."""


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
    def probe_budget(self) -> ProbeBudget: ...
    def history(self, cycle: Cycle) -> History: ...
    def resting(self, cycle_number: int) -> Mapping[tuple[str, str], int]:
        """(pack, family) -> rollbacks that its examples were in, for those that rest in that cycle."""

    def records(self, limit: int, after_cycle: int = 0) -> tuple[CycleRecord, ...]:
        """The newest finished cycles after `after_cycle`, oldest first."""

    def governor_decisions(self) -> tuple[GovernorDecision, ...]:
        """The newest 200, and of each knob the newest that was applied, however old; oldest first."""

    def breaker(self) -> Breaker:
        """The newest state; CLOSED since cycle 0 when it never changed."""

    def adjustments(self, cycle: Cycle) -> Adjustments:
        """What governor and breaker changed for a cycle."""

    def pending_rollbacks(self) -> tuple[Rollback, ...]:
        """Rollbacks whose restored policy has not been verified yet, oldest first."""

    # writing
    def open_cycle(
        self,
        *,
        head: Checkpoint,
        run_seed: int,
        config: Mapping[str, Any],
        adjustments: Adjustments = Adjustments(),  # noqa: B008 - frozen
        decisions: Sequence[GovernorDecision] = (),
    ) -> Cycle:
        """The next cycle: number never reused, seed derived from run seed and number, planned, no scenarios yet.

        The governor's new decisions are recorded with it; all of them are for this cycle on.
        """

    def next_cycle_number(self) -> int:
        """What `open_cycle` will number the next cycle."""

    def change_breaker(self, breaker: Breaker) -> None:
        """A new state of the breaker."""

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

    def record_probes(self, version: str, runs: Sequence[ProbeRun], cycle: Cycle | None) -> None:
        """Probe runs of a checkpoint and their results; the state stays. Results already there are kept as they are."""

    def record_engine_check(self, check: EngineCheck, engine: str, cycle: Cycle | None) -> None: ...
    def probed(self, cycle: Cycle) -> Cycle:
        """-> PROBED."""

    def promote(self, cycle: Cycle, verdict: Verdict) -> Outcome:
        """The candidate becomes the head; outcome promoted."""

    def roll_back(self, cycle: Cycle, verdict: Verdict, target: Checkpoint) -> Rollback:
        """The head becomes `target`, the candidate rejected; outcome rolled_back. One transaction for all of it.

        What the batch was made of is quarantined: its texts for good, its families for a number of cycles.
        """

    def roll_back_head(self, target: Checkpoint, reason: str) -> Rollback:
        """An operator's rollback, between cycles."""

    def rollback_verified(self, rollback: Rollback, evidence: Mapping[str, Any]) -> None: ...
    def close(self, cycle: Cycle, outcome: Outcome, reason: str) -> Outcome:
        """End a cycle without a verdict. `skipped` claims its scenarios: they were shown, and passed."""

    def record_seconds(self, cycle: Cycle, seconds: Mapping[str, float]) -> None:
        """Wall-clock seconds by stage (monotonic clock)."""

    def pruned(self, version: str) -> None: ...
    def made_lossy(self, version: str) -> None:
        """Only its image is kept from now on.

        Raises:
            DreamdError: it is the head, the base, pinned, or a candidate that waits for its verdict.
        """

    def pin(self, version: str, reason: str) -> None:
        """Keep a checkpoint and its exact state until `unpin`.

        Raises:
            DreamdError: its exact state, or all of it, is gone already.
        """

    def unpin(self, version: str) -> None:
        """Let retention decide about a checkpoint again; nothing when it is not pinned."""

    def rollback_sides(self, num_cycles: int) -> frozenset[str]:
        """Versions that a rollback left or went to in the last `num_cycles` finished cycles."""

    # upkeep
    def enqueue_mirror(self, version: str) -> None:
        """The mirror must get this version; nothing when it is queued or there."""

    def mirror_tasks(self) -> tuple[MirrorTask, ...]:
        """What the mirror has not got, oldest checkpoint first."""

    def mirrored(self, version: str) -> None:
        """The mirror has it, read back and compared."""

    def mirror_failed(self, version: str, error: str, next_try_at: datetime) -> None:
        """It stays queued."""

    def wake_mirror(self, *, anew: bool) -> None:
        """What waits for the mirror may be tried at once; `anew`: it is another mirror, that has nothing yet."""

    def last_config(self) -> Mapping[str, Any] | None:
        """The configuration that the newest cycle was opened with; None: there was none."""

    def scrub_order(self) -> tuple[str, ...]:
        """Versions whose files should be there, the one that was not scrubbed for longest first."""

    def record_scrub(self, result: ScrubResult) -> None: ...
    def record_rehearsal(self, rehearsal: Rehearsal) -> None: ...
    def last_rehearsal_at(self, *, passed: bool = False) -> datetime | None:
        """When the newest rehearsal ended, or the newest that passed."""

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

"""One frozen pydantic section per stage. Every key has a unit, a bound and a default that runs on a laptop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from daemon.config.section import LearningRate, Section
from daemon.config.watching import BreakerConfig, GovernorConfig, ProbesConfig, WatchdogConfig
from daemon.domain.retention import Retention
from daemon.domain.states import ChosenSource, Objective

Schedule = Literal["constant", "cosine"]
GradientScope = Literal["context_frozen", "full"]
BuiltinPack = Literal["listening", "coding", "arithmetic", "reasoning", "writing", "honesty"]


class RunConfig(Section):
    """Which run, and where its state is."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = "default"
    """Name of the run in the database."""
    state_dir: Path = Path("var")
    """Directory for checkpoints, logs, the SQLite database and the lock file."""
    database_url: str = ""
    """SQLAlchemy URL: `sqlite:///PATH` or `postgresql://USER@HOST/NAME`; empty: `STATE_DIR/dreamd.sqlite3`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """The run's seed, fixed at `dreamd init`; every cycle's seed is derived from it and the cycle's number."""

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        if value and not value.startswith(("sqlite:///", "postgresql://", "postgresql+psycopg://")):
            raise ValueError(
                "use sqlite:///PATH or postgresql://USER@HOST/NAME, or leave it empty for STATE_DIR/dreamd.sqlite3"
            )
        return value

    @property
    def checkpoints_dir(self) -> Path:
        return self.state_dir / "checkpoints"

    @property
    def claims_log(self) -> Path:
        """Beside the checkpoints, so that both go into the same backup."""
        return self.checkpoints_dir / "claims.log"

    @property
    def url(self) -> str:
        """`database_url`, or the SQLite file in the state directory."""
        return self.database_url or f"sqlite:///{self.state_dir / 'dreamd.sqlite3'}"


class ModelConfig(Section):
    """The base model."""

    path: Path = Path("var/models/SmolLM2-135M-Instruct")
    """A Hugging Face folder: config.json, *.safetensors, tokenizer with a chat template."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the trainer runs; auto takes a GPU when there is one."""


class ScenariosConfig(Section):
    """What a cycle is made of."""

    packs: tuple[Path, ...] = ()
    """Scenario packs (YAML files) beside the built-in ones."""
    builtin: tuple[BuiltinPack, ...] = ("listening", "coding", "arithmetic", "reasoning", "writing", "honesty")
    """The built-in packs that are used."""
    per_cycle: Annotated[int, Field(ge=2, le=1000)] = 28
    """Scenarios per cycle."""
    general_fraction: Annotated[float, Field(ge=0.25, le=0.9)] = 0.25
    """Share of general scenarios, rounded up; at least a quarter, against forgetting."""
    dream_fraction: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1
    """Share of the behavioural scenarios that the policy is asked to write itself; templates fill what it fails at."""
    dream_tries: Annotated[int, Field(ge=1, le=64)] = 4
    """Texts the policy writes for each scenario wanted of it."""
    dream_temperature: Annotated[float, Field(gt=0.0, le=2.0)] = 1.0
    """Temperature it writes them at."""
    dream_max_new_tokens: Annotated[int, Field(ge=16, le=1024)] = 96
    """Longest text it may write, tokens."""
    conversation_fraction: Annotated[float, Field(ge=0.0, le=0.9)] = 0.25
    """Share of the behavioural scenarios from approved conversation logs, while these last."""
    replay_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Share of the general scenarios from approved replay data, while these last."""
    max_per_source: Annotated[int, Field(ge=1, le=1000)] = 4
    """Most scenarios of one imported source in one cycle."""


class SweepConfig(Section):
    """How the live policy answers."""

    engine: Literal["vllm", "transformers"] = "vllm"
    """`vllm` runs it in this process; `transformers` needs no vLLM and is slower."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the engine's weights. float32 proves the weight sync to 1e-5 nats; bfloat16 is faster, its proof coarser."""
    temperatures: Annotated[tuple[Annotated[float, Field(ge=0.0, le=2.0)], ...], Field(min_length=1, max_length=8)] = (
        0.1,
        0.7,
        1.0,
    )
    """Each scenario is answered at each of these."""
    samples: Annotated[int, Field(ge=1, le=16)] = 2
    """Answers per scenario and temperature."""
    guided_samples: Annotated[int, Field(ge=0, le=16)] = 1
    """Answers per behavioural scenario with its guidance in the context."""
    guided_temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.7
    """Their temperature."""
    max_new_tokens: Annotated[int, Field(ge=8, le=4096)] = 64
    """Longest answer, tokens."""
    max_model_len: Annotated[int, Field(ge=256, le=131072)] = 1024
    """Longest prompt plus answer the engine accepts, tokens."""
    max_num_seqs: Annotated[int, Field(ge=1, le=1024)] = 64
    """Answers the engine works on at once."""
    kv_cache_gib: Annotated[int, Field(ge=1, le=512)] = 1
    """Engine KV cache on the CPU, whole GiB."""
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.4
    """Share of the GPU's total memory for the engine, when the trainer sits on the same GPU."""
    deadline_s: Annotated[float, Field(ge=1.0, le=21600.0)] = 900.0
    """An engine that makes no step for so long hangs: the process ends, to be started again. Loading counts as one."""


class PreferencesConfig(Section):
    """How examples are built."""

    chosen_order: Annotated[tuple[ChosenSource, ...], Field(min_length=1)] = (
        ChosenSource.EXPLORATION,
        ChosenSource.GUIDED,
        ChosenSource.TARGET,
    )
    """Where the chosen side comes from, first that has one; of a conversation the correction comes first."""
    judge_without_rule: Literal["contrast", "model", "none"] = "contrast"
    """Who judges answers to scenarios that have a guidance and no rule. `contrast`: how much more likely the guidance
    makes the answer; `model`: a rubric, answered yes or no; `none`: nobody, and no conversations are drawn."""
    contrast_margin: Annotated[float, Field(ge=0.0, le=10.0)] = 0.1
    """`contrast`: an answer passes above this and fails below minus this, nats per token; between, it is not judged."""
    judge_url: str = ""
    """OpenAI-compatible endpoint of the `model` judge and of rubrics, such as `http://127.0.0.1:8000/v1`; empty: the
    live policy itself. A key is taken from the environment variable `DREAMD_JUDGE_KEY`."""
    judge_model: str = ""
    """The model's name at `judge_url`."""
    judge_timeout_s: Annotated[float, Field(gt=0.0, le=600.0)] = 30.0
    """Longest wait for one answer of the endpoint."""
    code_timeout_s: Annotated[float, Field(gt=0.0, le=60.0)] = 5.0
    """Longest run of one answer's code in the sandbox."""
    code_memory_mib: Annotated[int, Field(ge=64, le=8192)] = 256
    """Memory of one answer's code in the sandbox."""

    @model_validator(mode="after")
    def _endpoint_is_named(self) -> Self:
        if self.judge_url and not self.judge_url.startswith(("http://", "https://")):
            raise ValueError(f"judge_url = {self.judge_url!r}: write http://HOST:PORT/v1 or https://...")
        if self.judge_url and not self.judge_model:
            raise ValueError("judge_url needs judge_model: the model's name at that endpoint")
        return self


class PhaseConfig(Section):
    """One phase of the training plan: an objective and its learning rate, for some cycles."""

    objective: Objective
    """`sft`, `orpo`, `dpo`, `ipo` or `dpop`."""
    cycles: Annotated[int, Field(ge=1)] | None = None
    """Cycles this phase lasts, skipped ones included; only the last phase may leave it out, and then never ends."""
    lr: LearningRate | None = None
    """Peak learning rate; unset: 1e-5 for sft and orpo, 5e-7 for dpo, ipo and dpop."""
    schedule: Schedule = "constant"
    """`cosine` falls from the peak to the floor over `schedule_cycles`."""
    warmup_cycles: Annotated[int, Field(ge=0)] = 0
    """Cycles of linear warm-up: cycle k of the phase, from 1, has lr * k / (warmup_cycles + 1)."""
    schedule_cycles: Annotated[int, Field(ge=1)] | None = None
    """Cycle of the phase, from 1, in which the cosine reaches its floor, warm-up included; unset: `cycles`."""
    final_lr_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """The cosine's floor as a fraction of `lr`; it stays there."""

    @property
    def peak_lr(self) -> float:
        """`lr`, or the objective's default."""
        if self.lr is not None:
            return self.lr
        return 5e-7 if self.objective.needs_reference else 1e-5

    @property
    def cosine_cycles(self) -> int | None:
        """`schedule_cycles`, or `cycles`."""
        return self.schedule_cycles if self.schedule_cycles is not None else self.cycles

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.schedule == "constant":
            if self.schedule_cycles is not None:
                raise ValueError('schedule_cycles is the length of a cosine; set schedule = "cosine" or leave it out')
        elif self.cosine_cycles is None:
            raise ValueError('schedule = "cosine" needs schedule_cycles: in how many cycles it falls to its floor')
        elif self.cosine_cycles < self.warmup_cycles + 2:
            raise ValueError(
                f"the cosine has {self.cosine_cycles} cycles, warmup_cycles = {self.warmup_cycles} of them; "
                f"set schedule_cycles (or cycles) to at least {self.warmup_cycles + 2}, for a peak and a floor"
            )
        if self.cycles is not None and self.warmup_cycles >= self.cycles:
            raise ValueError(
                f"warmup_cycles = {self.warmup_cycles} leaves none of {self.cycles} cycles at the full lr; lower it"
            )
        return self


_PHASE_KEYS = ("objective", "lr", "schedule", "warmup_cycles", "schedule_cycles", "final_lr_fraction")
"""Keys of `[training]` that describe its one phase when there are no `[[training.phases]]`."""


class TrainingConfig(Section):
    """The one step."""

    objective: Objective = Objective.ORPO
    """`sft`, `orpo`, `dpo`, `ipo` or `dpop`; the last three compare with `reference`."""
    phases: tuple[PhaseConfig, ...] = ()
    """A plan, one phase after another, as `[[training.phases]]`; empty: one phase of the keys beside it, for ever."""
    lr: LearningRate | None = None
    """Learning rate; unset: 1e-5 for sft and orpo (above 1e-4 only with `allow_unsafe_lr`), 5e-7 for dpo, ipo and
    dpop (above 1e-6 only with `allow_unsafe_lr`)."""
    allow_unsafe_lr: bool = False
    """Accept a learning rate outside the range that is known to be gentle, in every phase."""
    schedule: Schedule = "constant"
    """`cosine` falls from `lr` to the floor over `schedule_cycles`."""
    warmup_cycles: Annotated[int, Field(ge=0)] = 0
    """Cycles of linear warm-up: cycle k, from 1, has lr * k / (warmup_cycles + 1)."""
    schedule_cycles: Annotated[int, Field(ge=1)] | None = None
    """Cycle, from 1, in which the cosine reaches its floor, warm-up included; afterwards it stays there."""
    final_lr_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """The cosine's floor as a fraction of `lr`."""

    optimizer: Literal["apollo", "apollo_mini", "adamw"] = "apollo"
    """APOLLO keeps its moments in a projected space of `rank`, APOLLO-Mini in one dimension (arXiv 2412.05270)."""
    rank: Annotated[int, Field(ge=1)] = 64
    """Dimensions of APOLLO's projected space, per weight matrix; `apollo` only."""
    scale: Annotated[float, Field(gt=0.0)] | None = None
    """The paper's scale: updates are multiplied by its square root; unset: 1 for apollo, 128 for apollo_mini."""
    refresh_every: Annotated[int, Field(ge=1)] = 200
    """Steps between two random projections."""
    norm_growth_limit: Annotated[float, Field(gt=1.0)] = 1.01
    """A scaled gradient's norm grows by at most this factor from one step to the next."""
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Decoupled: weights shrink by lr * weight_decay per step."""
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0.0, le=1e-2)] = 1e-8
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    """Gradients are scaled down to this norm."""
    precision: Literal["fp32", "bf16-stochastic"] = "fp32"
    """Of the weights. `bf16-stochastic` takes half the memory and rounds each update up or down at random, so that
    small steps survive on average."""

    orpo_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Weight of the odds-ratio term; orpo only."""
    nll_over: Literal["response", "prompt_and_response"] = "response"
    """Tokens of the NLL term; `prompt_and_response` needs both gradient scopes `full`."""
    beta: Annotated[float, Field(gt=0.0)] = 0.1
    """How strongly dpo, ipo and dpop hold on to the reference."""
    dpop_penalty: Annotated[float, Field(ge=0.0)] = 50.0
    """DPOP's lambda, against a falling chosen likelihood; 50 as in the paper's experiments (arXiv 2402.13228)."""
    reference: Literal["base", "baked"] = "base"
    """The anchor whose log-probabilities dpo, ipo and dpop compare with: the pinned base, or the last baked one."""

    gradient_scope: GradientScope = "context_frozen"
    """Of behavioural examples: `context_frozen` lets the gradient through response tokens only, the encoded prompt is
    a constant; `full` is the usual gradient."""
    general_gradient_scope: GradientScope = "full"
    """Of general examples."""
    micro_batch: Annotated[int, Field(ge=1, le=1024)] = 4
    """Examples per forward and backward pass; more is faster and takes more memory."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    logits_chunk: Annotated[int, Field(ge=16)] = 512
    """Response tokens whose logits exist at once."""

    @property
    def plan(self) -> tuple[PhaseConfig, ...]:
        """The phases, or the one made from the keys beside them; never empty."""
        return self.phases or (PhaseConfig.model_validate({key: getattr(self, key) for key in _PHASE_KEYS}),)

    @property
    def optimizer_scale(self) -> float:
        """`scale`, or the optimizer's default."""
        if self.scale is not None:
            return self.scale
        return 128.0 if self.optimizer == "apollo_mini" else 1.0

    @field_validator("phases", mode="before")
    @classmethod
    def _phases_are_tables(cls, value: object) -> object:
        if isinstance(value, str | dict):
            raise ValueError(
                "write each phase as a table [[training.phases]] in the file, "
                'or all as a JSON list: [{"objective": "sft", "cycles": 20}, {"objective": "orpo"}]'
            )
        return value

    @field_validator("precision", mode="before")
    @classmethod
    def _no_plain_bf16(cls, value: object) -> object:
        if value in ("bf16", "bfloat16"):
            raise ValueError(
                'in plain bfloat16 two thirds of each step would round away; use "bf16-stochastic" or "fp32"'
            )
        return value

    @model_validator(mode="after")
    def _one_plan(self) -> Self:
        try:
            plan = self.plan
        except ValidationError as error:  # the phase made of these keys: they are at fault, and named
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        beside = [key for key in _PHASE_KEYS if key in self.model_fields_set]
        if self.phases and beside:
            raise ValueError(f"{', '.join(beside)} beside phases means nothing; put it into each [[training.phases]]")
        for number, phase in enumerate(plan[:-1], start=1):
            if phase.cycles is None:
                raise ValueError(f"phase {number} of {len(self.phases)} never ends; set its cycles (only the last may)")
        return self

    @model_validator(mode="after")
    def _gentle(self) -> Self:
        for number, phase in enumerate(self.plan, start=1):
            limit, gentle = ("1e-6", "5e-7") if phase.objective.needs_reference else ("1e-4", "1e-5")
            if phase.peak_lr > float(limit) and not self.allow_unsafe_lr:
                where = f"phase {number}: " if self.phases else ""
                raise ValueError(
                    f"{where}lr = {phase.peak_lr:g} is above {limit}, where single {phase.objective} steps are known "
                    f"to break a model; use {gentle}, or set training.allow_unsafe_lr = true if you mean it"
                )
        return self

    @model_validator(mode="after")
    def _prompt_has_gradient(self) -> Self:
        scopes = {self.gradient_scope, self.general_gradient_scope}
        if self.nll_over == "prompt_and_response" and scopes != {"full"}:
            raise ValueError(
                'nll_over = "prompt_and_response" trains the prompt, and a frozen one has no gradient; set '
                'gradient_scope = "full" and general_gradient_scope = "full", or nll_over = "response"'
            )
        return self


class CheckpointsConfig(Section):
    """What is kept on disk, and elsewhere."""

    keep_last: Annotated[int, Field(ge=2, le=10000)] = 8
    """Newest checkpoints whose image (weights in bfloat16) is kept, beside the base, the anchors and the pinned."""
    keep_every: Annotated[int, Field(ge=1)] = 50
    """The image of every checkpoint whose cycle is a multiple of this is kept for ever."""
    keep_rollbacks: Annotated[int, Field(ge=0)] = 30
    """Cycles for which both sides of a rollback are kept."""
    keep_exact: Annotated[int, Field(ge=2, le=100)] = 2
    """Newest checkpoints whose exact state (weights as trained, optimizer) is kept, beside base, anchors and pinned."""
    keyframe_every: Annotated[int, Field(ge=1, le=1000)] = 20
    """Most deltas between an image and its keyframe; a chain as large as half a keyframe ends as well."""
    mirror_url: str | None = None
    """A second place for every checkpoint: any URL that fsspec knows (file://, sftp://, s3://); unset: none."""
    mirror_exact: bool = True
    """Mirror the exact state of base, rollback targets and pins, too; it is many times larger than the images."""
    scrub_mib: Annotated[int, Field(ge=0)] = 512
    """MiB of published files to read again and compare with their hashes, per cycle; 0: never."""
    rehearse_every_days: Annotated[float, Field(ge=0.0)] = 7.0
    """Days between two rehearsals of a restore; 0: never."""


class ServiceConfig(Section):
    """The loop."""

    interval_s: Annotated[float, Field(ge=0.0)] = 0.0
    """Seconds from one cycle's start to the next; 0: back to back."""


class LoggingConfig(Section):
    """Structured logs."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    file: bool = True
    """Also append JSON lines to STATE_DIR/dreamd.log."""


class Config(Section):
    """Everything dreamd can be told."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    scenarios: ScenariosConfig = ScenariosConfig()
    sweep: SweepConfig = SweepConfig()
    preferences: PreferencesConfig = PreferencesConfig()
    training: TrainingConfig = TrainingConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    probes: ProbesConfig = ProbesConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    breaker: BreakerConfig = BreakerConfig()
    governor: GovernorConfig = GovernorConfig()
    service: ServiceConfig = ServiceConfig()
    logging: LoggingConfig = LoggingConfig()

    @property
    def retention(self) -> Retention:
        """What to keep, as the domain has it."""
        kept = self.checkpoints
        return Retention(
            kept.keep_last, kept.keep_every, kept.keep_exact, kept.keep_rollbacks, self.watchdog.baked_after
        )

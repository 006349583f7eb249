"""One frozen pydantic section per stage. Every key has a unit, a bound and a default that runs on a laptop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from daemon.domain.states import ChosenSource


class Section(BaseModel):
    """Frozen, and unknown keys are errors: a misspelt key must not run with its default."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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
    """Scenario packs (YAML files) beside the built-in `listening`."""
    builtin_listening: bool = True
    """Whether the built-in pack is used."""
    per_cycle: Annotated[int, Field(ge=2, le=1000)] = 28
    """Scenarios per cycle."""
    general_fraction: Annotated[float, Field(ge=0.25, le=0.9)] = 0.25
    """Share of general scenarios, rounded up; at least a quarter, against forgetting."""


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


class PreferencesConfig(Section):
    """How examples are built."""

    chosen_order: Annotated[tuple[ChosenSource, ...], Field(min_length=1)] = (
        ChosenSource.EXPLORATION,
        ChosenSource.GUIDED,
        ChosenSource.TARGET,
    )
    """Where the chosen side comes from, first that has one."""


class TrainingConfig(Section):
    """The one step."""

    objective: Literal["orpo"] = "orpo"
    optimizer: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0.0, le=10.0)] = 1e-5
    """Learning rate; above 1e-4 only with `allow_unsafe_lr`."""
    allow_unsafe_lr: bool = False
    """Accept a learning rate outside the range that is known to be gentle."""
    orpo_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Weight of the odds-ratio term."""
    nll_over: Literal["response", "prompt_and_response"] = "response"
    """Tokens of the NLL term."""
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0.0, le=1e-2)] = 1e-8
    micro_batch: Annotated[int, Field(ge=1, le=1024)] = 4
    """Examples per forward and backward pass; more is faster and takes more memory."""
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    """Gradients are scaled down to this norm."""

    @model_validator(mode="after")
    def _gentle(self) -> Self:
        if self.lr > 1e-4 and not self.allow_unsafe_lr:
            raise ValueError(
                f"lr = {self.lr:g} is above 1e-4, where single steps are known to break a model; "
                "use 1e-5, or set training.allow_unsafe_lr = true if you mean it"
            )
        return self


class CheckpointsConfig(Section):
    """What is kept on disk."""

    keep_last: Annotated[int, Field(ge=2, le=10000)] = 3
    """Newest checkpoints of the head's lineage whose files are kept, beside the base and the rollback anchors."""


class ProbesConfig(Section):
    """What is measured after every step."""

    nll_documents: Annotated[int, Field(ge=8)] = 48
    """Held-out documents of the shipped suite to measure, spread over its kinds; more than it has: all."""
    behaviour_items: Annotated[int, Field(ge=4, le=400)] = 24
    """Held-out prompts per side (accept, push back)."""
    max_new_tokens: Annotated[int, Field(ge=8, le=1024)] = 64
    """Longest greedy answer to a held-out prompt, tokens."""


class WatchdogConfig(Section):
    """When a candidate is refused."""

    max_nll_rise: Annotated[float, Field(gt=0.0)] = 0.10
    """Hard gate: held-out NLL above the parent's by more than this, nats per token."""
    margin_baked: Annotated[float, Field(gt=0.0)] = 0.01
    """Paired margin against the last baked checkpoint (A1), nats per token."""
    margin_base: Annotated[float, Field(gt=0.0)] = 0.03
    """Paired margin against the base (A0), nats per token."""
    num_standard_errors: Annotated[float, Field(ge=0.0)] = 3.3
    """Regressed when mean difference minus this many standard errors (over documents) exceeds the margin."""
    max_update_norm_ratio: Annotated[float, Field(gt=1.0)] = 10.0
    """Hard gate: update norm over its median in the last 20 promoted steps (from 5 on)."""
    chosen_falling_cycles: Annotated[int, Field(ge=2)] = 5
    """Hard gate: held-out chosen log-probability fell this many cycles in a row ..."""
    chosen_falling_total: Annotated[float, Field(ge=0.0)] = 0.05
    """... by this much in all, nats per token."""
    max_degenerate_rise: Annotated[float, Field(gt=0.0, le=1.0)] = 0.25
    """Hard gate: share of empty or looping held-out answers above the base's by more than this."""
    baked_after: Annotated[int, Field(ge=1)] = 10
    """Later promoted cycles after which a checkpoint counts as baked."""


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
    service: ServiceConfig = ServiceConfig()
    logging: LoggingConfig = LoggingConfig()

"""What `[training]` accepts, refuses, and says when it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daemon.config import load_config
from daemon.config.schedule import plan_step
from daemon.config.sections import TrainingConfig
from daemon.domain.errors import ConfigError
from daemon.domain.states import Objective


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(training: str, *flags: str, **environ: str) -> str:
    """The message with which a file of this `[training]` section is refused."""
    Path("bad.toml").write_text(f"[training]\n{training}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(Path("bad.toml"), environ=environ, flags=flags)
    return str(caught.value)


@pytest.mark.parametrize(
    ("objective", "lr"), [("sft", 1e-5), ("orpo", 1e-5), ("dpo", 5e-7), ("ipo", 5e-7), ("dpop", 5e-7)]
)
def test_each_objective_has_its_learning_rate(objective: str, lr: float) -> None:
    """1e-5 where the NLL is trained, 5e-7 against a reference; alone or as a phase."""
    alone = TrainingConfig.model_validate({"objective": objective})
    phase = TrainingConfig.model_validate({"phases": [{"objective": objective}]})
    assert plan_step(alone, 1).lr == plan_step(phase, 1).lr == lr
    assert Objective(objective).needs_reference == (lr == 5e-7)


@pytest.mark.parametrize(
    ("objective", "highest", "gentle"),
    [
        ("sft", 1e-4, "1e-5"),
        ("orpo", 1e-4, "1e-5"),
        ("dpo", 1e-6, "5e-7"),
        ("ipo", 1e-6, "5e-7"),
        ("dpop", 1e-6, "5e-7"),
    ],
)
def test_a_learning_rate_that_breaks_models_must_be_meant(objective: str, highest: float, gentle: str) -> None:
    """The bound itself is accepted; twice it is refused with the objective, the bound, a gentle value and the key."""
    for place in (f'objective = "{objective}"', f'[[training.phases]]\nobjective = "{objective}"'):
        message = refusal(f"{place}\nlr = {2 * highest}")
        for says in (f"lr = {2 * highest:g}", f"single {objective} steps", f"use {gentle}", "training.allow_unsafe_lr"):
            assert says in message
    for meant in ({"lr": highest}, {"lr": 2 * highest, "allow_unsafe_lr": True}):
        assert TrainingConfig.model_validate({"objective": objective, **meant}).plan[0].peak_lr == meant["lr"]


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ('precision = "bf16"', "training.precision = 'bf16': in plain bfloat16 two thirds"),
        ('precision = "bfloat16"', 'use "bf16-stochastic"'),
        ('precision = "fp16"', "training.precision"),
        ('schedule = "cosine"', "needs schedule_cycles"),
        ("schedule_cycles = 5", 'set schedule = "cosine"'),
        (
            'schedule = "cosine"\nschedule_cycles = 5\nwarmup_cycles = 4',
            "set schedule_cycles (or cycles) to at least 6",
        ),
        ('nll_over = "prompt_and_response"', 'gradient_scope = "full" and general_gradient_scope = "full"'),
        (
            'nll_over = "prompt_and_response"\ngradient_scope = "full"\ngeneral_gradient_scope = "context_frozen"',
            "full",
        ),
        ('objective = "ppo"', "training.objective = 'ppo'"),
        ("norm_growth_limit = 1.0", "greater than 1"),
        ("beta = 0.0", "greater than 0"),
        ("final_lr_fraction = 1.5", "less than or equal to 1"),
        ("rank = 0", "greater than or equal to 1"),
        ("logits_chunk = 8", "greater than or equal to 16"),
        ("phases = 3", "training.phases"),
        ('phases = "sft"', "[[training.phases]]"),
        ('phases = { objective = "sft" }', "[[training.phases]]"),
        ('lr = 1e-5\n[[training.phases]]\nobjective = "sft"', "lr beside phases means nothing; put it into each"),
        ('objective = "sft"\nwarmup_cycles = 2\n[[training.phases]]\nobjective = "sft"', "objective, warmup_cycles"),
        ("[[training.phases]]\ncycles = 2", "training.phases.0.objective"),
        ('[[training.phases]]\nobjective = "sft"\n[[training.phases]]\nobjective = "orpo"', "phase 1 of 2 never ends"),
        ('[[training.phases]]\nobjective = "sft"\nschedule = "cosine"', "training.phases.0: schedule = "),
        ('[[training.phases]]\nobjective = "sft"\ncycles = 2\nwarmup_cycles = 2', "leaves none of 2 cycles"),
        (
            '[[training.phases]]\nobjective = "sft"\ncycle = 2',
            "training.phases.0.cycle: unknown key; did you mean cycles?",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_fix(training: str, says: str) -> None:
    """The message names the file, the key and what to set instead."""
    message = refusal(training)
    assert message.startswith("bad.toml: training")
    assert says in message


def test_phases_load_from_the_file_in_order() -> None:
    """Each [[training.phases]] is a phase; their keys have the same defaults as those of [training]."""
    Path("plan.toml").write_text(
        '[training]\noptimizer = "adamw"\n'
        '[[training.phases]]\nobjective = "sft"\ncycles = 2\nlr = 2e-5\n'
        '[[training.phases]]\nobjective = "dpop"\nschedule = "cosine"\nschedule_cycles = 9\nfinal_lr_fraction = 0\n'
    )
    loaded = load_config(Path("plan.toml"), environ={})
    sft, dpop = loaded.config.training.plan
    assert (sft.objective, sft.cycles, sft.peak_lr, sft.schedule) == (Objective.SFT, 2, 2e-5, "constant")
    assert (dpop.objective, dpop.cycles, dpop.peak_lr, dpop.cosine_cycles) == (Objective.DPOP, None, 5e-7, 9)
    assert loaded.source("training.phases") == "plan.toml"


def test_phases_from_the_environment_or_a_flag_are_a_json_list() -> None:
    """As a whole they can be overridden; one key of one phase cannot, and the message says how."""
    text = '[{"objective": "sft", "cycles": 3}, {"objective": "orpo"}]'
    for loaded in (
        load_config(environ={"DREAMD_TRAINING__PHASES": text}),
        load_config(environ={}, flags=[f"training.phases={text}"]),
    ):
        assert [phase.cycles for phase in loaded.config.training.plan] == [3, None]
    assert "[[training.phases]]" in refusal("", "training.phases.0.lr=1e-5")
    assert "[[training.phases]]" in refusal("", "training.phases=sft")
    assert "did you mean phases?" in refusal("", DREAMD_TRAINING__PHASES__0__LR="1e-5")


@pytest.mark.parametrize(
    ("training", "scale"),
    [({}, 1.0), ({"optimizer": "apollo_mini"}, 128.0), ({"optimizer": "apollo_mini", "scale": 4.0}, 4.0)],
)
def test_the_optimizer_has_its_papers_scale(training: dict[str, Any], scale: float) -> None:
    """1 for APOLLO, 128 for APOLLO-Mini, unless it is set."""
    assert TrainingConfig.model_validate(training).optimizer_scale == scale


def test_prompt_and_response_goes_with_the_full_gradient() -> None:
    """With both scopes full the prompt can be trained."""
    full = {"nll_over": "prompt_and_response", "gradient_scope": "full"}
    assert TrainingConfig.model_validate(full).general_gradient_scope == "full"

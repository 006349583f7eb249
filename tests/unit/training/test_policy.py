"""The live policy on a tiny random model: step, finite checks, exact save and restore."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import build_tiny_model
from tiny_policies import Folders, batch, build, publish, words
from transformers import LlamaForCausalLM

from daemon.domain.errors import CheckpointError, ConfigError, DreamdError, ModelError, NonFiniteError, OffPolicyError
from daemon.domain.records import Adjustments, StepReport
from daemon.domain.states import Objective, RollbackTarget
from daemon.training.encoder import ChatEncoder
from daemon.training.model_folder import check_model_folder
from daemon.training.policy import TorchPolicy


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def test_step_moves_by_adamw_and_reports_what_it_saw(model_dir: Path, tmp_path: Path) -> None:
    """One step equals torch's AdamW on the mean ORPO loss written out independently, to float32 rounding."""
    from transformers import AutoModelForCausalLM

    policy = build(model_dir, Folders(tmp_path), lr=1e-4, optimizer="adamw", gradient_scope="full")
    todo = batch(model_dir, 1, "base")
    report = policy.step(todo)

    reference = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-4, weight_decay=0.0)

    def mean_logprob(prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
        logits = reference(torch.tensor([prompt + answer])).logits[0].log_softmax(dim=-1)
        return torch.stack([logits[len(prompt) + i - 1, token] for i, token in enumerate(answer)]).mean()

    pair, alone = todo.examples
    c, r = (mean_logprob(pair.prompt_token_ids, ids) for ids in (pair.chosen_token_ids, pair.rejected_token_ids))
    log_odds = torch.log(c.exp() / (1 - c.exp())) - torch.log(r.exp() / (1 - r.exp()))
    alone_c = mean_logprob(alone.prompt_token_ids, alone.chosen_token_ids)
    loss = ((-c - 0.1 * torch.nn.functional.logsigmoid(log_odds)) + -alone_c) / 2
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    optimizer.step()

    assert report.loss == pytest.approx(loss.item(), rel=1e-5)
    assert report.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    assert report.chosen_logprob == pytest.approx((c + alone_c).item() / 2, rel=1e-5)
    assert report.rejected_logprob == pytest.approx(r.item(), rel=1e-5)
    assert report.log_odds == pytest.approx(log_odds.item(), rel=1e-4)
    assert (report.num_examples, report.num_pairs) == (2, 1)
    # AdamW's first step is lr * sign(gradient) wherever the gradient is not tiny.
    assert 0.5 < report.update_rms_over_lr <= 1.01
    for name, weight in policy.weights().items():
        torch.testing.assert_close(weight, dict(reference.named_parameters())[name].detach(), atol=2e-6, rtol=0)


def test_score_is_exact_when_repeated(model_dir: Path, tmp_path: Path) -> None:
    """The same weights and sequence give the same bits; scoring needs no prompt."""
    policy = build(model_dir, Folders(tmp_path))
    ids = ChatEncoder(model_dir).encode_text("held-out text")
    assert policy.score((), ids) == policy.score((), ids)
    assert len(policy.score((), ids)) == len(ids) - 1
    assert policy.score(ids[:4], ids[4:]) == pytest.approx(policy.score((), ids)[3:], abs=1e-5)


def test_items_that_are_scored_together_score_like_each_alone(model_dir: Path, tmp_path: Path) -> None:
    """Prompts and responses of different lengths, one without a prompt; again: the same bits."""
    policy = build(model_dir, Folders(tmp_path))
    items = [((5, 6, 7), (8, 9)), ((5,), (6, 7, 8, 9, 10, 11)), ((), (9, 8, 7, 6)), ((1, 2, 3, 4, 5, 6), (7,))]
    together = policy.score_together(items)
    assert [len(logprobs) for logprobs in together] == [2, 6, 3, 1]
    for item, logprobs in zip(items, together, strict=True):
        assert logprobs == pytest.approx(policy.score(*item), abs=1e-5)
    assert policy.score_together(items) == together


def test_stale_batch_is_refused(model_dir: Path, tmp_path: Path) -> None:
    """A batch, or one example of it, written by another version never reaches the optimizer (I6)."""
    policy = build(model_dir, Folders(tmp_path))
    before = policy.digests()
    good = batch(model_dir, 1, "base")
    stale = replace(good, examples=(good.examples[0], replace(good.examples[1], policy_version="other")))
    for wrong in (batch(model_dir, 1, "other"), stale):
        with pytest.raises(OffPolicyError, match="other"):
            policy.step(wrong)
    assert policy.digests() == before


def test_non_finite_stops_before_anything_moves(model_dir: Path, tmp_path: Path) -> None:
    """A NaN in the weights makes the loss NaN; weights and optimizer stay as they were, bit for bit."""
    policy = build(model_dir, Folders(tmp_path))
    policy.step(batch(model_dir, 1, "base"))
    next(iter(policy.weights().values())).view(-1)[0] = float("nan")
    before = policy.digests()
    with pytest.raises(NonFiniteError, match="did not move"):
        policy.step(batch(model_dir, 2, "base"))
    assert policy.digests() == before


@pytest.mark.parametrize("precision", ["fp32", "bf16-stochastic"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "tensor", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
)
def test_one_bad_gradient_stops_before_anything_moves(
    model_dir: Path, tmp_path: Path, tensor: str, value: str, precision: str
) -> None:
    """One NaN or infinite element in one tensor's gradient, the loss finite: weights and optimizer stay, bit for bit;
    the next step is the one that would have been made without it."""
    policy = build(model_dir, Folders(tmp_path), precision=precision, rank=8)
    straight = build(model_dir, Folders(tmp_path), precision=precision, rank=8)
    for live in (policy, straight):
        live.step(batch(model_dir, 1, "base"))
    before = policy.digests()

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        poisoned = gradient.clone()
        poisoned.view(-1)[-1] = float(value)
        return poisoned

    planted = dict(policy.model.named_parameters())[tensor].register_hook(poison)
    with pytest.raises(NonFiniteError, match=r"the gradient norm is (nan|inf); the optimizer did not move"):
        policy.step(batch(model_dir, 2, "base"))
    planted.remove()
    assert policy.digests() == before
    for live in (policy, straight):
        live.step(batch(model_dir, 3, "base"))
    assert policy.digests() == straight.digests() != before


@pytest.mark.parametrize(
    ("training", "adjustments", "same"),
    [
        ({}, Adjustments(), {}),
        ({"lr": 4e-5}, Adjustments(lr_factor=0.25), {"lr": 1e-5}),
        ({"orpo_weight": 0.2}, Adjustments(orpo_weight_factor=0.5), {"orpo_weight": 0.1}),
        ({"lr": 1e-4}, Adjustments(objective=Objective.SFT), {"objective": "sft", "lr": 1e-5}),
        ({"lr": 1e-4}, Adjustments(objective=Objective.DPOP, lr_factor=0.5), {"objective": "dpop", "lr": 2.5e-7}),
        ({}, Adjustments(scenarios_factor=2.0, general_fraction=0.5, favour="code", probe_factor=2.0), {}),
    ],
)
def test_an_adjusted_step_is_that_of_the_adjusted_settings(
    model_dir: Path, tmp_path: Path, training: dict[str, object], adjustments: Adjustments, same: dict[str, object]
) -> None:
    """Weights, optimizer and report equal, bit for bit, those of a run configured so; defaults change nothing."""
    store = Folders(tmp_path)
    adjusting, configured = build(model_dir, store, **training), build(model_dir, store, **same)
    assert adjusting.reference(1, adjustments) is configured.reference(1, Adjustments())
    plain = batch(model_dir, 1, "base")
    if configured.reference(1, Adjustments()) is not None:
        plain = replace(plain, reference=publish(store, configured, "base"))
    found = adjusting.step(replace(plain, adjustments=adjustments))
    expected = configured.step(plain)
    assert adjusting.digests() == configured.digests()
    assert (found.lr, found.objective) == (expected.lr, expected.objective)
    assert replace(found, seconds={}, peak_memory_bytes=None) == replace(expected, seconds={}, peak_memory_bytes=None)
    # The plan is as it was: an adjustment holds for its batch alone.
    assert adjusting.reference(2, Adjustments()) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16-stochastic"])
@pytest.mark.parametrize("optimizer", ["apollo", "apollo_mini", "adamw"])
def test_resume_is_bit_exact(model_dir: Path, tmp_path: Path, optimizer: str, precision: str) -> None:
    """Four steps straight, or two, restart from the checkpoint, two more: identical weights and optimizer."""
    training = {"optimizer": optimizer, "precision": precision, "rank": 8, "refresh_every": 3}

    def report_of(policy: TorchPolicy, number: int) -> StepReport:
        report = policy.step(batch(model_dir, number, policy.version))
        policy.adopt(f"v{number}")
        return report

    store = Folders(tmp_path / "checkpoints")
    straight = build(model_dir, store, **training)
    for number in (1, 2, 3, 4):
        report_of(straight, number)

    first = build(model_dir, store, **training)
    report_of(first, 1)
    report_of(first, 2)
    saved = publish(store, first, "v2")
    second = build(model_dir, store, **training)
    second.step(batch(model_dir, 9, "base"))  # something else was live: restore replaces all of it
    second.restore(saved)
    assert second.version == "v2"
    assert second.digests() == first.digests()
    report_of(second, 3)
    report_of(second, 4)
    assert second.digests() == straight.digests()


def test_restore_refuses_another_checkpoint_and_changes_nothing(model_dir: Path, tmp_path: Path) -> None:
    """Flipping one bit of the recorded weights is noticed before the live policy changes."""
    store = Folders(tmp_path / "checkpoints")
    policy = build(model_dir, store)
    saved = publish(store, policy, "v1")
    before = policy.digests()
    store.flip_bit("v1", "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        policy.restore(saved)
    assert policy.digests() == before


@pytest.mark.parametrize("digest", ["weights_digest", "optimizer_digest"])
def test_restore_refuses_tensors_that_were_not_recorded(model_dir: Path, tmp_path: Path, digest: str) -> None:
    """Files that are sound, and yet hold other tensors than the row says, are noticed before anything changes."""
    store = Folders(tmp_path / "checkpoints")
    policy = build(model_dir, store)
    policy.step(batch(model_dir, 1, "base"))
    saved = publish(store, policy, "v1")
    policy.step(batch(model_dir, 2, "v1"))
    before = policy.digests()
    with pytest.raises(CheckpointError, match="v1: its tensors are not those recorded"):
        policy.restore(replace(saved, **{digest: "0" * 64}))
    assert policy.digests() == before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"optimizer": "adamw"}, 'set training.optimizer = "apollo"'),
        ({"precision": "bf16-stochastic"}, 'set training.precision = "fp32"'),
        ({"rank": 4}, "set training.rank back"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_with_the_fix(
    model_dir: Path, tmp_path: Path, other: dict[str, object], message: str
) -> None:
    """Another optimizer, precision or rank cannot continue a checkpoint: nothing changes, the error names the fix."""
    store = Folders(tmp_path / "checkpoints")
    first = build(model_dir, store, rank=8)
    first.step(batch(model_dir, 1, "base"))
    saved = publish(store, first, "v1")
    policy = build(model_dir, store, **{"rank": 8, **other})
    before = policy.digests()
    with pytest.raises(ConfigError, match=message):
        policy.restore(saved)
    assert (policy.version, policy.digests()) == ("base", before)


def test_the_reference_is_the_named_checkpoint(model_dir: Path, tmp_path: Path) -> None:
    """DPO compares with the checkpoint it is given, loaded from disk: its first logit is 0, later ones are not."""
    store = Folders(tmp_path / "checkpoints")
    policy = build(model_dir, store, objective="dpo", lr=1e-3, allow_unsafe_lr=True)
    base = publish(store, policy, "base")
    assert policy.reference(1, Adjustments()) is RollbackTarget.A0

    def logit(number: int) -> float:
        report = policy.step(replace(batch(model_dir, number, policy.version), reference=base))
        policy.adopt(f"v{number}")
        assert report.reference_version == "base"
        assert report.log_odds is not None
        return report.log_odds

    assert logit(1) == 0.0
    before = policy.digests()
    assert logit(1) > 0  # the same pair again, after one step towards its chosen side
    assert policy.digests() != before

    fresh = build(model_dir, store, objective="dpo")
    pair = batch(model_dir, 1, "base").examples[0]
    moved = [sum(policy.score(pair.prompt_token_ids, ids)) for ids in (pair.chosen_token_ids, pair.rejected_token_ids)]
    was = [sum(fresh.score(pair.prompt_token_ids, ids)) for ids in (pair.chosen_token_ids, pair.rejected_token_ids)]
    expected = 0.1 * ((moved[0] - was[0]) - (moved[1] - was[1]))
    assert logit(1) == pytest.approx(expected, rel=1e-3)


def test_a_reference_is_required_where_the_objective_compares(model_dir: Path, tmp_path: Path) -> None:
    """Without the anchor a DPO step is refused before anything moves; ORPO names none."""
    policy = build(model_dir, Folders(tmp_path), objective="dpo")
    before = policy.digests()
    with pytest.raises(DreamdError, match="needs a reference"):
        policy.step(batch(model_dir, 1, "base"))
    assert policy.digests() == before
    assert build(model_dir, Folders(tmp_path)).reference(1, Adjustments()) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16-stochastic"])
def test_the_report_measures_the_step(model_dir: Path, tmp_path: Path, precision: str) -> None:
    """Update RMS (as intended), cosine and fraction of changed bfloat16 words are those of the weights' change."""
    policy = build(model_dir, Folders(tmp_path), lr=1e-5, optimizer="adamw", precision=precision)
    before = {name: weight.clone() for name, weight in policy.weights().items()}
    report = policy.step(batch(model_dir, 1, "base"))
    pairs = [(before[name], weight) for name, weight in policy.weights().items()]
    moved = torch.cat([(after.double() - old.double()).flatten() for old, after in pairs])
    changed = np.concatenate([words(old) != words(after) for old, after in pairs])
    applied_rms = moved.square().mean().sqrt().item()
    assert report.bf16_changed == pytest.approx(changed.mean(), abs=1e-12)
    assert report.update_cosine is not None and report.precision == precision
    if precision == "fp32":
        assert report.update_rms == pytest.approx(applied_rms, rel=1e-4)
        assert report.update_cosine == pytest.approx(1.0, abs=1e-3)
    else:
        # One rounded step points the right way, but only on average: most of what moved is rounding, to and fro.
        assert 0.02 < report.update_cosine < 0.9
        in_float32 = build(model_dir, Folders(tmp_path), lr=1e-5, optimizer="adamw")
        assert report.update_rms == pytest.approx(in_float32.step(batch(model_dir, 1, "base")).update_rms, rel=0.05)
        assert applied_rms > 2 * report.update_rms
    assert report.peak_memory_bytes is not None
    assert set(report.seconds) == {"context", "answers", "backward", "update"}


@pytest.mark.parametrize("tied", [True, False])
def test_saved_weights_are_an_ordinary_model(tmp_path: Path, tied: bool) -> None:
    """transformers loads what a snapshot writes beside the model's config, tied head or not."""
    from transformers import AutoModelForCausalLM

    model_dir = build_tiny_model(tmp_path / "model", tied=tied)
    policy = build(model_dir, Folders(tmp_path / "checkpoints"))
    policy.step(batch(model_dir, 1, "base"))
    (model_dir / "model.safetensors").unlink()  # the policy's own memory may be a view of it
    policy.snapshot().write(model_dir)
    loaded = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, policy.weights()[name]), name


def test_a_model_with_state_beside_its_parameters_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A persistent buffer would be missing from every checkpoint, so such a model is refused by name."""
    forward = LlamaForCausalLM.__init__

    def with_buffer(self: LlamaForCausalLM, config: object) -> None:
        forward(self, config)
        self.register_buffer("score_correction", torch.zeros(3))

    model_dir = build_tiny_model(tmp_path / "model")
    monkeypatch.setattr(LlamaForCausalLM, "__init__", with_buffer)
    with pytest.raises(ModelError, match="keeps score_correction beside its parameters"):
        build(model_dir, Folders(tmp_path / "checkpoints"))


def test_end_of_turn_closes_responses(model_dir: Path) -> None:
    """A response ends with the token that the chat template ends turns with."""
    encoder = ChatEncoder(model_dir)
    assert encoder.end_of_turn == 1
    assert encoder.encode_response("ok")[-1] == 1
    assert encoder.decode(encoder.encode_response("ok")) == "ok"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "no such model folder"),
        ("no config", "config.json: missing"),
        ("broken config", "not valid JSON"),
        ("no weights", "no .*safetensors"),
        ("truncated", "truncated"),
    ],
)
def test_bad_model_folder_names_the_file(tmp_path: Path, damage: str, message: str) -> None:
    """Each way a model folder can be unusable is told apart before anything heavy is loaded."""
    model_dir = tmp_path / "model"
    if damage != "missing":
        build_tiny_model(model_dir)
    weights = model_dir / "model.safetensors"
    if damage == "no config":
        (model_dir / "config.json").unlink()
    elif damage == "broken config":
        (model_dir / "config.json").write_text("{")
    elif damage == "no weights":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=message):
        check_model_folder(model_dir)

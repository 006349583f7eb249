"""Looking inside the live policy, against transformers' own outputs and sums written out independently."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from tiny_model import build_tiny_model
from tiny_policies import Folders, build, publish
from torch import Tensor
from transformers import AutoModelForCausalLM

from daemon.domain.errors import CheckpointError
from daemon.domain.probing import Reading, Span
from daemon.domain.records import Checkpoint
from daemon.ports import Inspector
from daemon.training.inspector import TorchInspector

ITEMS = (((5, 17, 9, 30), (4, 8, 1)), ((7,), (11, 12)), ((), (3, 40, 41, 6)))
SPANS = (Span((5, 6, 7, 8, 9, 10, 11, 12), (2, 5), 6), Span((20, 21, 22, 23), (0, 1), 2))
PAIRS = (((5, 6, 7), (5, 6, 8)), ((9, 10), (9, 11, 12)), ((30, 2, 3), (31, 2, 3)))


class Rig:
    """A policy on a tiny model, an anchor it moved away from, and how often checkpoints were opened."""

    def __init__(self, directory: Path, model_dir: Path, **training: object) -> None:
        self.model_dir = model_dir
        self.store = Folders(directory / "checkpoints")
        self.policy = build(model_dir, self.store, **training)
        self.inspector: Inspector = TorchInspector(self.policy)
        self.base = self.publish("base")

    def publish(self, version: str) -> Checkpoint:
        return publish(self.store, self.policy, version)

    def disturb(self, scale: float = 0.02, seed: int = 0) -> None:
        """Move the live weights, as steps would."""
        generator = torch.Generator().manual_seed(seed)
        for weight in self.policy.weights().values():
            weight.add_(torch.randn(weight.shape, generator=generator).to(weight.dtype) * scale)

    def twin(self, implementation: str = "sdpa") -> Any:
        """An ordinary transformers model in float64 with the live weights."""
        model: Any = AutoModelForCausalLM.from_pretrained(
            self.model_dir, dtype=torch.float64, attn_implementation=implementation
        ).eval()
        model.config._experts_implementation = "eager"  # the grouped kernel knows no float64
        for name, parameter in model.named_parameters():
            parameter.data.copy_(self.policy.weights()[name])
        return model

    def seen(self) -> tuple[object, ...]:
        """Everything that looking must leave as it is."""
        model = self.policy.model
        hooks = sum(len(module._forward_hooks) for module in model.modules())
        scores = [self.policy.score(*item) for item in ITEMS]
        implementation = model.config._attn_implementation
        return self.policy.digests(), self.policy.version, scores, implementation, hooks, model.training


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, build_tiny_model(tmp_path / "model"))


def written(model: Any, directory: Path) -> Path:
    """A model folder of a small model."""
    model.float().save_pretrained(directory)
    return directory


def kl_by_hand(anchor: Any, live: Any, prompt: Sequence[int], response: Sequence[int]) -> float:
    """The definition: at each position before a response token, the sum of p (log p - log q)."""
    prompt, response = (prompt, response) if prompt else (response[:1], response[1:])
    ids = torch.tensor([[*prompt, *response]])
    p, q = (model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(dim=-1) for model in (anchor, live))
    positions: Tensor = (p.exp() * (p - q)).sum(dim=-1)
    assert len(positions) == len(response)
    return positions.mean().item()


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.02, 0.0005])
def test_kl_is_the_definition(rig: Rig, scale: float) -> None:
    """KL(anchor || policy) equals the definition written out in float64, also where it is tiny (about 1e-5 nats)."""
    anchor = rig.twin()
    rig.disturb(scale)
    expected = [kl_by_hand(anchor, rig.twin(), *item) for item in ITEMS]
    found = rig.inspector.kl(rig.base, ITEMS)
    assert found.skipped is None
    assert found.values == pytest.approx(expected, rel=2e-3 if scale < 0.01 else 1e-4)
    assert all(value > 0 for value in expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16-stochastic"])
def test_kl_with_itself_is_exactly_zero(tmp_path: Path, precision: str) -> None:
    """A policy that equals the anchor has distance 0, not nearly 0; a moved one is further away."""
    rig = Rig(tmp_path, build_tiny_model(tmp_path / "model"), precision=precision)
    assert rig.inspector.kl(rig.base, ITEMS) == Reading((0.0, 0.0, 0.0))
    rig.disturb()
    moved = rig.inspector.kl(rig.base, ITEMS).values
    assert all(value is not None and value > 0 for value in moved)


def test_looking_changes_nothing_and_repeats_exactly(rig: Rig) -> None:
    """Each measurement twice, with another anchor's in between: equal bits; weights, scores, settings as before."""
    rig.disturb()
    other = rig.publish("other")
    rig.disturb(seed=1)
    before = rig.seen()

    def look(anchor: Checkpoint) -> tuple[object, ...]:
        return (
            rig.inspector.kl(anchor, ITEMS),
            rig.inspector.attention_mass(SPANS),
            rig.inspector.steering(anchor, PAIRS),
        )

    first = look(rig.base)
    assert look(rig.base) == first
    assert look(other)[0] != first[0]
    assert look(rig.base) == first
    assert TorchInspector(rig.policy).kl(rig.base, ITEMS) == first[0]
    assert rig.seen() == before


def test_an_anchor_is_borrowed_once_until_another_is_asked_for(rig: Rig) -> None:
    """Known items need no weights from disk, new ones do; after another anchor the first one's are forgotten."""
    other = rig.publish("other")
    rig.store.opened.clear()
    rig.inspector.kl(rig.base, ITEMS[:2])
    rig.disturb()
    rig.inspector.kl(rig.base, ITEMS[:2])
    assert rig.store.opened == ["base"]
    rig.inspector.kl(rig.base, ITEMS)
    rig.inspector.steering(rig.base, PAIRS)
    rig.inspector.steering(rig.base, PAIRS)
    assert rig.store.opened == ["base"] * 3
    rig.inspector.kl(other, ITEMS)
    rig.inspector.kl(rig.base, ITEMS)
    assert rig.store.opened == ["base"] * 3 + ["other", "base"]


def test_a_damaged_anchor_is_refused(rig: Rig) -> None:
    """One flipped bit of the anchor's weights: an error that names the file, and the live policy is as it was."""
    rig.disturb()
    before = rig.seen()
    rig.store.flip_bit("base", "model.safetensors")
    for look in (lambda: rig.inspector.kl(rig.base, ITEMS), lambda: rig.inspector.steering(rig.base, PAIRS)):
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            look()
    assert rig.seen() == before


def test_what_is_not_finite_is_none(rig: Rig) -> None:
    """Infinite weights give None per item, never a number that looks like one."""
    rig.policy.weights()["model.norm.weight"].fill_(float("inf"))
    rig.policy.weights()["model.layers.0.input_layernorm.weight"].fill_(float("inf"))
    assert rig.inspector.kl(rig.base, ITEMS).values == (None, None, None)
    assert rig.inspector.attention_mass(SPANS).values == (None, None)
    steering = rig.inspector.steering(rig.base, PAIRS)
    assert steering.projections.values == (None, None, None)
    assert steering.consistency is None


def masses_by_hand(model: Any, span: Span, layers: Sequence[int]) -> float:
    """From the attentions that the model itself gives out, one weight at a time."""
    attentions = model(torch.tensor([span.token_ids]), output_attentions=True).attentions
    sums = [
        sum(attentions[layer][0, head, query, key].item() for key in range(*span.direction))
        for layer in layers
        for head in range(attentions[layer].shape[1])
        for query in range(span.response_start, len(span.token_ids))
    ]
    return sum(sums) / len(sums)


@torch.no_grad()
def test_attention_mass_is_the_models_own(rig: Rig) -> None:
    """It equals the mean of the weights that an eager model gives out; on the whole conversation it is 1."""
    rig.disturb()
    found = rig.inspector.attention_mass(SPANS)
    assert found.skipped is None
    assert found.values == pytest.approx([masses_by_hand(rig.twin("eager"), span, (0, 1)) for span in SPANS], rel=1e-5)
    (whole,) = rig.inspector.attention_mass([Span((5, 6, 7, 8), (0, 4), 2)]).values
    assert whole == pytest.approx(1.0, abs=1e-6)


def test_a_failed_look_leaves_the_model_as_it_was(rig: Rig) -> None:
    """A token that does not exist raises inside the forward pass; attention is computed as before afterwards."""
    before = rig.seen()
    with pytest.raises(IndexError):
        rig.inspector.attention_mass([Span((5, 100_000), (0, 1), 1)])
    with pytest.raises(IndexError):
        rig.inspector.steering(rig.base, [((5, 100_000), (6,))])
    assert rig.seen() == before


@torch.no_grad()
def test_a_hybrids_linear_layers_are_left_out_and_said(tmp_path: Path) -> None:
    """Three Gated DeltaNet layers and one of attention: only that one is read, the reason names the others."""
    rig = Rig(tmp_path, written(small_models.qwen3_next(), tmp_path / "model"))
    before = rig.seen()
    found = rig.inspector.attention_mass(SPANS)
    assert found.skipped == "3 of 4 layers have no full attention and are left out (3 linear_attention)"
    # transformers lists the attentions of the layers that have some: one.
    assert found.values == pytest.approx([masses_by_hand(rig.twin("eager"), span, (0,)) for span in SPANS], rel=1e-4)
    assert rig.seen() == before


@torch.no_grad()
def test_sliding_layers_are_left_out_and_said(tmp_path: Path) -> None:
    """Of a sliding, a full and a sliding layer only the full one is read."""
    rig = Rig(tmp_path, written(small_models.qwen2_sliding(), tmp_path / "model"))
    found = rig.inspector.attention_mass(SPANS)
    assert found.skipped == "2 of 3 layers have no full attention and are left out (2 sliding_attention)"
    assert found.values == pytest.approx([masses_by_hand(rig.twin("eager"), span, (1,)) for span in SPANS], rel=1e-4)


def test_without_full_attention_nothing_is_read(tmp_path: Path) -> None:
    """A window in every layer, which the configuration tells by the window alone: no values, and why."""
    rig = Rig(tmp_path, written(small_models.mistral_sliding(), tmp_path / "model"))
    expected = "none of the 2 layers has full attention (2 sliding_attention)"
    assert rig.inspector.attention_mass(SPANS) == Reading((), expected)
    assert len(rig.inspector.kl(rig.base, ITEMS).values) == len(ITEMS)


def differences_by_hand(model: Any) -> Tensor:
    """Of each pair: what the middle one of two layers gives at the last tokens, by a hook on the named module."""
    seen: list[Tensor] = []
    handle = model.model.layers[1].register_forward_hook(lambda module, arguments, output: seen.append(output[0, -1]))
    for pair in PAIRS:
        for tokens in pair:
            model(torch.tensor([tokens]))
    handle.remove()
    return torch.stack([first - second for first, second in zip(seen[::2], seen[1::2], strict=True)])


@torch.no_grad()
def test_steering_projects_onto_the_anchors_mean_difference(rig: Rig) -> None:
    """Projections and cosines equal those of hand-hooked activations; on the anchor itself they average to 1."""
    anchor = differences_by_hand(rig.twin())
    at_anchor = [value for value in rig.inspector.steering(rig.base, PAIRS).projections.values if value is not None]
    assert sum(at_anchor) / 3 == pytest.approx(1.0, abs=1e-12)

    rig.disturb()
    live = differences_by_hand(rig.twin())
    mean = anchor.mean(dim=0)
    unit = mean / mean.norm()
    expected = [(difference @ unit / mean.norm()).item() for difference in live]
    cosine = torch.nn.functional.cosine_similarity
    cosines = [cosine(live[a], live[b], dim=0).item() for a, b in ((0, 1), (0, 2), (1, 2))]
    found = rig.inspector.steering(rig.base, PAIRS)
    assert found.projections.values == pytest.approx(expected, rel=1e-4)
    assert found.projections.skipped is None
    assert found.consistency == pytest.approx(sum(cosines) / 3, abs=1e-5)


def test_consistency_needs_two_directions(rig: Rig) -> None:
    """One pair has none to agree with, and equal sequences have no direction; nothing asked, nothing read."""
    one = rig.inspector.steering(rig.base, PAIRS[:1])
    assert one.projections.values == (pytest.approx(1.0),)
    assert one.consistency is None
    assert rig.inspector.steering(rig.base, [*PAIRS, ((5, 6), (5, 6))]).consistency is None
    flat = rig.inspector.steering(rig.base, [((5, 6), (5, 6))])
    assert flat.projections == Reading((), "the anchor's mean difference is zero")
    assert rig.inspector.steering(rig.base, []).projections.values == ()
    assert rig.inspector.kl(rig.base, []).values == ()

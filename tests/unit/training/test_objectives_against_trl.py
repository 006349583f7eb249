"""Our objectives against TRL's: its own trainers on a tiny model, and its odds ratio loss on bare numbers.

TRL has ORPO, DPO and IPO; it has no DPOP. Ours are fed with log-probabilities computed here, one unpadded sequence at
a time, from the same weights.

Shapes: `B` sequences of TRL's batch, `T` tokens of one unpadded sequence, `R` response tokens, `V` vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import build_tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer
from trl.import_utils import TRLExperimentalWarning

from daemon.training.objectives import dpo, ipo, orpo

with warnings.catch_warnings():
    # It warns, depending on what was imported before, that its interface may change; the lock pins the version.
    warnings.simplefilter("ignore", TRLExperimentalWarning)
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

BETA = 0.4
PAIRS = [
    {"prompt": "What is two and two?", "chosen": " Four.", "rejected": " Five, I think, or six."},
    {"prompt": "Say hi.", "chosen": " Hi there, dear old friend.", "rejected": " No."},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two tiny models of different weights."""
    root = tmp_path_factory.mktemp("models")
    return SimpleNamespace(
        policy=build_tiny_model(root / "policy", seed=0), reference=build_tiny_model(root / "reference", seed=1)
    )


@pytest.fixture(autouse=True)
def _own_generator() -> Iterator[None]:
    """TRL's trainers seed torch's global generator."""
    with torch.random.fork_rng():
        yield


mean_logprob = st.floats(min_value=-20.0, max_value=-(2.0**-10), width=32)


@given(mean_logprob, mean_logprob)
@settings(deadline=None)
def test_odds_ratio_loss_agrees_with_trl(chosen: float, rejected: float) -> None:
    """ORPO's odds term, its log odds ratio and both gradients equal TRL's where TRL's float32 formula is sound."""
    trainer = SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device="cpu"))
    c, r = _leaf(chosen), _leaf(rejected)
    terms, _, _, _, log_odds = ORPOTrainer.odds_ratio_loss(trainer, c, r)
    (-terms).backward()

    our_c, our_r = _leaf(chosen), _leaf(rejected)
    loss = orpo(torch.tensor(0.0), our_c, our_r, 0.1)
    loss.total.backward()

    torch.testing.assert_close(loss.total, -terms, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(loss.logit, log_odds, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(our_c.grad, c.grad, rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(our_r.grad, r.grad, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("pair", PAIRS, ids=["short-chosen", "short-rejected"])
def test_orpo_agrees_with_trl_on_a_model(folders: SimpleNamespace, tmp_path: Path, pair: dict[str, str]) -> None:
    """The whole ORPO loss, its NLL over prompt and response, and every parameter's gradient equal TRL's.

    One pair a batch: TRL averages the NLL over all tokens of a batch, so there a longer example counts more.
    """
    config = ORPOConfig(max_length=64, remove_unused_columns=False, **_shared_settings(tmp_path, batch_size=1))
    trainer = ORPOTrainer(_load(folders.policy), config, train_dataset=_dataset([pair]), processing_class=_tok(folders))
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()

    policy = _load(folders.policy)
    ids_T, is_response_T = _unpadded(batch, "chosen")
    c_R = _response_logprobs(policy, ids_T, is_response_T)
    everything = torch.arange(len(ids_T)) > 0
    nll = -_response_logprobs(policy, ids_T, everything).mean()
    r_R = _response_logprobs(policy, *_unpadded(batch, "rejected"))
    found = orpo(nll, c_R.mean(), r_R.mean(), BETA).total
    found.backward()

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)
    _assert_same_gradients(policy, trainer.model)


@pytest.mark.parametrize(
    ("loss_type", "objective", "reduce"), [("sigmoid", dpo, torch.sum), ("ipo", ipo, torch.mean)], ids=["dpo", "ipo"]
)
def test_reference_objectives_agree_with_trl_on_a_model(
    folders: SimpleNamespace,
    tmp_path: Path,
    loss_type: str,
    objective: Callable[..., Any],
    reduce: Callable[[Tensor], Tensor],
) -> None:
    """DPO of sums and IPO of means, averaged over two pairs of unequal lengths, equal TRL's in loss and gradients."""
    config = DPOConfig(loss_type=[loss_type], **_shared_settings(tmp_path, batch_size=len(PAIRS)))
    trainer = DPOTrainer(
        _load(folders.policy),
        _load(folders.reference),
        config,
        train_dataset=_dataset(PAIRS),
        processing_class=_tok(folders),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()

    policy, reference = _load(folders.policy), _load(folders.reference)
    policy_B = [reduce(_response_logprobs(policy, *row)) for row in _rows(batch)]
    reference_B = [reduce(_response_logprobs(reference, *row)).detach() for row in _rows(batch)]
    found = torch.stack(
        [
            objective(torch.tensor(0.0), policy_B[i], policy_B[j], reference_B[i], reference_B[j], BETA).total
            for i, j in [(0, 2), (1, 3)]  # TRL stacks the chosen answers above the rejected ones
        ]
    ).mean()
    found.backward()

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)
    _assert_same_gradients(policy, trainer.model)


def _leaf(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, requires_grad=True)


def _load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


def _tok(folders: SimpleNamespace) -> Any:
    return AutoTokenizer.from_pretrained(folders.policy, local_files_only=True)


def _dataset(pairs: list[dict[str, str]]) -> Dataset:
    return Dataset.from_list(pairs)


def _shared_settings(directory: Path, batch_size: int) -> dict[str, Any]:
    return {
        "output_dir": str(directory),
        "beta": BETA,
        "bf16": False,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": batch_size,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
    }


def _unpadded(batch: dict[str, Any], side: str) -> tuple[Tensor, Tensor]:
    """Token ids and response mask, (T,) each, of one side of an ORPO batch of one pair."""
    real = batch[f"{side}_attention_mask"][0].bool()
    return batch[f"{side}_input_ids"][0][real], batch[f"{side}_labels"][0][real] != -100


def _rows(batch: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Token ids and response mask, (T,) each, of every sequence of a DPO batch."""
    columns = zip(batch["input_ids"], batch["completion_mask"], batch["attention_mask"].bool(), strict=True)
    return [(ids[real], mask[real].bool()) for ids, mask, real in columns]


def _response_logprobs(model: Any, ids_T: Tensor, is_response_T: Tensor) -> Tensor:
    """Log-probability of each marked token given those before it, (R,)."""
    logits_TV = model(input_ids=ids_T.unsqueeze(0), use_cache=False).logits[0]
    logprobs_TV = torch.log_softmax(logits_TV[:-1], dim=-1)
    return logprobs_TV.gather(1, ids_T[1:, None])[:, 0][is_response_T[1:]]


def _assert_same_gradients(ours: Any, theirs: Any) -> None:
    reference = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        distance = (parameter.grad - reference[name].grad).norm() / reference[name].grad.norm()
        assert distance < 1e-4, f"{name}: {distance:.2e}"

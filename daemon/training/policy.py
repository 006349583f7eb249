"""The live policy on the trainer's side: weights, optimizer, one ORPO step, save and restore.

Shapes: `B` sequences of one pass, `T` tokens of prompt and response, `K` of them with logits, `R` response tokens,
`V` vocabulary.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from daemon.config.sections import TrainingConfig
from daemon.domain.errors import CheckpointError, ModelError, NonFiniteError, OffPolicyError
from daemon.domain.hashing import derive_seed
from daemon.domain.records import Batch, Checkpoint, Example, PolicyDigests, StepReport
from daemon.training.digest import tensors_digest
from daemon.training.objectives import Loss, orpo

WEIGHTS_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.state"
"""safetensors inside; not so named, because vLLM loads every *.safetensors of a folder as weights."""

_Part = dict[str, float | None]
"""One example's figures; None for what a chosen-only example has not."""


class TorchPolicy:
    """float32 weights with AdamW; implements the `Policy` port."""

    def __init__(
        self,
        model_dir: Path,
        config: TrainingConfig,
        device: str,
        open_checkpoint: Callable[[Checkpoint], Path],
    ) -> None:
        """Load a model folder.

        Args:
            model_dir: a Hugging Face folder.
            config: the step's settings.
            device: a torch device.
            open_checkpoint: verifies a checkpoint's hashes and returns its directory.

        Raises:
            ModelError: transformers cannot load the folder.
        """
        try:
            loaded = AutoModelForCausalLM.from_pretrained(
                model_dir, dtype=torch.float32, local_files_only=True, attn_implementation="sdpa"
            )
            self._model = cast(Any, loaded)  # its methods are wrapped in ways mypy cannot follow
            self._model.to(device)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{model_dir}: transformers cannot load this model: {error}") from error
        self._model.eval()
        self._device = device
        self._config = config
        self._open_checkpoint = open_checkpoint
        # named_parameters() lists a tied tensor once, so a tied lm_head is neither saved nor stepped twice.
        self._parameters: dict[str, Tensor] = dict(self._model.named_parameters())
        self._optimizer = self._new_optimizer()
        self._version = ""

    @property
    def version(self) -> str:
        return self._version

    def adopt(self, version: str) -> None:
        self._version = version

    def weights(self) -> Mapping[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def digests(self) -> PolicyDigests:
        return PolicyDigests(tensors_digest(self.weights()), tensors_digest(self._optimizer_tensors()))

    # --- scoring -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(self, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
        # One sequence at a time, so a repeated measurement has the same shapes and the same bits.
        row = (prompt, response) if prompt else (response[:1], response[1:])
        return self._response_logprobs([row])[0].tolist()

    def _response_logprobs(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Tensor]:
        """Log-probability of each response token of each (prompt, response), float32, shapes (R,).

        Rows are padded on the right: nothing before a padding token can see it, so no mask is needed.
        """
        width = max(len(prompt) + len(response) for prompt, response in rows)
        first = min(len(prompt) for prompt, _ in rows) - 1
        padded = [[*prompt, *response, *[0] * (width - len(prompt) - len(response))] for prompt, response in rows]
        ids_BT = torch.tensor(padded, device=self._device)
        # Logits only where some row predicts a response token: K positions from `first` on.
        kept_K = torch.arange(first, width - 1, device=self._device)
        logits_BKV = self._model(input_ids=ids_BT, logits_to_keep=kept_K, use_cache=False).logits
        found = []
        for (prompt, response), logits_KV in zip(rows, logits_BKV, strict=True):
            start = len(prompt) - 1 - first
            logits_RV = logits_KV[start : start + len(response)].float()
            targets_R1 = torch.tensor(response, device=self._device).unsqueeze(1)
            found.append(logits_RV.gather(1, targets_R1).squeeze(1) - logits_RV.logsumexp(dim=1))
        return found

    # --- the step ------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> StepReport:
        self._refuse_off_policy(batch)
        started = time.monotonic()
        self._optimizer.zero_grad(set_to_none=True)
        self._model.train()
        try:
            # Nothing of an earlier process must matter to dropout: the generator follows from the batch alone.
            with torch.random.fork_rng(devices=self._cuda_devices()):
                torch.manual_seed(derive_seed("step", batch.batch_hash))
                parts = self._gradients(batch.examples)
        finally:
            self._model.eval()
        gradients_done = time.monotonic()
        grad_norm = self._clip_gradients(batch)
        update_rms = self._apply()
        self._optimizer.zero_grad(set_to_none=True)
        seconds = {"gradients": gradients_done - started, "update": time.monotonic() - gradients_done}
        return self._report(batch, parts, grad_norm, update_rms, seconds)

    def _refuse_off_policy(self, batch: Batch) -> None:
        versions = {batch.parent_version, *(example.policy_version for example in batch.examples)}
        if versions != {self._version}:
            raise OffPolicyError(
                f"cycle {batch.cycle_number}: the live policy is {self._version} but the batch holds "
                f"{', '.join(sorted(versions))}; a step trains only what its own parent wrote"
            )

    def _gradients(self, examples: Sequence[Example]) -> list[_Part]:
        """Accumulate the gradient of the mean loss; returns each example's figures, in the batch's order."""
        # Neighbours of similar length share a pass, so that little is padding.
        order = sorted(range(len(examples)), key=lambda index: _length(examples[index]))
        size = self._config.micro_batch
        parts: dict[int, _Part] = {}
        for start in range(0, len(order), size):
            chunk = order[start : start + size]
            parts.update(zip(chunk, self._backward([examples[i] for i in chunk], len(examples)), strict=True))
        return [parts[index] for index in range(len(examples))]

    def _backward(self, examples: Sequence[Example], num_examples: int) -> list[_Part]:
        """One forward and backward pass."""
        rows: list[tuple[Sequence[int], Sequence[int]]] = []
        for example in examples:
            rows.append((example.prompt_token_ids, example.chosen_token_ids))
            if example.rejected_token_ids:
                rows.append((example.prompt_token_ids, example.rejected_token_ids))
        logprobs = iter(self._response_logprobs(rows))
        losses, parts = [], []
        for example in examples:
            c = next(logprobs).mean()
            r = next(logprobs).mean() if example.rejected_token_ids else None
            loss = orpo(self._nll(example, c), c, r, self._config.orpo_weight)
            if not torch.isfinite(loss.total):
                raise NonFiniteError(
                    f"the loss of example {example.content_hash[:12]} is {loss.total.item()}; "
                    "the optimizer did not move"
                )
            losses.append(loss.total)
            parts.append(_part(loss, c, r))
        (torch.stack(losses).sum() / num_examples).backward()  # type: ignore[no-untyped-call]
        return parts

    def _nll(self, example: Example, c: Tensor) -> Tensor:
        if self._config.nll_over == "response":
            return -c
        everything = (*example.prompt_token_ids, *example.chosen_token_ids)
        return -self._response_logprobs([(everything[:1], everything[1:])])[0].mean()

    def _clip_gradients(self, batch: Batch) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._config.max_grad_norm)
        if not torch.isfinite(norm):
            self._optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(
                f"cycle {batch.cycle_number}: the gradient norm is {norm.item()}; the optimizer did not move"
            )
        return norm.item()

    @torch.no_grad()
    def _apply(self) -> float:
        """Move the optimizer once; returns the root mean square of the weight change."""
        before = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._optimizer.step()
        squares = sum((parameter - before[name]).norm().item() ** 2 for name, parameter in self._parameters.items())
        return math.sqrt(squares / sum(parameter.numel() for parameter in self._parameters.values()))

    def _report(
        self,
        batch: Batch,
        parts: list[_Part],
        grad_norm: float,
        update_rms: float,
        seconds: Mapping[str, float],
    ) -> StepReport:
        pairs = [part for part in parts if part["rejected"] is not None]
        rejected, log_odds = _mean(pairs, "rejected"), _mean(pairs, "log_odds")
        paired_chosen = _mean(pairs, "chosen")
        return StepReport(
            objective=self._config.objective,
            optimizer=self._config.optimizer,
            lr=self._config.lr,
            loss=_mean(parts, "loss") or 0.0,
            nll=_mean(parts, "nll") or 0.0,
            # Per example, as in the loss: chosen-only examples count with an odds term of 0.
            odds_loss=sum(part["odds_loss"] or 0.0 for part in parts) / len(parts),
            chosen_logprob=_mean(parts, "chosen") or 0.0,
            rejected_logprob=rejected,
            log_odds=log_odds,
            margin=None if rejected is None or paired_chosen is None else paired_chosen - rejected,
            grad_norm=grad_norm,
            update_rms=update_rms,
            num_examples=len(parts),
            num_pairs=len(pairs),
            num_tokens=sum(
                len(e.chosen_token_ids)
                + len(e.rejected_token_ids)
                + len(e.prompt_token_ids) * (2 if e.rejected_token_ids else 1)
                for e in batch.examples
            ),
            seconds=seconds,
            example_logprobs=tuple((part["chosen"] or 0.0, part["rejected"]) for part in parts),
        )

    # --- save and restore ----------------------------------------------------------------------------------

    def save(self, directory: Path) -> Mapping[str, Any]:
        """Write weights and optimizer; returns their digests under "weights_digest" and "optimizer_digest"."""
        weights, state = dict(self.weights()), self._optimizer_tensors()
        save_file({name: t.contiguous() for name, t in weights.items()}, directory / WEIGHTS_FILE, {"format": "pt"})
        save_file(state, directory / OPTIMIZER_FILE, {"optimizer": json.dumps(self._config.optimizer)})
        return {"weights_digest": tensors_digest(weights), "optimizer_digest": tensors_digest(state)}

    def restore(self, checkpoint: Checkpoint) -> None:
        directory = self._open_checkpoint(checkpoint)
        weights = load_file(directory / WEIGHTS_FILE)
        state = load_file(directory / OPTIMIZER_FILE)
        self._check_restorable(checkpoint, weights, state)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])
        self._optimizer = self._new_optimizer()
        for name in sorted({key.partition(":")[2] for key in state}):
            parameter = self._parameters[name]
            self._optimizer.state[parameter] = {
                field: tensor if tensor.dim() == 0 else tensor.to(self._device)
                for field in ("step", "exp_avg", "exp_avg_sq")
                for tensor in (state[f"{field}:{name}"],)
            }
        self._version = checkpoint.version

    def _check_restorable(
        self, checkpoint: Checkpoint, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> None:
        expected = {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}
        found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if expected != found:
            wrong = sorted(set(expected.items()) ^ set(found.items()))
            raise CheckpointError(f"{checkpoint.version}: its weights are not this model's, first at {wrong[0][0]}")
        digests = PolicyDigests(tensors_digest(weights), tensors_digest(state))
        if digests != PolicyDigests(checkpoint.weights_digest, checkpoint.optimizer_digest):
            raise CheckpointError(f"{checkpoint.version}: its tensors are not those recorded when it was published")

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        """AdamW's state as "FIELD:PARAMETER" -> tensor; empty before the first step."""
        return {
            f"{field}:{name}": value.detach()
            for name, parameter in self._parameters.items()
            for field, value in self._optimizer.state.get(parameter, {}).items()
        }

    def _new_optimizer(self) -> torch.optim.AdamW:
        config = self._config
        return torch.optim.AdamW(
            self._parameters.values(),
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def _cuda_devices(self) -> list[int]:
        return [torch.device(self._device).index or 0] if self._device.startswith("cuda") else []


def _part(loss: Loss, c: Tensor, r: Tensor | None) -> _Part:
    return {
        "loss": loss.total.item(),
        "nll": loss.nll.item(),
        "odds_loss": None if loss.odds_loss is None else loss.odds_loss.item(),
        "log_odds": None if loss.log_odds is None else loss.log_odds.item(),
        "chosen": c.item(),
        "rejected": None if r is None else r.item(),
    }


def _length(example: Example) -> int:
    """Tokens of the longer side, prompt included."""
    return len(example.prompt_token_ids) + max(len(example.chosen_token_ids), len(example.rejected_token_ids))


def _mean(parts: Sequence[_Part], name: str) -> float | None:
    values = [value for part in parts if (value := part[name]) is not None]
    return sum(values) / len(values) if values else None

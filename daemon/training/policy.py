"""The live policy on the trainer's side: weights, optimizer, one step, snapshot and restore."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from daemon.config.schedule import StepPlan, adjusted, plan_step
from daemon.config.sections import TrainingConfig
from daemon.domain.errors import CheckpointError, ConfigError, DreamdError, ModelError, NonFiniteError, OffPolicyError
from daemon.domain.hashing import derive_seed
from daemon.domain.precision import LOGPROB_TOLERANCE
from daemon.domain.records import Adjustments, Batch, Checkpoint, PolicyDigests, StepReport
from daemon.domain.states import RollbackTarget
from daemon.ports import Changes, Weights
from daemon.training.answers import AnswerModel
from daemon.training.apollo import Apollo
from daemon.training.applied import NO_CHANGES, Applied, UpdateWriter
from daemon.training.digest import tensors_digest
from daemon.training.gradients import Figures, ReferenceLogprobs, accumulate, reference_logprobs
from daemon.training.memory import PeakMemory
from daemon.training.report import report_of
from daemon.training.second_try import with_second_try
from daemon.training.snapshot import OPTIMIZER_FILE, WEIGHTS_FILE, TorchSnapshot

_DTYPES = {"fp32": "float32", "bf16-stochastic": "bfloat16"}
"""Precision -> name of the weights' torch dtype."""


class TorchPolicy:
    """A transformers model and its optimizer; implements the `Policy` port."""

    def __init__(
        self,
        model_dir: Path,
        config: TrainingConfig,
        device: str,
        open_checkpoint: Callable[[Checkpoint], Path],
        *,
        open_image: Callable[[Checkpoint], Weights] | None = None,
        seed: int = 0,
    ) -> None:
        """Load a model folder.

        Args:
            model_dir: a Hugging Face folder.
            config: the step's settings.
            device: a torch device.
            open_checkpoint: verifies a checkpoint's hashes and returns its directory.
            open_image: a checkpoint's verified weights in bfloat16; without it lossy checkpoints are refused.
            seed: the run's; projections and rounding follow from it.

        Raises:
            ModelError: transformers cannot load the folder, or the trainer cannot train such a model.
        """
        try:
            loaded = AutoModelForCausalLM.from_pretrained(
                model_dir,
                dtype=getattr(torch, _DTYPES[config.precision]),
                local_files_only=True,
                attn_implementation="sdpa",
            )
            self._model = cast(Any, loaded)  # its methods are wrapped in ways mypy cannot follow
            self._model.to(device)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{model_dir}: transformers cannot load this model: {error}") from error
        self._model.eval()
        self._device = device
        self._config = config
        self._open_checkpoint = open_checkpoint
        self._open_image = open_image
        self._seed = seed
        self._answers = AnswerModel(
            self._model,
            logits_chunk=config.logits_chunk,
            activation_checkpointing=config.activation_checkpointing,
        )
        _refuse_buffers(self._model, model_dir)
        # named_parameters() lists a tied tensor once, so a tied lm_head is neither saved nor stepped twice.
        self._parameters: dict[str, Tensor] = dict(self._model.named_parameters())
        self._writer = UpdateWriter(seed)
        self._optimizer = self._new_optimizer()
        self._version = ""
        self._generation = 0
        """Counts what writes into the weights: snapshots of an earlier one are stale."""
        self._equals_checkpoint = False
        """Whether the weights are those of `version`; a step's changes are relative to it only then."""
        self._changes: Mapping[str, Changes] | None = None

    @property
    def logprob_tolerance(self) -> float:
        return LOGPROB_TOLERANCE[_DTYPES[self._config.precision]]

    @property
    def version(self) -> str:
        return self._version

    def adopt(self, version: str) -> None:
        self._version = version
        self._equals_checkpoint, self._changes = True, None

    def weights(self) -> Mapping[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    @property
    def model(self) -> Any:
        """The live transformers model, in evaluation mode; look, and leave it as it was."""
        return self._model

    @contextmanager
    def borrowed(self, checkpoint: Checkpoint) -> Iterator[None]:
        """The model computes with a checkpoint's verified weights inside; its own are put aside, not copied.

        Of a lossy checkpoint it computes with the image.

        Raises:
            CheckpointError: it does not verify; the live policy is unchanged.
            ConfigError: its weights have another precision; likewise.
        """
        if checkpoint.exact:
            weights = load_file(self._open_checkpoint(checkpoint) / WEIGHTS_FILE, device=self._device)
            self._check_weights(checkpoint, weights)
        else:
            dtype = getattr(torch, _DTYPES[self._config.precision])
            weights = {name: word.to(self._device, dtype) for name, word in self._image(checkpoint).items()}
        own = {name: parameter.data for name, parameter in self._parameters.items()}
        try:
            for name, parameter in self._parameters.items():
                parameter.data = weights[name]
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = own[name]

    def digests(self) -> PolicyDigests:
        return PolicyDigests(tensors_digest(self.weights()), tensors_digest(self._optimizer.state_tensors()))

    def score(self, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
        return self.score_together([(prompt, response)])[0]

    @torch.no_grad()
    def score_together(self, items: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        rows = [(prompt, response) if prompt else (response[:1], response[1:]) for prompt, response in items]
        longest = max(len(prompt) + len(response) for prompt, response in rows)
        # What fills a row up comes after all that is scored, and the model is causal: no mask is needed.
        filled = [[*prompt, *response, *[0] * (longest - len(prompt) - len(response))] for prompt, response in rows]
        ids_BT = torch.tensor(filled, device=self._device)
        first = min(len(prompt) for prompt, _ in rows)
        kept_K = torch.arange(first - 1, longest - 1, device=self._device)
        logits_BKV = self._model(input_ids=ids_BT, logits_to_keep=kept_K, use_cache=False).logits.float()
        targets_BK1 = ids_BT[:, first:].unsqueeze(-1)
        logprobs_BK = logits_BKV.gather(-1, targets_BK1).squeeze(-1) - logits_BKV.logsumexp(dim=-1)
        return [
            logprobs_K[len(prompt) - first : len(prompt) - first + len(response)].tolist()
            for logprobs_K, (prompt, response) in zip(logprobs_BK, rows, strict=True)
        ]

    # --- the step ------------------------------------------------------------------------------------------

    def reference(self, cycle_number: int, adjustments: Adjustments) -> RollbackTarget | None:
        if not adjusted(plan_step(self._config, cycle_number), adjustments).objective.needs_reference:
            return None
        return RollbackTarget.A1 if self._config.reference == "baked" else RollbackTarget.A0

    def step(self, batch: Batch, *, micro_batch: int | None = None) -> StepReport:
        """As the port says.

        Args:
            micro_batch: instead of the configured one; a recorded step, made again with its own, has the same bits.
        """
        self._refuse_off_policy(batch)
        plan = adjusted(plan_step(self._config, batch.cycle_number), batch.adjustments)
        orpo_weight = self._config.orpo_weight * plan.orpo_weight_factor
        changes = {"orpo_weight": orpo_weight, "micro_batch": micro_batch or self._config.micro_batch}
        memory = PeakMemory(self._device)
        self._answers.seconds.clear()
        # Up to here alone anything may be tried twice: what follows moves weights.
        figures, used = with_second_try(
            lambda config: self._accumulate(batch, plan, config),
            self._config.model_copy(update=changes),
            batch.examples,
            self._free,
        )
        grad_norm = self._clip_gradients(batch)
        applied = self._apply(batch, plan)
        self._optimizer.zero_grad(set_to_none=True)
        return replace(
            report_of(batch, plan, self._config, figures, applied, grad_norm),
            peak_memory_bytes=memory.read(),
            seconds=dict(self._answers.seconds),
            micro_batch=used,
        )

    def _accumulate(self, batch: Batch, plan: StepPlan, config: TrainingConfig) -> list[Figures]:
        """The gradient, and the reference's pass before it; the same however often it is called."""
        reference = self._reference_logprobs(batch, plan, config)
        self._optimizer.zero_grad(set_to_none=True)
        self._model.train()
        try:
            # Nothing of an earlier process must matter to dropout: the generator follows from the batch alone.
            with torch.random.fork_rng(devices=self._cuda_devices()):
                torch.manual_seed(derive_seed("step", batch.batch_hash))
                return accumulate(self._answers, batch.examples, plan.objective, config, reference)
        finally:
            self._model.eval()

    def _free(self) -> None:
        """Give back what a gradient that was not finished holds."""
        self._optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if self._cuda_devices():
            torch.cuda.empty_cache()

    def _refuse_off_policy(self, batch: Batch) -> None:
        versions = {batch.parent_version, *(example.policy_version for example in batch.examples)}
        if versions != {self._version}:
            raise OffPolicyError(
                f"cycle {batch.cycle_number}: the live policy is {self._version} but the batch holds "
                f"{', '.join(sorted(versions))}; a step trains only what its own parent wrote"
            )

    def _reference_logprobs(
        self, batch: Batch, plan: StepPlan, config: TrainingConfig
    ) -> list[ReferenceLogprobs | None]:
        """The reference's log-probabilities of each pair; None everywhere when the objective needs none."""
        if not plan.objective.needs_reference:
            return [None] * len(batch.examples)
        if batch.reference is None:
            raise DreamdError(f"cycle {batch.cycle_number}: {plan.objective} needs a reference checkpoint")
        if batch.reference.version == self._version:
            return reference_logprobs(self._answers, batch.examples, config)
        with self.borrowed(batch.reference):
            return reference_logprobs(self._answers, batch.examples, config)

    def _clip_gradients(self, batch: Batch) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._config.max_grad_norm)
        if not torch.isfinite(norm):
            self._optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(
                f"cycle {batch.cycle_number}: the gradient norm is {norm.item()}; the optimizer did not move"
            )
        return norm.item()

    def _apply(self, batch: Batch, plan: StepPlan) -> Applied:
        with self._answers.timed("update"):
            self._optimizer.param_groups[0]["lr"] = plan.lr
            self._writer.start(batch.batch_hash)
            from_checkpoint = self._equals_checkpoint
            self._move()
            self._optimizer.step()
            changes = self._writer.take_changes()
            if from_checkpoint:
                # A parameter without a gradient was not written.
                self._changes = {name: changes.get(name, NO_CHANGES) for name in self._parameters}
            return self._writer.result()

    def _move(self) -> None:
        """What was known of the weights is over; to be called before anything writes into them."""
        self._generation += 1
        self._equals_checkpoint, self._changes = False, None

    # --- snapshot and restore ------------------------------------------------------------------------------

    def snapshot(self) -> TorchSnapshot:
        generation = self._generation
        return TorchSnapshot(
            self.weights(),
            self._optimizer.state_tensors(),
            self._config.optimizer,
            self._changes,
            is_current=lambda: self._generation == generation,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        optimizer = self._new_optimizer()
        weights = self._open_exact(checkpoint, optimizer) if checkpoint.exact else self._image(checkpoint)
        self._move()
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])
        self._optimizer = optimizer
        self.adopt(checkpoint.version)

    def _open_exact(self, checkpoint: Checkpoint, optimizer: Apollo) -> Mapping[str, Tensor]:
        """The verified weights of a checkpoint, as they were trained; its state goes into `optimizer`."""
        directory = self._open_checkpoint(checkpoint)
        weights, state = load_file(directory / WEIGHTS_FILE), load_file(directory / OPTIMIZER_FILE)
        self._check_weights(checkpoint, weights)
        digests = PolicyDigests(tensors_digest(weights), tensors_digest(state))
        if digests != PolicyDigests(checkpoint.weights_digest, checkpoint.optimizer_digest):
            raise CheckpointError(f"{checkpoint.version}: its tensors are not those recorded when it was published")
        self._load_optimizer(optimizer, checkpoint, directory / OPTIMIZER_FILE, state)
        return weights

    def _image(self, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
        """The verified weights of a lossy checkpoint, in bfloat16."""
        if self._open_image is None:
            raise CheckpointError(
                f"{checkpoint.version}: lossy, only its image is kept, and nothing here reads images; "
                "choose a checkpoint whose exact state is kept"
            )
        image = self._open_image(checkpoint)
        self._check_shapes(checkpoint, image)
        return image

    def _check_shapes(self, checkpoint: Checkpoint, weights: Mapping[str, Tensor]) -> None:
        expected = {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}
        found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if expected != found:
            wrong = sorted(set(expected.items()) ^ set(found.items()))
            raise CheckpointError(f"{checkpoint.version}: its weights are not this model's, first at {wrong[0][0]}")

    def _check_weights(self, checkpoint: Checkpoint, weights: Mapping[str, Tensor]) -> None:
        self._check_shapes(checkpoint, weights)
        for name, tensor in weights.items():
            if tensor.dtype != self._parameters[name].dtype:
                names = {getattr(torch, dtype): precision for precision, dtype in _DTYPES.items()}
                other = names.get(tensor.dtype, tensor.dtype)
                raise ConfigError(
                    f"{checkpoint.version}: its weights are {tensor.dtype}, of precision {other}; set "
                    f'training.precision = "{other}", or start a new run for {self._config.precision}'
                )

    def _load_optimizer(
        self, optimizer: Apollo, checkpoint: Checkpoint, file: Path, state: Mapping[str, Tensor]
    ) -> None:
        with safe_open(file, framework="pt") as opened:
            kind = json.loads((opened.metadata() or {}).get("optimizer", "null"))
        if state and kind != self._config.optimizer:
            raise ConfigError(
                f'{checkpoint.version}: its optimizer state is of {kind}; set training.optimizer = "{kind}", '
                f"or start a new run for {self._config.optimizer}"
            )
        try:
            optimizer.load_state_tensors(state)
        except ValueError as error:
            raise ConfigError(
                f"{checkpoint.version}: its optimizer state does not fit ({error}); set training.rank back to what it "
                "was, or start a new run"
            ) from error

    def _new_optimizer(self) -> Apollo:
        config = self._config
        return Apollo(
            self._parameters.items(),
            lr=plan_step(config, 1).lr,
            rank={"adamw": None, "apollo": config.rank, "apollo_mini": 1}[config.optimizer],
            scale=config.optimizer_scale,
            per="tensor" if config.optimizer == "apollo_mini" else "channel",
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            refresh_every=config.refresh_every,
            norm_growth_limit=config.norm_growth_limit,
            seed=self._seed,
            write=self._writer,
        )

    def _cuda_devices(self) -> list[int]:
        return [torch.device(self._device).index or 0] if self._device.startswith("cuda") else []


def _refuse_buffers(model: Any, model_dir: Path) -> None:
    """A checkpoint holds parameters; what a model saves beside them would be lost from it."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name in sorted(model.state_dict().keys() - parameters):
        raise ModelError(f"{model_dir}: the model keeps {name} beside its parameters, which dreamd cannot checkpoint")

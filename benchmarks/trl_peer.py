"""TRL's side of the step benchmark. Imported in a worker process only; needs torch, `trl` and `datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.measure import Measured, timed, with_memory
from benchmarks.pairs import PRIMING, LabelledRows, Pair, Shape, build_pairs, labelled_rows
from benchmarks.weights import copy_weights


class TrlPeer:
    """TRL's ORPOTrainer: its collator, its `training_step`, its clipping and its own choice of AdamW.

    The trainer's loop around the step (logging, saving, scheduling) is left out.
    """

    def __init__(self, model_dir: Path, scratch: Path, lr: float, orpo_weight: float) -> None:
        """Load the model, build the trainer, take one small step.

        Args:
            scratch: a folder the trainer may write to.
            lr: learning rate.
            orpo_weight: of the odds-ratio term; TRL calls it beta.
        """
        self._model_dir = model_dir
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=torch.float32, local_files_only=True, attn_implementation="sdpa"
        )
        self._trainer = _orpo_trainer(self._model, model_dir, scratch, lr, orpo_weight)
        # Trainer.train() sets this at each of its batches; training_step divides the loss by it.
        self._trainer.current_gradient_accumulation_steps = 1
        self._optimizer = self._trainer.create_optimizer()
        self._step(self._collated(PRIMING))

    def describe(self) -> str:
        optimizer = self._optimizer
        kind = "fused" if optimizer.defaults.get("fused") else "not fused"
        return f"ORPOTrainer, {type(optimizer).__name__} ({kind}), {torch.get_num_threads()} threads"

    def reset(self) -> None:
        copy_weights(self._model_dir, dict(self._model.named_parameters()))

    def rows(self, shape: Shape) -> LabelledRows:
        """Input ids and labels as the trainer's own code joins them for its forward pass."""
        joined = self._trainer.concatenated_inputs(
            self._collated(shape), padding_value=self._trainer.padding_value, device=torch.device("cpu")
        )
        mask = joined["concatenated_attention_mask"]
        if not bool((mask == 1).all()):
            raise ValueError(f"{shape.name}: the trainer padded a batch of equally long pairs")
        ids, labels = joined["concatenated_input_ids"].tolist(), joined["concatenated_labels"].tolist()
        return list(zip(ids, labels, strict=True))

    def step(self, shape: Shape, memory: bool) -> Measured:
        batch = self._collated(shape)
        return (with_memory if memory else timed)(lambda: (self._step(batch), {}))

    def _step(self, batch: dict[str, Any]) -> float:
        loss: Tensor = self._trainer.training_step(self._model, batch)
        self._trainer.accelerator.clip_grad_norm_(self._model.parameters(), self._trainer.args.max_grad_norm)
        self._optimizer.step()
        self._model.zero_grad()
        self._trainer._stored_metrics.clear()  # its logging would empty them; here they would only grow
        return loss.item()

    def _collated(self, shape: Shape) -> dict[str, Any]:
        features = [_trl_features(pair) for pair in build_pairs(self._model_dir, shape)]
        collated: dict[str, Any] = self._trainer.data_collator(features)
        return collated


def _orpo_trainer(model: Any, model_dir: Path, scratch: Path, lr: float, orpo_weight: float) -> Any:
    from datasets import Dataset  # type: ignore[import-untyped]
    from transformers import AutoTokenizer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    arguments = ORPOConfig(
        output_dir=str(scratch),
        per_device_train_batch_size=4,
        learning_rate=lr,
        beta=orpo_weight,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=4096,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        remove_unused_columns=False,
        report_to=[],
    )
    # The constructor wants text; the batches come tokenized, so that both sides train on the same ids.
    row = {"prompt": "Say hello.", "chosen": " Hello.", "rejected": " No."}
    return ORPOTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([row]),
        processing_class=AutoTokenizer.from_pretrained(model_dir, local_files_only=True),
    )


def _trl_features(pair: Pair) -> dict[str, list[int]]:
    """One row in the format of ORPOTrainer.tokenize_row."""
    (chosen, chosen_labels), (rejected, rejected_labels) = labelled_rows([pair])
    return {
        "prompt_input_ids": list(pair.prompt),
        "prompt_attention_mask": [1] * len(pair.prompt),
        "chosen_input_ids": chosen,
        "chosen_attention_mask": [1] * len(chosen),
        "chosen_labels": chosen_labels,
        "rejected_input_ids": rejected,
        "rejected_attention_mask": [1] * len(rejected),
        "rejected_labels": rejected_labels,
    }

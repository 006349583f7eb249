"""dreamd's side of the step benchmark. Imported in a worker process only; needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Measured, timed, with_memory
from benchmarks.pairs import PRIMING, LabelledRows, Pair, Shape, build_pairs, labelled_rows
from benchmarks.weights import copy_weights
from daemon.config.sections import TrainingConfig
from daemon.domain.hashing import batch_hash, digest
from daemon.domain.records import Batch, Example
from daemon.domain.states import ChosenSource, ExampleKind, Side
from daemon.training.policy import TorchPolicy


class DreamdPeer:
    """`TorchPolicy.step`: gradients, clipping, optimizer, and the report's figures."""

    def __init__(self, model_dir: Path, settings: Mapping[str, Any]) -> None:
        """Load the model and take one small step, so that the optimizer's state exists.

        Args:
            settings: keys of `TrainingConfig`; what is not set is the shipped default.
        """
        self._model_dir = model_dir
        self._config = TrainingConfig.model_validate(dict(settings))
        self._policy = TorchPolicy(model_dir, self._config, "cpu", _no_checkpoints)
        self._policy.adopt("base")
        self._policy.step(_batch(build_pairs(model_dir, PRIMING)))

    def describe(self) -> str:
        config = self._config
        return f"TorchPolicy, {config.optimizer}, {torch.get_num_threads()} threads"

    def reset(self) -> None:
        """Back to the model folder's weights; the optimizer's state stays."""
        copy_weights(self._model_dir, self._policy.weights())

    def rows(self, shape: Shape) -> LabelledRows:
        """Input ids and labels of what `step` trains on: chosen sequences, then rejected ones."""
        examples = _batch(build_pairs(self._model_dir, shape)).examples
        return labelled_rows([Pair(e.prompt_token_ids, e.chosen_token_ids, e.rejected_token_ids) for e in examples])

    def step(self, shape: Shape, memory: bool) -> Measured:
        batch = _batch(build_pairs(self._model_dir, shape))
        return (with_memory if memory else timed)(lambda: self._step(batch))

    def _step(self, batch: Batch) -> tuple[float, Mapping[str, float]]:
        report = self._policy.step(batch)
        return report.loss, dict(report.seconds)


def _batch(pairs: Sequence[Pair]) -> Batch:
    examples = []
    for number, pair in enumerate(pairs):
        name = digest("benchmark pair", [pair.prompt, pair.chosen, pair.rejected])
        examples.append(
            Example(
                content_hash=name,
                scenario_hash=name,
                side=(Side.ACCEPT, Side.PUSH_BACK)[number % 2],
                kind=ExampleKind.PAIR,
                chosen_source=ChosenSource.TARGET,
                policy_version="base",
                prompt_token_ids=pair.prompt,
                chosen_token_ids=pair.chosen,
                chosen_text="",
                rejected_token_ids=pair.rejected,
                rejected_text="",
            )
        )
    return Batch(1, "base", batch_hash("base", [example.content_hash for example in examples]), tuple(examples))


def _no_checkpoints(checkpoint: object) -> Path:
    raise NotImplementedError("the benchmark restores no checkpoint")

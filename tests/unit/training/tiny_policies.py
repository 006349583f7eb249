"""Live policies on a tiny model, with checkpoints in plain folders."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from daemon.config.sections import TrainingConfig
from daemon.domain.errors import CheckpointError
from daemon.domain.records import Batch, Checkpoint, Example, Message, StepReport
from daemon.domain.states import ChosenSource, ExampleKind, Side
from daemon.ports import Snapshot
from daemon.training.encoder import ChatEncoder
from daemon.training.policy import TorchPolicy


class Folders:
    """Mirrors what a policy sees of the `CheckpointStore` port: a folder each, hashes checked, images in memory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._hashes: dict[str, dict[str, str]] = {}
        self._images: dict[str, dict[str, Tensor]] = {}
        self.opened: list[str] = []

    def path(self, version: str) -> Path:
        return self._root / version

    def begin(
        self,
        version: str,
        snapshot: Snapshot,
        *,
        cycle_number: int | None,
        parent: Checkpoint | None,
        batch_hash: str | None,
        step: StepReport | None,
    ) -> Future[Checkpoint]:
        self.path(version).mkdir(parents=True)
        digests = snapshot.write(self.path(version)).digests
        self._hashes[version] = {file.name: _hash(file) for file in self.path(version).iterdir()}
        self._images[version] = {
            name: from_words(words(weight)).view(weight.shape) for name, weight in snapshot.weights.items()
        }
        done: Future[Checkpoint] = Future()
        done.set_result(
            Checkpoint(
                version=version,
                cycle_number=cycle_number,
                parent_version=parent.version if parent else None,
                batch_hash=batch_hash,
                root_hash=f"root of {version}",
                weights_digest=digests.weights,
                optimizer_digest=digests.optimizer,
                size_bytes=0,
            )
        )
        return done

    def open(self, checkpoint: Checkpoint) -> Path:
        self.opened.append(checkpoint.version)
        for name, expected in self._hashes[checkpoint.version].items():
            file = self.path(checkpoint.version) / name
            if not file.is_file() or _hash(file) != expected:
                raise CheckpointError(f"{file}: missing or altered")
        return self.path(checkpoint.version)

    def image(self, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
        return {name: weight.clone() for name, weight in self._images[checkpoint.version].items()}

    def make_lossy(self, checkpoint: Checkpoint) -> Checkpoint:
        """The exact files are gone, and the row says so."""
        for file in self.path(checkpoint.version).iterdir():
            file.unlink()
        return replace(checkpoint, exact=False)

    def flip_bit(self, version: str, name: str) -> None:
        """Damage a file by one bit near its end."""
        content = bytearray((self.path(version) / name).read_bytes())
        content[-1] ^= 1
        (self.path(version) / name).write_bytes(content)


def words(weight: Tensor) -> np.ndarray:
    """A finite tensor's bfloat16 words, flat: rounded to nearest even by integer arithmetic, none of it torch's."""
    if weight.dtype == torch.bfloat16:
        return weight.contiguous().view(torch.int16).numpy().reshape(-1).copy()
    bits = weight.contiguous().numpy().reshape(-1).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(np.int16)


def from_words(flat: np.ndarray) -> Tensor:
    """The bfloat16 tensor of these words, flat."""
    return torch.from_numpy(flat.copy()).view(torch.bfloat16)


def example(model_dir: Path, text: str, version: str = "base", *, pair: bool = True) -> Example:
    encoder = ChatEncoder(model_dir)
    return Example(
        content_hash=f"hash of {text}",
        scenario_hash=f"scenario {text}",
        side=Side.ACCEPT,
        kind=ExampleKind.PAIR if pair else ExampleKind.CHOSEN_ONLY,
        chosen_source=ChosenSource.TARGET,
        policy_version=version,
        prompt_token_ids=encoder.encode_prompt([Message("user", text)]),
        chosen_token_ids=encoder.encode_response("Good."),
        chosen_text="Good.",
        rejected_token_ids=encoder.encode_response("No no no.") if pair else (),
        rejected_text="No no no." if pair else None,
    )


def batch(model_dir: Path, number: int, version: str) -> Batch:
    examples = (example(model_dir, f"a{number}", version), example(model_dir, f"b{number}", version, pair=False))
    return Batch(number, version, f"batch {number}", examples)


def unnamed(model_dir: Path, store: Folders, **training: object) -> TorchPolicy:
    """A policy that was just constructed."""
    config = TrainingConfig.model_validate(training)
    return TorchPolicy(model_dir, config, "cpu", store.open, open_image=store.image)


def build(model_dir: Path, store: Folders, **training: object) -> TorchPolicy:
    policy = unnamed(model_dir, store, **training)
    policy.adopt("base")
    return policy


def publish(store: Folders, policy: TorchPolicy, version: str, parent: Checkpoint | None = None) -> Checkpoint:
    begun = store.begin(version, policy.snapshot(), cycle_number=1, parent=parent, batch_hash=None, step=None)
    policy.adopt(version)
    return begun.result()


def _hash(file: Path) -> str:
    return blake3(file.read_bytes()).hexdigest()

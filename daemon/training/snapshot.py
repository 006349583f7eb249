"""The policy as it is at one moment, written by another thread while the policy goes on being looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from daemon.domain.errors import DreamdError
from daemon.domain.records import PolicyDigests, WrittenState
from daemon.ports import Changes
from daemon.training.digest import tensors_digest
from daemon.training.tensor_file import write_tensors

WEIGHTS_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.state"
"""safetensors inside; not so named, because vLLM loads every *.safetensors of a folder as weights."""


class TorchSnapshot:
    """Implements the `Snapshot` port with references to the live tensors; nothing is copied until it is written.

    A module that borrows another checkpoint's weights swaps what its parameters refer to, and not what is held here.
    Only a step or a restore writes into these tensors: from then on the snapshot is stale and refuses.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        optimizer_state: Mapping[str, Tensor],
        optimizer: str,
        changes: Mapping[str, Changes] | None,
        is_current: Callable[[], bool],
    ) -> None:
        """Hold what is live now.

        Args:
            weights: by parameter name; detached.
            optimizer_state: `Apollo.state_tensors()`.
            optimizer: its kind, recorded with its state.
            changes: of the one step since the parent, all parameters; None when unknown.
            is_current: whether the policy has neither stepped nor been restored since; false before it starts to.
        """
        self._weights = dict(weights)
        self._state = dict(optimizer_state)
        self._optimizer = optimizer
        self._changes = changes
        self._is_current = is_current

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """By parameter name, tied ones once: the live tensors, on the trainer's device.

        Raises:
            DreamdError: the policy moved on, and these tensors with it.
        """
        self._refuse_stale()
        return self._weights

    @property
    def changes(self) -> Mapping[str, Changes] | None:
        return self._changes

    def write(self, directory: Path) -> WrittenState:
        """Write weights and optimizer.

        Raises:
            DreamdError: the policy moved on before the end; what was written is worth nothing.
        """
        self._refuse_stale()
        metadata = {"optimizer": json.dumps(self._optimizer)}
        blobs = {
            WEIGHTS_FILE: write_tensors(directory / WEIGHTS_FILE, self._weights, {"format": "pt"}),
            OPTIMIZER_FILE: write_tensors(directory / OPTIMIZER_FILE, self._state, metadata),
        }
        digests = PolicyDigests(tensors_digest(self._weights), tensors_digest(self._state))
        # Once more: a step that began in between may have torn what was read.
        self._refuse_stale()
        return WrittenState(digests, blobs)

    def _refuse_stale(self) -> None:
        if not self._is_current():
            raise DreamdError(
                "the policy was stepped or restored since this snapshot of it was taken, so it can no longer be "
                "written; publish a snapshot before the policy moves on"
            )

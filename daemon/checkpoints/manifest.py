"""A checkpoint's manifest: what its files hash to, and where it stands in the lineage."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from daemon.domain.errors import CheckpointError
from daemon.domain.records import Blob, Checkpoint, StepReport
from daemon.domain.states import CheckpointKind, CheckpointState

FORMAT = 2
"""1 had no image: `kind` and what follows it."""
READABLE = (1, 2)
FILE_NAME = "manifest.json"
IMAGE_PREFIX = "image."
"""Of the names of files that hold a checkpoint's image; every other blob is of its exact state."""
_CHUNK = 2**24
"""Bytes read at once, into the same memory each time."""


@dataclass(frozen=True)
class Manifest:
    """Everything `manifest.json` holds but its own root hash, which follows from the rest."""

    version: str
    cycle_number: int | None
    parent_version: str | None
    parent_root_hash: str | None
    batch_hash: str | None
    weights_digest: str
    optimizer_digest: str
    blobs: Mapping[str, Blob]
    step: StepReport | None
    kind: CheckpointKind = CheckpointKind.FULL
    image_digest: str | None = None
    chain_length: int = 0
    """Deltas that its image needs, its own included."""
    chain_bytes: int = 0
    """Bytes of these deltas."""
    as_read: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)
    """The fields as they stand in the file that this was read from, which may have been written before a field of
    `step` existed; None for a new manifest."""

    @property
    def root_hash(self) -> str:
        """BLAKE3 over the canonical JSON of every field; of those in the file, for a manifest that was read."""
        return blake3(json.dumps(self._fields(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps({**self._fields(), "root_hash": self.root_hash}, indent=1)

    def checkpoint(self) -> Checkpoint:
        """The record that the database and the rest of dreamd use."""
        return Checkpoint(
            version=self.version,
            cycle_number=self.cycle_number,
            parent_version=self.parent_version,
            batch_hash=self.batch_hash,
            root_hash=self.root_hash,
            weights_digest=self.weights_digest,
            optimizer_digest=self.optimizer_digest,
            size_bytes=sum(blob.size for blob in self.blobs.values()),
            state=CheckpointState.BASE if self.parent_version is None else CheckpointState.CANDIDATE,
            kind=self.kind,
            image_digest=self.image_digest,
            image_bytes=sum(blob.size for name, blob in self.blobs.items() if name.startswith(IMAGE_PREFIX)),
            chain_length=self.chain_length,
        )

    def _fields(self) -> dict[str, Any]:
        if self.as_read is not None:
            return dict(self.as_read)
        return {"format": FORMAT, **{name: value for name, value in asdict(self).items() if name != "as_read"}}


def read_manifest(directory: Path) -> Manifest:
    """Read and check `manifest.json`; the blobs themselves are not looked at.

    Raises:
        CheckpointError: missing, not JSON, of another format, or altered (its root hash does not fit).
    """
    path = directory / FILE_NAME
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        root_hash = fields.pop("root_hash")
        as_read = copy.deepcopy(fields)
        version_found = fields.pop("format")
        if version_found not in READABLE:
            raise CheckpointError(f"{path}: format {version_found}; this dreamd reads formats up to {FORMAT}")
        blobs = {name: Blob(**blob) for name, blob in fields.pop("blobs").items()}
        fields["kind"] = CheckpointKind(fields.get("kind", CheckpointKind.FULL))
        manifest = Manifest(**{**fields, "blobs": blobs, "step": _step(fields["step"]), "as_read": as_read})
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; the checkpoint is incomplete") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not a manifest ({error!r}); the file was altered, truncated or written by a newer dreamd"
        ) from None
    if manifest.root_hash != root_hash:
        raise CheckpointError(f"{path}: its root hash does not fit its contents; the file was altered")
    return manifest


def _step(fields: dict[str, Any] | None) -> StepReport | None:
    if fields is None:
        return None
    logprobs = tuple((chosen, rejected) for chosen, rejected in fields.pop("example_logprobs"))
    return StepReport(**fields, example_logprobs=logprobs)


def hash_file(path: Path) -> Blob:
    """BLAKE3 and size of a file."""
    hasher, size = blake3(max_threads=blake3.AUTO), 0
    with path.open("rb", buffering=0) as file:  # never mapped: a bad sector would end the process instead of raising
        chunk = memoryview(bytearray(min(_CHUNK, os.fstat(file.fileno()).st_size + 1)))
        while num_bytes := file.readinto(chunk):
            hasher.update(chunk[:num_bytes])
            size += num_bytes
    return Blob(hasher.hexdigest(), size)

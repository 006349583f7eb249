"""Publish, verify, quarantine and prune checkpoint directories.

Order of a publication: temporary directory, files, fsync each, manifest, fsync, fsync directory, rename, fsync
parent; the database row comes last and elsewhere. A directory under its final name is therefore complete, and
one without a row is either adopted at start or set aside.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from daemon.checkpoints.manifest import FILE_NAME, Manifest, hash_file, read_manifest
from daemon.domain.errors import CheckpointError, DiskError, PermissionDeniedError
from daemon.domain.records import Checkpoint, StepReport

TEMPORARY_PREFIX = ".tmp-"
QUARANTINE = "quarantine"


class DirectoryStore:
    """Checkpoints as directories under one root; implements the `CheckpointStore` port."""

    def __init__(self, root: Path) -> None:
        """Use `root`, creating it.

        Raises:
            PermissionDeniedError: it cannot be created or written.
        """
        self._root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PermissionDeniedError(f"{root}: cannot be created ({error.strerror}); make it writable") from None
        if not os.access(root, os.W_OK):
            raise PermissionDeniedError(f"{root}: not writable by this user; check its owner and mode")

    def path(self, version: str) -> Path:
        return self._root / version

    def exists(self, version: str) -> bool:
        return self.path(version).is_dir()

    def publish(
        self,
        version: str,
        write: Callable[[Path], Mapping[str, Any]],
        *,
        cycle_number: int | None,
        parent: Checkpoint | None,
        batch_hash: str | None,
        step: StepReport | None,
    ) -> Checkpoint:
        final, temporary = self.path(version), self._root / f"{TEMPORARY_PREFIX}{version}"
        if final.exists():
            raise CheckpointError(f"{final}: already published; a version is written once")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            digests = write(temporary)
            blobs = {file.name: hash_file(file) for file in sorted(temporary.iterdir())}
            manifest = Manifest(
                version=version,
                cycle_number=cycle_number,
                parent_version=parent.version if parent else None,
                parent_root_hash=parent.root_hash if parent else None,
                batch_hash=batch_hash,
                weights_digest=digests["weights_digest"],
                optimizer_digest=digests["optimizer_digest"],
                blobs=blobs,
                step=step,
            )
            (temporary / FILE_NAME).write_text(manifest.to_json(), encoding="utf-8")
            for file in temporary.iterdir():
                _fsync(file)
            _fsync(temporary)
            temporary.rename(final)
            _fsync(self._root)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise DiskError(
                f"{final}: the checkpoint could not be written ({error}); free space and restart"
            ) from error
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return manifest.checkpoint()

    def verify(self, version: str) -> Checkpoint:
        directory = self.path(version)
        manifest = read_manifest(directory)
        if manifest.version != version:
            raise CheckpointError(f"{directory}: its manifest is that of {manifest.version}; it was moved or copied")
        for name, blob in manifest.blobs.items():
            file = directory / name
            if not file.is_file():
                raise CheckpointError(f"{file}: missing; roll back to another checkpoint or restore it from a backup")
            if hash_file(file) != blob:
                raise CheckpointError(
                    f"{file}: {file.stat().st_size} bytes that do not hash to the manifest's {blob.size} bytes; "
                    "it was truncated or altered: restore it from a backup or roll back to another checkpoint"
                )
        return manifest.checkpoint()

    def open(self, checkpoint: Checkpoint) -> Path:
        """The directory of `checkpoint`, after verifying it and that it is the one recorded.

        Raises:
            CheckpointError: it does not verify, or is another one than the database knows.
        """
        found = self.verify(checkpoint.version)
        if found.root_hash != checkpoint.root_hash:
            raise CheckpointError(
                f"{self.path(checkpoint.version)}: its root hash {found.root_hash[:12]} is not the recorded "
                f"{checkpoint.root_hash[:12]}; it belongs to another run"
            )
        return self.path(checkpoint.version)

    def step_report(self, version: str) -> StepReport | None:
        return read_manifest(self.path(version)).step

    def parent_root_hash(self, version: str) -> str | None:
        """Root hash of the checkpoint that `version` was stepped from."""
        return read_manifest(self.path(version)).parent_root_hash

    def clean(self, known: Iterable[str]) -> list[str]:
        kept, moved = {*known, QUARANTINE}, []
        for entry in sorted(self._root.iterdir()):
            if entry.name.startswith(TEMPORARY_PREFIX):
                shutil.rmtree(entry)
            elif entry.name not in kept:
                # Never deleted: what this program does not know may be what a person needs.
                (self._root / QUARANTINE).mkdir(exist_ok=True)
                entry.rename(self._root / QUARANTINE / f"{entry.name}-{time.time_ns()}")
                moved.append(entry.name)
        return moved

    def prune(self, version: str) -> None:
        # Renamed first: a kill in the middle leaves a temporary directory, not half a checkpoint.
        doomed = self._root / f"{TEMPORARY_PREFIX}pruned-{version}"
        if self.exists(version):
            self.path(version).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Publish, verify, quarantine and prune checkpoint directories.

Order of a publication: temporary directory, files, manifest, fsync each, fsync directory, rename, fsync parent; the
database row comes last and elsewhere. A directory under its final name is therefore complete, and one without a row
is either adopted at start or set aside.

Beside its exact state (weights and optimizer as trained) a checkpoint has an image, its weights in bfloat16: a
keyframe, or what differs from its parent's image. The exact state of most is deleted after a while; a marker, written
first, says so.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from daemon.checkpoints.delta import apply, read_delta, write_delta
from daemon.checkpoints.files import fsync, make_root, publish_directory, write_durably
from daemon.checkpoints.image import image_digest, image_of, read_keyframe, write_keyframe
from daemon.checkpoints.manifest import (
    FILE_NAME,
    IMAGE_PREFIX,
    Manifest,
    hash_file,
    read_manifest,
)
from daemon.domain import failpoints
from daemon.domain.errors import CheckpointError, DiskError, DreamdError
from daemon.domain.records import Checkpoint, StepReport
from daemon.domain.retention import LOSSY_MARKER
from daemon.domain.states import CheckpointKind
from daemon.ports import Changes, Snapshot

TEMPORARY_PREFIX = ".tmp-"
QUARANTINE = "quarantine"
WEIGHTS_FILE = "model.safetensors"
KEYFRAME_FILE = f"{IMAGE_PREFIX}keyframe"
DELTA_FILE = f"{IMAGE_PREFIX}delta"
ROOM_FACTOR = 2
"""A cycle starts only if there is room for so many checkpoints like the last one."""


@dataclass(frozen=True)
class _Image:
    """How a checkpoint's image was written."""

    kind: CheckpointKind
    digest: str | None = None
    chain_length: int = 0
    chain_bytes: int = 0


class DirectoryStore:
    """Checkpoints as directories under one root; implements the `CheckpointStore` port."""

    def __init__(self, root: Path, *, keyframe_every: int = 20) -> None:
        """Use `root`, creating it.

        Args:
            keyframe_every: most deltas between an image and its keyframe.

        Raises:
            PermissionDeniedError: it cannot be created or written.
        """
        self._root = root
        self._keyframe_every = keyframe_every
        self._writer: ThreadPoolExecutor | None = None
        make_root(root)

    def path(self, version: str) -> Path:
        return self._root / version

    def exists(self, version: str) -> bool:
        return self.path(version).is_dir()

    def check_room(self, like: Checkpoint) -> None:
        needed, free = ROOM_FACTOR * like.size_bytes, shutil.disk_usage(self._root).free
        if free < needed:
            raise DiskError(
                f"{self._root}: {free / 2**20:.0f} MiB are free, and {needed / 2**20:.0f} MiB are needed, "
                f"{ROOM_FACTOR} times a checkpoint; free space, or lower checkpoints.keep_last and keep_exact"
            )

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
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "publish")
        return self._writer.submit(
            self.publish,
            version,
            snapshot,
            cycle_number=cycle_number,
            parent=parent,
            batch_hash=batch_hash,
            step=step,
        )

    def publish(
        self,
        version: str,
        snapshot: Snapshot,
        *,
        cycle_number: int | None,
        parent: Checkpoint | None,
        batch_hash: str | None,
        step: StepReport | None,
    ) -> Checkpoint:
        """What `begin` does, in this thread; returns when it is done."""
        final, temporary = self.path(version), self._root / f"{TEMPORARY_PREFIX}{version}"
        if final.exists():
            raise CheckpointError(f"{final}: already published; a version is written once")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            failpoints.hit("store.write")
            written = snapshot.write(temporary)
            image = self._write_image(temporary, snapshot, parent)
            names = sorted(file.name for file in temporary.iterdir())
            blobs = {name: written.blobs.get(name) or hash_file(temporary / name) for name in names}
            manifest = Manifest(
                version=version,
                cycle_number=cycle_number,
                parent_version=parent.version if parent else None,
                parent_root_hash=parent.root_hash if parent else None,
                batch_hash=batch_hash,
                weights_digest=written.digests.weights,
                optimizer_digest=written.digests.optimizer,
                blobs=blobs,
                step=step,
                kind=image.kind,
                image_digest=image.digest,
                chain_length=image.chain_length,
                chain_bytes=image.chain_bytes,
            )
            (temporary / FILE_NAME).write_text(manifest.to_json(), encoding="utf-8")
            publish_directory(temporary, final)
        except (OSError, SafetensorError) as error:
            self._take_back(temporary, final)
            raise DiskError(
                f"{final}: the checkpoint could not be written ({error}); free space and restart"
            ) from error
        except BaseException:
            self._take_back(temporary, final)
            raise
        return manifest.checkpoint()

    def verify(self, version: str) -> Checkpoint:
        manifest = self._manifest(version)
        self._verify_blobs(manifest, exact=not self.is_lossy(version), image=True)
        return manifest.checkpoint()

    def check(self, checkpoint: Checkpoint) -> None:
        manifest = self._recorded(checkpoint)
        self._verify_blobs(manifest, exact=checkpoint.exact, image=True)

    def open(self, checkpoint: Checkpoint) -> Path:
        if checkpoint.exact:
            self._verify_blobs(self._recorded(checkpoint), exact=True, image=False)
        else:
            self.image(checkpoint)
        return self.path(checkpoint.version)

    def is_lossy(self, version: str) -> bool:
        return (self.path(version) / LOSSY_MARKER).exists()

    def image(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        links = self._chain(checkpoint.version)
        self._require_recorded(links[-1], checkpoint)
        image = self._root_image(links[0])
        for link in links[1:]:
            self._verify_blob(link, DELTA_FILE)
            delta = self.path(link.version) / DELTA_FILE
            apply(image, read_delta(delta, image), str(delta))
        expected = links[-1].image_digest
        if expected is not None and image_digest(image) != expected:
            raise CheckpointError(
                f"{self.path(checkpoint.version)}: its chain gives another image than the recorded one; restore the "
                f"chain from {links[0].version} on from a mirror, or go back to another checkpoint"
            )
        return image

    def chain(self, version: str) -> list[str]:
        """The versions whose files its image needs: keyframe or base first, itself last.

        Raises:
            CheckpointError: a link is missing, or is not the parent that the next one was made from.
        """
        return [link.version for link in self._chain(version)]

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
            elif entry.is_dir() and entry.name not in kept:
                # Never deleted: what this program does not know may be what a person needs.
                self.quarantine(entry.name)
                moved.append(entry.name)
        return moved

    def quarantine(self, version: str) -> Path:
        aside = self._root / QUARANTINE
        aside.mkdir(exist_ok=True)
        return self.path(version).rename(aside / f"{version}-{time.time_ns()}")

    def replace(self, version: str, arriving: Path) -> Path | None:
        aside = self.quarantine(version) if self.exists(version) else None
        try:
            publish_directory(arriving, self.path(version))
        except OSError:
            if aside is not None and not self.exists(version):
                aside.rename(self.path(version))
            raise
        return aside

    def take_image(self, version: str, arriving: Path) -> None:
        self.set_image_aside(version)
        for file in arriving.glob(f"{IMAGE_PREFIX}*"):
            fsync(file)
            file.rename(self.path(version) / file.name)
        fsync(self.path(version))

    def set_image_aside(self, version: str) -> None:
        aside = self._root / QUARANTINE
        aside.mkdir(exist_ok=True)
        for file in self.path(version).glob(f"{IMAGE_PREFIX}*"):
            file.rename(aside / f"{version}-{file.name}-{time.time_ns()}")

    def make_lossy(self, version: str) -> None:
        manifest = self._manifest(version)
        if manifest.kind is CheckpointKind.FULL:
            raise DreamdError(f"{self.path(version)}: without its exact state nothing would be left of it")
        marked = self._mark_lossy(version)  # first, so that what is missing from now on is not taken for damage
        for name in manifest.blobs:
            if not name.startswith(IMAGE_PREFIX):
                (self.path(version) / name).unlink(missing_ok=True)
        if marked is not None and (marked := self._mark_lossy(version)) is not None:
            raise marked

    def prune(self, version: str) -> None:
        # Renamed first: a kill in the middle leaves a temporary directory, not half a checkpoint.
        doomed = self._root / f"{TEMPORARY_PREFIX}pruned-{version}"
        if self.exists(version):
            self.path(version).rename(doomed)
            fsync(self._root)
        shutil.rmtree(doomed, ignore_errors=True)

    def _take_back(self, temporary: Path, final: Path) -> None:
        """Leave nothing of a publication that failed, after its rename too: what is told as lost must not be there."""
        with contextlib.suppress(OSError):  # not there: it was not renamed yet
            final.rename(temporary)
        shutil.rmtree(temporary, ignore_errors=True)

    def _mark_lossy(self, version: str) -> OSError | None:
        """Write the marker; why not. A full disk must not keep what fills it: the row says that it is lossy, too."""
        marker = self.path(version) / LOSSY_MARKER
        try:
            if not marker.exists():
                write_durably(marker, "weights and optimizer as trained were deleted by retention; the image is kept\n")
        except OSError as error:
            return error
        return None

    # --- images --------------------------------------------------------------------------------------------

    def _write_image(self, directory: Path, snapshot: Snapshot, parent: Checkpoint | None) -> _Image:
        """A delta where the chain allows, else a keyframe; nothing for the base, which stays for ever."""
        if parent is None:
            return _Image(CheckpointKind.FULL)
        digest = image_digest(snapshot.weights)
        before = self._link(parent)
        length = 1 if before is None else before.chain_length + 1
        num_weights = sum(tensor.numel() for tensor in snapshot.weights.values())
        # More than half of the words changed: such a delta would be thrown away, and it takes much memory to write.
        few = snapshot.changes is not None and 2 * sum(map(_num_changed, snapshot.changes.values())) <= num_weights
        if few and snapshot.changes is not None and before is not None and length <= self._keyframe_every:
            delta = directory / DELTA_FILE
            write_delta(delta, snapshot.changes)
            size = before.chain_bytes + delta.stat().st_size
            if size <= num_weights:  # half of two bytes each
                return _Image(CheckpointKind.DELTA, digest, length, size)
            delta.unlink()
        write_keyframe(directory / KEYFRAME_FILE, snapshot.weights)
        return _Image(CheckpointKind.KEYFRAME, digest)

    def _link(self, parent: Checkpoint) -> Manifest | None:
        """The parent's manifest, if a delta to its image will be of use."""
        try:
            chain = self._chain(parent.version)
        except CheckpointError:  # a lost link is for the scrub to tell; a keyframe heals the lineage
            return None
        # A full one other than the base may be pruned, and its image with it.
        rooted = chain[0].kind is CheckpointKind.KEYFRAME or chain[0].parent_version is None
        usable = rooted and chain[-1].root_hash == parent.root_hash and all(map(self._has_image, chain))
        return chain[-1] if usable else None

    def _has_image(self, link: Manifest) -> bool:
        """Whether the file that a chain needs of it is there with its size; reading all of them would take long."""
        names = [name for name in link.blobs if name.startswith(IMAGE_PREFIX)] or [WEIGHTS_FILE]
        files = {name: self.path(link.version) / name for name in names}
        return all(file.is_file() and file.stat().st_size == link.blobs[name].size for name, file in files.items())

    def _chain(self, version: str) -> list[Manifest]:
        links = [self._manifest(version)]
        while links[0].kind is CheckpointKind.DELTA:
            child, parent_version = links[0], links[0].parent_version
            assert parent_version is not None, "only the base has no parent, and it is no delta"
            parent = self._manifest(parent_version)
            if parent.root_hash != child.parent_root_hash:
                raise CheckpointError(
                    f"{self.path(parent.version)}: it is not the parent that {child.version} was made from"
                )
            links.insert(0, parent)
        return links

    def _root_image(self, root: Manifest) -> dict[str, Tensor]:
        if root.kind is CheckpointKind.KEYFRAME:
            self._verify_blob(root, KEYFRAME_FILE)
            return read_keyframe(self.path(root.version) / KEYFRAME_FILE)
        self._verify_blob(root, WEIGHTS_FILE)
        return image_of(load_file(self.path(root.version) / WEIGHTS_FILE))

    # --- verification --------------------------------------------------------------------------------------

    def _manifest(self, version: str) -> Manifest:
        manifest = read_manifest(self.path(version))
        if manifest.version != version:
            raise CheckpointError(
                f"{self.path(version)}: its manifest is that of {manifest.version}; it was moved or copied"
            )
        return manifest

    def _recorded(self, checkpoint: Checkpoint) -> Manifest:
        """Its manifest, if it is the one that the database knows, and has the exact state that it should have."""
        manifest = self._manifest(checkpoint.version)
        self._require_recorded(manifest, checkpoint)
        if checkpoint.exact and self.is_lossy(checkpoint.version):
            raise CheckpointError(
                f"{self.path(checkpoint.version)}: only its image is there, not the exact state that the database "
                "expects; restore it from a mirror or backup, or roll back to another checkpoint"
            )
        return manifest

    def _require_recorded(self, found: Manifest, checkpoint: Checkpoint) -> None:
        if found.root_hash != checkpoint.root_hash:
            raise CheckpointError(
                f"{self.path(checkpoint.version)}: its root hash {found.root_hash[:12]} is not the recorded "
                f"{checkpoint.root_hash[:12]}; it belongs to another run"
            )

    def _verify_blobs(self, manifest: Manifest, *, exact: bool, image: bool) -> None:
        for name in manifest.blobs:
            if image if name.startswith(IMAGE_PREFIX) else exact:
                self._verify_blob(manifest, name)

    def _verify_blob(self, manifest: Manifest, name: str) -> None:
        file, blob = self.path(manifest.version) / name, manifest.blobs.get(name)
        if blob is None:
            raise CheckpointError(f"{file}: the manifest does not list it; the checkpoint is of an unknown kind")
        if not file.is_file():
            raise CheckpointError(f"{file}: missing; roll back to another checkpoint or restore it from a backup")
        try:
            found = hash_file(file)
        except OSError as error:
            raise CheckpointError(f"{file}: could not be read ({error}); check the disk") from error
        if found != blob:
            raise CheckpointError(
                f"{file}: {file.stat().st_size} bytes that do not hash to the manifest's {blob.size} bytes; "
                "it was truncated or altered: restore it from a backup or roll back to another checkpoint"
            )


def _num_changed(change: Changes) -> int:
    return len(change.positions)

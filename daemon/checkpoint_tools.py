"""What `dreamd checkpoints` does with files: verify, compare, export, fetch, prune. No model is loaded."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from daemon.checkpoints.layers import Difference, differences
from daemon.checkpoints.manifest import FILE_NAME
from daemon.checkpoints.store import TEMPORARY_PREFIX, WEIGHTS_FILE, DirectoryStore
from daemon.checkpoints.usage import bytes_in
from daemon.config import Config, Loaded
from daemon.cycle.retain import due, remove
from daemon.domain.errors import CheckpointError, DiskError, DreamdError, FencedError
from daemon.domain.records import Checkpoint
from daemon.domain.retention import LOSSY_MARKER
from daemon.domain.states import CheckpointState
from daemon.ports import Mirror, Weights
from daemon.service.state_dir import prepare_state_dir
from daemon.storage.database import open_database
from daemon.storage.ledger import SqlLedger
from daemon.storage.lock import RunLock
from daemon.storage.migrate import check_schema
from daemon.storage.runs import load_run
from daemon.training.model_folder import copy_assets


@dataclass(frozen=True, slots=True)
class Verified:
    """One checkpoint's files, read and compared with their hashes."""

    version: str
    sound: bool
    exact: bool
    """Whether the database expects its exact state, not its image alone."""
    num_bytes: int
    """Of its files."""
    links: int | None = None
    """Checkpoints that its image was rebuilt from; None: not asked for."""
    detail: str | None = None
    """What is wrong; or, of a sound one, why nothing was read."""

    def in_words(self) -> str:
        if not self.sound:
            return f"DAMAGED: {self.detail}"
        if self.detail is not None:
            return self.detail
        rebuilt = "" if self.links is None else f", image rebuilt from {self.links}"
        return f"sound, {'exact' if self.exact else 'lossy'}{rebuilt}"


@dataclass(frozen=True, slots=True)
class Removal:
    """What retention does to a checkpoint that nobody needs as it is."""

    version: str
    becomes: str
    """ "gone" or "lossy"; or "as it was" and why it could not be removed."""
    num_bytes: int
    """Freed."""


def verify(loaded: Loaded, versions: Sequence[str], *, chain: bool) -> Iterator[Verified]:
    """Read the files of each version, and compare them with manifest and database.

    Args:
        chain: also rebuild its image, reading every link.

    Raises:
        UsageError: there is no such run.
    """
    store = _store(loaded.config)
    with _reading(loaded) as ledger:
        recorded = {checkpoint.version: checkpoint for checkpoint in ledger.checkpoints()}
        for version in versions:
            result = _verified(store, recorded[version], chain)
            now = recorded[version] if result.sound else ledger.checkpoint(version)
            if now != recorded[version]:  # retention was at it while it was read
                result = _verified(store, now, chain)
            yield result


def diff(loaded: Loaded, before: str, after: str, *, layers: bool) -> list[Difference]:
    """What changed between the images of two versions, the largest relative difference first.

    Args:
        layers: one entry per layer instead of one per parameter.

    Raises:
        CheckpointError: a link of their chains does not verify.
    """
    store = _store(loaded.config)
    with _reading(loaded) as ledger:
        images = [store.image(ledger.checkpoint(version)) for version in (before, after)]
    return differences(*images, layers=layers)


def export(loaded: Loaded, version: str, directory: Path) -> dict[str, Any]:
    """Write a checkpoint as an ordinary Hugging Face folder: weights, config, tokenizer, chat template.

    Of a lossy one the image, in bfloat16.

    Raises:
        CheckpointError: it does not verify.
        DiskError: it cannot be written; nothing is left of it.
    """
    store = _store(loaded.config)
    with _reading(loaded) as ledger:
        checkpoint, base = ledger.checkpoint(version), ledger.lineage()[-1]
    exact = checkpoint.exact and not store.is_lossy(version)
    assets = store.open(base)
    weights = store.open(checkpoint) / WEIGHTS_FILE if exact else store.image(checkpoint)
    try:
        _write_folder(directory, assets, weights)
    except (OSError, SafetensorError) as error:
        raise DiskError(f"{directory}: could not be written ({error}); free space, or choose another place") from error
    digests = {"weights_digest": checkpoint.weights_digest} if exact else {"image_digest": checkpoint.image_digest}
    shape = "exact, as trained" if exact else "lossy: its image, in bfloat16"
    return {"exported": version, "weights": shape, "directory": str(directory), **digests}


def fetch(loaded: Loaded, version: str, mirror: Mirror) -> dict[str, Any]:
    """Get a checkpoint that is damaged or missing here back from the mirror; the head stays what it is.

    What was here is set aside once the copy is complete and verified, never deleted.

    Raises:
        LockedError: the daemon runs.
        MirrorError: it cannot be had from there; nothing changed.
        CheckpointError: the mirror has its image alone, but its exact state is needed; nothing changed.
    """
    with _owned(loaded) as ledger:
        store, checkpoint = _store(loaded.config), ledger.checkpoint(version)
        if _verified(store, checkpoint, chain=False).sound:
            return {"version": version, "fetched": False, "reason": "every file of it is sound here"}
        arriving = store.path(f"{TEMPORARY_PREFIX}fetched-{version}")
        shutil.rmtree(arriving, ignore_errors=True)
        try:
            mirror.fetch(version, checkpoint.root_hash, arriving)
            lossy = (arriving / LOSSY_MARKER).exists()
            if lossy and checkpoint.exact:
                _accept_lossy(ledger, checkpoint)
            aside = store.replace(version, arriving)
        except BaseException:
            shutil.rmtree(arriving, ignore_errors=True)
            raise
        store.check(ledger.checkpoint(version))
        ledger.event("checkpoint_fetched", version=version, mirror=mirror.url, lossy=lossy)
    return {"version": version, "fetched": True, "lossy": lossy, "set_aside": None if aside is None else str(aside)}


def prune(loaded: Loaded, *, dry_run: bool) -> list[Removal]:
    """Apply the configured retention now; `dry_run`: only say what it would remove.

    Raises:
        LockedError: the daemon runs, and this is no dry run.
    """
    with _reading(loaded) if dry_run else _owned(loaded) as ledger:
        store = _store(loaded.config)
        removed = []
        for checkpoint, whole in due(ledger, loaded.config.retention):
            removal = _removal(store, checkpoint, whole)
            try:
                if not dry_run:
                    remove(ledger, store, checkpoint, whole)
            except CheckpointError as error:
                ledger.event("not_removed", level="warning", version=checkpoint.version, reason=str(error))
                removal = Removal(checkpoint.version, f"as it was: {error}", 0)
            removed.append(removal)
    return removed


def _write_folder(directory: Path, assets: Path, weights: Path | Weights) -> None:
    """A Hugging Face folder, complete or not there.

    Args:
        weights: a file of them, or the tensors themselves.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        copy_assets(assets, temporary)
        (temporary / FILE_NAME).unlink(missing_ok=True)
        if isinstance(weights, Path):
            shutil.copyfile(weights, temporary / WEIGHTS_FILE)
        else:
            save_file(dict(weights), temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        temporary.chmod(0o755)  # mkdtemp makes it private
        if directory.exists():
            directory.rmdir()
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _verified(store: DirectoryStore, checkpoint: Checkpoint, chain: bool) -> Verified:
    version, directory, links = checkpoint.version, store.path(checkpoint.version), None
    if checkpoint.state is CheckpointState.PRUNED:
        return Verified(version, True, False, 0, detail="pruned meanwhile")
    try:
        store.check(checkpoint)
        if chain:
            links = len(store.chain(version))
            store.image(checkpoint)
    except (CheckpointError, OSError) as error:
        return Verified(version, False, checkpoint.exact, bytes_in(directory), detail=str(error))
    return Verified(version, True, checkpoint.exact, bytes_in(directory), links)


def _removal(store: DirectoryStore, checkpoint: Checkpoint, whole: bool) -> Removal:
    if whole:
        return Removal(checkpoint.version, "gone", bytes_in(store.path(checkpoint.version)))
    return Removal(checkpoint.version, "lossy", checkpoint.size_bytes - checkpoint.image_bytes)


def _accept_lossy(ledger: SqlLedger, checkpoint: Checkpoint) -> None:
    try:
        ledger.made_lossy(checkpoint.version)
    except FencedError:
        raise
    except DreamdError as error:
        raise CheckpointError(
            f"the mirror has the image of {checkpoint.version} alone, and that is not enough: {error}"
        ) from None


def _store(config: Config) -> DirectoryStore:
    return DirectoryStore(config.run.checkpoints_dir)


@contextmanager
def _reading(loaded: Loaded) -> Iterator[SqlLedger]:
    """A ledger to read with: it owns nothing, so its writes would be refused."""
    with _engine(loaded, readonly=True) as engine:
        run = load_run(engine, loaded.config.run.name)
        yield SqlLedger(engine, run.id, run.name, -1)


@contextmanager
def _owned(loaded: Loaded) -> Iterator[SqlLedger]:
    """The run's lock, and a ledger that owns it; refused when an older backup of the database was restored."""
    config = loaded.config
    prepare_state_dir(config.run.state_dir)
    with _engine(loaded) as engine, RunLock(engine, config.run.name):
        yield SqlLedger.acquire(engine, config.run.name, journal=config.run.claims_log)


@contextmanager
def _engine(loaded: Loaded, *, readonly: bool = False) -> Iterator[Any]:
    engine = open_database(loaded.config.run.url, readonly=readonly)
    try:
        check_schema(engine)
        yield engine
    finally:
        engine.dispose()

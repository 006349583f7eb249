"""Checkpoint directories made by hand, for tests of what only copies, reads and compares them."""

from __future__ import annotations

import random
from pathlib import Path

from daemon.checkpoints.manifest import FILE_NAME, Manifest, hash_file
from daemon.domain.records import Checkpoint
from daemon.domain.states import CheckpointKind


def make_directory(
    root: Path,
    version: str = "cycle-000007",
    kind: CheckpointKind = CheckpointKind.DELTA,
    num_bytes: int = 3_000_001,
    **changes: object,
) -> tuple[Path, Checkpoint]:
    """A published checkpoint of random bytes under `root`; `num_bytes` of weights, and an image unless it is full."""
    directory = root / version
    directory.mkdir(parents=True)
    generator = random.Random(version)
    sizes = {"model.safetensors": num_bytes, "optimizer.state": 200_000}
    if kind is not CheckpointKind.FULL:
        sizes[f"image.{kind}"] = 50_000
    for name, size in sizes.items():
        (directory / name).write_bytes(generator.randbytes(size))
    fields = {
        "cycle_number": 7,
        "parent_version": "cycle-000006",
        "parent_root_hash": "root of the parent",
        "batch_hash": "batch",
        "weights_digest": "weights",
        "optimizer_digest": "optimizer",
        "step": None,
        "image_digest": None if kind is CheckpointKind.FULL else "image",
    } | changes
    blobs = {name: hash_file(directory / name) for name in sorted(sizes)}
    manifest = Manifest(version=version, blobs=blobs, kind=kind, **fields)  # type: ignore[arg-type]
    (directory / FILE_NAME).write_text(manifest.to_json())
    return directory, manifest.checkpoint()


def make_it_lossy(directory: Path) -> None:
    """Delete the exact files on purpose, as retention does."""
    (directory / "lossy").write_text("by retention\n")
    for name in ("model.safetensors", "optimizer.state"):
        (directory / name).unlink()


def contents(directory: Path) -> dict[str, bytes]:
    """Name -> bytes of every file."""
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def flip(file: Path, position: int = 1000) -> None:
    """Flip one bit."""
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)

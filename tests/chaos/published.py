"""Checkpoint directories, read without the program that wrote them.

A directory holds `manifest.json` and the blobs that it lists. Its root hash is the BLAKE3 of all other fields as JSON
with sorted keys and no spaces. Format 1 has weights and optimizer; format 2 also an image, the weights rounded to
bfloat16, and may have lost the rest on purpose: then it has a file `lossy`.

Weights and optimizer are safetensors files: 8 bytes of length, a JSON header, the tensors' bytes. A digest of tensors
is the BLAKE3 of, in name order, NAME NUL DTYPE NUL SHAPE NUL and the bytes; dtypes are spelled as torch does, shapes
as Python tuples.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.state"
LOSSY = "lossy"
IMAGE_PREFIX = "image."

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64", "I64": "int64", "I32": "int32"}
_DTYPES |= {"U8": "uint8", "BOOL": "bool", "I16": "int16", "I8": "int8"}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor's bytes, and what they mean."""

    dtype: str
    """As torch prints it, without "torch."."""
    shape: tuple[int, ...]
    content: bytes


Tensors = dict[str, StoredTensor]


def read_manifest(directory: Path) -> dict[str, Any]:
    """Every field, the root hash among them."""
    fields: dict[str, Any] = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    return fields


def root_hash(manifest: dict[str, Any]) -> str:
    """What `root_hash` has to be."""
    hashed = {name: value for name, value in manifest.items() if name != "root_hash"}
    return blake3(json.dumps(hashed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_lossy(directory: Path) -> bool:
    return (directory / LOSSY).is_file()


def expected_blobs(directory: Path, manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The blobs that must be there: all, or of a lossy checkpoint those of its image."""
    lossy = is_lossy(directory)
    return {name: blob for name, blob in manifest["blobs"].items() if not lossy or name.startswith(IMAGE_PREFIX)}


def blob_problem(file: Path, blob: dict[str, Any]) -> str | None:
    """Why a file is not the blob that its manifest lists."""
    if not file.is_file():
        return "missing"
    content = file.read_bytes()
    if len(content) != blob["size"]:
        return f"{len(content)} bytes instead of {blob['size']}"
    return None if blake3(content).hexdigest() == blob["blake3"] else "its BLAKE3 does not fit"


def directory_problems(directory: Path) -> tuple[list[str], int]:
    """Everything wrong with one published directory by itself, and how many blobs were read."""
    try:
        manifest = read_manifest(directory)
        blobs = expected_blobs(directory, manifest)
        problems = [] if root_hash(manifest) == manifest["root_hash"] else ["its root hash does not fit its fields"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"no manifest that can be read ({error!r})"], 0
    if manifest["version"] != directory.name:
        problems.append(f"its manifest is of {manifest['version']}")
    for name, blob in blobs.items():
        problem = blob_problem(directory / name, blob)
        problems += [] if problem is None else [f"{name}: {problem}"]
    return problems, len(blobs)


def read_tensors(file: Path) -> Tensors:
    """A safetensors file."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(
            _DTYPES[entry["dtype"]],
            tuple(entry["shape"]),
            content[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]],
        )
        for name, entry in header.items()
    }


def tensors_digest(tensors: Tensors) -> str:
    """Equal digests, equal bits."""
    hasher = blake3()
    for name in sorted(tensors):
        tensor = tensors[name]
        hasher.update(f"{name}\0torch.{tensor.dtype}\0{tensor.shape}\0".encode())
        hasher.update(tensor.content)
    return hasher.hexdigest()

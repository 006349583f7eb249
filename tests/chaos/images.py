"""Images: a checkpoint's weights rounded to bfloat16, from its chain, read without the program that wrote them.

A keyframe is a safetensors file of the image. A delta is "dreamdlt", uint32 1, one zstd frame, and the BLAKE3 of all
that. The frame: uint32 length of a table; the table, JSON {"gap_bytes": G, "counts": {NAME: COUNT}}; G planes of gaps
and 2 of words, a byte per change each, low bytes first. Positions are previous + 1 + gap, from -1 for each parameter;
words overwrite. All numbers are little-endian.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from blake3 import blake3
from chaos import published

KEYFRAME = "image.keyframe"
DELTA = "image.delta"

Words = dict[str, tuple[tuple[int, ...], Any]]
"""Parameter -> its shape, and its bfloat16 words (uint16)."""


def image_digest(image: Words) -> str:
    """BLAKE3 of, in name order, `["NAME",[DIMENSION,...]]` and a newline, then the words."""
    hasher = blake3()
    for name in sorted(image):
        shape, words = image[name]
        hasher.update(json.dumps([name, list(shape)], separators=(",", ":")).encode() + b"\n")
        hasher.update(words.astype("<u2").tobytes())
    return hasher.hexdigest()


def chain_image(root: Path, version: str) -> tuple[Words, int]:
    """A version's image from what is on disk, and how many deltas that took.

    Raises:
        ValueError, OSError, KeyError: a link is missing or malformed.
    """
    directory = root / version
    manifest = published.read_manifest(directory)
    kind = manifest.get("kind", "full")
    if kind == "full":
        return rounded(published.read_tensors(directory / published.WEIGHTS)), 0
    if kind == "keyframe":
        return _words(published.read_tensors(directory / KEYFRAME)), 0
    parent = manifest["parent_version"]
    if published.read_manifest(root / parent)["root_hash"] != manifest["parent_root_hash"]:
        raise ValueError(f"{parent} is not the parent that it was made from")
    image, length = chain_image(root, parent)
    _apply(image, (directory / DELTA).read_bytes())
    return image, length + 1


def rounded(weights: published.Tensors) -> Words:
    """Weights rounded to bfloat16, to the nearest, ties to even."""
    found: Words = {}
    for name, tensor in weights.items():
        if tensor.dtype == "bfloat16":
            words = np.frombuffer(tensor.content, "<u2")
        elif tensor.dtype == "float32":
            bits = np.frombuffer(tensor.content, "<u4").astype(np.uint64)
            words = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        else:
            raise ValueError(f"{name}: weights of dtype {tensor.dtype}")
        found[name] = (tensor.shape, words)
    return found


def _words(tensors: published.Tensors) -> Words:
    if {tensor.dtype for tensor in tensors.values()} != {"bfloat16"}:
        raise ValueError("a keyframe that is not all bfloat16")
    return {name: (tensor.shape, np.frombuffer(tensor.content, "<u2").copy()) for name, tensor in tensors.items()}


def _apply(image: Words, file: bytes) -> None:
    """Overwrite the words that a delta lists."""
    frame, digest = file[12:-32], file[-32:]
    if file[:12] != b"dreamdlt\1\0\0\0" or blake3(file[:-32]).digest() != digest:
        raise ValueError("not a delta, or an altered one")
    content = zstandard.ZstdDecompressor().decompressobj().decompress(frame)
    start = 4 + int.from_bytes(content[:4], "little")
    table = json.loads(content[4:start])
    counts, num_gaps = table["counts"], table["gap_bytes"]
    total = sum(counts.values())
    planes = np.frombuffer(content[start:], np.uint8).reshape(num_gaps + 2, total).astype(np.int64)
    gaps = sum(planes[byte] << (8 * byte) for byte in range(num_gaps))
    words = planes[num_gaps] | planes[num_gaps + 1] << 8
    if counts.keys() != image.keys():
        raise ValueError("a delta of another model")
    begin = 0
    for name, count in counts.items():
        shape, own = image[name]
        own = own.copy()
        own[np.cumsum(gaps[begin : begin + count] + 1) - 1] = words[begin : begin + count]
        image[name] = (shape, own)
        begin += count

"""Write tensors into a safetensors file: hashed on the way, and without filling the page cache.

The bytes are those of safetensors' own writer. That one leaves all of the file in memory, where it pushes out what
others use, and the file must be read again for its hash.

The format: uint64, little-endian, the header's length; the header, JSON padded with spaces to a multiple of 8 bytes;
the tensors without gaps, those of wide types first, by name within a type.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor

from daemon.domain import disk
from daemon.domain.records import Blob

_TYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names in the header, in the order of the file."""
_PIECE = 2**20
"""Bytes written and hashed at once."""
_CACHED = 2**26
"""Bytes that wait in the page cache for the disk, at most."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Blob:
    """Write a new file; returns its hash and size.

    Args:
        path: the file, which must not be there. Its last bytes may not be on the disk yet when this returns.
        tensors: by name, on any device; one at a time is brought to the CPU.
        metadata: of the header.

    Raises:
        OSError: it could not be written.
        ValueError: a tensor's type is none that weights or optimizers have.
    """
    ranks = list(_TYPES)
    names = sorted(tensors, key=lambda name: (ranks.index(tensors[name].dtype), name))
    hasher, size, cached = blake3(), 0, 0
    with path.open("xb") as file:  # never over a file that the tensors themselves may be a view of
        for piece in _pieces(names, tensors, metadata):
            file.write(piece)
            hasher.update(piece)
            size, cached = size + len(piece), cached + len(piece)
            if cached >= _CACHED:
                file.flush()
                disk.fsync(path)
                disk.forget(path)
                cached = 0
    return Blob(hasher.hexdigest(), size)


def _pieces(names: Sequence[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[memoryview]:
    header = _header(names, tensors, metadata)
    yield memoryview(len(header).to_bytes(8, "little") + header)
    for name in names:
        content = _bytes(tensors[name])
        for start in range(0, len(content), _PIECE):
            yield content[start : start + _PIECE]


def _header(names: Sequence[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    fields: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name in names:
        tensor = tensors[name]
        end = start + tensor.numel() * tensor.element_size()
        fields[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    header = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    return header.ljust(8 * math.ceil(len(header) / 8))


def _bytes(tensor: Tensor) -> memoryview:
    if not tensor.numel():  # an empty tensor may have a stride that torch does not view as bytes
        return memoryview(b"")
    return memoryview(tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8).numpy().data)

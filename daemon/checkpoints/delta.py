"""A delta: the words of an image that differ from its parent's, in one small file.

Words overwrite; nothing is added or xored, so a delta applied twice does no harm, and each is readable alone.

The file, all numbers little-endian:

    8 bytes     "dreamdlt"
    4 bytes     uint32: version of the format, 1
    ...         one zstd frame
    32 bytes    BLAKE3 of everything before

The frame, unpacked, without padding:

    4 bytes     uint32: length of the table
    ...         the table: JSON, ASCII, {"gap_bytes": G, "counts": {NAME: COUNT, ...}}
    G planes    of gaps: byte 0 (lowest) of all gaps, then byte 1 of all gaps, ..., byte G-1; 1 <= G <= 5
    2 planes    of words: the low byte of all words, then the high byte of all words

A plane holds one byte per change: COUNT of the first parameter in the order of the table, COUNT of the next, ... The
first gap of a parameter is its first position; each other gap is the number of unchanged elements between two changed
ones: position = previous + 1 + gap. A word is the new bfloat16 word at that position of the flattened parameter.
Byte planes, because zstd codes each 128 KiB with one table of byte frequencies, and each plane has its own; level 1,
because what is left is noise to it: at 2 % changed, higher levels take longer and save nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import zstandard
from blake3 import blake3
from torch import Tensor

from daemon.checkpoints.image import words_of
from daemon.domain.errors import CheckpointError, DiskError
from daemon.ports import Changes

MAGIC = b"dreamdlt" + (1).to_bytes(4, "little")
LEVEL = 1
_DIGEST_BYTES = 32
_LARGEST_TABLE = 2**26
"""Bytes; a million parameters fit."""
_LARGEST_GAP_BYTES = 5
_LARGEST_WINDOW = 2**23
"""Bytes that the unpacker sets aside; level 1 needs half a MiB."""
_PIECE = 2**20
"""Bytes asked of the unpacker at once: it sets them aside before it knows whether there are so many."""


class _Malformed(Exception):
    """Why a file is not a delta."""


class _Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...


def write_delta(path: Path, changes: Mapping[str, Changes]) -> None:
    """Write changes, positions ascending, into a new file; the same changes give the same bytes.

    Raises:
        OSError: it could not be written.
        ValueError: the positions of a parameter do not ascend.
    """
    names = sorted(changes)
    gaps = [_gaps(name, changes[name]) for name in names]
    words = [np.asarray(changes[name].words.cpu().numpy(), dtype="<i2").view("<u2") for name in names]
    largest = max((int(gap.max()) for gap in gaps if len(gap)), default=0)
    gap_bytes = max(1, (largest.bit_length() + 7) // 8)
    counts = {name: len(gap) for name, gap in zip(names, gaps, strict=True)}
    table = json.dumps({"gap_bytes": gap_bytes, "counts": counts}, separators=(",", ":")).encode()
    head = [len(table).to_bytes(4, "little"), table]
    size = sum(map(len, head)) + (gap_bytes + 2) * sum(counts.values())
    pieces = (piece for part in (head, _planes(gaps, gap_bytes), _planes(words, 2)) for piece in part)
    hasher = blake3()
    with path.open("wb") as file:
        for packed in (MAGIC, *_packed(pieces, size)):
            hasher.update(packed)
            file.write(packed)
        file.write(hasher.digest())


def read_delta(path: Path, image: Mapping[str, Tensor] | None = None) -> dict[str, Changes]:
    """Read what `write_delta` wrote.

    Args:
        path: the file.
        image: the image it is to be applied to. With it, a file that claims more changes than there are weights
            is refused before anything is set aside for them; without, memory is bounded by what it unpacks to.

    Raises:
        CheckpointError: missing, truncated, altered, or not a delta of that image.
        DiskError: it could not be read.
    """
    try:
        content = memoryview(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; restore the checkpoint from a mirror or backup") from None
    except OSError as error:
        raise DiskError(f"{path}: could not be read ({error}); check the disk") from error
    try:
        return _unpack(_frame(content), image)
    except (_Malformed, zstandard.ZstdError) as error:
        raise CheckpointError(
            f"{path}: not a delta that can be used ({error}); restore it from a mirror or backup"
        ) from None


def apply(image: Mapping[str, Tensor], changes: Mapping[str, Changes], source: object = "changes") -> None:
    """Overwrite the words of `image` in place; all of `changes` is checked before the first is written.

    Args:
        image: as `image_of` makes it.
        changes: of the same parameters, all of them.
        source: what an error names as the culprit, for instance the delta's path.

    Raises:
        CheckpointError: they do not fit the image, which is unchanged.
    """
    for name in sorted(image.keys() ^ changes.keys()):
        raise CheckpointError(f"{source}: {name} is in the changes or in the image only; it is another model's")
    for name, change in changes.items():
        problem = _problem(change, image[name].numel())
        if problem:
            raise CheckpointError(f"{source}: {name}: {problem}")
    for name, change in changes.items():
        words_of(image[name])[change.positions] = change.words


def _problem(change: Changes, num_weights: int) -> str | None:
    positions, words = change.positions, change.words
    if positions.dtype != torch.int64 or words.dtype != torch.int16:
        return f"positions are {positions.dtype} and words {words.dtype}, instead of int64 and int16"
    if positions.ndim != 1 or positions.shape != words.shape:
        return f"{tuple(positions.shape)} positions do not fit {tuple(words.shape)} words"
    if not len(positions):
        return None
    if not bool((positions[1:] > positions[:-1]).all()):
        return "its positions do not ascend"
    first, last = int(positions[0]), int(positions[-1])
    return f"positions {first} to {last} are not among its {num_weights}" if first < 0 or last >= num_weights else None


# --- writing ----------------------------------------------------------------------------------------------------


def _gaps(name: str, change: Changes) -> Any:
    gaps = np.diff(change.positions.cpu().numpy(), prepend=-1) - 1
    if len(gaps) and gaps.min() < 0:
        raise ValueError(f"{name}: positions must ascend from 0 or more")
    return gaps


def _planes(numbers: Iterable[Any], num_bytes: int) -> Iterator[bytes]:
    parts = list(numbers)
    for byte in range(num_bytes):
        for part in parts:
            yield ((part >> (8 * byte)) & 0xFF).astype(np.uint8).tobytes()


def _packed(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    packer = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, threads=0).compressobj(size=size)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


# --- reading ----------------------------------------------------------------------------------------------------


def _frame(content: memoryview) -> memoryview:
    if content[: len(MAGIC)] != MAGIC:
        raise _Malformed(f"it does not begin with {MAGIC!r}")
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if len(body) < len(MAGIC) or blake3(body).digest() != digest:
        raise _Malformed("its contents do not hash to its last 32 bytes: it was truncated or altered")
    return body[len(MAGIC) :]


def _unpack(frame: memoryview, image: Mapping[str, Tensor] | None) -> dict[str, Changes]:
    with zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).stream_reader(frame) as reader:
        length = int.from_bytes(_read(reader, 4), "little")
        if length > _LARGEST_TABLE:
            raise _Malformed(f"its table claims {length} bytes")
        counts, gap_bytes = _table(_read(reader, length))
        if image is not None:
            _refuse_other_image(counts, image)
        num_changes = sum(counts.values())
        planes = [np.frombuffer(_read(reader, num_changes), np.uint8) for _ in range(gap_bytes + 2)]
        if reader.read(1):  # reading to the end also compares the frame's checksum
            raise _Malformed("it goes on after its last plane")
    found, start = {}, 0
    for name, count in counts.items():
        piece = [plane[start : start + count] for plane in planes]
        gaps, words = _joined(piece[:-2], np.int64), _joined(piece[-2:], np.uint16)
        found[name] = Changes(torch.from_numpy(np.cumsum(gaps + 1) - 1), torch.from_numpy(words.view(np.int16)))
        start += count
    return found


def _table(text: bytearray) -> tuple[dict[str, int], int]:
    try:
        table = json.loads(text)
        counts, gap_bytes = table["counts"], table["gap_bytes"]
        numbers = [gap_bytes, *counts.values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _Malformed(f"its table cannot be read ({error!r})") from None
    if any(type(number) is not int or number < 0 for number in numbers) or not 1 <= gap_bytes <= _LARGEST_GAP_BYTES:
        raise _Malformed("its table holds impossible numbers")
    return counts, gap_bytes


def _refuse_other_image(counts: Mapping[str, int], image: Mapping[str, Tensor]) -> None:
    for name in sorted(counts.keys() ^ image.keys()):
        raise _Malformed(f"{name} is in it or in the image only; it is another model's")
    for name, count in counts.items():
        if count > image[name].numel():
            raise _Malformed(f"{name} has {image[name].numel()} weights, and {count} changes")


def _read(reader: _Reader, size: int) -> bytearray:
    found = bytearray()
    while len(found) < size:
        piece = reader.read(min(_PIECE, size - len(found)))
        if not piece:
            raise _Malformed("it ends early")
        found += piece
    return found


def _joined(planes: Iterable[Any], dtype: Any) -> Any:
    planes = list(planes)
    joined = np.zeros(len(planes[0]), dtype)
    for byte, plane in enumerate(planes):
        joined |= plane.astype(dtype) << (8 * byte)
    return joined

"""The claims journal at the mirror, in parts: URL/claims/NUMBER-HASH.log.

The journal only grows, so every part but the last is full and stays as it is. The last one is replaced: the new one is
there, read back, before the old one goes. A part that does not hash to its name is damaged, and counts as absent. What
a line means is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from blake3 import blake3

from daemon.checkpoints.remote import TEMPORARY_PREFIX, Link
from daemon.domain.errors import MirrorError, RestoredBackupError

FOLDER = "claims"
PART_BYTES = 2**20

_Parts = Mapping[int, Mapping[str, int]]
"""Number -> name -> bytes; two names where a replacement broke off."""


def push_journal(link: Link, journal: Path, *, thorough: bool) -> int:
    """Have there what is in the file here; the bytes sent.

    Args:
        thorough: read the full parts there as well, and send those again that are damaged.

    Raises:
        RestoredBackupError: what is there goes on differently: the file here is an older one, or another run's.
        MirrorError: what was read back is not what was sent.
    """
    link.make(FOLDER)
    there, num_parts = _parts(link), math.ceil(journal.stat().st_size / PART_BYTES)
    last = max(there, default=0)
    if not all(_goes_on(_part(journal, last), content) for content in _sound(link, there, last)):
        _refuse_older(link, there, journal)
        thorough = True  # the same claims in another order, as a journal that was made anew from the database has them
    sent = 0
    for number in range(num_parts):
        if thorough or number >= last or PART_BYTES not in there.get(number, {}).values():
            sent += _replace(link, there.get(number, {}), number, _part(journal, number))
    for number in range(num_parts, max(there, default=0) + 1):
        for name in there.get(number, {}):
            link.remove(FOLDER, name)
    return sent


def read_journal(link: Link) -> bytes:
    """The whole journal that is there; empty when there is none.

    Raises:
        MirrorError: a part is damaged or missing.
    """
    there = _parts(link)
    found = []
    for number in range(max(there, default=-1) + 1):
        content = max(_sound(link, there, number), key=len, default=None)
        if content is None:
            raise MirrorError(
                f"{link.url(FOLDER)}: part {number} of the claims journal is damaged or missing; nothing was fetched"
            )
        found.append(content)
    return b"".join(found)


def claims_of(content: bytes) -> frozenset[bytes]:
    """Whole lines but the first, which names the run."""
    return frozenset(content[: content.rfind(b"\n") + 1].splitlines()[1:])


def _refuse_older(link: Link, there: _Parts, journal: Path) -> None:
    content = b"".join(max(_sound(link, there, number), key=len, default=b"") for number in sorted(there))
    unknown = claims_of(content) - claims_of(journal.read_bytes())
    if unknown:
        raise RestoredBackupError(
            f"{link.url(FOLDER)}: the claims journal there has {len(unknown)} claims that {journal} lacks: that is an "
            "older copy, or another run mirrors to the same place. `dreamd database fetch-journal` gets it; a database "
            "that is older as well is told then how to go on. Give another run a checkpoints.mirror_url of its own"
        )


def _goes_on(here: bytes, there: bytes) -> bool:
    """Whether a part here is one there, continued; a line that a crash left half does not count."""
    return here.startswith(there[: there.rfind(b"\n") + 1])


def _replace(link: Link, present: Mapping[str, int], number: int, content: bytes) -> int:
    name = f"{number:06d}-{_hash(content)}.log"
    sent = 0
    if present.get(name) != len(content) or b"".join(link.read(FOLDER, name)) != content:
        link.write(FOLDER, name, [content])
        sent = len(content)
        if b"".join(link.read(FOLDER, name)) != content:
            link.remove(FOLDER, name)
            raise MirrorError(
                f"{link.url(FOLDER, name)}: what was read back is not what was sent; check the disk there"
            )
    for other in present.keys() - {name}:
        link.remove(FOLDER, other)
    return sent


def _parts(link: Link) -> _Parts:
    found: dict[int, dict[str, int]] = {}
    for name, size in link.files(FOLDER).items():
        number = name.split("-", 1)[0]
        if name.startswith(TEMPORARY_PREFIX):  # of an earlier push that broke off
            link.remove(FOLDER, name)
        elif number.isdecimal():
            found.setdefault(int(number), {})[name] = size
    return found


def _sound(link: Link, there: _Parts, number: int) -> Iterator[bytes]:
    for name in there.get(number, {}):
        content = b"".join(link.read(FOLDER, name))
        if name == f"{number:06d}-{_hash(content)}.log":
            yield content


def _part(journal: Path, number: int) -> bytes:
    with journal.open("rb") as file:
        file.seek(number * PART_BYTES)
        return file.read(PART_BYTES)


def _hash(content: bytes) -> str:
    return blake3(content).hexdigest()[:16]

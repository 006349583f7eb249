"""The claims journal at the mirror, in parts: URL/claims/START-END-HASH.log.

A part is the whole lines between two bytes of the journal here, named by these and by the hash of its content. So the
listing alone tells whether both agree. Parts are never changed. Small ones are joined into a larger one, which is there
before they go: whatever breaks off, nothing is missing there, and something may be there twice.

A part that is not of the file here is read: its claims must be known here. A journal that was lost and made anew has
the same claims in other lines; one that is an older copy lacks some, and must not be trained with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from daemon.checkpoints.remote import TEMPORARY_PREFIX, Link
from daemon.domain.errors import CheckpointError, MirrorError, RestoredBackupError
from daemon.domain.journal import LINE, LONGEST_LINE, OWNER

FOLDER = "claims"
PART_BYTES = 2**20
"""Of a part, at most."""
PARTS_AT_ONCE = 8
"""Sent by one call, which training waits for; the next goes on."""
SMALL_PARTS = 16
"""Next to each other, that are joined."""
_NAME = re.compile(r"([0-9]{12})-([0-9]{12})-([0-9a-f]{16})\.log")


@dataclass(frozen=True, slots=True, order=True)
class _Part:
    start: int
    end: int
    digest: str

    @property
    def name(self) -> str:
        return f"{self.start:012d}-{self.end:012d}-{self.digest}.log"


@dataclass(frozen=True, slots=True)
class MirroredClaims:
    """What the parts there say."""

    owner: bytes | None
    """The first line, which names the run."""
    lines: Sequence[bytes]
    """Each claim's once."""
    num_damaged: int
    """Parts that do not hash to their names. What can be read of them counts."""


def push_journal(link: Link, journal: Path, *, thorough: bool) -> int:
    """Have there every claim of the file here, which may be missing; the bytes sent.

    Args:
        thorough: read every part there, and send those again that are damaged.

    Raises:
        RestoredBackupError: claims there are not known here: the file here is an older copy.
        MirrorError: another run's journal is there; what was read back is not what was sent.
        CheckpointError: the file here is damaged; nothing of that was sent.
    """
    link.make(FOLDER)
    size, agreed, others, rotten = _size(journal), list[_Part](), list[_Part](), list[_Part]()
    for part, num_bytes in _listed(link, tidy=True):
        if part.end > size or _hash(_read(journal, part.start, part.end)) != part.digest:
            others.append(part)
        elif num_bytes != part.end - part.start or (thorough and not _is_sound(link, part)):
            rotten.append(part)
        else:
            agreed.append(part)
    _require_known(link, others, journal, size)
    missing = [piece for start, end in _gaps(agreed, size) for piece in _cut(journal, start, end)]
    sent = sum(_put(link, journal, part) for part in missing[:PARTS_AT_ONCE])
    if len(missing) > PARTS_AT_ONCE:
        return sent
    for part in {*others, *rotten} - {*missing}:  # only now are their claims all there in other parts
        link.remove(FOLDER, part.name)
    return sent + _join(link, journal, _without_covered(link, (*agreed, *missing)))


def read_journal(link: Link) -> MirroredClaims:
    """Every claim that is there.

    Raises:
        MirrorError: there is no journal.
    """
    owner, lines, num_damaged = None, dict[bytes, None](), 0
    parts = sorted(part for part, _ in _listed(link, tidy=False))
    if not parts:
        raise MirrorError(f"{link.url(FOLDER)}: there is no claims journal; check checkpoints.mirror_url")
    for part in parts:
        try:
            content = _content(link, part)
        except OSError:
            content = b""
        if _hash(content) == part.digest:
            owner = owner or owner_of(content)
        else:  # a claim too many costs nothing, and one too few an example that is trained twice
            num_damaged += 1
        lines.update(dict.fromkeys(line for line in _lines(content) if LINE.fullmatch(line)))
    if num_damaged == len(parts):
        raise MirrorError(f"{link.url(FOLDER)}: none of the {num_damaged} parts of the claims journal can be read")
    return MirroredClaims(owner, tuple(lines), num_damaged)


def claims_of(content: bytes) -> frozenset[bytes]:
    """Content hashes; what is no claim is passed over."""
    return frozenset(match[3] for line in _lines(content) if (match := LINE.fullmatch(line)))


def owner_of(content: bytes) -> bytes | None:
    """The first line, if it names a run."""
    first = content[: content.find(b"\n") + 1]
    return first if OWNER.fullmatch(first) else None


def _require_known(link: Link, parts: Iterable[_Part], journal: Path, size: int) -> None:
    """Whether every claim of these parts, as far as they can be read, is in the file here."""
    unknown, failure = set[bytes](), None
    here = owner_of(_read(journal, 0, LONGEST_LINE)) if size else None
    for part in parts:
        try:
            content = _content(link, part)
        except OSError as error:
            failure = MirrorError(f"{link.url(FOLDER, part.name)}: cannot be read ({error}); check the disk there")
            continue
        there = owner_of(content) if part.start == 0 and _hash(content) == part.digest else None
        if here is not None and there is not None and here != there:
            raise MirrorError(
                f"{link.url(FOLDER)}: the claims journal of {there.decode().strip()} is there, and this is "
                f"{here.decode().strip()}; give each run a checkpoints.mirror_url of its own"
            )
        unknown |= claims_of(content)
    if unknown and size:
        with journal.open("rb") as file:
            unknown.difference_update(match[3] for line in file if (match := LINE.fullmatch(line)))
    if unknown:
        raise RestoredBackupError(
            f"{link.url(FOLDER)}: the claims journal there has {len(unknown)} claims that {journal} lacks: that is an "
            "older copy, or is damaged, or another run mirrors to the same place. Get them with `dreamd db "
            "fetch-journal`; a database that lacks them as well is told then how to go on. If it is another run, give "
            "this one a checkpoints.mirror_url of its own"
        )
    if failure is not None:
        raise failure


def _gaps(parts: Iterable[_Part], size: int) -> Iterator[tuple[int, int]]:
    """What no part covers."""
    position = 0
    for part in sorted(parts):
        if part.start > position:
            yield position, part.start
        position = max(position, part.end)
    if size > position:
        yield position, size


def _cut(journal: Path, start: int, end: int) -> Iterator[_Part]:
    """Parts of whole lines."""
    while start < end:
        content = _read(journal, start, min(end, start + PART_BYTES))
        content = content[: content.rfind(b"\n") + 1]
        claims = _lines(content)[1:] if start == 0 and owner_of(content) else _lines(content)
        if not content or not all(map(LINE.fullmatch, claims)):
            raise CheckpointError(
                f"{journal}: damaged after byte {start}: not a claim (CYCLE KIND HASH); nothing of that was mirrored. "
                "The next start says which line, and what to do"
            )
        yield _Part(start, start + len(content), _hash(content))
        start += len(content)


def _without_covered(link: Link, parts: Iterable[_Part]) -> list[_Part]:
    """In order, without those that were joined with others by a push that broke off then; they are removed."""
    kept = list[_Part]()
    for part in sorted(parts, key=lambda part: (part.start, -part.end)):
        if kept and part.end <= kept[-1].end:
            link.remove(FOLDER, part.name)
        else:
            kept.append(part)
    return kept


def _join(link: Link, journal: Path, parts: Sequence[_Part]) -> int:
    """Join small parts next to each other, so that there are not as many as cycles."""
    sent, group = 0, list[_Part]()
    for part in (*parts, None):
        if part is not None and (not group or _fits(group, part)):
            group.append(part)
            continue
        if len(group) >= SMALL_PARTS:
            start, end = group[0].start, group[-1].end
            sent += _put(link, journal, _Part(start, end, _hash(_read(journal, start, end))))
            for small in group:
                link.remove(FOLDER, small.name)
        group = [part] if part is not None else []
    return sent


def _fits(group: Sequence[_Part], part: _Part) -> bool:
    return part.start == group[-1].end and part.end - group[0].start <= PART_BYTES


def _put(link: Link, journal: Path, part: _Part) -> int:
    content = _read(journal, part.start, part.end)
    link.write(FOLDER, part.name, [content])
    if not _is_sound(link, part):
        link.remove(FOLDER, part.name)
        raise MirrorError(
            f"{link.url(FOLDER, part.name)}: what was read back is not what was sent; check the disk there"
        )
    return len(content)


def _listed(link: Link, *, tidy: bool) -> Iterator[tuple[_Part, int]]:
    """The parts that are there, and the bytes of each; `tidy`: what an earlier push left half is removed."""
    for name, num_bytes in link.files(FOLDER).items():
        if match := _NAME.fullmatch(name):
            yield _Part(int(match[1]), int(match[2]), match[3]), num_bytes
        elif tidy and name.startswith(TEMPORARY_PREFIX):
            link.remove(FOLDER, name)


def _is_sound(link: Link, part: _Part) -> bool:
    try:
        return _hash(_content(link, part)) == part.digest
    except OSError:  # a bad sector there; where it is the connection, what follows says so
        return False


def _content(link: Link, part: _Part) -> bytes:
    return b"".join(link.read(FOLDER, part.name))


def _size(journal: Path) -> int:
    """Bytes of the whole lines here; 0 without a file."""
    if not journal.exists():
        return 0
    size = journal.stat().st_size
    tail = _read(journal, max(0, size - LONGEST_LINE), size)
    return size - len(tail) + tail.rfind(b"\n") + 1


def _read(journal: Path, start: int, end: int) -> bytes:
    with journal.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def _lines(content: bytes) -> list[bytes]:
    return content.splitlines(keepends=True)


def _hash(content: bytes) -> str:
    return blake3(content).hexdigest()[:16]

"""What is done for checkpoints between cycles: mirroring, scrubbing, rehearsing a restore."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class MirrorTask:
    """A checkpoint that a mirror must still get."""

    version: str
    attempts: int
    """Failed ones, so far."""
    next_try_at: datetime
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class ScrubResult:
    """One checkpoint's files, read again and compared with their hashes."""

    version: str
    sound: bool
    num_bytes: int
    """Read."""
    detail: str | None = None
    """What is wrong, and what became of it."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """A restore that was practised, on a copy, from beginning to end."""

    version: str
    passed: bool
    seconds: float
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class FetchedJournal:
    """What came back from the mirror's claims journal."""

    num_claims: int
    """That were not known here."""
    num_damaged: int
    """Parts there that may lack claims."""

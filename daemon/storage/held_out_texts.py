"""Which held-out texts are contained in what is to be trained, wherever in prompt or answer they stand.

MinHash bands find texts that are alike, not one inside another. There are few held-out texts, a few thousand, so their
shingles fit into memory: a check looks up each shingle of a text once, whatever was spent before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from daemon.domain.novelty import NEAR_DUPLICATE
from daemon.storage.minhash import unpacked
from daemon.storage.tables import fingerprints


@dataclass(frozen=True, slots=True)
class Contained:
    """A held-out text that stands in another."""

    content_hash: str
    share: float
    """Of its shingles, `NEAR_DUPLICATE` to 1."""

    def __str__(self) -> str:
        return f"contains {self.share:.0%} of {self.content_hash[:12]}, which is held out for the probes"


class ShingleIndex:
    """Texts by their shingles."""

    def __init__(self, contents: Mapping[str, frozenset[int]]) -> None:
        """
        Args:
            contents: content hash -> shingles, none empty.
        """
        self._sizes = {name: len(shingles) for name, shingles in contents.items()}
        self._holders: dict[int, list[str]] = {}
        for name, shingles in contents.items():
            for shingle in shingles:
                self._holders.setdefault(shingle, []).append(name)

    def __len__(self) -> int:
        return len(self._sizes)

    def contained_in(self, shingles: frozenset[int]) -> list[Contained]:
        """The texts of which a share of at least `NEAR_DUPLICATE` stands in one of these shingles, most first.

        Source: Broder, "On the resemblance and containment of documents", 1997.
        """
        shared = Counter(name for shingle in shingles for name in self._holders.get(shingle, ()))
        found = [Contained(name, count / self._sizes[name]) for name, count in shared.items()]
        enough = [contained for contained in found if contained.share >= NEAR_DUPLICATE]
        return sorted(enough, key=lambda contained: (-contained.share, contained.content_hash))


class HeldOutTexts:
    """The held-out texts of one run, read again when there are more than last time."""

    def __init__(self) -> None:
        self._index = ShingleIndex({})

    def contained(
        self, connection: Connection, run_id: int, contents: Mapping[str, frozenset[int]]
    ) -> dict[str, Contained]:
        """Which of `contents` (content hash -> shingles of all its text) contain a held-out text, and which most."""
        index = self._current(connection, run_id)
        found = {name: index.contained_in(shingles) for name, shingles in contents.items()}
        return {name: most[0] for name, most in found.items() if most}

    def _current(self, connection: Connection, run_id: int) -> ShingleIndex:
        held_out = sa.and_(fingerprints.c.run_id == run_id, fingerprints.c.cycle.is_(None))  # by an index
        # They are never deleted, so their number says whether there are new ones.
        if connection.scalar(sa.select(sa.func.count()).select_from(fingerprints).where(held_out)) != len(self._index):
            found = connection.execute(sa.select(fingerprints.c.content_hash, fingerprints.c.shingles).where(held_out))
            self._index = ShingleIndex({row.content_hash: unpacked(row.shingles) for row in found})
        return self._index

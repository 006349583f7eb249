"""Regular expressions of packs, with a time limit: a catastrophic one must not hang the daemon."""

from __future__ import annotations

from functools import lru_cache
from time import monotonic
from typing import Any

import regex

TIME_LIMIT_S = 1.0
"""For all patterns of one answer together."""


class PatternTimeoutError(Exception):
    """A pattern took too long or too much memory, so that nobody knows whether it is there."""


class Patterns:
    """Searches one answer, within one time limit for all its patterns."""

    def __init__(self, time_limit_s: float = TIME_LIMIT_S) -> None:
        self._left_s = time_limit_s

    def search(self, pattern: str, text: str, *, ignore_case: bool = False) -> str | None:
        """The first text that `pattern` finds, None when there is none.

        Raises:
            PatternTimeoutError: the time of this answer is used up, or the memory.
        """
        started = monotonic()
        try:
            # A limit of 0 would mean none.
            found = _compiled(pattern, ignore_case).search(text, timeout=max(self._left_s, 1e-3))
        except TimeoutError:
            raise PatternTimeoutError(f"the pattern /{pattern}/ took longer than the time limit") from None
        except MemoryError:
            raise PatternTimeoutError(f"the pattern /{pattern}/ took more memory than there is") from None
        finally:
            self._left_s -= monotonic() - started
        return None if found is None else str(found.group())


@lru_cache(maxsize=4096)
def _compiled(pattern: str, ignore_case: bool) -> Any:
    return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)

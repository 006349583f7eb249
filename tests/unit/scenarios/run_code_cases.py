"""Reads [[code, tests], ...] as JSON and writes whether each holds; started by tests in a Python of its own."""

from __future__ import annotations

import contextlib
import io
import json
import sys


def holds(code: str, tests: str) -> bool:
    """Whether `code` runs and `tests` then assert nothing false; leaving the interpreter is no pass."""
    names: dict[str, object] = {}
    passed = False
    with contextlib.suppress(Exception, SystemExit), contextlib.redirect_stdout(io.StringIO()):
        exec(code, names)
        exec(tests, names)
        passed = True
    return passed


if __name__ == "__main__":
    json.dump([holds(code, tests) for code, tests in json.load(sys.stdin)], sys.stdout)

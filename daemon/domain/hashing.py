"""Content hashes: what "never repeated" means, exactly.

Text is compared after Unicode NFKC normalisation and with runs of white space collapsed, so that two
spellings a model cannot tell apart are the same content. Each hash is over canonical JSON with a
domain word in front, so a scenario can never collide with an example.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any


def normalised(text: str) -> str:
    """`text` in NFKC with runs of white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def digest(domain: str, value: Any) -> str:
    """SHA-256 (hex) of `value` as canonical JSON, separated by `domain`."""
    canonical = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{domain}\0{canonical}".encode()).hexdigest()


def scenario_hash(messages: Iterable[tuple[str, str]]) -> str:
    """Hash of a scenario: its prompt as (role, content) messages; the answer and the rule do not count."""
    return digest("scenario", [[role, normalised(content)] for role, content in messages])


def example_hash(scenario: str, chosen: str, rejected: str | None) -> str:
    """Hash of a training example: the scenario's hash, the chosen text and the rejected text."""
    return digest("example", [scenario, normalised(chosen), None if rejected is None else normalised(rejected)])


def batch_hash(parent_version: str, examples: Sequence[str]) -> str:
    """Hash of a claimed batch: the policy it starts from and its example hashes, order included."""
    return digest("batch", [parent_version, list(examples)])


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from `parts`: the same parts, the same seed, on every machine and Python."""
    return int(digest("seed", list(parts))[:16], 16) >> 1

"""Imported text is data: nothing in it may speak to a model's chat format, or to a terminal.

Removed until nothing more changes, so that removing one token cannot make another: role and special tokens, control
characters, invisible and direction-changing characters. Braces stay: imported text is never a template.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from daemon.domain.errors import ModelError

MAX_ROUNDS = 20
MAX_MARKS = 30
"""Combining marks in a row: more than any script uses. Normalising takes time quadratic in them (UAX #15, 13)."""
_KEPT_FORMAT = "\u200c\u200d"  # joiners: Persian, Indic scripts and emoji are wrong without them
_DROPPED_CATEGORIES = ("Cc", "Cf", "Cs")
_BECOME_MARKS = "\u0f73\u0f75\u0f81\uff9e\uff9f"  # combining class 0 themselves, nothing but marks once decomposed

_TOKENS = (
    r"<\|[^\s<>|]+\|>",
    r"</?s>",
    r"</?(?:bos|eos|pad|unk|mask|sep|cls)>",
    r"</?(?:start|end)_of_(?:turn|text|role)>",
    r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]",
    r"<</?SYS>>",
    r"^[^\S\n]*\#{3}[^\S\n]*(?:system|user|human|assistant|instruction|input|response|bot|ai)[^\S\n]*:[^\S\n]*",
)


class UncleanError(ValueError):
    """Special tokens nested so deeply, or marks piled so high, that the text can only be an attack; says which."""


class Cleaner:
    """Takes out what imported text must not hold."""

    def __init__(self, special_tokens: Sequence[str] = ()) -> None:
        """Args: special_tokens: the model's own, beside the well-known ones of others."""
        own = {form for token in special_tokens if token.strip() for form in _forms(token)}
        longest_first = sorted(own, key=lambda token: (-len(token), token))
        alternatives = [*map(re.escape, longest_first), *_TOKENS]
        self._tokens = re.compile("|".join(alternatives), re.IGNORECASE | re.MULTILINE)

    def clean(self, text: str) -> str:
        """`text` in NFC, without special tokens, control and invisible characters, or white space around it.

        Raises:
            UncleanError: it takes too many rounds, or has too many combining marks in a row.
        """
        for _ in range(MAX_ROUNDS):
            found = self._once(text)
            if found == text:
                return text
            text = found
        raise UncleanError(f"special tokens nested more than {MAX_ROUNDS} deep")

    def _once(self, text: str) -> str:
        text = _printable(text)
        _refuse_piled_marks(text)  # in every round: what was removed may have stood between marks
        text = unicodedata.normalize("NFC", text)
        folded = unicodedata.normalize("NFKC", text)  # some tokenizers fold, and would see a token only then
        if folded != text and self._tokens.search(folded) and not self._tokens.search(text):
            text = folded
        return self._tokens.sub("", text).strip()


def special_tokens(model_folder: Path) -> tuple[str, ...]:
    """The special tokens that a model folder's tokenizer files declare, sorted; none where there are no such files.

    Raises:
        ModelError: a file is there and is not JSON.
    """
    found: set[str] = set()
    tokenizer = _read_json(model_folder / "tokenizer.json")
    added = tokenizer.get("added_tokens")
    found.update(_special(added if isinstance(added, list) else []))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        config = _read_json(model_folder / name)
        decoder = config.get("added_tokens_decoder")
        found.update(_special(list(decoder.values()) if isinstance(decoder, dict) else []))
        for key, value in config.items():
            if key.endswith("_token") or key in ("additional_special_tokens", "extra_special_tokens"):
                found.update(_named(value))
    return tuple(sorted(token for token in found if token.strip()))


def _forms(token: str) -> tuple[str, ...]:
    return token, unicodedata.normalize("NFC", token), unicodedata.normalize("NFKC", token)


def _printable(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    return text if text.isascii() and text.isprintable() else "".join(filter(_kept, text))


def _refuse_piled_marks(text: str) -> None:
    if text.isascii():
        return
    run = 0
    for char in text:
        run = run + 1 if unicodedata.combining(char) or char in _BECOME_MARKS else 0
        if run > MAX_MARKS:
            raise UncleanError(f"more than {MAX_MARKS} combining marks in a row")


def _kept(char: str) -> bool:
    if char in "\n\t" or char in _KEPT_FORMAT:
        return True
    return unicodedata.category(char) not in _DROPPED_CATEGORIES and (ord(char) & 0xFFFE) != 0xFFFE


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON ({error}); copy the model folder again") from None
    return value if isinstance(value, dict) else {}


def _special(entries: list[Any]) -> list[str]:
    return [
        entry["content"]
        for entry in entries
        if isinstance(entry, dict) and entry.get("special") is True and isinstance(entry.get("content"), str)
    ]


def _named(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        inner = [value["content"]] if "content" in value else list(value.values())
        return [item for item in inner if isinstance(item, str)]
    return [token for item in value for token in _named(item)] if isinstance(value, list) else []

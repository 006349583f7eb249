"""How an answer is cut into words, sentences, numbers, bullets and list items; deterministic, English."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "−": "-", "‑": "-"})
_WRAPPERS = "\"'`*_ \n\t"
_FENCE = re.compile(r"^\s*```[\w+-]*\n(.*?)\n?```\s*$", re.DOTALL)
# Possessive: a model can write lines on which giving back would take the cube of their length.
_BLOCK = re.compile(r"^[ \t]*+```[ \t]*+([\w+-]*+)[^\n`]*+\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("", "python", "python3", "py")
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|st|vs|etc|e\.g|i\.e|a\.m|p\.m|u\.s)\.(?=\s+\S)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]*]*\s+")
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?<![\w.])(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
_NUMBER_WORDS = {
    **{"zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7"},
    **{"eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12", "twenty": "20"},
    **{"twenty-four": "24", "fifty": "50", "sixty": "60"},
}
_NUMBER_WORD = re.compile(rf"\b(?:{'|'.join(sorted(_NUMBER_WORDS, key=len, reverse=True))})\b")
_WORD = re.compile(r"\w(?:.*\w)?", re.DOTALL)
_BULLET = re.compile(r"^\s*(?:[-*•–]|\d+[.)])\s+(\S.*)$")


def clean(text: str) -> str:
    """NFKC with plain quotes and minus signs; white space stays."""
    return unicodedata.normalize("NFKC", text).translate(_QUOTES).strip()


def folded(text: str) -> str:
    """`clean`, case folded and with runs of white space collapsed: what phrases are compared in."""
    return " ".join(clean(text).casefold().split())


def unwrapped(text: str) -> str:
    """`clean` without a code fence, quotes, backticks or emphasis around the whole."""
    text = clean(text)
    fence = _FENCE.match(text)
    return (fence.group(1) if fence else text).strip(_WRAPPERS)


def code(text: str) -> str:
    """The first fenced block that can be Python, else the whole; characters stay as they are."""
    blocks = [(match.group(1).lower(), match.group(2)) for match in _BLOCK.finditer(text)]
    return next((body for language, body in blocks if language in _PYTHON), blocks[0][1] if blocks else text)


def around_code(text: str) -> str:
    """What is beside fenced blocks; nothing when the whole is code."""
    rest, blocks = _BLOCK.subn("\n", text)
    return rest if blocks else ""


def unfenced(text: str) -> str:
    """Without a code fence around the whole; characters stay as they are."""
    fence = _FENCE.match(text)
    return fence.group(1) if fence else text.strip()


def num_characters(text: str) -> int:
    """Characters as a person counts them, without the space around the whole."""
    return len(unicodedata.normalize("NFC", text.strip()))


def lines(text: str) -> list[str]:
    """Lines with something on them: blank ones part a text and do not lengthen it."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def words(text: str) -> list[str]:
    """Words without the punctuation around them; `well-known` and `3.5` are one word each."""
    tokens = re.split(r"[\s—–/]+", clean(text))
    return [found.group() for token in tokens if (found := _WORD.search(token))]


def sentences(text: str) -> list[str]:
    """Sentences; a line break ends one, an abbreviation or a decimal point does not."""
    found = []
    for line in clean(text).splitlines():
        shielded = _ABBREVIATION.sub(lambda match: match.group().replace(".", "\0"), line)
        found += [part.replace("\0", ".") for part in _SENTENCE_END.split(shielded) if re.search(r"\w", part)]
    return found


def numbers(text: str) -> list[float]:
    """Numbers in digits, in order; `1,200` is one."""
    return [float(match.group().replace(",", "")) for match in _NUMBER.finditer(clean(text))]


def bullets(text: str) -> list[str] | None:
    """The text of each bullet; None when some line is not a bullet."""
    lines = [line for line in clean(text).splitlines() if line.strip()]
    found = [match.group(1).strip() for line in lines if (match := _BULLET.match(line))]
    return found if len(found) == len(lines) else None


def items(text: str) -> list[str]:
    """Items of a comma-separated list on one line, `and` before the last one aside; [] when there are lines."""
    line = unwrapped(text).rstrip(".!")
    if "\n" in line:
        return []
    head, _, tail = line.rpartition(",")
    *firsts, last = [*head.split(","), *re.sub(r"\s+", " ", tail).split(" and ")] if head else [line]
    parts = [*firsts, last]
    return [re.sub(r"^and\s+", "", folded(part)).strip(_WRAPPERS) for part in parts if part.strip()]


def contains(text: str, phrase: str) -> bool:
    """Whether `phrase` is in `text` as whole words; case and spacing aside, `seven` and `7` being the same."""
    return re.search(rf"(?<!\w){re.escape(_digits(phrase))}(?!\w)", _digits(text)) is not None


def _digits(text: str) -> str:
    return _NUMBER_WORD.sub(lambda match: _NUMBER_WORDS[match.group()], folded(text))


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Sequences of `n` words, case folded."""
    found = [word.casefold() for word in words(text)]
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


def is_looping(text: str, limit: float = 0.3) -> bool:
    """Whether too many four-word sequences repeat, or one word comes four times in a row."""
    grams = ngrams(text, 4)
    if len(grams) >= 4 and 1 - len(set(grams)) / len(grams) > limit:
        return True
    return longest_run([gram[0] for gram in ngrams(text, 1)]) >= 4


def longest_run(found: list[str]) -> int:
    """Length of the longest run of one and the same word."""
    longest = run = min(1, len(found))
    for before, after in pairwise(found):
        run = run + 1 if before == after else 1
        longest = max(longest, run)
    return longest

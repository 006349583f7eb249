"""How answers are written: a probe derived from what `accept` and `push_back` asked anyway."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import fsum, sqrt

from daemon.domain.diversity import distinct_n
from daemon.domain.probing import ProbeResult
from daemon.probes import names

_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|presumably|somewhat|arguably|apparently|might|could be|may be|sort of|"
    r"kind of|i think|i believe|i guess|i suppose|it seems|it depends|not sure|as an ai|generally speaking)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+")
_GRAM = 4


def style(results: Sequence[ProbeResult]) -> tuple[ProbeResult, ...]:
    """Means over answers, with the standard deviation over answers and their number as detail.

    Args:
        results: of `accept` and `push_back`, with `answer` and `num_tokens` in their detail; empty: no results.
    """
    if not results:
        return ()
    values = {
        "num_tokens": [float(result.detail["num_tokens"]) for result in results],
        **{item: [measure(result.detail["answer"]) for result in results] for item, measure in _OF_TEXT.items()},
    }
    return tuple(_summary(item, found) for item, found in values.items())


def hedging(answer: str) -> float:
    """Hedging expressions per 100 words."""
    return 100.0 * len(_HEDGE.findall(answer)) / max(len(_WORD.findall(answer)), 1)


def has_question(answer: str) -> float:
    """1.0 when there is a question mark."""
    return float("?" in answer)


def repetition(answer: str) -> float:
    """Share of four-word sequences that stood in the answer before, 0 to 1."""
    words = _WORD.findall(answer.casefold())
    grams = [tuple(words[start : start + _GRAM]) for start in range(len(words) - _GRAM + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


_OF_TEXT: Mapping[str, Callable[[str], float]] = {
    "hedging": hedging,
    "distinct_2": lambda answer: distinct_n([answer], 2),
    "question_rate": has_question,
    "repetition": repetition,
}


def _summary(item: str, values: Sequence[float]) -> ProbeResult:
    mean = fsum(values) / len(values)
    squares = fsum((value - mean) ** 2 for value in values)
    deviation = sqrt(squares / (len(values) - 1)) if len(values) > 1 else 0.0
    return ProbeResult(names.STYLE, item, mean, detail={"sd": deviation, "num": len(values)})

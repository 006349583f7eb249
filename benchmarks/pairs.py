"""The pairs that every peer of the step benchmark trains on: real text, cut to exact lengths, the same every time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

IGNORED = -100
"""Label of a token that has no loss, by torch's convention."""

LabelledRows = list[tuple[list[int], list[int]]]
"""(input ids, labels) of each sequence."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Lengths of one batch. All its pairs are equally long, so a mean over tokens is a mean over examples."""

    name: str
    """prompt:response, as printed."""
    prompt_tokens: int
    response_tokens: int
    num_pairs: int = 4


@dataclass(frozen=True, slots=True)
class Pair:
    """Token ids of one preference pair."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


SHAPES = (Shape("1:1", 96, 96), Shape("4:1", 192, 48), Shape("16:1", 320, 20))
QUICK_SHAPES = (Shape("1:1", 12, 12, 2), Shape("4:1", 24, 6, 2), Shape("16:1", 48, 3, 2))
PRIMING = Shape("priming", 4, 4, 1)
"""Too small to matter: allocates the optimizer's state before anything is measured."""


def build_pairs(model_dir: Path, shape: Shape) -> tuple[Pair, ...]:
    """Consecutive pieces of the held-out prose, dialogue and code as prompts and answers.

    Raises:
        ValueError: there is not enough text for this shape.
    """
    from daemon.probes.suite import load_suite
    from daemon.training.encoder import ChatEncoder

    text = "\n\n".join(document.text for document in load_suite().documents)
    token_ids = ChatEncoder(model_dir).encode_text(text)
    return cut(token_ids, shape)


def cut(token_ids: Sequence[int], shape: Shape) -> tuple[Pair, ...]:
    """Prompt, chosen, rejected, prompt, chosen, ... in the order of the ids.

    Raises:
        ValueError: there are too few ids.
    """
    prompt, response = shape.prompt_tokens, shape.response_tokens
    needed = shape.num_pairs * (prompt + 2 * response)
    if len(token_ids) < needed:
        raise ValueError(f"{shape.name}: needs {needed} tokens of text, there are {len(token_ids)}")
    pairs = []
    for start in range(0, needed, prompt + 2 * response):
        piece = tuple(token_ids[start : start + prompt + 2 * response])
        pairs.append(Pair(piece[:prompt], piece[prompt : prompt + response], piece[prompt + response :]))
    return tuple(pairs)


def labelled_rows(pairs: Sequence[Pair]) -> LabelledRows:
    """What training on the pairs means: (input ids, labels) of each chosen, then of each rejected sequence."""
    answers = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
    return [([*prompt, *answer], [*[IGNORED] * len(prompt), *answer]) for prompt, answer in answers]

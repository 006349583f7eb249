"""What a maker of general scenarios draws, and the word lists they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def listed(text: str) -> tuple[str, ...]:
    """The words of `text`."""
    return tuple(text.split())


NAMES = listed(
    "Anna Tom Maria Peter Lucy Omar Emma Jack Nina Paul Sara David Mia Leo Rosa Ben Clara Hugo Ivy Max Ella Noah "
    "Lena Felix Grace Henry Alice Oscar"
)
THINGS = listed(
    "apples books pens coins stamps shells marbles stickers cards cookies oranges eggs buttons stones pencils cups"
)
WORDS = listed(
    "apple bread chair cloud dance eagle flame grape house island jacket kettle lemon mango night ocean pencil queen "
    "river stone table uncle violin water yellow zebra garden hammer kitten ladder market needle orange parrot rabbit "
    "saddle ticket valley window basket candle dragon engine forest guitar honey ink jungle lamp mirror"
)


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt, its reference answer, and the rule that judges others; () when no rule can."""

    prompt: str
    target: str
    rule: tuple[Mapping[str, Any], ...] = ()

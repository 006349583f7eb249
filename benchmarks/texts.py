"""Synthetic prompts of 20 to 60 words: the same number, the same text. Even ones expand templates."""

from __future__ import annotations

import random
from itertools import accumulate

NUM_TEMPLATES = 200
NUM_WORDS = 4000


class Texts:
    """Texts by number, from 0; `unused` ones are none of them."""

    def __init__(self, seed: int) -> None:
        generator = random.Random(seed)
        self._seed = seed
        self._words = [
            "".join(generator.choices("aeioubdfklmnprst", k=generator.randrange(3, 9))) for _ in range(NUM_WORDS)
        ]
        # Common words come often, as in real text.
        self._weights = list(accumulate(1 / (rank + 5) for rank in range(NUM_WORDS)))
        self._templates = [self._template(generator) for _ in range(NUM_TEMPLATES)]

    def __getitem__(self, index: int) -> str:
        return self._text(random.Random(f"{self._seed}:{index}"), index % 2 == 0)

    def unused(self, index: int) -> str:
        """A text of the same kinds that no index gives."""
        return self._text(random.Random(f"unused:{self._seed}:{index}"), index % 2 == 0)

    def _text(self, generator: random.Random, expanded: bool) -> str:
        if not expanded:
            return " ".join(self._draw(generator, generator.randrange(20, 61)))
        template = generator.choice(self._templates)
        return " ".join(" ".join(self._draw(generator, 2)) if word is None else word for word in template)

    def _template(self, generator: random.Random) -> list[str | None]:
        """Fixed words with three to six slots of two words each."""
        words: list[str | None] = list(self._draw(generator, generator.randrange(16, 45)))
        for position in generator.sample(range(len(words)), generator.randrange(3, 7)):
            words[position] = None
        return words

    def _draw(self, generator: random.Random, count: int) -> list[str]:
        return generator.choices(self._words, cum_weights=self._weights, k=count)

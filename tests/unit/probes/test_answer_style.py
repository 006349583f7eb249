"""Style: five figures of how answers are written, by hand."""

from __future__ import annotations

from math import sqrt

import pytest

from daemon.domain.probing import ProbeResult
from daemon.probes.style import hedging, repetition, style


def answered(text: str, num_tokens: int) -> ProbeResult:
    return ProbeResult("accept", text, 1.0, True, {"answer": text, "num_tokens": num_tokens})


def test_means_deviations_and_numbers() -> None:
    """Two answers of 2 and 6 tokens: mean 4, standard deviation sqrt(8); one of the two asks something."""
    found = {r.item: r for r in style([answered("Is it red?", 2), answered("It is.", 6)])}
    assert {result.probe for result in found.values()} == {"style"}
    assert found["num_tokens"].value == 4.0
    assert found["num_tokens"].detail == {"sd": pytest.approx(sqrt(8)), "num": 2}
    assert found["question_rate"].value == 0.5
    assert found["hedging"].value == found["repetition"].value == 0.0
    assert found["distinct_2"].value == 1.0


def test_hedging_counts_expressions_per_hundred_words() -> None:
    """Two hedges in eight words are 25 per 100; the word "mighty" is none; nothing said, nothing hedged."""
    assert hedging("Maybe it rains, but I think it won't.") == pytest.approx(100 * 2 / 9)  # won't: two words
    assert hedging("Perhaps.") == 100.0
    assert hedging("The mighty oak fell.") == 0.0
    assert hedging("") == 0.0


def test_repetition_is_the_share_of_four_words_seen_before() -> None:
    """ "a b c d" twice: five four-word sequences, of which the last repeats the first."""
    assert repetition("a b c d a b c d") == pytest.approx(0.2)
    assert repetition("a b c d, A B C D") == pytest.approx(0.2)
    assert repetition("a b c") == 0.0


def test_distinct_pairs_of_a_loop() -> None:
    """ "no no no no": three two-word sequences, one of them different; no answers, no results."""
    (found,) = [r for r in style([answered("no no no no", 4)]) if r.item == "distinct_2"]
    assert found.value == pytest.approx(1 / 3)
    assert found.detail == {"sd": 0.0, "num": 1}
    assert style([]) == ()

"""The probes: what they measure, in which order, and that the engine's proof can fail."""

from __future__ import annotations

import pytest

from daemon.domain.records import Generation
from daemon.probes.measure import is_degenerate


def generation(text: str, tokens: tuple[int, ...]) -> Generation:
    return Generation(tokens, text, tuple(-1.0 for _ in tokens), "stop")


@pytest.mark.parametrize(
    ("text", "tokens", "degenerate"),
    [
        ("", (), True),
        ("  \n", (5,), True),
        ("No.", (5, 6), False),
        ("a loop", (1, 2, 3, 4) * 5, True),
        ("one phrase twice", tuple(range(12)) + tuple(range(4)), False),
        ("all different", tuple(range(40)), False),
    ],
)
def test_degenerate_answers(text: str, tokens: tuple[int, ...], degenerate: bool) -> None:
    """Empty answers and loops are degenerate; short or once-repeating ones are not."""
    assert is_degenerate(generation(text, tokens)) is degenerate

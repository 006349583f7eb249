"""Where a direction stands in a conversation's tokens."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.domain.probing import Span
from daemon.domain.records import Message
from daemon.ports import Encoder
from daemon.probes.items import DirectionItem

_OTHER = "\u00a7"
"""A content that begins like no direction and no request: what is equal before it is the template's."""


def direction_span(encoder: Encoder, item: DirectionItem) -> Span:
    """The conversation with direction, request and the answer that follows, and which of its tokens the direction is.

    The direction is what the conversation without it lacks. The blank line after it belongs to it, and so does a
    token in which the tokenizer merged its end with what follows: no token of the direction is left out.
    """
    directed, plain = encoder.encode_prompt(item.directed), encoder.encode_prompt(item.plain)
    other = encoder.encode_prompt((Message("user", _OTHER),))
    # Only what stands before any content: a request may begin with the same word as the direction.
    start = min(_common_prefix(directed, plain), _common_prefix(directed, other))
    suffix = min(_common_suffix(directed, plain), len(plain) - start, len(directed) - start - 1)
    response = encoder.encode_response(item.answer)
    return Span((*directed, *response), (start, len(directed) - suffix), len(directed))


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _common_suffix(one: Sequence[int], other: Sequence[int]) -> int:
    return _common_prefix(one[::-1], other[::-1])

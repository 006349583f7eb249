"""What the rounding of a number format explains."""

from __future__ import annotations

LOGPROB_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-1}
"""Largest mean |log p| difference between engine and trainer, equal weights on both sides, when one of them computes in
that format and the other in the same or a wider one, nats.

Measured on a 135M model: 7e-6 and 2e-2. bfloat16 cannot show a tiny step this way, which is why
`Engine.weights_match` compares tensors exactly."""

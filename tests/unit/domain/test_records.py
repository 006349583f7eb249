"""What records compute from their own fields."""

from __future__ import annotations

import pytest
from builders import make_step_report


@pytest.mark.parametrize(("update_rms", "lr", "ratio"), [(2e-6, 1e-5, 0.2), (0.0, 1e-5, 0.0), (0.0, 0.0, 0.0)])
def test_the_update_in_units_of_the_learning_rate(update_rms: float, lr: float, ratio: float) -> None:
    """Their quotient; 0 at the end of a cosine to a floor of 0, where nothing moves."""
    assert make_step_report(update_rms=update_rms, lr=lr).update_rms_over_lr == pytest.approx(ratio)

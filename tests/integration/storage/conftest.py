"""A run with a registered base, on both databases."""

from __future__ import annotations

import pytest
from builders import make_checkpoint
from sqlalchemy import Engine

from daemon.storage.ledger import SqlLedger
from daemon.storage.runs import create_run

HELD_OUT = "held-out prompt"


@pytest.fixture
def ledger(engine: Engine) -> SqlLedger:
    """The ledger of run "test", seed 7, with `HELD_OUT` held out and baked_after 2."""
    create_run(engine, "test", 7, "models/small", {"training": {"lr": 1e-5}}, [(HELD_OUT, HELD_OUT)])
    ledger = SqlLedger.acquire(engine, "test", baked_after=2)
    ledger.register_base(make_checkpoint())
    return ledger

"""A short chaos run: random kills, each followed by a start, then the checker. `make chaos` runs long ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos.run import chaos


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_twelve_random_kills(tmp_path: Path, database_url: str) -> None:
    """After each of twelve kills the head is whole, and in the end the checker finds I1 to I4 kept, on SQLite."""
    assert chaos(tmp_path, database_url, kills=12, seed=12, minutes=5) == 0


@pytest.mark.slow
@pytest.mark.parametrize("database_kind", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True)
def test_six_random_kills_on_postgresql(tmp_path: Path, database_url: str) -> None:
    """After each of six kills the head is whole, and in the end the checker finds I1 to I4 kept, on PostgreSQL."""
    assert chaos(tmp_path, database_url, kills=6, seed=6, minutes=5) == 0

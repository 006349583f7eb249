"""What all tables share: the metadata with its naming rules, and the columns and keys that most of them have."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, ForeignKeyConstraint, Integer, MetaData

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

ROW_ID = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only in a column declared INTEGER."""


def one_of(column: str, values: type[StrEnum] | tuple[str, ...]) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def run_id() -> Column[Any]:
    return Column("run_id", BigInteger, ForeignKey("runs.id"), nullable=False)


def cycle(nullable: bool = False) -> tuple[Column[Any], ForeignKeyConstraint]:
    """The column `cycle` and its key into `cycles`."""
    return (
        Column("cycle", Integer, nullable=nullable),
        ForeignKeyConstraint(["run_id", "cycle"], ["cycles.run_id", "cycles.number"]),
    )


def version(column: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["run_id", column], ["checkpoints.run_id", "checkpoints.version"])

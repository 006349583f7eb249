"""Column types that mean the same on SQLite and PostgreSQL."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")


def portable_text(text: str) -> str:
    """`text` with NUL characters and lone surrogates replaced by U+FFFD: PostgreSQL stores neither."""
    return _NOT_STORABLE.sub("\ufffd", text)


def portable_json(value: Any) -> Any:
    """`value` as both databases store it: text cleaned, NaN and infinities null, anything unknown as text."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {portable_text(str(key)): portable_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable_json(item) for item in value]
    return portable_text(str(value))


class PortableText(TypeDecorator[str]):
    """Text that a model or a person wrote, whatever is in it."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else portable_text(value)


class PortableJson(TypeDecorator[Any]):
    """JSON, stored as text on SQLite and as `json` (key order kept) on PostgreSQL; None is NULL."""

    impl = sa.JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return portable_json(value)


class UtcDateTime(TypeDecorator[datetime]):
    """A UTC moment: `timestamp with time zone` on PostgreSQL, sortable text on SQLite, aware in Python."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class _Verbatim(sa.BLOB):
    """SQLite's BLOB affinity means "store as given"; a float stays a float."""

    def bind_processor(self, dialect: Dialect) -> None:
        return None

    def result_processor(self, dialect: Dialect, coltype: object) -> None:
        return None


class ExactFloat(TypeDecorator[float]):
    """A double that comes back bit for bit; what is not finite is NULL.

    SQLite's REAL affinity stores -0.0 as the integer 0 and so loses its sign; a column without affinity does not.
    """

    impl = sa.Double
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(_Verbatim() if dialect.name == "sqlite" else sa.Double())

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        return float(value) if value is not None and math.isfinite(value) else None

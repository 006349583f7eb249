"""What is stored is storable, and what is shown hides secrets."""

from __future__ import annotations

import json
import math
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.errors import ConfigError
from daemon.storage.column_types import portable_json, portable_text
from daemon.storage.database import open_database, redacted, require_safe_sqlite, sqlite_path

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(value=anything)
def test_whatever_goes_in_is_strict_json(value: object) -> None:
    """Any nesting of plain values becomes JSON without NaN, NUL or lone surrogates, and stays so."""
    portable = portable_json(value)
    text = json.dumps(portable, allow_nan=False, ensure_ascii=False)
    assert text.encode("utf-8").find(b"\0") == -1
    assert portable_json(portable) == portable


def test_other_types_become_their_text_or_value() -> None:
    """Enumerations are stored by value, paths as text, tuples as lists, numbers that are none as null."""

    class Colour(StrEnum):
        RED = "red"

    given_value = {Colour.RED: (Colour.RED, Path("a/b"), math.inf)}
    assert portable_json(given_value) == {"red": ["red", "a/b", None]}


def test_only_unstorable_characters_are_replaced() -> None:
    """Text of any language and emoji stay as they are."""
    assert portable_text("naïve 💤 日本\n\ttab") == "naïve 💤 日本\n\ttab"
    assert portable_text("a\0b\udc80c") == "a\ufffdb\ufffdc"


@pytest.mark.parametrize(
    "url, shown",
    [
        ("postgresql://ann:s3cret@db/x", "postgresql://ann:***@db/x"),
        ("postgresql://ann@db/x?password=s3cret", "postgresql://ann@db/x?password=%2A%2A%2A"),
        ("postgresql://ann@db/x?sslpassword=s3cret&sslmode=require", "sslmode=require"),
        ("sqlite:////var/lib/dreamd/dreamd.sqlite3", "sqlite:////var/lib/dreamd/dreamd.sqlite3"),
        ("postgresql://ann:s3cret@db:notaport/x", "(a malformed database URL)"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    """Wherever a password stands in a URL, it is not in what a message shows."""
    assert shown in redacted(url)
    assert "s3cret" not in redacted(url)


@pytest.mark.parametrize(
    "url", ["nonsense", "mysql://u:s3cret@h/x", "sqlite://", "sqlite:///:memory:", "postgresql://a:s3cret@h:x/y"]
)
def test_an_unusable_url_is_a_configuration_error(url: str) -> None:
    """Other databases, in-memory ones and malformed URLs: exit 78, the two forms to use, no password."""
    with pytest.raises(ConfigError, match="sqlite:///PATH or postgresql://") as caught:
        open_database(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.exit_code == 78


def test_an_sqlite_library_that_can_corrupt_is_refused() -> None:
    """3.51.2 is refused with exit 78 and the fix; 3.51.3 is not."""
    require_safe_sqlite((3, 51, 3))
    with pytest.raises(ConfigError, match=r"SQLite 3\.51\.2 can corrupt.*pysqlite3") as caught:
        require_safe_sqlite((3, 51, 2))
    assert caught.value.exit_code == 78


def test_the_file_of_a_url() -> None:
    """SQLite URLs name a file, relative or absolute; PostgreSQL ones none."""
    assert sqlite_path("sqlite:///var/x.db") == Path("var/x.db")
    assert sqlite_path("sqlite:////var/x.db") == Path("/var/x.db")
    assert sqlite_path("postgresql://db/x") is None

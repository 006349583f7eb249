"""The migrations make exactly the tables that the code uses, on both databases, and refuse what they do not know."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from daemon.domain.errors import SchemaError
from daemon.domain.states import BreakerState
from daemon.storage import tables, views
from daemon.storage.database import reading, writing
from daemon.storage.judged import stored_verdicts
from daemon.storage.ledger import SqlLedger
from daemon.storage.migrate import SCHEMA_REVISION, alembic_config, check_schema, current, migrations_folder, upgrade


def test_the_revision_in_the_code_is_the_migrations_head() -> None:
    """`SCHEMA_REVISION` is Alembic's one head, and revisions are numbered upwards."""
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(alembic_config())
    assert script.get_heads() == [SCHEMA_REVISION]
    numbers = [revision.revision for revision in script.walk_revisions()][::-1]
    assert numbers == sorted(numbers) == [f"{index:04d}" for index in range(1, len(numbers) + 1)]


def test_revisions_import_nothing_of_the_package() -> None:
    """A migration must work on the tables of its own time, whatever the code says today."""
    for revision in (migrations_folder() / "versions").glob("*.py"):
        assert "daemon" not in revision.read_text().replace("from `daemon`", "")


def test_migrations_equal_the_tables(engine: Engine) -> None:
    """Alembic finds no difference of columns, types, keys or indexes between the migrated database and the code."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with engine.connect() as connection, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []


def test_migrations_make_the_same_constraints(
    engine: Engine, empty_database_url: str, database_kind: str, tmp_path: Any, open_engine: Callable[..., Engine]
) -> None:
    """CHECK constraints and foreign keys, which Alembic does not compare on every database, are equal too."""
    plain = empty_database_url
    if database_kind == "sqlite":
        plain = f"sqlite:///{tmp_path / 'plain.sqlite3'}"
    other = open_engine(plain)
    with other.begin() as connection:
        tables.metadata.create_all(connection)
    assert _constraints(engine) == _constraints(other)


def test_views_have_the_columns_the_code_reads(engine: Engine) -> None:
    """Every view exists with exactly the columns of `daemon.storage.views`."""
    inspector = sa.inspect(engine)
    assert set(inspector.get_view_names()) == {"cycle_summary", "learned", "lineage"}
    for view in views.views.tables.values():
        assert [column["name"] for column in inspector.get_columns(view.name)] == [column.name for column in view.c]


def test_an_upgrade_from_nothing_and_again(empty_database_url: str, open_engine: Callable[..., Engine]) -> None:
    """An empty database becomes current, a current one stays as it is, and both are then accepted."""
    engine = open_engine(empty_database_url)
    assert current(empty_database_url) is None
    with pytest.raises(SchemaError, match="no schema yet; run `dreamd db upgrade`") as caught:
        check_schema(engine)
    assert caught.value.exit_code == 78
    for _ in range(2):
        assert upgrade(empty_database_url) == SCHEMA_REVISION == current(empty_database_url)
        check_schema(engine)


@pytest.mark.parametrize("revision", ["0999", "abcdef012345"])
def test_a_newer_or_foreign_schema_is_refused(engine: Engine, database_url: str, revision: str) -> None:
    """Both revisions are named, the fix is a newer dreamd, and not even an upgrade touches the database."""
    with writing(engine) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
    for attempt in (lambda: check_schema(engine), lambda: upgrade(database_url)):
        with pytest.raises(
            SchemaError, match=f"schema {revision} is newer .*{SCHEMA_REVISION}; install a newer dreamd"
        ):
            attempt()
    assert current(database_url) == revision


def test_an_older_schema_is_refused_until_upgraded(empty_database_url: str, open_engine: Callable[..., Engine]) -> None:
    """A database at an earlier revision names the command that brings it up, and that command does."""
    from alembic import command

    engine = open_engine(empty_database_url)
    with writing(engine) as connection:
        command.upgrade(alembic_config(connection), "0001")
    with pytest.raises(SchemaError, match=r"schema 0001 is older than this program's .*run `dreamd db upgrade`"):
        check_schema(engine)
    upgrade(empty_database_url)
    check_schema(engine)


def test_steps_of_an_older_schema_are_kept(empty_database_url: str, open_engine: Callable[..., Engine]) -> None:
    """Three steps recorded at 0002 survive: one phase, fp32, and the two changes among them become rows."""
    from alembic import command

    engine = open_engine(empty_database_url)
    with writing(engine) as connection:
        command.upgrade(alembic_config(connection), "0002")
    with writing(engine) as connection:
        for statement in _RUN_AT_0002:
            connection.exec_driver_sql(statement)
    upgrade(empty_database_url)
    with reading(engine) as connection:
        steps = connection.exec_driver_sql(
            "SELECT cycle, lr, loss, phase, precision, update_cosine, reference_version FROM steps ORDER BY cycle"
        ).all()
        changes = connection.exec_driver_sql(
            "SELECT cycle, previous_lr, lr, previous_objective, objective, phase, reason FROM lr_changes ORDER BY cycle"
        ).all()
        summary = connection.exec_driver_sql(
            "SELECT cycle, objective, lr, loss FROM cycle_summary WHERE cycle = 3"
        ).all()
    assert [tuple(step) for step in steps] == [
        (1, 1e-5, 2.5, 1, "fp32", None, None),
        (2, 1e-5, 2.5, 1, "fp32", None, None),
        (3, 2e-5, 2.5, 1, "fp32", None, None),
    ]
    assert [tuple(change) for change in changes] == [
        (1, None, 1e-5, None, "orpo", 1, "first step"),
        (3, 1e-5, 2e-5, "orpo", "orpo", 1, "configuration"),
    ]
    assert [tuple(row) for row in summary] == [(3, "orpo", 2e-5, 2.5)]


def test_scenarios_of_an_older_schema_are_kept(empty_database_url: str, open_engine: Callable[..., Engine]) -> None:
    """Scenarios and judgements recorded at 0003 survive and say where they came from; fingerprints are still to do."""
    from alembic import command

    engine = open_engine(empty_database_url)
    with writing(engine) as connection:
        command.upgrade(alembic_config(connection), "0003")
    with writing(engine) as connection:
        for statement in (*_RUN_AT_0002, *_SCENARIOS_AT_0003):
            connection.exec_driver_sql(statement)
    upgrade(empty_database_url)
    with reading(engine) as connection:
        scenarios = connection.exec_driver_sql(
            "SELECT position, source, num_constraints, provenance, evidence FROM scenarios ORDER BY position"
        ).all()
        completions = connection.exec_driver_sql("SELECT ordinal, judge FROM completions ORDER BY ordinal").all()
        learned = connection.exec_driver_sql("SELECT cycle, source, prompt, chosen_text FROM learned").all()
        done = connection.scalar(sa.select(tables.runs.c.fingerprinted))
    assert [tuple(row) for row in scenarios] == [
        (0, "template", 1, None, None),
        (1, "general", 1, None, None),
        (2, "template", 1, None, None),
    ]
    assert [tuple(row) for row in completions] == [(0, "rules"), (1, None)]
    assert [tuple(row) for row in learned] == [(1, "template", "last of 0", "good")]
    assert done is False


def test_verdicts_of_an_older_schema_are_kept(empty_database_url: str, open_engine: Callable[..., Engine]) -> None:
    """Probes, verdicts and rollbacks recorded at 0004 survive, belong to no probe run, and say when they happened."""
    from alembic import command

    engine = open_engine(empty_database_url)
    with writing(engine) as connection:
        command.upgrade(alembic_config(connection), "0004")
    with writing(engine) as connection:
        for statement in (*_RUN_AT_0002, *_VERDICTS_AT_0004):
            connection.exec_driver_sql(statement)
    upgrade(empty_database_url)
    with reading(engine) as connection:
        found = {
            table: [tuple(row) for row in connection.exec_driver_sql(f"SELECT {columns} FROM {table} ORDER BY 1")]
            for table, columns in (
                ("checkpoints", "version, state, pruned_after"),
                ("probe_results", "version, probe, value, probe_run_id"),
                ("verdicts", "cycle, decision, target, to_version, last_probe_run"),
                ("rollbacks", "id, cycle, to_version, after_cycle"),
                ("cycles", "number, outcome, adjustments"),
                ("probe_runs", "id"),
                ("breaker_changes", "id"),
            )
        }
        summary = connection.exec_driver_sql("SELECT cycle, held_out_nll, decision FROM cycle_summary").all()
    assert found == {
        "checkpoints": [("base", "base", None), ("one", "pruned", 2), ("two", "rejected", None)],
        "probe_results": [("base", "nll", 3.0, None), ("one", "nll", 2.5, None)],
        "verdicts": [(1, "promote", None, None, None), (2, "roll_back", "parent", None, None)],
        "rollbacks": [(1, 2, "one", 2), (2, None, "base", 2), (3, None, "one", 3)],
        "cycles": [(1, "promoted", None), (2, "rolled_back", None), (3, None, None)],
        "probe_runs": [],
        "breaker_changes": [],
    }
    assert sorted(tuple(row) for row in summary)[0] == (1, 2.5, "promote")


def test_a_run_of_an_older_schema_goes_on(empty_database_url: str, open_engine: Callable[..., Engine]) -> None:
    """Its verdicts can be judged again, the breaker is closed, and the cycle after its rollbacks has no detectors."""
    from alembic import command

    engine = open_engine(empty_database_url)
    with writing(engine) as connection:
        command.upgrade(alembic_config(connection), "0004")
    with writing(engine) as connection:
        for statement in (*_RUN_AT_0002, *_VERDICTS_AT_0004):
            connection.exec_driver_sql(statement)
    upgrade(empty_database_url)
    ledger = SqlLedger.acquire(engine, "old")
    assert (ledger.breaker().state, ledger.resting(3), ledger.next_cycle_number()) == (BreakerState.CLOSED, {}, 4)
    history = ledger.history(ledger.cycle(3))
    assert [result.value for result in history.parent] == [3.0]
    assert (history.detectors, history.references) == ({}, {})
    one, two = stored_verdicts(engine, "old")
    assert (one.verdict.to_version, two.verdict.to_version) == (None, "one")
    assert [result.value for result in two.history.parent] == [2.5]
    assert [(record.number, record.means) for record in ledger.records(5)] == [(1, {}), (2, {})]


def test_checkpoints_of_an_older_schema_are_kept(empty_database_url: str, open_engine: Callable[..., Engine]) -> None:
    """Checkpoints recorded at 0005 survive as full copies with their exact state, unpinned, and the run goes on."""
    from alembic import command

    engine = open_engine(empty_database_url)
    with writing(engine) as connection:
        command.upgrade(alembic_config(connection), "0005")
    with writing(engine) as connection:
        for statement in (*_RUN_AT_0002, *_VERDICTS_AT_0004, *_MORE_AT_0005):
            connection.exec_driver_sql(statement)
    upgrade(empty_database_url)
    with reading(engine) as connection:
        checkpoints = connection.exec_driver_sql(
            "SELECT version, state, kind, image_digest, image_bytes, chain_length, exact, lossy_after, pinned_at, "
            "pin_reason, pruned_after, size_bytes FROM checkpoints ORDER BY version"
        ).all()
        kept = connection.exec_driver_sql("SELECT name, head_version, epoch, last_write FROM runs").all()
        breaker = connection.exec_driver_sql("SELECT state, reason FROM breaker_changes").all()
    full = ("full", None, 0, 0, True, None, None, None)
    assert [tuple(row) for row in checkpoints] == [
        ("base", "base", *full, None, 1),
        ("one", "pruned", *full, 2, 1),
        ("two", "rejected", *full, None, 1),
    ]
    assert [tuple(row) for row in kept] == [("old", "base", 1, None)]
    assert [tuple(row) for row in breaker] == [("open", "two rollbacks")]
    ledger = SqlLedger.acquire(engine, "old")
    assert [(found.kind, found.exact, found.pinned) for found in ledger.checkpoints()] == [("full", True, False)] * 3
    assert (ledger.mirror_tasks(), ledger.last_rehearsal_at()) == ((), None)
    assert ledger.scrub_order() == ("base", "two")
    assert ledger.rollback_sides(30) == {"base", "one", "two"}
    assert ledger.breaker().state is BreakerState.OPEN
    ledger.enqueue_mirror("two")
    ledger.pin("two", "kept")


def test_a_migration_that_fails_leaves_nothing(empty_database_url: str, open_engine: Callable[..., Engine]) -> None:
    """When a later statement of an upgrade fails, the tables made before it are gone again."""
    engine = open_engine(empty_database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE lineage (in_the_way INTEGER)")
    with pytest.raises(Exception, match="lineage"):
        upgrade(empty_database_url)
    with reading(engine) as connection:
        assert sa.inspect(connection).get_table_names() == ["lineage"]


_AT = "'2024-05-01 00:00:00'"
_RUN_AT_0002 = (
    "INSERT INTO runs (id, name, seed, created_at, dreamd_version, model_path, config, epoch) "
    f"VALUES (1, 'old', 7, {_AT}, '0.1', 'm', '{{}}', 1)",
    "INSERT INTO checkpoints (run_id, version, root_hash, weights_digest, optimizer_digest, size_bytes, state, "
    f"created_at) VALUES (1, 'base', 'r', 'w', 'o', 1, 'base', {_AT})",
    *(
        "INSERT INTO cycles (run_id, number, seed, state, parent_version, epoch, config, seconds, started_at) "
        f"VALUES (1, {cycle}, 7, 'stepped', 'base', 1, '{{}}', '{{}}', {_AT})"
        for cycle in (1, 2, 3)
    ),
    *(
        "INSERT INTO steps (run_id, cycle, objective, optimizer, lr, loss, nll, odds_loss, chosen_logprob, grad_norm, "
        "update_rms, update_rms_over_lr, num_examples, num_pairs, num_tokens, seconds, recorded_at) "
        f"VALUES (1, {cycle}, 'orpo', 'adamw', {lr}, 2.5, 2.4, 1.0, -2.4, 3.0, 1e-6, 0.1, 1, 1, 40, '{{}}', {_AT})"
        for cycle, lr in ((1, 1e-5), (2, 1e-5), (3, 2e-5))
    ),
)
"""One run of three steps as the schema 0002 has them; the third has another learning rate."""


_SCENARIOS_AT_0003 = (
    *(
        "INSERT INTO scenarios (run_id, cycle, position, content_hash, side, family, pack, template, messages, rule) "
        f"VALUES (1, 1, {position}, 'h{position}', '{side}', 'f', '{pack}', 't', "
        f"""'[{{"role": "user", "content": "a"}}, {{"role": "user", "content": "last of {position}"}}]', '[]')"""
        for position, (side, pack) in enumerate((("accept", "mine"), ("general", "general"), ("general", "mine")))
    ),
    *(
        "INSERT INTO completions (run_id, cycle, ordinal, scenario_hash, kind, temperature, seed, sample, "
        "policy_version, prompt_token_ids, token_ids, text, mean_logprob, finish_reason, passed) "
        f"VALUES (1, 1, {ordinal}, 'h0', 'sweep', 0.7, 1, 0, 'base', '[]', '[]', 'x', -1.0, 'stop', {passed})"
        for ordinal, passed in ((0, "TRUE"), (1, "NULL"))
    ),
    "INSERT INTO examples (run_id, cycle, position, content_hash, scenario_hash, side, kind, chosen_source, "
    "policy_version, prompt_token_ids, chosen_token_ids, chosen_text, rejected_token_ids) "
    "VALUES (1, 1, 0, 'e0', 'h0', 'accept', 'chosen_only', 'target', 'base', '[]', '[]', 'good', '[]')",
)
"""Three scenarios of cycle 1, two completions of the first and one example, as the schema 0003 has them."""


_LATER = "'2024-05-02 00:00:00'"
_VERDICTS_AT_0004 = (
    *(
        "INSERT INTO checkpoints (run_id, version, cycle, parent_version, root_hash, weights_digest, optimizer_digest, "
        "size_bytes, state, created_at) "
        f"VALUES (1, '{version}', {cycle}, '{parent}', 'r', 'w', 'o', 1, '{state}', {_AT})"
        for version, cycle, parent, state in (("one", 1, "base", "pruned"), ("two", 2, "one", "rejected"))
    ),
    "UPDATE cycles SET state = 'finished', outcome = 'promoted', reason = 'r', candidate_version = 'one' "
    "WHERE number = 1",
    "UPDATE cycles SET state = 'finished', outcome = 'rolled_back', reason = 'r', parent_version = 'one', "
    "candidate_version = 'two' WHERE number = 2",
    f"UPDATE cycles SET started_at = {_LATER} WHERE number = 3",
    "UPDATE runs SET head_version = 'base'",
    *(
        "INSERT INTO probe_results (run_id, version, probe, item, cycle, value, detail, measured_at) "
        f"VALUES (1, '{version}', 'nll', 'a', NULL, {value}, '{{}}', {_AT})"
        for version, value in (("base", 3.0), ("one", 2.5))
    ),
    *(
        "INSERT INTO verdicts (run_id, cycle, decision, reason, target, evidence, decided_at) "
        f"VALUES (1, {cycle}, '{decision}', 'r', {target}, '{{}}', {_AT})"
        for cycle, decision, target in ((1, "promote", "NULL"), (2, "roll_back", "'parent'"))
    ),
    *(
        "INSERT INTO rollbacks (run_id, cycle, cause, from_version, to_version, reason, evidence, rolled_back_at) "
        f"VALUES (1, {cycle}, '{cause}', 'two', '{target}', 'r', '{{}}', {at})"
        for cycle, cause, target, at in (
            (2, "watchdog", "one", _AT),
            ("NULL", "operator", "base", _AT),
            ("NULL", "operator", "one", _LATER),
        )
    ),
)
"""A promotion, a rollback and two by an operator, before and after cycle 3 began, as the schema 0004 has them."""


_MORE_AT_0005 = (
    "UPDATE checkpoints SET pruned_after = 2 WHERE version = 'one'",
    "UPDATE rollbacks SET after_cycle = 2",
    "INSERT INTO breaker_changes (run_id, cycle, state, reason, num_openings, acknowledged, evidence, changed_at) "
    f"VALUES (1, 2, 'open', 'two rollbacks', 1, FALSE, '{{}}', {_AT})",
)
"""When files went and rollbacks happened, and an open breaker, as the schema 0005 has them."""


def _constraints(engine: Engine) -> dict[str, list[str]]:
    inspector = sa.inspect(engine)
    return {
        table: sorted(
            repr(sorted(found.items(), key=str))
            for found in (*inspector.get_check_constraints(table), *inspector.get_foreign_keys(table))
        )
        for table in tables.metadata.tables
    }

"""The checker of chaos runs: content with a sound run, and names each violation that is planted in a copy of it."""

from __future__ import annotations

import ast
import json
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from blake3 import blake3
from chaos import checker
from chaos.published import root_hash
from harness import RecordingObserver, dream, flip_bit, make_run

from daemon.domain.states import CycleState

POISON = ("training.lr=1.0", "training.allow_unsafe_lr=true")
PROMOTED, ROLLED_BACK, ABANDONED, HEAD = 1, 3, 4, 5
"""Cycles of the run below; 2 and 5 are promoted, too."""


@dataclass(frozen=True)
class Copy:
    """A run that may be damaged, in a directory of its own."""

    directory: Path

    @property
    def url(self) -> str:
        return f"sqlite:///{self.directory / 'dreamd.sqlite3'}"

    def sql(self, *statements: str) -> None:
        """Change rows behind everybody's back; no key is enforced."""
        with closing(sqlite3.connect(self.directory / "dreamd.sqlite3")) as connection:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            connection.execute("PRAGMA legacy_alter_table = ON")
            for statement in statements:
                assert connection.execute(statement).rowcount != 0, f"changes nothing: {statement}"
            connection.commit()

    def rows(self, statement: str) -> list[tuple[str, ...]]:
        with closing(sqlite3.connect(self.directory / "dreamd.sqlite3")) as connection:
            return connection.execute(statement).fetchall()

    @property
    def checkpoints(self) -> Path:
        return self.directory / "state" / "checkpoints"

    def checkpoint(self, number: int) -> Path:
        return self.checkpoints / f"cycle-{number:06d}"

    def violations(self) -> list[str]:
        return checker.check(self.url, self.directory / "state", mirror=self.directory / "mirror").violations


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """Promoted, promoted, rolled back, abandoned, promoted."""
    directory = tmp_path_factory.mktemp("sound")
    (directory / "mirror").mkdir()
    mirror = {"mirror_url": f"file://{directory / 'mirror'}"}
    file = make_run(directory, f"sqlite:///{directory / 'dreamd.sqlite3'}", checkpoints=mirror)
    dream(file, 2)
    dream(file, 1, *POISON)
    dream(file, 1, observer=RecordingObserver(CycleState.SWEPT))
    dream(file, 1)
    return Copy(directory)


@pytest.fixture
def copy(sound: Copy, tmp_path: Path) -> Iterator[Copy]:
    directory = tmp_path / "copy"
    shutil.copytree(sound.directory, directory)
    yield Copy(directory)
    shutil.rmtree(directory)


def resign(directory: Path, **fields: object) -> str:
    """Change fields of a manifest, and its root hash so that it fits; returns that."""
    manifest = {**json.loads((directory / "manifest.json").read_text()), **fields}
    manifest["root_hash"] = root_hash(manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return str(manifest["root_hash"])


def forge_weights(copy: Copy) -> None:
    """Another bit in the head's weights, and everything that hashes them made to fit; but for their digest."""
    weights = copy.checkpoint(HEAD) / "model.safetensors"
    flip_bit(weights)
    blobs = json.loads((copy.checkpoint(HEAD) / "manifest.json").read_text())["blobs"]
    blobs[weights.name]["blake3"] = blake3(weights.read_bytes()).hexdigest()
    forged = resign(copy.checkpoint(HEAD), blobs=blobs)
    copy.sql(f"UPDATE checkpoints SET root_hash = '{forged}' WHERE cycle = {HEAD}")


def write_claims_log(copy: Copy, *, without: int = 0, extra: str = "", run: str = "default") -> None:
    claims = copy.rows("SELECT cycle, kind, content_hash FROM claims WHERE cycle IS NOT NULL ORDER BY cycle, kind")
    lines = [" ".join(map(str, claim)) for claim in claims][without:]
    written = [f"run {run}", *lines, *([extra] if extra else [])]
    (copy.checkpoints / "claims.log").write_text("".join(f"{line}\n" for line in written))


def altered_manifest(copy: Copy) -> None:
    file = copy.checkpoint(HEAD) / "manifest.json"
    file.write_text(file.read_text().replace('"num_examples": ', '"num_examples": 1'))


COLUMNS = "run_id, position, content_hash, side, family, pack, template, messages, rule, source, num_constraints"

NOW = "2026-01-01 00:00:00"

CLAIM_TWICE = (
    "CREATE TABLE other AS SELECT * FROM claims",
    "DROP TABLE claims",
    "ALTER TABLE other RENAME TO claims",
    f"INSERT INTO claims SELECT * FROM claims WHERE cycle = {PROMOTED} AND kind = 'example' LIMIT 1",
)
TRAIN_AGAIN = (
    "CREATE TEMP TABLE again AS SELECT * FROM examples WHERE cycle = 1 AND position = 0",
    "UPDATE again SET cycle = 5, position = 99",
    "INSERT INTO examples SELECT * FROM again",
)
RETURNED = f"""INSERT INTO scenarios (cycle, {COLUMNS})
    SELECT {HEAD}, {COLUMNS.replace("position", "99")} FROM scenarios WHERE cycle = {ROLLED_BACK} AND position = 0"""
HELD_OUT = f"""UPDATE scenarios SET content_hash = (SELECT content_hash FROM claims WHERE kind = 'held_out' LIMIT 1)
    WHERE cycle = {ABANDONED} AND position = 0"""

PLANTED: dict[str, tuple[Callable[[Copy], object], str]] = {
    "a content is claimed twice": (lambda copy: copy.sql(*CLAIM_TWICE), "I1: .* is claimed twice"),
    "an example is trained again": (lambda copy: copy.sql(*TRAIN_AGAIN), "I1: .* is trained by cycles 1 and 5"),
    "a trained example is not claimed": (
        lambda copy: copy.sql(f"DELETE FROM claims WHERE kind = 'example' AND cycle = {PROMOTED}"),
        "I1: cycle 1 trained .* unclaimed",
    ),
    "it was claimed after the step": (
        lambda copy: copy.sql(f"UPDATE claims SET claimed_at = '9999-01-01' WHERE cycle = {PROMOTED}"),
        "I1: cycle 1 claimed .* after its step",
    ),
    "a scenario of a rolled-back cycle returns": (lambda copy: copy.sql(RETURNED), "I1: cycle 5 draws .* by cycle 3"),
    "a held-out prompt is drawn": (lambda copy: copy.sql(HELD_OUT), "I1: cycle 4 draws .* held out"),
    "a prompt is altered": (
        lambda copy: copy.sql('UPDATE scenarios SET messages = \'[{"role": "user", "content": "?"}]\''),
        "I1: cycle 1: .* is altered",
    ),
    "an answer is altered": (
        lambda copy: copy.sql(f"UPDATE examples SET chosen_text = 'no' WHERE cycle = {PROMOTED}"),
        "I1: cycle 1: .* is altered",
    ),
    "claims.log knows more than the table": (
        lambda copy: write_claims_log(copy, extra=f"{HEAD} example {'0' * 64}"),
        "I1: claims.log: .* is not in the table",
    ),
    "claims.log knows a later cycle": (
        lambda copy: write_claims_log(copy, extra=f"99 example {'0' * 64}"),
        "I1: claims.log: cycle 99 is unknown",
    ),
    "claims.log is another run's": (
        lambda copy: write_claims_log(copy, run="other"),
        "I1: claims.log: 'run other' instead of 'run default'",
    ),
    "claims.log lost a line": (lambda copy: write_claims_log(copy, without=1), "I1: .* is not in claims.log"),
    "one bit of the head is flipped": (
        lambda copy: flip_bit(copy.checkpoint(HEAD) / "model.safetensors"),
        "I2: the head cycle-000005: model.safetensors: its BLAKE3",
    ),
    "the head's weights are truncated": (
        lambda copy: (copy.checkpoint(HEAD) / "model.safetensors").write_bytes(b""),
        "I2: the head .*: model.safetensors: 0 bytes instead of",
    ),
    "the head's optimizer is gone": (
        lambda copy: (copy.checkpoint(HEAD) / "optimizer.state").unlink(),
        "I2: the head .*: optimizer.state: missing",
    ),
    "the head's directory is gone": (lambda copy: shutil.rmtree(copy.checkpoint(HEAD)), "I2: the head .* no manifest"),
    "the head's manifest is altered": (altered_manifest, "I2: the head .* root hash"),
    "one bit of a refused candidate is flipped": (
        lambda copy: flip_bit(copy.checkpoint(ROLLED_BACK) / "optimizer.state"),
        "I2: cycle-000003: optimizer.state: its BLAKE3",
    ),
    "another checkpoint has the head's name": (
        lambda copy: resign(copy.checkpoint(HEAD), step=None),
        "I2: the head .* root hash is not the recorded one",
    ),
    "a checkpoint is lossy and nobody said so": (
        lambda copy: (copy.checkpoint(ROLLED_BACK) / "lossy").write_text("gone"),
        "I2: cycle-000003: .*lossy",
    ),
    "pruned files are still there": (
        lambda copy: copy.sql(f"UPDATE checkpoints SET state = 'pruned' WHERE cycle = {ROLLED_BACK}"),
        "I2: cycle-000003 is pruned but has files",
    ),
    "the head's weights are others": (forge_weights, "I3: cycle-000005: weights_digest is not that of its file"),
    "the head descends from elsewhere": (
        lambda copy: resign(copy.checkpoint(HEAD), parent_root_hash="0" * 64),
        "I3: cycle-000005: its manifest descends from another parent",
    ),
    "an ancestor is missing": (
        lambda copy: copy.sql("DELETE FROM checkpoints WHERE cycle = 2"),
        "I3: cycle-000002 is missing",
    ),
    "an ancestor was never promoted": (
        lambda copy: copy.sql("UPDATE cycles SET outcome = 'lost' WHERE number = 2"),
        "I3: cycle-000002: its cycle was lost, not promoted",
    ),
    "a batch is in another order": (
        lambda copy: copy.sql(f"UPDATE examples SET position = -position WHERE cycle = {HEAD}"),
        "I3: cycle 5: its batch is not its claimed examples",
    ),
    "an example of a batch is gone": (
        lambda copy: copy.sql(f"DELETE FROM examples WHERE cycle = {PROMOTED} AND position = 0"),
        "I3: cycle 1: its batch is not its claimed examples",
    ),
    "the head is not what was decided": (
        lambda copy: copy.sql("UPDATE runs SET head_version = 'cycle-000002'"),
        "I3: the head is cycle-000002, decided was cycle-000005",
    ),
    "a cycle started elsewhere": (
        lambda copy: copy.sql(f"UPDATE cycles SET parent_version = 'base' WHERE number = {HEAD}"),
        "I3: cycle 5 started from base, not from cycle-000002",
    ),
    "a cycle has no outcome": (
        lambda copy: copy.sql("UPDATE cycles SET state = 'claimed', outcome = NULL, reason = NULL WHERE number = 2"),
        "I4: cycle 2 is claimed: None",
    ),
    "a cycle has no reason": (
        lambda copy: copy.sql("UPDATE cycles SET reason = '' WHERE number = 2"),
        "I4: cycle 2 is finished",
    ),
    "a number is missing": (
        lambda copy: copy.sql(f"DELETE FROM cycles WHERE number = {ABANDONED}"),
        r"I4: cycles are numbered up to 5 without \[4\]",
    ),
    "a verdict has no probes": (
        lambda copy: copy.sql(f"DELETE FROM probe_runs WHERE version = 'cycle-{HEAD:06d}'"),
        "I4: cycle 5 was judged without probes",
    ),
    "a promotion has no verdict": (
        lambda copy: copy.sql(f"DELETE FROM verdicts WHERE cycle = {HEAD}"),
        "I4: cycle 5: promoted, verdict None",
    ),
    "a rollback was never proven": (
        lambda copy: copy.sql("UPDATE rollbacks SET verified_at = NULL"),
        "I4: cycle 3: its rollback was never verified",
    ),
    "an abandoned cycle spent something": (
        lambda copy: copy.sql(f"UPDATE claims SET cycle = {ABANDONED} WHERE cycle = {HEAD} AND kind = 'scenario'"),
        "I4: cycle 4: abandoned, claimed",
    ),
    "a scrub found damage": (
        lambda copy: copy.sql(f"INSERT INTO scrubs VALUES (999, 1, 'base', 0, 1, 'bad', '{NOW}')"),
        "I2: base: a scrub found: bad",
    ),
    "a rehearsal failed": (
        lambda copy: copy.sql(f"INSERT INTO rehearsals VALUES (999, 1, 'base', 0, 1.0, 'no', '{NOW}')"),
        "I2: base: a rehearsal failed: no",
    ),
    "an event tells of damage": (
        lambda copy: copy.sql("UPDATE events SET name = 'upkeep_failed' WHERE cycle = 2"),
        "I2: an event upkeep_failed",
    ),
    "one bit of the mirror's head is flipped": (
        lambda copy: flip_bit(next((copy.directory / "mirror" / f"cycle-{HEAD:06d}").glob("image.*"))),
        "I2: the mirror's cycle-000005: image.",
    ),
    "one bit of the mirror's claims is flipped": (
        lambda copy: flip_bit(next((copy.directory / "mirror" / "claims").iterdir())),
        "I1: the mirror's claims/0000",
    ),
    "the mirror knows a claim that was forgotten here": (
        lambda copy: write_claims_log(copy, without=1),
        "I1: the mirror's claims: b'1 ",
    ),
    "the mirror lost a checkpoint": (
        lambda copy: shutil.rmtree(copy.directory / "mirror" / "base"),
        "I2: the mirror has no base",
    ),
    "a temporary directory is left": (
        lambda copy: (copy.checkpoints / ".tmp-cycle-000006").mkdir(),
        "I4: .tmp-cycle-000006: a directory that the database does not know",
    ),
}


def test_a_sound_run_has_no_violation(sound: Copy) -> None:
    """Promotions, a rollback and an abandoned cycle pass, and every kind of check looked at something."""
    findings = checker.check(sound.url, sound.directory / "state", mirror=sound.directory / "mirror")
    assert findings.violations == []
    assert checker.check_head(sound.url, sound.directory / "state") == []
    assert {what[:2] for what in findings.counts} == {"I1", "I2", "I3", "I4"}


def test_a_complete_claims_log_has_no_violation(copy: Copy) -> None:
    """A claims.log that has every claim, in the words of the table, passes."""
    write_claims_log(copy)
    assert copy.violations() == []


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_violation_is_named(copy: Copy, planted: str) -> None:
    """What is broken on purpose, in a copy of a sound run, is among the violations."""
    plant, expected = PLANTED[planted]
    plant(copy)
    violations = copy.violations()
    assert any(re.search(expected, violation) for violation in violations), violations


def test_the_head_is_checked_at_any_instant(copy: Copy) -> None:
    """One flipped bit in the head is seen in a run that was killed, too."""
    flip_bit(copy.checkpoint(HEAD) / "optimizer.state")
    assert checker.check_head(copy.url, copy.directory / "state") == [
        "I2: the head cycle-000005: optimizer.state: its BLAKE3 does not fit"
    ]


def test_the_checker_shares_no_code_with_dreamd() -> None:
    """Whatever the checker imports, through all its own modules, is neither dreamd's nor the test harness's."""
    here = Path(checker.__file__).parent
    waiting, seen = ["chaos.checker"], set()
    allowed = {"numpy", "blake3", "psycopg", "zstandard"}
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        if not module.startswith("chaos."):
            top = module.partition(".")[0]
            assert top in sys.stdlib_module_names or top in allowed, f"the checker imports {module}"
            continue
        for node in ast.walk(ast.parse((here / f"{module.removeprefix('chaos.')}.py").read_text())):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.module is not None and node.level == 0
                own = [f"chaos.{alias.name}" for alias in node.names]
                waiting += own if node.module == "chaos" else [node.module]
    assert {"chaos.invariants", "chaos.lineage", "chaos.published", "chaos.images", "chaos.recorded"} <= seen

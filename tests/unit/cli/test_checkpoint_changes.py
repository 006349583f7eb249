"""The commands that change what is kept of a run, or take a copy of it; on the run of `stored_run`."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness import dream, flip_bit, make_run, outcomes, query
from safetensors.torch import load_file
from stored_run import FOUR, NAMES, contents, ledger_of, loaded_run, one_cycle, store_of, weights_of

from daemon import checkpoint_tools
from daemon.checkpoints.mirror import FsspecMirror
from daemon.cycle.retain import retain
from daemon.domain.retention import LOSSY_MARKER
from daemon.storage import queries
from daemon.storage.database import open_database
from daemon.storage.ledger import SqlLedger
from daemon.storage.lock import RunLock

Call = Callable[..., Any]


def mirrored(state: Path, tmp_path: Path, *versions: str, exact: bool = True) -> str:
    """The URL of a mirror that holds these versions."""
    (tmp_path / "mirror").mkdir(exist_ok=True)
    url = f"file://{tmp_path / 'mirror'}"
    for version in versions:
        FsspecMirror(url, exact=exact).push(store_of(state).path(version))
    return url


# --- prune ------------------------------------------------------------------------------------------------------------


PRUNING = ("--set", "checkpoints.keep_last=2", "--set", "checkpoints.keep_exact=2",
           "--set", "watchdog.baked_after=50",
           "--set", "checkpoints.keep_rollbacks=0")  # fmt: skip


def test_prune_does_exactly_what_its_dry_run_says(call: Call, state: Path) -> None:
    """Nothing is due at first; after three more cycles images stay for their chains, and the rejected one goes."""
    assert call("prune", *PRUNING).stdout == "0 checkpoints, 0 B are freed\n"
    with ledger_of(state) as ledger:
        _three_more(ledger, state)
    before = contents(state)
    dry = json.loads(call("prune", "--dry-run", "--json", *PRUNING).stdout)
    assert contents(state) == before
    assert [(removal["version"], removal["becomes"]) for removal in dry] == [
        ("cycle-000002", "lossy"), (FOUR, "lossy"), ("cycle-000005", "gone"),
    ]  # fmt: skip
    assert json.loads(call("prune", "--json", *PRUNING).stdout) == dry
    freed = sum(map(len, before.values())) - sum(map(len, contents(state).values()))
    markers = 2 * len((state / "checkpoints" / FOUR / LOSSY_MARKER).read_bytes())
    assert sum(removal["num_bytes"] for removal in dry) == freed + markers
    left = {name for name in contents(state) if name.startswith(("cycle-000002/", f"{FOUR}/", "cycle-000005/"))}
    assert left == {f"{v}/{name}" for v in ("cycle-000002", FOUR) for name in ("image.delta", "manifest.json", "lossy")}
    assert call("verify", "--all", "--chain").returncode == 0
    assert call("prune", *PRUNING).stdout == "0 checkpoints, 0 B are freed\n"


def _three_more(ledger: SqlLedger, state: Path) -> None:
    """Cycle 5 is rolled back, 6 and 7 are promoted."""
    parent = ledger.head()
    for number in (5, 6, 7):
        parent = one_cycle(ledger, store_of(state), number, parent, promoted=number != 5)


def test_prune_and_the_daemon_agree_on_what_goes(call: Call, state: Path, tmp_path: Path) -> None:
    """The same run, once retained by a cycle and once pruned by hand: the same files are left."""
    with ledger_of(state) as ledger:
        _three_more(ledger, state)
    other = Path(shutil.copytree(state, tmp_path / "other"))
    assert call("prune", *PRUNING).returncode == 0
    flags = PRUNING[1::2]
    with ledger_of(other) as ledger:
        settings = loaded_run(other, *flags).config.retention
        retain(SimpleNamespace(ledger=ledger, store=store_of(other), retention=settings))  # type: ignore[arg-type]
        rows = ledger.checkpoints()
    with ledger_of(state) as ledger:
        assert ledger.checkpoints() == rows
    assert contents(state) == contents(other)


def test_prune_leaves_what_is_pinned(call: Call, state: Path) -> None:
    """A pin made a moment before is respected."""
    with ledger_of(state) as ledger:
        _three_more(ledger, state)
    assert call("pin", "2", "--reason", "the demo").returncode == 0
    due = json.loads(call("prune", "--json", *PRUNING).stdout)
    assert [removal["version"] for removal in due] == [FOUR, "cycle-000005"]


def test_prune_waits_for_no_daemon(call: Call, state: Path, daemon_runs: None) -> None:
    """While one runs it ends with 75 and touches nothing; a dry run only looks."""
    before = contents(state)
    done = call("prune", *PRUNING)
    assert (done.returncode, done.stdout) == (75, "")
    assert "another dreamd owns it" in done.stderr
    assert call("prune", "--dry-run", *PRUNING).returncode == 0
    assert contents(state) == before


# --- pin and unpin ----------------------------------------------------------------------------------------------------


def test_pinning_works_beside_a_running_daemon_and_fences_nobody(dreamd: Call, state: Path) -> None:
    """The daemon's ledger sees the pin, refuses to make the checkpoint lossy, and can still write."""
    at = ("--state-dir", str(state))
    engine = open_database(f"sqlite:///{state / 'dreamd.sqlite3'}")
    with RunLock(engine, "default"), ledger_of(state) as ledger:
        assert dreamd("checkpoints", "pin", "2", "--reason", " the demo ", *at).returncode == 0
        assert ledger.checkpoint("cycle-000002").pinned
        with pytest.raises(Exception, match="pinned"):
            ledger.made_lossy("cycle-000002")
        assert "yes: the demo" in dreamd("checkpoints", "show", "2", *at).stdout
        assert dreamd("checkpoints", "unpin", "2", *at).returncode == 0
        ledger.made_lossy("cycle-000002")
    engine.dispose()


def test_what_cannot_be_pinned_says_why(call: Call) -> None:
    """Twice, a lossy one, without a reason, and what was never pinned: exit 2 and the reason."""
    assert call("pin", "head", "--reason", "once").returncode == 0
    for command, says in (
        (("pin", "4", "--reason", "twice"), "pinned already: once"),
        (("pin", "1", "--reason", "x"), "is lossy"),
        (("pin", "2", "--reason", " "), "--reason is empty"),
        (("pin", "2"), "--reason"),
        (("unpin", "2"), "is not pinned"),
    ):
        done = call(*command)
        assert (done.returncode, done.stdout) == (2, ""), command
        assert says in done.stderr


# --- export -----------------------------------------------------------------------------------------------------------


def test_export_of_an_exact_checkpoint_has_its_own_bytes(call: Call, state: Path, tmp_path: Path) -> None:
    """Weights as trained, beside the base's assets; no manifest, no temporary directory."""
    done = call("export", "head", str(tmp_path / "out" / "four"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^weights +exact, as trained$", done.stdout, re.MULTILINE)
    source = state / "checkpoints" / FOUR / "model.safetensors"
    assert (tmp_path / "out" / "four" / "model.safetensors").read_bytes() == source.read_bytes()
    assert sorted(file.name for file in (tmp_path / "out" / "four").iterdir()) == ["config.json", "model.safetensors"]
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["four"]


def test_export_of_a_lossy_checkpoint_has_its_image_and_says_so(call: Call, tmp_path: Path) -> None:
    """What was 1.5 is 1.5, in bfloat16."""
    done = call("export", "1", str(tmp_path / "one"))
    assert re.search(r"^weights +lossy: its image, in bfloat16$", done.stdout, re.MULTILINE)
    exported = load_file(tmp_path / "one" / "model.safetensors")
    assert exported.keys() == set(NAMES)
    for name, tensor in weights_of(1).items():
        assert exported[name].dtype is torch.bfloat16
        assert torch.equal(exported[name], tensor.bfloat16())


def test_export_refuses_a_directory_that_holds_something_and_leaves_nothing_after_damage(
    call: Call, state: Path, tmp_path: Path
) -> None:
    """Exit 2 for the first, 74 for the second."""
    done = call("export", "head", str(state))
    assert (done.returncode, "not an empty directory" in done.stderr) == (2, True)
    flip_bit(state / "checkpoints" / FOUR / "model.safetensors")
    (tmp_path / "out").mkdir()
    assert call("export", "head", str(tmp_path / "out" / "four")).returncode == 74
    assert list((tmp_path / "out").iterdir()) == []


def test_an_export_that_fills_the_disk_leaves_nothing(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """74 with the place and the fix; the error is injected where the files are copied."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(checkpoint_tools, "copy_assets", full)
    done = call("export", "head", str(tmp_path / "out" / "four"))
    assert (done.returncode, done.stdout) == (74, "")
    assert "out/four: could not be written" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


# --- restore ----------------------------------------------------------------------------------------------------------


def test_restore_refuses_before_it_loads_anything(call: Call, state: Path) -> None:
    """The head; a lossy one unless --lossy is given; and without a terminal it asks for --yes."""
    for command, says in (
        (("restore", "head", "--yes"), "is the head already"),
        (("restore", "1", "--yes"), "is lossy: only its image is kept"),
        (("restore", "2"), "add --yes"),
        (("restore", "--from-mirror", "2"), "checkpoints.mirror_url is not set"),
    ):
        done = call(*command)
        assert (done.returncode, done.stdout) == (2, ""), command
        assert says in done.stderr
    assert "--lossy" in call("restore", "1", "--yes").stderr


def test_a_rejected_checkpoint_cannot_be_the_head(call: Call, state: Path) -> None:
    """What the watchdog refused is refused here."""
    with ledger_of(state) as ledger:
        one_cycle(ledger, store_of(state), 5, ledger.head(), promoted=False)
    done = call("restore", "5", "--yes")
    assert done.returncode == 2
    assert "only a promoted checkpoint can be the head" in done.stderr


@pytest.mark.parametrize("damage", ["flipped bit", "missing file", "missing directory"])
def test_the_mirror_gives_back_what_is_damaged_byte_for_byte(
    damage: str, call: Call, state: Path, tmp_path: Path
) -> None:
    """The bad copy is set aside, the good one verifies, the head stays what it is; a second time does nothing."""
    url = mirrored(state, tmp_path, FOUR)
    good = contents(state)
    directory = state / "checkpoints" / FOUR
    if damage == "flipped bit":
        flip_bit(directory / "optimizer.state")
    elif damage == "missing file":
        (directory / "image.delta").unlink()
    else:
        shutil.rmtree(directory)
    done = call("restore", "--from-mirror", FOUR, "--set", f"checkpoints.mirror_url={url}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^fetched +yes$", done.stdout, re.MULTILINE)
    after = contents(state)
    assert {name: after[name] for name in good} == good
    aside = {name for name in after if name.startswith(f"quarantine/{FOUR}-")}
    assert bool(aside) == (damage != "missing directory")
    assert call("verify", FOUR).returncode == 0
    again = call("restore", "--from-mirror", FOUR, "--set", f"checkpoints.mirror_url={url}")
    assert re.search(r"^fetched +no$", again.stdout, re.MULTILINE)
    assert contents(state) == after


def test_a_mirror_that_cannot_help_changes_nothing(call: Call, state: Path, tmp_path: Path) -> None:
    """It has not got it: 75. It has the image alone, and the head needs more: 74. What is here stays as it was."""
    url = mirrored(state, tmp_path, "base")
    at = ("--set", f"checkpoints.mirror_url={url}")
    flip_bit(state / "checkpoints" / FOUR / "optimizer.state")
    before = contents(state)
    assert call("restore", "--from-mirror", FOUR, *at).returncode == 75
    assert contents(state) == before
    flip_bit(state / "checkpoints" / FOUR / "optimizer.state")
    mirrored(state, tmp_path, FOUR, exact=False)
    flip_bit(state / "checkpoints" / FOUR / "optimizer.state")
    done = call("restore", "--from-mirror", FOUR, *at)
    assert (done.returncode, "the image of cycle-000004 alone" in done.stderr) == (74, True)
    assert contents(state) == before


def test_an_image_alone_is_good_enough_for_what_nobody_needs_exactly(call: Call, state: Path, tmp_path: Path) -> None:
    """The checkpoint is lossy from then on, in the database as on the disk."""
    url = mirrored(state, tmp_path, "cycle-000002", exact=False)
    flip_bit(state / "checkpoints" / "cycle-000002" / "image.delta")
    done = call("restore", "--from-mirror", "2", "--set", f"checkpoints.mirror_url={url}")
    assert re.search(r"^lossy +yes$", done.stdout, re.MULTILINE), done.stderr
    assert call("verify", "2", "--chain").stdout.startswith("cycle-000002  sound, lossy, image rebuilt from 3")


def test_nothing_is_fetched_while_the_daemon_runs(call: Call, state: Path, tmp_path: Path, daemon_runs: None) -> None:
    """It ends with 75: the daemon may be reading what would be replaced."""
    url = mirrored(state, tmp_path, FOUR)
    done = call("restore", "--from-mirror", FOUR, "--set", f"checkpoints.mirror_url={url}")
    assert (done.returncode, "another dreamd owns it" in done.stderr) == (75, True)


# --- a real policy ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_run_goes_back_to_an_exact_checkpoint_and_on_request_to_a_lossy_one(
    dreamd: Call, tmp_path: Path
) -> None:
    """Four real cycles: back to the third, bit for bit; to the first only with --lossy; then it dreams on."""
    settings = {"checkpoints": {"keep_exact": 2}, "watchdog": {"baked_after": 50}}
    file = make_run(tmp_path, "", **settings)
    dream(file, 4)
    assert outcomes(file) == ["promoted"] * 4
    at = ("--config", str(file))
    assert dreamd("checkpoints", "verify", "--all", "--chain", *at).returncode == 0
    done = dreamd("checkpoints", "restore", "3", "--yes", *at)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^to +cycle-000003$", done.stdout, re.MULTILINE)
    assert re.search(r"^weights +exact$", done.stdout, re.MULTILINE)
    refused = dreamd("checkpoints", "restore", "1", "--yes", *at)
    assert (refused.returncode, "is lossy" in refused.stderr) == (2, True)
    assert query(file, "select head_version from runs") == [("cycle-000003",)]
    done = dreamd("checkpoints", "restore", "1", "--yes", "--lossy", *at)
    assert done.returncode == 0, done.stderr
    assert "is lossy" in done.stderr
    assert re.search(r"^weights +lossy$", done.stdout, re.MULTILINE)
    assert query(file, "select head_version from runs") == [("cycle-000001",)]
    dream(file, 1)
    assert outcomes(file)[-1] == "promoted"
    assert dreamd("checkpoints", "verify", "--all", "--chain", *at).returncode == 0


# --- database ---------------------------------------------------------------------------------------------------------


def test_a_backup_is_whole_replaces_nothing_and_is_made_beside_the_daemon(
    dreamd: Call, state: Path, tmp_path: Path, daemon_runs: None
) -> None:
    """Its rows are the run's; a file that is there, or a directory that is not, is refused."""
    at = ("--state-dir", str(state))
    target = tmp_path / "monday.sqlite3"
    done = dreamd("database", "backup", str(target), *at)
    assert done.returncode == 0, done.stderr
    rows = []
    for file in (target, state / "dreamd.sqlite3"):
        engine = open_database(f"sqlite:///{file}", readonly=True)
        rows.append(queries.checkpoints(engine, "default"))
        engine.dispose()
    assert rows[0] == rows[1]
    before = target.read_bytes()
    assert "is there already" in dreamd("database", "backup", str(target), *at).stderr
    assert target.read_bytes() == before
    assert dreamd("database", "backup", str(tmp_path / "no" / "b"), *at).returncode == 2
    url = ("--set", "run.database_url=postgresql://me@host/dreamd")
    done = dreamd("db", "backup", "b", *url)
    assert (done.returncode, "pg_dump -Fc -f b DATABASE" in done.stderr) == (2, True)


def test_the_journal_comes_back_from_the_mirror(dreamd: Call, state: Path, tmp_path: Path) -> None:
    """Without a mirror, without a journal there, or while the daemon holds the lock: an error, and nothing changes.

    Else its claims are here again, beside newer ones, and a database that lacks them is refused until it adopts them.
    """
    at = ("--state-dir", str(state), "--set", f"checkpoints.mirror_url={mirrored(state, tmp_path)}")
    log = state / "checkpoints" / "claims.log"
    none = dreamd("db", "fetch-journal", "--state-dir", str(state))
    assert (none.returncode, "checkpoints.mirror_url is not set" in none.stderr) == (2, True)
    empty = dreamd("db", "fetch-journal", *at)
    assert (empty.returncode, "there is no claims journal" in empty.stderr) == (75, True)
    log.write_text(f"run default\n9 scenario {'a' * 64}\n")
    FsspecMirror(at[-1].split("=")[1]).push_journal(log)
    content = log.read_bytes()
    log.unlink()
    engine = open_database(f"sqlite:///{state / 'dreamd.sqlite3'}")
    with RunLock(engine, "default"):
        assert dreamd("db", "fetch-journal", *at).returncode == 75
    engine.dispose()
    assert not log.exists()
    assert dreamd("db", "fetch-journal", *at).stdout == f"1 claims came back into {log}\n"
    assert log.read_bytes() == content
    log.write_text(f"run default\n9 example {'b' * 64}\n")
    told = json.loads(dreamd("db", "fetch-journal", "--json", *at).stdout)
    assert told == {"journal": str(log), "claims": 1, "damaged_parts": 0}
    assert log.read_text().splitlines()[1:] == [f"9 example {'b' * 64}", f"9 scenario {'a' * 64}"]
    assert dreamd("checkpoints", "prune", *at).returncode == 78


def test_an_older_backup_is_refused_until_the_journal_is_adopted(dreamd: Call, state: Path, tmp_path: Path) -> None:
    """What the journal knows and the database does not becomes spent, once; then the run can be owned again."""
    at = ("--state-dir", str(state))
    none = dreamd("database", "adopt-journal", *at)
    assert (none.returncode, "there is no claims journal to adopt" in none.stderr) == (2, True)
    log = state / "checkpoints" / "claims.log"
    log.write_text(f"9 scenario {'a' * 64}\n9 example {'b' * 64}\n")
    assert dreamd("checkpoints", "prune", *at).returncode == 78
    done = dreamd("database", "adopt-journal", *at)
    assert done.stdout.startswith(f"2 claims that only {log} knew are spent now"), done.stderr
    assert json.loads(dreamd("cycles", "--limit", "1", "--json", *at).stdout)[0]["cycle"] == 9
    assert dreamd("checkpoints", "prune", *at).returncode == 0
    again = dreamd("db", "adopt-journal", "--json", *at)
    assert json.loads(again.stdout) == {"journal": str(log), "claims": 0}

"""`dreamd checkpoints` and `dreamd database` on a run whose weights are known by hand; see `stored_run`."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness import dream, flip_bit, make_run, outcomes, query
from safetensors.torch import load_file
from stored_run import FOUR, NAMES, ledger_of, make_stored_run, one_cycle, store_of, weights_of

from daemon import app, checkpoint_tools
from daemon.checkpoints.manifest import LOSSY_MARKER
from daemon.checkpoints.mirror import FsspecMirror
from daemon.config import Loaded, load_config
from daemon.cycle.retain import retain
from daemon.storage import queries
from daemon.storage.database import open_database
from daemon.storage.ledger import SqlLedger
from daemon.storage.lock import RunLock

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def made_run(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Path:
    """The run of `stored_run`, to be copied."""
    state = tmp_path_factory.mktemp("stored") / "state"
    make_stored_run(state, sqlite_template)
    return state


@pytest.fixture
def state(tmp_path: Path, made_run: Path) -> Path:
    """A copy of `made_run`."""
    return Path(shutil.copytree(made_run, tmp_path / "stored"))


@pytest.fixture
def call(dreamd: Call, state: Path) -> Call:
    """`dreamd checkpoints ARGUMENTS` on `state`."""
    return lambda *arguments: dreamd("checkpoints", *arguments, "--state-dir", str(state))


@pytest.fixture
def daemon_runs(state: Path) -> Iterator[None]:
    """The run's lock, held as by a daemon."""
    engine = open_database(f"sqlite:///{state / 'dreamd.sqlite3'}")
    with RunLock(engine, "default"):
        yield
    engine.dispose()


def contents(state: Path) -> dict[str, bytes]:
    """Every file of every checkpoint, those in quarantine too."""
    root = state / "checkpoints"
    return {str(file.relative_to(root)): file.read_bytes() for file in root.glob("*/**/*") if file.is_file()}


def mirrored(state: Path, tmp_path: Path, *versions: str, exact: bool = True) -> str:
    """The URL of a mirror that holds these versions."""
    url = f"file://{tmp_path / 'mirror'}"
    for version in versions:
        FsspecMirror(url, exact=exact).push(store_of(state).path(version))
    return url


# --- list and show ----------------------------------------------------------------------------------------------------


def test_the_list_says_what_is_kept_of_each_checkpoint(call: Call, state: Path) -> None:
    """A line each: state, kind, exact or lossy or gone, chain, head; the last line adds up what is on the disk."""
    lines = call("list").stdout.splitlines()
    words = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert words[0] == ["version", "cycle", "state", "kind", "weights", "pinned", "chain", "image", "on disk",
                        "mirrored", "head"]  # fmt: skip
    assert [word[:7] for word in words[1:-1]] == [
        ["base", "-", "base", "full", "exact", "-", "0"],
        ["cycle-000001", "1", "promoted", "delta", "lossy", "-", "1"],
        ["cycle-000002", "2", "promoted", "delta", "exact", "-", "2"],
        ["cycle-000003", "3", "pruned", "delta", "gone", "-", "-"],
        ["cycle-000004", "4", "promoted", "delta", "exact", "-", "3"],
    ]
    assert [word[-1] for word in words[1:-1]] == ["-", "-", "-", "-", "head"]
    assert lines[-1].startswith("5 checkpoints, 4 kept: 3 exact, 1 lossy; 0 pinned, 0 mirrored; ")
    assert "0 B" in lines[4]
    found = json.loads(call("list", "--json").stdout)
    assert sum(row["bytes_on_disk"] for row in found) == sum(map(len, contents(state).values()))


def test_without_a_command_it_lists(call: Call) -> None:
    """`dreamd checkpoints` is `dreamd checkpoints list`, with the same options."""
    assert call().stdout == call("list").stdout
    assert call("--json").stdout == call("list", "--json").stdout


def test_options_before_the_command_are_not_quietly_dropped(dreamd: Call, state: Path) -> None:
    """`dreamd checkpoints --state-dir DIR verify` would look at another run: it is refused."""
    done = dreamd("checkpoints", "--state-dir", str(state), "verify")
    assert (done.returncode, done.stdout) == (2, "")
    assert "after the command: dreamd checkpoints verify" in done.stderr


def test_show_names_chain_files_and_where_a_checkpoint_came_from(call: Call, state: Path) -> None:
    """Of a lossy one: its exact files were deleted, the image is there, made of its delta and the base."""
    said = call("show", "1").stdout
    assert re.search(r"^weights +lossy$", said, re.MULTILINE)
    assert "from cycle-000001 <- base" in said
    assert "cycle 1, promoted: within every margin" in said
    assert re.search(r"^step +objective orpo, .*loss 2.5", said, re.MULTILINE)
    assert re.search(r"^model.safetensors +\d+ +deleted \(lossy\) +[0-9a-f]{64}", said, re.MULTILINE)
    assert re.search(r"^image.delta +\d+ +yes +[0-9a-f]{64}", said, re.MULTILINE)
    found = json.loads(call("show", "head", "--json").stdout)
    assert found["checkpoint"]["version"] == FOUR
    assert found["chain"] == ["base", "cycle-000001", "cycle-000002", FOUR]
    assert found["manifest"]["parent_version"] == "cycle-000002"
    assert {file["file"]: file["there"] for file in found["files"]} == {
        "config.json": "yes", "image.delta": "yes", "model.safetensors": "yes", "optimizer.state": "yes",
    }  # fmt: skip


def test_show_of_what_is_gone_or_damaged_says_so(call: Call, state: Path) -> None:
    """A pruned checkpoint keeps its row; a missing file, a short one and a bad manifest are named, not a failure."""
    assert re.search(r"^directory +gone$", call("show", "3").stdout, re.MULTILINE)
    assert "the base model" in call("show", "base").stdout
    (state / "checkpoints" / "cycle-000002" / "optimizer.state").unlink()
    (state / "checkpoints" / "cycle-000002" / "config.json").write_text("{}")
    said = call("show", "2").stdout
    assert re.search(r"^optimizer.state +200 +MISSING", said, re.MULTILINE)
    assert re.search(r"^config.json +\d+ +2 BYTES", said, re.MULTILINE)
    (state / "checkpoints" / "cycle-000002" / "manifest.json").write_text("{}")
    done = call("show", "2")
    assert done.returncode == 0
    assert re.search(r"^PROBLEM .*manifest.json: not a manifest", done.stdout, re.MULTILINE)


# --- verify -----------------------------------------------------------------------------------------------------------


def test_verify_reads_the_head_or_what_it_is_told(call: Call) -> None:
    """Without a version the head; each version once, however it is named; --all leaves out what is pruned."""
    assert call("verify").stdout.startswith(f"{FOUR}  sound, exact  ")
    assert len(call("verify", "1", "cycle-000001", "head").stdout.splitlines()) == 2
    done = call("verify", "--all", "--chain", "--json")
    assert done.returncode == 0
    assert [(row["version"], row["sound"], row["exact"], row["links"]) for row in json.loads(done.stdout)] == [
        ("base", True, True, 1),
        ("cycle-000001", True, False, 2),
        ("cycle-000002", True, True, 3),
        (FOUR, True, True, 4),
    ]
    assert call("verify", "--all", "head").returncode == 2


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.state", "image.delta", "manifest.json"])
def test_one_flipped_bit_ends_verify_with_74_and_its_name(call: Call, state: Path, file: str) -> None:
    """Whatever file it is in; the others are still verified, and the way to the mirror is named."""
    flip_bit(state / "checkpoints" / "cycle-000002" / file)
    done = call("verify", "--all")
    assert done.returncode == 74
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["sound,", "sound,", "DAMAGED:", "sound,"]
    assert "1 of 4 checkpoints are damaged" in done.stderr
    assert f"cycle-000002/{file}" in done.stderr
    assert "restore --from-mirror" in done.stderr


def test_a_damaged_link_breaks_the_images_after_it(call: Call, state: Path) -> None:
    """The head's own files are sound; only --chain finds that its image cannot be rebuilt."""
    flip_bit(state / "checkpoints" / "cycle-000001" / "image.delta")
    assert call("verify", "head").returncode == 0
    done = call("verify", "head", "--chain")
    assert done.returncode == 74
    assert "cycle-000001/image.delta" in done.stderr


def test_exact_files_may_be_missing_only_where_the_database_knows_it(call: Call, state: Path) -> None:
    """The marker `lossy` alone does not make the loss of an exact state sound; nor do missing files without it."""
    directory = state / "checkpoints" / "cycle-000002"
    (directory / "optimizer.state").unlink()
    done = call("verify", "2")
    assert (done.returncode, "optimizer.state: missing" in done.stderr) == (74, True)
    (directory / LOSSY_MARKER).write_text("by hand\n")
    done = call("verify", "2")
    assert (done.returncode, "only its image is there" in done.stderr) == (74, True)


def test_a_checkpoint_of_another_run_does_not_verify(call: Call, state: Path) -> None:
    """Its files are sound, and not those that the database recorded."""
    directory = state / "checkpoints" / "cycle-000002"
    manifest = (directory / "manifest.json").read_text()
    with_other_step = manifest.replace('"loss": 2.5', '"loss": 2.25')
    assert with_other_step != manifest
    (directory / "manifest.json").write_text(_rehashed(with_other_step))
    done = call("verify", "2")
    assert done.returncode == 74
    assert "it belongs to another run" in done.stderr


def _rehashed(manifest: str) -> str:
    """A manifest whose root hash fits again; worked out from the format's description."""
    from blake3 import blake3

    fields = json.loads(manifest)
    del fields["root_hash"]
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({**fields, "root_hash": blake3(canonical).hexdigest()})


def test_retention_at_work_meanwhile_is_no_damage(state: Path) -> None:
    """What becomes lossy, or goes, after verify looked into the database is verified as what it is now."""
    results = checkpoint_tools.verify(_loaded(state), ["base", "cycle-000002", "cycle-000005"], chain=False)
    with ledger_of(state) as ledger:
        one_cycle(ledger, store_of(state), 5, ledger.head(), promoted=False)
        assert next(results).sound
        ledger.made_lossy("cycle-000002")
        store_of(state).make_lossy("cycle-000002")
        assert next(results).in_words() == "sound, lossy"
        ledger.pruned("cycle-000005")
        store_of(state).prune("cycle-000005")
        assert next(results).in_words() == "pruned meanwhile"


def _loaded(state: Path, *flags: str) -> Loaded:
    return load_config(None, environ={}, flags=[f"run.state_dir={state}", *flags])


UNKNOWN = [
    *((command, "no checkpoint 9") for command in (
        ("show", "9"), ("verify", "9"), ("diff", "9", "head"), ("diff", "head", "9"), ("restore", "9", "--yes"),
        ("restore", "--from-mirror", "9"), ("pin", "9", "--reason", "x"), ("unpin", "9"), ("export", "9", "out"),
    )),
    *((command, "cycle-000003 are pruned") for command in (
        ("verify", "3"), ("diff", "3", "head"), ("restore", "3", "--yes"), ("restore", "--from-mirror", "3"),
        ("pin", "3", "--reason", "x"), ("export", "cycle-000003", "out"),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("command", "says"), UNKNOWN, ids=lambda value: " ".join(value) if value else "")
def test_what_is_not_there_ends_with_2(command: tuple[str, ...], says: str, call: Call, state: Path) -> None:
    """A checkpoint that never was, or whose files are gone: named, with the command that lists them; nothing moves."""
    before = contents(state)
    done = call(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert "`dreamd checkpoints` lists those" in done.stderr
    assert contents(state) == before


# --- diff -------------------------------------------------------------------------------------------------------------


def test_diff_by_layer_adds_up_its_parameters(call: Call) -> None:
    """From base to head 4 of 1024 weights went from 1.0 to 1.5, in a layer of 2048; 1e-6 is nothing in bfloat16."""
    found = json.loads(call("diff", "base", "head", "--json").stdout)
    first = {"name": "layers.0", "num_elements": 2048, "num_changed": 4, "fraction_changed": 4 / 2048,
             "mean_abs_difference": 4 * 0.5 / 2048, "relative_norm": pytest.approx(1 / 2048**0.5)}  # fmt: skip
    assert found[0] == first  # the difference's norm is sqrt(4 * 0.25) = 1, that of 2048 ones sqrt(2048)
    assert [part["name"] for part in found[1:]] == ["model.embed_tokens", "model.norm"]
    assert all((part["num_changed"], part["relative_norm"]) == (0, 0.0) for part in found[1:])


def test_diff_by_parameter_shows_the_top_ones_and_counts_all(call: Call) -> None:
    """One weight differs between cycles 1 and 2; the lossy one is compared by its image."""
    done = call("diff", "1", "2", "--by", "parameter", "--top", "1")
    assert done.stdout.splitlines()[1].split() == [NAMES[1], "0.0977%", "0.0004883", "0.01562", "1024"]
    assert done.stdout.splitlines()[2] == "cycle-000001 -> cycle-000002: 1 of 4096 weights differ; 3 more not shown"
    assert "0 of 4096 weights differ" in call("diff", "2", "2").stdout


def test_diff_of_a_damaged_chain_ends_with_74(call: Call, state: Path) -> None:
    """A link that does not verify is named instead of compared."""
    flip_bit(state / "checkpoints" / "cycle-000001" / "image.delta")
    done = call("diff", "base", "head")
    assert (done.returncode, done.stdout) == (74, "")
    assert "cycle-000001/image.delta" in done.stderr


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
        settings = app.retention(_loaded(other, *flags).config)
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

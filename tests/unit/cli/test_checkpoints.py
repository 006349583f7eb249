"""`dreamd checkpoints list|show|verify|diff` on a run whose weights are known by hand; see `stored_run`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import flip_bit
from stored_run import FOUR, NAMES, contents, ledger_of, loaded_run, one_cycle, store_of

from daemon import checkpoint_tools
from daemon.domain.retention import LOSSY_MARKER

Call = Callable[..., Any]


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
    results = checkpoint_tools.verify(loaded_run(state), ["base", "cycle-000002", "cycle-000005"], chain=False)
    with ledger_of(state) as ledger:
        one_cycle(ledger, store_of(state), 5, ledger.head(), promoted=False)
        assert next(results).sound
        ledger.made_lossy("cycle-000002")
        store_of(state).make_lossy("cycle-000002")
        assert next(results).in_words() == "sound, lossy"
        ledger.pruned("cycle-000005")
        store_of(state).prune("cycle-000005")
        assert next(results).in_words() == "pruned meanwhile"


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

"""Six cycles in one process, or three, kill -9, and three in another process: the same run, bit for bit.

Equal means: every row of every table, every file of every checkpoint, every tensor of the head. Left out are moments,
durations and what counts processes (`harness.NOT_COMPARED` says which and why), and what a restart itself writes: an
engine check, and the event of a repair; `_without_restarts` takes out exactly those, and proves them right first.

The processes differ in everything that must not matter: PYTHONHASHSEED, the state of all global random generators, and
in one test the database. The model has dropout, so a step does draw random numbers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import torch
from harness import (
    RecordingObserver,
    RunImage,
    check_invariants,
    differences,
    dream,
    load,
    outcomes,
    query,
    run_image,
    write_config,
)
from safetensors.torch import load_file, save_file
from tiny_model import build_tiny_model

from daemon import app
from daemon.checkpoints.manifest import FILE_NAME, hash_file, read_manifest
from daemon.cycle.run import run_cycle
from daemon.cycle.stages import Stages
from daemon.domain.errors import CheckpointError, StopRequested
from daemon.domain.records import Cycle
from daemon.domain.states import CycleState, Outcome
from daemon.storage.database import open_database
from daemon.storage.tables import checkpoints
from daemon.training.digest import tensors_digest
from daemon.training.policy import OPTIMIZER_FILE, WEIGHTS_FILE

Play = Callable[[str, Path, str], None]
Bits = dict[str, tuple[torch.dtype, torch.Size, bytes]]


@pytest.fixture(scope="module")
def play() -> Iterator[Play]:
    """`play(who, config, moment)`: a process of its own dreams until it is killed at the moment, or to the end.

    `who` is "first" or "second": two worlds that differ in hash seed and in every global random generator.
    """
    drivers = {"first": _start_driver("1"), "second": _start_driver("2")}

    def run(who: str, file: Path, moment: str) -> None:
        talk = drivers[who]
        assert talk.stdin is not None and talk.stdout is not None
        talk.stdin.write(json.dumps([str(file), moment]) + "\n")
        talk.stdin.flush()
        status = int(talk.stdout.readline())
        if moment.startswith("end@"):
            assert status == 0, f"{moment}: the child failed, its error is above"
        else:
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{moment} never came"

    yield run
    for driver in drivers.values():
        assert driver.stdin is not None and driver.stdout is not None
        driver.stdin.close()
        driver.wait(timeout=30)
        driver.stdout.close()


@pytest.fixture(params=["fp32", "bf16-stochastic"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def straight_of(tmp_path_factory: pytest.TempPathFactory, play: Play) -> Callable[[str], Path]:
    """Precision -> `straight`, made once."""

    @cache
    def run(precision: str) -> Path:
        file = make_run(tmp_path_factory.mktemp("straight"), precision)
        play("first", file, "end@6")
        assert outcomes(file) == ["promoted"] * 6
        return file

    return run


@pytest.fixture
def straight(straight_of: Callable[[str], Path], precision: str) -> Path:
    """Six cycles in one process, on SQLite: what every other run is compared with."""
    return straight_of(precision)


def test_killed_between_cycles_is_the_straight_run(tmp_path: Path, precision: str, straight: Path, play: Play) -> None:
    """3 cycles, SIGKILL, 3 in a new process: every row, every file and every tensor of 6 straight ones."""
    file = make_run(tmp_path, precision)
    play("first", file, "cycle_finished@3")
    assert query(file, "select number, state from cycles order by 1") == [(n, "finished") for n in (1, 2, 3)]
    play("second", file, "end@3")
    assert differences(run_image(straight), _without_restarts(run_image(file), [3])) == []
    assert_same_head(straight, file)
    check_invariants(file)


@pytest.mark.parametrize(
    ("precision", "database_kind"),
    [("bf16-stochastic", "sqlite"), pytest.param("fp32", "postgresql", marks=pytest.mark.postgres)],
    indirect=True,
)
def test_killed_within_published_cycles_is_the_straight_run(
    tmp_path: Path, database_url: str, precision: str, straight: Path, play: Play
) -> None:
    """Fault 4: SIGKILL in cycles 2 and 4, their checkpoint has its name: the starts finish them to the very same bits.

    On PostgreSQL too, compared with a straight run on SQLite.
    """
    file = make_run(tmp_path, precision, database_url)
    play("first", file, "renamed@2")
    play("second", file, "probed@4")
    play("first", file, "end@2")
    assert differences(run_image(straight), _without_restarts(run_image(file), [2, 4], repaired=[2, 4])) == []
    assert_same_head(straight, file)


@pytest.mark.parametrize("precision", ["bf16-stochastic"], indirect=True)
def test_killed_before_the_claim_is_a_process_that_only_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, straight: Path, play: Play
) -> None:
    """SIGKILL in cycle 4 before its claim: the run is that of one process, never killed, that abandoned cycle 4.

    It cannot be the straight run: cycle 4 learned nothing, and its number, hence its seed, is never used again. But
    cycles 1 to 3 are the straight run's, what cycle 4 had done before the kill is too, and the kill left no other trace
    in cycle 5 than the stop of cycle 4 in a process that goes on.
    """
    for name in ("killed", "never_killed"):
        (tmp_path / name).mkdir()
    killed = make_run(tmp_path / "killed", precision)
    play("first", killed, "paired@4")
    half = run_image(killed)
    play("second", killed, "end@1")
    image = _without_restarts(run_image(killed), [3], repaired=[4])

    never_killed = make_run(tmp_path / "never_killed", precision)
    monkeypatch.setattr(app, "run_cycle", _run_cycle_or_abandon)
    assert dream(never_killed, 5, observer=StopInCycleFour()) == 5
    assert outcomes(never_killed) == outcomes(killed) == [*["promoted"] * 3, "abandoned", "promoted"]
    found = differences(run_image(never_killed), image)
    assert [line.partition(":")[0] for line in found] == ["cycles[3].reason", "events[3].payload"]
    assert all("stopped before the claim" in line and "ended in state paired" in line for line in found)
    assert_same_head(never_killed, killed)

    whole = run_image(straight)
    for number in (1, 2, 3):
        assert differences(whole.of_cycle(number), image.of_cycle(number)) == []
    for table in ("scenarios", "completions"):
        assert half.of_cycle(4).rows[table] == whole.of_cycle(4).rows[table] != []
    assert half.of_cycle(4).rows["claims"] == []
    assert query(killed, "select parent_version from cycles where number = 5") == [("cycle-000003",)]


def test_global_random_generators_and_hash_seed_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, straight: Path, play: Play
) -> None:
    """Other states of random, numpy and torch at the start and another PYTHONHASHSEED: the same rows, files, tensors.

    The control: a step that seeds torch differently gives other weights, so random numbers are drawn there.
    """
    for name in ("seeded", "control"):
        (tmp_path / name).mkdir()
    file = make_run(tmp_path / "seeded", precision)
    play("second", file, "end@2")
    whole, image = run_image(straight), run_image(file)
    for number in (1, 2):
        assert differences(whole.of_cycle(number), image.of_cycle(number)) == []
    assert tensor_bits(file, "cycle-000002") == tensor_bits(straight, "cycle-000002")

    control = make_run(tmp_path / "control", precision)
    manual_seed = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: manual_seed(seed ^ 1))
    dream(control, 1)
    assert "checkpoints[0].weights_digest" in changed(whole.of_cycle(1), run_image(control).of_cycle(1))


@pytest.mark.parametrize("precision", ["fp32"], indirect=True)
def test_another_run_seed_is_another_run(tmp_path: Path, precision: str, straight: Path) -> None:
    """With run.seed 8 instead of 7 the first cycle differs in what it asks, answers, learns and becomes."""
    file = make_run(tmp_path, precision, run={"seed": 8})
    dream(file, 1)
    found = changed(run_image(straight).of_cycle(1), run_image(file).of_cycle(1))
    expected = ("cycles[0].seed", "scenarios[0].messages", "completions[0].token_ids", "steps[0].loss")
    assert {*expected, "checkpoints[0].weights_digest", "cycles[0].batch_hash"} <= found
    assert tensor_bits(file, "cycle-000001") != tensor_bits(straight, "cycle-000001")


@pytest.mark.parametrize("precision", ["fp32"], indirect=True)
def test_one_flipped_bit_is_noticed(tmp_path: Path, precision: str, straight: Path, play: Play) -> None:
    """Fault 11: the lowest bit of a weight flips while down: refused; past forged hashes, the comparison fails.

    One unit in the last place of one weight is the smallest way in which a resumed policy can be another one.
    """
    file = make_run(tmp_path, precision)
    play("first", file, "cycle_finished@1")
    assert tensor_bits(file, "cycle-000001") == tensor_bits(straight, "cycle-000001")
    flip_lowest_bit(file, "cycle-000001")
    with pytest.raises(CheckpointError, match=r"cycle-000001/model\.safetensors"):
        dream(file, 1)
    assert outcomes(file) == ["promoted"]
    forge_records(file, "cycle-000001")
    dream(file, 1)
    found = changed(run_image(straight).of_cycle(2), run_image(file).of_cycle(2))
    assert {"checkpoints[0].weights_digest", "manifest cycle-000002[0].weights_digest"} <= found
    assert tensor_bits(file, "cycle-000002") != tensor_bits(straight, "cycle-000002")


def make_run(directory: Path, precision: str, url: str = "", **sections: dict[str, Any]) -> Path:
    """`dreamd init` for the tiny model with dropout; all checkpoints stay exact, so that all can be compared."""
    build_tiny_model(directory / "model")
    config = directory / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "attention_dropout": 0.2}))
    # Low rank, projections refreshed after the kill, and a rate of its own for every cycle: all of it is resumed.
    optimizer = {"rank": 4, "refresh_every": 4}
    schedule = {"lr": 1e-4, "schedule": "cosine", "warmup_cycles": 2, "schedule_cycles": 6}
    training = {"precision": precision, **optimizer, **schedule}
    # Scrubs and rehearsals are due by the clock and by what a process has done so far: no part of what is resumed.
    kept = {"keep_last": 10, "keep_exact": 10, "scrub_mib": 0, "rehearse_every_days": 0}
    file = write_config(directory, url, training=training, checkpoints=kept, **sections)
    app.init_run(load(file), RecordingObserver(), small_model=False)
    return file


def assert_same_head(one: Path, other: Path) -> None:
    """The heads have the same name, and the same tensors bit for bit."""
    ((head,),) = query(one, "select head_version from runs")
    assert query(other, "select head_version from runs") == [(head,)]
    assert tensor_bits(one, head) == tensor_bits(other, head)


def tensor_bits(file: Path, version: str) -> Bits:
    """Every tensor of a checkpoint's weights and optimizer, as bytes."""
    directory = checkpoint_directory(file, version)
    tensors = {
        f"{name}:{key}": t for name in (WEIGHTS_FILE, OPTIMIZER_FILE) for key, t in load_file(directory / name).items()
    }
    return {name: (t.dtype, t.shape, t.reshape(-1).view(torch.uint8).numpy().tobytes()) for name, t in tensors.items()}


def checkpoint_directory(file: Path, version: str) -> Path:
    return load(file).config.run.state_dir / "checkpoints" / version


def changed(one: RunImage, other: RunImage) -> set[str]:
    """`differences` without the values: {"steps[0].loss", ...}."""
    return {line.partition(":")[0] for line in differences(one, other)}


def flip_lowest_bit(file: Path, version: str) -> None:
    """Change the first element of the first weight by one unit in its last place."""
    path = checkpoint_directory(file, version) / WEIGHTS_FILE
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    weights[min(weights)].view(-1).view(torch.uint8)[0] ^= 1
    save_file(weights, path, {"format": "pt"})


def forge_records(file: Path, version: str) -> None:
    """Make manifest and row fit the weights that are there now, so that no hash tells."""
    directory = checkpoint_directory(file, version)
    manifest = read_manifest(directory)
    forged = replace(
        manifest,
        blobs={**manifest.blobs, WEIGHTS_FILE: hash_file(directory / WEIGHTS_FILE)},
        weights_digest=tensors_digest(load_file(directory / WEIGHTS_FILE)),
        as_read=None,
    )
    (directory / FILE_NAME).write_text(forged.to_json(), encoding="utf-8")
    engine = open_database(load(file).config.run.url)
    with engine.begin() as connection:
        connection.execute(
            sa.update(checkpoints)
            .where(checkpoints.c.version == version)
            .values(weights_digest=forged.weights_digest, root_hash=forged.root_hash)
        )
    engine.dispose()


class StopInCycleFour(RecordingObserver):
    """Asks for a stop where cycle 4 was paired, once."""

    def committed(self, cycle: Cycle) -> None:
        if (cycle.number, cycle.state) == (4, CycleState.PAIRED):
            raise StopRequested


def _run_cycle_or_abandon(stages: Stages) -> Outcome:
    """A cycle of a process that goes on after a stop: such a process exists in this test alone."""
    try:
        return run_cycle(stages)
    except StopRequested:
        return Outcome.ABANDONED


def _without_restarts(image: RunImage, live: Sequence[int], repaired: Sequence[int] = ()) -> RunImage:
    """`image` without what restarts wrote beside the cycles.

    Args:
        live: for each restart, the cycle whose checkpoint was live after it; its engine check is that of the cycle,
            figure for figure, so the restarted trainer and engine computed with the same bits.
        repaired: the cycles that restarts finished.
    """
    checks, events = image.rows["engine_checks"], image.rows["events"]
    versions = [f"cycle-{number:06d}" for number in live]
    at_start = [row for row in checks if row["cycle"] is None and row["policy_version"] in versions]
    assert [row["policy_version"] for row in at_start] == versions
    assert all({**row, "cycle": number} in checks for row, number in zip(at_start, live, strict=True))
    repairs = [row for row in events if row["name"] == "cycle_recovered"]
    assert [row["cycle"] for row in repairs] == list(repaired)
    kept = {
        "engine_checks": [row for row in checks if row not in at_start],
        "events": [row for row in events if row not in repairs],
    }
    return replace(image, rows={**image.rows, **kept})


def _start_driver(seed: str) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    return subprocess.Popen(
        [sys.executable, str(here / "kill_driver.py"), seed],
        env={
            **os.environ,
            "PYTHONPATH": f"{here.parent}{os.pathsep}{here.parent.parent}",
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": seed,
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

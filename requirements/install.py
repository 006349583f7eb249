"""Make `.venv` with everything the README's commands need, on a machine without a GPU.

`make` runs it when the lock changed. It needs Python 3.11 or newer, pip and the package index, nothing else.
The GPU host's install is another one: `pip install "dreamd[vllm]"`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements" / "cpu.lock"
LOG = VENV / "install.log"


def main() -> None:
    """Create, install, check; every failure ends with what to do."""
    total = sum(1 for line in LOCK.read_text().splitlines() if line and not line.startswith("#"))
    say(f"installing {total} packages into .venv: about 2 minutes, 4.1 GB on disk; log: .venv/install.log")
    if not PYTHON.exists():
        create()
    LOG.write_text("")
    pip(total, "--no-deps", "-r", str(LOCK))
    say("installing dreamd itself, from this folder")
    pip(1, "--no-deps", "-e", str(ROOT))
    say("checking the installation (the first imports take about half a minute)")
    sys.exit(subprocess.run([str(PYTHON), str(ROOT / "requirements" / "check_install.py")], check=False).returncode)


def create() -> None:
    """A virtual environment with pip."""
    try:
        venv.create(VENV, with_pip=True, symlinks=True)
    except (subprocess.CalledProcessError, OSError) as error:
        stop(f"cannot create .venv: {error}; on Debian and Ubuntu install the package python3-venv, then try again")


def pip(total: int, *args: str) -> None:
    """`pip install`, all of its output in the log and one line of progress here."""
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", *args]
    done = 0
    with LOG.open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            found = re.match(
                r"(?:Collecting|Processing|Requirement already satisfied:) (?:\S*/)?([A-Za-z0-9._]+)", line
            )
            if found:
                done += 1
                progress(f"  {done}/{total} {found.group(1)}", every=done % 20 == 0 or done == total)
            elif line.startswith("Installing collected packages"):
                progress("  unpacking", every=True)
        if process.wait() != 0:
            tail = "\n".join(LOG.read_text().splitlines()[-15:])
            stop(f"pip failed; the end of .venv/install.log:\n{tail}")
    if sys.stdout.isatty():
        sys.stdout.write("\n")


def progress(text: str, *, every: bool) -> None:
    """One line that changes in place on a terminal; elsewhere, a line now and then."""
    if sys.stdout.isatty():
        sys.stdout.write(f"\r\x1b[K{text}")
    elif every:
        sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def say(text: str) -> None:
    sys.stdout.write(f"dreamd: {text}\n")
    sys.stdout.flush()


def stop(text: str) -> NoReturn:
    sys.exit(f"dreamd: {text}")


if __name__ == "__main__":
    main()

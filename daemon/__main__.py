"""`dreamd`, and `python -m daemon`: run the command and end with the exit code its error stands for."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

from daemon.cli.root import build
from daemon.domain.errors import DreamdError, StopRequested

_BUG = 70
_INTERRUPTED = 130


def main() -> None:
    """The console script."""
    try:
        build()(prog_name="dreamd")
    except DreamdError as error:
        sys.stderr.write(f"dreamd: error: {error}\n")
        sys.exit(error.exit_code)
    except StopRequested:
        sys.exit(0)
    except SystemExit as ending:
        if ending.code == _INTERRUPTED:
            _leave_now()
        raise
    except KeyboardInterrupt:
        _leave_now()
    except Exception:  # noqa: BLE001 - the last handler: whatever comes here was not foreseen
        traceback.print_exc()
        sys.stderr.write("dreamd: this is a bug in dreamd; please report it with the lines above\n")
        sys.exit(_BUG)


def _leave_now() -> NoReturn:
    """End without waiting for the worker thread: someone interrupted twice, and it may be deep in a stage."""
    sys.stderr.write("dreamd: interrupted\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()

"""What a command that works on a run has around it: logs, progress, signals, the notification socket."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from daemon.cli.output import make_console
from daemon.cli.progress import make_progress
from daemon.config import Loaded
from daemon.domain.errors import DreamdError
from daemon.service import logs
from daemon.service.notify import Notifier
from daemon.service.observer import CYCLE_FINISHED, NoProgress, ServiceObserver
from daemon.service.state_dir import prepare_state_dir
from daemon.service.stop import StopFlag

_DAEMON_FAILED = "daemon_failed"
_SHOWN_OTHERWISE = frozenset(
    {"stage_started", "stage_finished", "state_committed", "dreamed", CYCLE_FINISHED, _DAEMON_FAILED}
)
"""Events that people see as bars, summaries and the error message at the end."""


@dataclass(frozen=True)
class Session:
    """The outside of a working command."""

    observer: ServiceObserver
    stop: StopFlag
    notifier: Notifier


@contextmanager
def open_session(
    loaded: Loaded, *, pretty: bool, on_cycle_finished: Callable[[int], None] | None = None
) -> Iterator[Session]:
    """Try the state directory, set up logs, and handle SIGTERM and SIGINT until the end.

    Args:
        pretty: progress and log lines for people on stderr; otherwise JSON lines on stdout, and nothing else there.

    Raises:
        PermissionDeniedError: the state directory is not writable.
    """
    run, logging = loaded.config.run, loaded.config.logging
    prepare_state_dir(run.state_dir)
    _library_defaults()
    console = make_console(stderr=True)
    progress = make_progress(console) if pretty else None
    if pretty:
        output = logs.console_output(
            lambda line: console.out(line, highlight=False), hidden=_SHOWN_OTHERWISE, color=console.is_terminal
        )
    else:
        output = logs.json_output(logs.Descriptor(_private_stdout()))
    files = [logs.file_output(run.state_dir)] if logging.file else []
    logs.configure_logging(level=logging.level, run=run.name, outputs=[output, *files])
    stop = StopFlag()
    notifier = Notifier.from_environment(os.environ)
    observer = ServiceObserver(stop, notifier, progress or NoProgress(), on_cycle_finished=on_cycle_finished)
    try:
        with stop.handle_signals():
            yield Session(observer, stop, notifier)
    except DreamdError as error:
        structlog.get_logger("daemon").error(
            _DAEMON_FAILED, error=type(error).__name__, reason=str(error), exit_code=error.exit_code
        )
        raise
    except KeyboardInterrupt:
        # Said as an exit status here, because the command line library has its own idea of this exception.
        raise SystemExit(130) from None
    finally:
        if progress is not None:
            progress.close()


def _private_stdout() -> int:
    """A descriptor of stdout for the log alone; whatever libraries print to stdout goes to stderr from now on."""
    sys.stdout.flush()
    private = os.dup(1)
    os.dup2(2, 1)
    return private


def _library_defaults() -> None:
    """What libraries read from the environment when they are first imported; a value that is set already stays."""
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")  # its records then reach the root logger, as ours do
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers heeds it too: our bars are enough
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns when a process forks after using it
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a NUMA remark on every start of vLLM
    # Threads that spin while they wait collapse to a tenth of the speed when anything else uses the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

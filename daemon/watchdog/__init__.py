"""Evidence to verdict, as pure functions: hard gates and paired margins."""

from daemon.watchdog.judge import Watchdog

__all__ = ["Watchdog"]

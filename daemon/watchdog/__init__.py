"""Evidence to verdict, as pure functions: hard gates, paired margins, and pass rates confirmed on fresh prompts."""

from daemon.watchdog.judge import Watchdog

__all__ = ["Watchdog"]

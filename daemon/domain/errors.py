"""One error root; each leaf carries the exit code that the process ends with.

The codes follow sysexits.h so that a service manager can tell "start me again" (70, 74, 75) from
"a person must act first" (69, 77, 78); `deploy/dreamd.service` lists the latter in RestartPreventExitStatus.
"""

from __future__ import annotations


class DreamdError(Exception):
    """Anything dreamd raises on purpose: says what went wrong, where, and the fix."""

    exit_code = 70


class UsageError(DreamdError):
    """The command line names something that does not exist (a cycle, a checkpoint)."""

    exit_code = 2


class ConfigError(DreamdError):
    """The configuration cannot be used: unknown key, value out of bounds, unreadable file."""

    exit_code = 78


class PackError(DreamdError):
    """A scenario pack is malformed; the message names file and line."""

    exit_code = 78


class ModelError(DreamdError):
    """The base model folder is missing, truncated or of an unsupported kind."""

    exit_code = 78


class SchemaError(DreamdError):
    """The database's schema is newer or older than this program's."""

    exit_code = 78


class RestoredBackupError(DreamdError):
    """The claims journal knows what the database does not: an older backup of it was restored. Or it cannot be told."""

    exit_code = 78


class PermissionDeniedError(DreamdError):
    """A directory or file cannot be written or read by this user."""

    exit_code = 77


class DatabaseError(DreamdError):
    """The database cannot be reached or refused a transaction; nothing of it was committed."""

    exit_code = 75


class LockedError(DatabaseError):
    """Another daemon owns the run."""


class FencedError(DatabaseError):
    """Another daemon took the run over while this one was paused; it must write nothing more."""


class AlreadyClaimedError(DreamdError):
    """A scenario or example was claimed before, or is held out: it may not be trained (invariant I1)."""


class CheckpointError(DreamdError):
    """A checkpoint does not verify: a blob is missing, truncated or altered."""

    exit_code = 74


class DiskError(DreamdError):
    """Writing or reading a file failed (disk full, I/O error); the half-written file was removed."""

    exit_code = 74


class MirrorError(DreamdError):
    """The mirror cannot be reached, or does not hold what it was given; nothing local changed."""

    exit_code = 75


class NonFiniteError(DreamdError):
    """A loss, gradient or weight is NaN or infinite; the optimizer did not move."""


class StepMemoryError(DreamdError):
    """Memory ran out in a step, also with half the micro-batch; the optimizer did not move."""


class OffPolicyError(DreamdError):
    """A step was given examples that another policy version wrote (invariant I6)."""


class EngineError(DreamdError):
    """The generation engine failed or does not answer."""


class StaleEngineError(EngineError):
    """The engine does not hold the weights it should hold (invariant I6)."""


class RestoreError(DreamdError):
    """After a rollback the restored policy is not bit for bit the stored one."""


class BreakerOpenError(DreamdError):
    """After several rollbacks the daemon trains no more until a person, or the end of the back-off, says so."""

    exit_code = 69


class StopRequested(Exception):
    """Not a failure: someone asked the daemon to stop, and the current stage gave way."""

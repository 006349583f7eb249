"""The state directory: made and tried before anything heavy is loaded."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

from daemon.domain.errors import ConfigError, DiskError, PermissionDeniedError


def prepare_state_dir(path: Path) -> None:
    """Create `path` if needed and prove that this process can write into it.

    Raises:
        PermissionDeniedError: it cannot: owner, mode, or a read-only file system.
        ConfigError: something that is not a directory is in the way.
        DiskError: the disk is full or fails.
    """
    try:
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".writable-", dir=path) as probe:
            probe.write(b"dreamd")
            probe.flush()
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"{path}: run.state_dir, or part of its path, is a file; choose another directory") from None
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DiskError(f"{path}: cannot be written: {error.strerror}") from None
        raise PermissionDeniedError(
            f"{path}: this user cannot write here ({error.strerror}); give it the directory, "
            "or choose another with --state-dir or run.state_dir"
        ) from None

"""A second place for checkpoints, at any fsspec URL.

Layout: URL/VERSION/FILE, the same files as here. Each file is written under a temporary name, renamed, read back and
compared; the manifest comes last, so that a version without one is incomplete, and is gone on with the next time. A
file `lossy` there, as here, says that the exact state is not. Beside them lies the claims journal, `mirrored_journal`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from blake3 import blake3

from daemon.checkpoints.files import publish_directory, write_durably
from daemon.checkpoints.manifest import (
    FILE_NAME,
    IMAGE_PREFIX,
    Manifest,
    hash_file,
    read_manifest,
)
from daemon.checkpoints.mirrored_journal import claims_of, owner_of, push_journal, read_journal
from daemon.checkpoints.remote import CHUNK_BYTES, TEMPORARY_PREFIX, Link, Remote
from daemon.domain.errors import CheckpointError, DiskError, MirrorError
from daemon.domain.journal import LINE
from daemon.domain.records import Blob
from daemon.domain.retention import LOSSY_MARKER
from daemon.domain.states import CheckpointKind
from daemon.domain.upkeep import FetchedJournal

TIMEOUT_S = 60.0
_LOSSY_HERE = b"weights and optimizer as trained are not kept here; the image is\n"


class FsspecMirror:
    """Checkpoints at a URL; implements the `Mirror` port. Connects anew for each call."""

    def __init__(
        self,
        url: str,
        *,
        exact: bool = True,
        timeout_s: float = TIMEOUT_S,
        check: Callable[[], None] = lambda: None,
        known_hosts: Path | None = None,
    ) -> None:
        """Check the URL; nothing is connected yet.

        Args:
            exact: also keep the exact state of checkpoints that have it here.
            timeout_s: longest time without a byte moved.
            check: called often while waiting; what it raises (`StopRequested`) breaks the work off.
            known_hosts: of SSH; None: the user's own.

        Raises:
            ConfigError: the protocol is unknown, or its package is not installed.
        """
        self._remote = Remote(url, timeout_s=timeout_s, check=check, known_hosts=known_hosts)
        self._exact = exact

    @property
    def url(self) -> str:
        return self._remote.url

    def push(self, directory: Path, *, exact: bool = True, seconds: float | None = None) -> int | None:
        """Make the mirror hold what `directory` holds, or its image alone.

        Where the image alone is wanted, exact files that are there go away.

        Args:
            exact: with the exact state, if it is here and this mirror is for that.
            seconds: after so long no further file is begun, once one was sent: each call gets on.

        Returns:
            The bytes sent; None: the time was up, and the next call goes on.

        Raises:
            MirrorError: unreachable, not what was sent when read back, or another checkpoint of that name is there.
            CheckpointError: a file here is not what its manifest says; it was not sent.
        """
        manifest = read_manifest(directory)
        # Of a full one the exact weights are the image.
        has_exact = not (directory / LOSSY_MARKER).exists()
        exact = manifest.kind is CheckpointKind.FULL or (self._exact and exact and has_exact)
        until = math.inf if seconds is None else time.monotonic() + seconds
        return self._remote.run(
            f"sending {manifest.version}", lambda link: _push(link, directory, manifest, until, exact=exact)
        )

    def fetch(self, version: str, root_hash: str, directory: Path) -> None:
        """Copy a checkpoint into `directory`; one that is lossy there has the file `lossy` here.

        Raises:
            MirrorError: unreachable; it is not there, damaged, or another one than `root_hash` says.
            DiskError: it cannot be written here.
        """
        if directory.exists():
            raise MirrorError(f"{directory}: is there already; nothing was fetched")
        temporary = directory.with_name(f"{TEMPORARY_PREFIX}{os.urandom(6).hex()}-{directory.name}")
        try:
            self._remote.run(f"fetching {version}", lambda link: _fetch(link, version, root_hash, temporary, directory))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def versions(self) -> frozenset[str]:
        return self._remote.run(
            "listing",
            lambda link: frozenset(name for name in link.folders() if link.size(name, FILE_NAME) is not None),
        )

    def delete(self, version: str, root_hash: str) -> None:
        self._remote.run(f"deleting {version}", lambda link: _delete(link, version, root_hash))

    def push_journal(self, journal: Path, *, thorough: bool = False) -> int:
        what = "sending the claims journal"
        return self._remote.run(what, lambda link: push_journal(link, journal, thorough=thorough))

    def fetch_journal(self, journal: Path, run_name: str) -> FetchedJournal:
        found, owner = self._remote.run("fetching the claims journal", read_journal), f"run {run_name}\n".encode()
        try:
            here = journal.read_bytes() if journal.exists() else b""
        except OSError as error:
            raise DiskError(f"{journal}: could not be read ({error}); nothing changed: move it aside") from error
        for other in (found.owner, owner_of(here)):
            if other not in (None, owner):
                raise MirrorError(f"{self.url}: {journal} or the claims journal there is not run {run_name}'s")
        # What is here stays, in its place, for it may have gone on since; what is no claim is damage, and goes.
        claims = [line for line in here.splitlines(keepends=True) if LINE.fullmatch(line)]
        known = claims_of(here)
        missing = [line for line in found.lines if not claims_of(line) <= known]
        content = b"".join((owner, *claims, *missing))
        try:
            if content != here:
                journal.parent.mkdir(parents=True, exist_ok=True)
                write_durably(journal, content.decode("ascii"))
        except OSError as error:
            raise DiskError(f"{journal}: could not be written ({error}); nothing changed: free space") from error
        return FetchedJournal(len(missing), found.num_damaged)


def _push(link: Link, directory: Path, manifest: Manifest, until: float, *, exact: bool) -> int | None:
    version = manifest.version
    link.make(version)
    present = link.files(version)
    _refuse_another(link, manifest, present)
    for name in present:
        if name.startswith(TEMPORARY_PREFIX):  # of an earlier push that broke off
            link.remove(version, name)
    if not exact and LOSSY_MARKER not in present:  # first, so that what is missing there is not taken for damage
        link.write(version, LOSSY_MARKER, [_LOSSY_HERE])
    sent = 0
    for name, blob in _ordered(manifest, exact=exact):
        if sent and time.monotonic() > until:
            return None
        sent += _put(link, directory / name, version, blob, present.get(name))
    if exact and LOSSY_MARKER in present:
        link.remove(version, LOSSY_MARKER)
    sent += _put(link, directory / FILE_NAME, version, hash_file(directory / FILE_NAME), present.get(FILE_NAME))
    for name in manifest.blobs.keys() & present.keys():
        if not exact and not name.startswith(IMAGE_PREFIX):
            link.remove(version, name)
    return sent


def _put(link: Link, source: Path, version: str, blob: Blob, size_there: int | None) -> int:
    """Send a file unless it is there, and read it back; the bytes sent."""
    if size_there == blob.size and _hash(link.read(version, source.name)) == blob:
        return 0
    link.write(version, source.name, _sound(source, blob))
    found = _hash(link.read(version, source.name))
    if found != blob:
        link.remove(version, source.name)
        raise MirrorError(
            f"{link.url(version, source.name)}: the {found.size} bytes read back are not the {blob.size} that were "
            "sent; check the disk there. It was removed there, and is sent again later"
        )
    return blob.size


def _sound(source: Path, blob: Blob) -> Iterator[bytes]:
    """A file's content; raises before the last chunk unless it is what the manifest says."""
    hasher, size, previous = blake3(), 0, b""
    try:
        with source.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                hasher.update(chunk)
                size += len(chunk)
                if previous:
                    yield previous
                previous = chunk
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read ({error}); it was not mirrored") from error
    if Blob(hasher.hexdigest(), size) != blob:
        raise CheckpointError(f"{source}: {size} bytes that do not hash to the manifest's {blob.size}; not mirrored")
    if previous:
        yield previous


def _refuse_another(link: Link, manifest: Manifest, present: dict[str, int]) -> None:
    """Two runs that share a mirror would overwrite each other. A damaged manifest there is replaced."""
    if FILE_NAME not in present:
        return
    root_hash = _root_hash(link, manifest.version)
    if root_hash is not None and len(root_hash) == len(manifest.root_hash) and root_hash != manifest.root_hash:
        raise MirrorError(
            f"{link.url(manifest.version)}: another checkpoint of that name is there (root hash "
            f"{root_hash[:12]}, here {manifest.root_hash[:12]}); give each run a mirror_url of its own"
        )


def _root_hash(link: Link, version: str) -> str | None:
    """What the manifest there says; None when there is none that can be read."""
    with contextlib.suppress(ValueError, TypeError, KeyError, FileNotFoundError):
        return str(json.loads(b"".join(link.read(version, FILE_NAME)))["root_hash"])
    return None


def _fetch(link: Link, version: str, root_hash: str, temporary: Path, directory: Path) -> None:
    present = link.files(version)
    if FILE_NAME not in present:
        raise MirrorError(f"{link.url(version)}: it is not there, or not complete; nothing was fetched")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise DiskError(f"{temporary}: cannot be created ({error}); make room, or make it writable") from error
    _get(link, version, FILE_NAME, temporary)
    try:
        manifest = read_manifest(temporary)
    except CheckpointError as error:
        raise MirrorError(f"{link.url(version)}: its manifest is damaged there: {error}") from None
    if (manifest.version, manifest.root_hash) != (version, root_hash):
        raise MirrorError(
            f"{link.url(version)}: it is another checkpoint ({manifest.version}, root hash "
            f"{manifest.root_hash[:12]}) than the one asked for ({root_hash[:12]}); nothing was fetched"
        )
    lossy = LOSSY_MARKER in present and manifest.kind is not CheckpointKind.FULL
    for name, blob in _ordered(manifest, exact=not lossy):
        if name not in present:
            raise MirrorError(f"{link.url(version, name)}: missing there; nothing was fetched")
        if _get(link, version, name, temporary) != blob:
            raise MirrorError(f"{link.url(version, name)}: it is damaged there; nothing was fetched")
    if lossy:
        (temporary / LOSSY_MARKER).write_bytes(_LOSSY_HERE)
    link.moved()  # nobody waits any more: it must not appear behind their back
    try:
        publish_directory(temporary, directory)
    except OSError as error:
        raise DiskError(f"{directory}: cannot be written ({error}); make room") from error


def _get(link: Link, version: str, name: str, directory: Path) -> Blob:
    """Copy a file into `directory`, and hash what came."""
    file = directory / name
    hasher, size = blake3(), 0
    for chunk in link.read(version, name):
        hasher.update(chunk)
        size += len(chunk)
        try:
            with file.open("ab") as target:
                target.write(chunk)
        except OSError as error:
            raise DiskError(f"{file}: cannot be written ({error}); make room") from error
    file.touch()
    return Blob(hasher.hexdigest(), size)


def _delete(link: Link, version: str, root_hash: str) -> None:
    if _root_hash(link, version) != root_hash:  # another run's, or nobody knows whose
        return
    link.remove(version, FILE_NAME)  # first: from now on it is incomplete
    for name in link.files(version):
        link.remove(version, name)
    link.remove_folder(version)


def _ordered(manifest: Manifest, *, exact: bool) -> list[tuple[str, Blob]]:
    """(name, blob) of what to copy: the image first, because it is small and enough to go on from."""
    wanted = [name for name in manifest.blobs if exact or name.startswith(IMAGE_PREFIX)]
    return [(name, manifest.blobs[name]) for name in sorted(wanted, key=lambda n: (not n.startswith(IMAGE_PREFIX), n))]


def _hash(content: Iterator[bytes]) -> Blob:
    hasher, size = blake3(), 0
    for chunk in content:
        hasher.update(chunk)
        size += len(chunk)
    return Blob(hasher.hexdigest(), size)

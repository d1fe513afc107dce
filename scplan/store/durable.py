"""Files that scplan keeps: written whole or not at all, checksummed, versioned, readable by their owner alone.

Every record is lines of `CRC32 JSON`, so that a torn or damaged line is told from a good one. Source of the order of
steps: rename(2), fsync(2).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import zlib
from typing import Any

from scplan.errors import KernelError, RecordDamaged, ScplanError
from scplan.linux.processes.process import acts_for_user
from scplan.startup import strict_json

MAX_RECORD_BYTES = 64 << 20
"""A snapshot of 1000 containers of 10 resources has 8 MiB."""
_CHUNK_BYTES = 1 << 16
DIRECTORY_MODE = 0o700
FILE_MODE = 0o600


def default_state_dir() -> str:
    """/var/lib/scplan for root, $XDG_STATE_HOME/scplan for others, and for the root of their user namespaces."""
    if not acts_for_user():
        return "/var/lib/scplan"
    return os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "scplan")


def listed(directory: str) -> list[str]:
    """What is in a directory of records; nothing where there is none. Raises KernelError."""
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise KernelError.from_os(f"listdir({directory})", error) from None


def encode_line(document: object) -> bytes:
    """One line of a record."""
    text = json.dumps(document, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decode_line(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object of one line; raises RecordDamaged when the checksum does not fit."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        raise RecordDamaged(f"{where} is damaged: its checksum does not fit")
    try:
        document = strict_json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise RecordDamaged(f"{where} is damaged: not a JSON object")
    return document


def check_version(document: dict[str, Any], supported: str, where: str) -> None:
    """Raises RecordDamaged when the format is of another major version than `supported`."""
    version = str(document.get("format_version", ""))
    if version.partition(".")[0] != supported.partition(".")[0]:
        raise RecordDamaged(
            f"{where} has format version {version or 'none'}; this scplan reads {supported}",
            hint="use the version of scplan that wrote it, or a newer one",
        )


def make_directory(path: str) -> None:
    """The directory, and what is missing above it, for its owner alone (0700)."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path) or "."
    try:
        for directory in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, DIRECTORY_MODE)
    except OSError as error:
        raise KernelError.from_os(f"mkdir({path})", error, hint="--state-dir chooses another place") from None


def refuse_foreign_directory(path: str) -> None:
    """Raises ScplanError when somebody else could put records at `path`: they say what scplan may remove.

    A directory that is not there yet is made for its owner alone.
    """
    try:
        link, found = os.lstat(path), os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise KernelError.from_os(f"stat({path})", error) from None
    owners = {one.st_uid for one in (link, found)} - {0, os.geteuid()}
    if owners:
        raise ScplanError(
            f"{path} belongs to somebody else (uid {min(owners)})",
            detail="whoever owns the state directory decides what scplan removes and undoes",
            hint="chown it, or choose another one by --state-dir",
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ScplanError(
            f"{path} can be written by others (mode {stat.S_IMODE(found.st_mode):04o})",
            detail="whoever writes there decides what scplan removes and undoes",
            hint=f"look at what is in it; then: chmod go-w {path}",
        )


def refuse_writable_by_all(path: str) -> None:
    """Raises ScplanError for a file that everybody can change between its review and its use."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise KernelError.from_os(f"stat({path})", error) from None
    if mode & stat.S_IWOTH:
        raise ScplanError(
            f"{path} can be written by everybody (mode {stat.S_IMODE(mode):04o})",
            detail="what was reviewed may not be what it holds now",
            hint=f"review it again (`scplan show {path}`) after: chmod o-w {path}",
        )


def read_bytes(path: str) -> bytes | None:
    """The whole file; None when it is not there. Raises RecordDamaged when it is too large to be a record."""
    try:
        # Not blocking: a FIFO of that name would hang the reader.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KernelError.from_os(f"open({path})", error) from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise RecordDamaged(f"{path} is not a regular file")
        if found.st_size > MAX_RECORD_BYTES:
            raise RecordDamaged(f"{path} is too large to be a record of scplan ({found.st_size} bytes)")
        return _read(fd, found.st_size)
    except OSError as error:
        raise KernelError.from_os(f"read({path})", error) from None
    finally:
        os.close(fd)


def _read(fd: int, size: int) -> bytes:
    """What the file holds, which was `size` bytes long, unless it grew meanwhile."""
    chunks = [os.read(fd, size + 1)]
    if len(chunks[0]) == size:
        return chunks[0]
    while chunks[-1] and sum(map(len, chunks)) <= MAX_RECORD_BYTES:
        chunks.append(os.read(fd, _CHUNK_BYTES))
    return b"".join(chunks)


class Prepared:
    """A new version of a file, on disk beside it: `commit` only renames, which a full disk can't stop.

    With `content` None the file will be removed. With `keep_previous` the version before it
    stays as `path` + ".previous". Whoever writes the same path at the same time must be kept away by a lock: the new
    version has one name, so that what a crash left of it is overwritten by the next one.
    """

    def __init__(self, path: str, content: bytes | None, *, keep_previous: bool = False) -> None:
        self.path = path
        self._keeps_previous = keep_previous
        self._temporary = f"{path}.tmp"
        self._has_content = content is not None
        if content is None:
            return
        make_directory(os.path.dirname(path))
        try:
            _write_new(self._temporary, content, FILE_MODE)
        except OSError as error:
            self.discard()
            raise KernelError.from_os(f"write({path})", error) from None

    def commit(self) -> None:
        """Puts the new version in place for good. Raises KernelError; the old one is then as it was."""
        try:
            if not self._has_content:
                _rename_if_there(self.path, f"{self.path}.previous")
            else:
                self._keep_previous()
                os.rename(self._temporary, self.path)
            if os.path.isdir(os.path.dirname(self.path)):
                sync_directory(os.path.dirname(self.path))
        except OSError as error:
            raise KernelError.from_os(f"rename({self.path})", error) from None

    def discard(self) -> None:
        """Takes the new version away; harmless after a commit."""
        if self._has_content and os.path.exists(self._temporary):
            os.unlink(self._temporary)

    def _keep_previous(self) -> None:
        if self._keeps_previous and os.path.exists(self.path):
            link = f"{self._temporary}.previous"
            _unlink_if_there(link)
            os.link(self.path, link)
            os.rename(link, f"{self.path}.previous")
            # It stays where both are the same file already: rename(2).
            _unlink_if_there(link)


def _unlink_if_there(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def sweep(path: str) -> None:
    """Takes away what a crash left of a new version of the file. Its writers' lock must be held."""
    try:
        _unlink_if_there(f"{path}.tmp")
        _unlink_if_there(f"{path}.tmp.previous")
    except OSError as error:
        raise KernelError.from_os(f"unlink({path}.tmp)", error) from None


def _rename_if_there(old: str, new: str) -> None:
    if os.path.exists(old):
        os.rename(old, new)


def write_document(path: str, content: bytes, *, mode: int = FILE_MODE) -> None:
    """Puts `content` at a path that the user named, whole or not at all; readers see the old content or the new one.

    Raises KernelError when it can't be written, or when what is there is not a regular file: a device would be
    replaced, and a symlink may have been planted by whoever can write in the directory.
    """
    path = os.path.abspath(path)
    if not os.path.isdir(os.path.dirname(path)):
        raise KernelError(f"open({path})", errno.ENOENT, hint="make its directory first, or choose another one")
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        what = "it is a symlink" if os.path.islink(path) else "it is there, and not a regular file"
        raise KernelError(f"open({path})", errno.EEXIST, detail=what, hint="name a file that may be replaced")
    # No lock keeps others away: each writer's new version has a name of its own.
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        _sweep_dead_writers(path)
        try:
            _write_new(temporary, content, mode)
            os.rename(temporary, path)
        finally:
            _unlink_if_there(temporary)
        sync_directory(os.path.dirname(path))
    except OSError as error:
        raise KernelError.from_os(f"write({path})", error) from None


def _sweep_dead_writers(path: str) -> None:
    """Takes away what a crash left of new versions."""
    directory, name = os.path.split(path)
    try:
        entries = os.listdir(directory)
    except PermissionError:  # it may be written to, and not be listed
        return
    for entry in entries:
        pid = entry.removeprefix(f"{name}.").removesuffix(".tmp")
        if entry == f"{name}.{pid}.tmp" and pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
            _unlink_if_there(os.path.join(directory, entry))


def sync_directory(path: str) -> None:
    """Makes renames and removals in a directory last."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_new(path: str, content: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, mode)
    except FileExistsError:
        # Of a process that had this PID before; or planted: then it must not be written to, whoever it belongs to.
        os.unlink(path)
        fd = os.open(path, flags, mode)
    try:
        os.fchmod(fd, mode)
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)

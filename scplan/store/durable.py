"""Files that scplan keeps: replaced atomically, checksummed, versioned, readable by their owner alone.

Every record consists of lines `CRC32 JSON`; the checksum shows a line that was torn or damaged. A file is written under
a temporary name, fsynced, renamed, and its directory fsynced, since fsync of a file does not write its directory entry.
Source: rename(2), fsync(2).
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
    """/var/lib/scplan for root; $XDG_STATE_HOME/scplan for other users, also as root of their own user namespace."""
    if not acts_for_user():
        return "/var/lib/scplan"
    # The default is that of the XDG Base Directory Specification.
    return os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "scplan")


def listed(directory: str) -> list[str]:
    """Names in a directory; empty if the directory does not exist. Raises KernelError."""
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise KernelError.from_os(f"listdir({directory})", error) from None


def encode_line(document: object) -> bytes:
    """The line `CRC32 JSON` of a document, with its newline. The CRC32 has 8 hex digits."""
    text = json.dumps(document, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decode_line(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object in a line `CRC32 JSON`. Raises RecordDamaged if the checksum does not match."""
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
    """Raise RecordDamaged if the document's format has another major version than `supported`."""
    version = str(document.get("format_version", ""))
    if version.partition(".")[0] != supported.partition(".")[0]:
        raise RecordDamaged(
            f"{where} has format version {version or 'none'}; this scplan reads {supported}",
            hint="use the version of scplan that wrote it, or a newer one",
        )


def make_directory(path: str) -> None:
    """Make the directory and its missing parents, for their owner alone (0700). Raises KernelError."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path) or "."
    try:
        for directory in reversed(missing):
            # Another scplan may make the same directory at the same time.
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, DIRECTORY_MODE)
    except OSError as error:
        raise KernelError.from_os(f"mkdir({path})", error, hint="--state-dir chooses another place") from None


def refuse_foreign_directory(path: str) -> None:
    """Raise ScplanError if another user owns `path` or may write to it: its records decide what scplan removes.

    A directory that does not exist is accepted: scplan makes it for its owner alone.
    """
    try:
        # Both: the owner of a symlink can point it to another directory.
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
    """Raise ScplanError for a world-writable file: anybody could change it between its review and its use."""
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
    """Content of a file; None if it does not exist.

    Raises RecordDamaged if it is not a regular file or has more than MAX_RECORD_BYTES, KernelError if it can't be read.
    """
    try:
        # O_NONBLOCK: opening a FIFO otherwise waits for a writer. fifo(7).
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KernelError.from_os(f"open({path})", error) from None
    try:
        # Of the fd, not of the path, which another process may have replaced since.
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
    """Content of an opened file whose size was `size` bytes; more if the file grew meanwhile."""
    # One byte more than the size: a full read shows that the file grew, without a second system call.
    chunks = [os.read(fd, size + 1)]
    if len(chunks[0]) == size:
        return chunks[0]
    while chunks[-1] and sum(map(len, chunks)) <= MAX_RECORD_BYTES:
        chunks.append(os.read(fd, _CHUNK_BYTES))
    return b"".join(chunks)


class Prepared:
    """A new version of a file, written beside it. `commit` only renames, which works on a full disk, too.

    With `keep_previous` the old version stays as `path` + ".previous". With `content` None `commit` removes the file,
    which also stays under that name. The caller holds a lock against other writers of the same path: the temporary file
    always has the same name, so that the next writer overwrites the one that a crash left.
    """

    def __init__(self, path: str, content: bytes | None, *, keep_previous: bool = False) -> None:
        self.path = path
        self._keeps_previous = keep_previous
        # In the same directory, since rename(2) works within one file system.
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
        """Put the new version in place, durably. Raises KernelError; the old version is then unchanged."""
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
        """Remove the temporary file; does nothing after a commit."""
        if self._has_content and os.path.exists(self._temporary):
            os.unlink(self._temporary)

    def _keep_previous(self) -> None:
        if self._keeps_previous and os.path.exists(self.path):
            # A hard link, not a rename: `path` must exist at every moment, also if a crash ends this.
            link = f"{self._temporary}.previous"
            _unlink_if_there(link)
            os.link(self.path, link)
            os.rename(link, f"{self.path}.previous")
            # rename(2) does nothing if both names are links to the same file already; the first name then stays.
            _unlink_if_there(link)


def _unlink_if_there(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def sweep(path: str) -> None:
    """Remove the temporary files that a crash left beside `path`. The caller holds the lock of its writers."""
    try:
        _unlink_if_there(f"{path}.tmp")
        _unlink_if_there(f"{path}.tmp.previous")
    except OSError as error:
        raise KernelError.from_os(f"unlink({path}.tmp)", error) from None


def _rename_if_there(old: str, new: str) -> None:
    if os.path.exists(old):
        os.rename(old, new)


def write_document(path: str, content: bytes, *, mode: int = FILE_MODE) -> None:
    """Write `content` to a path that the user named, atomically: readers see the old content or the new one.

    Raises KernelError if it can't be written, or if `path` exists and is not a regular file: the rename would replace a
    device, and a symlink may have been planted by somebody who can write in the directory.
    """
    path = os.path.abspath(path)
    if not os.path.isdir(os.path.dirname(path)):
        raise KernelError(f"open({path})", errno.ENOENT, hint="make its directory first, or choose another one")
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        what = "it is a symlink" if os.path.islink(path) else "it is there, and not a regular file"
        raise KernelError(f"open({path})", errno.EEXIST, detail=what, hint="name a file that may be replaced")
    # No lock excludes other writers here, so the temporary name holds the PID.
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
    """Remove the temporary files of writers whose process does not exist any more."""
    directory, name = os.path.split(path)
    try:
        entries = os.listdir(directory)
    except PermissionError:  # a directory with w and x, but without r: files can be made in it, and not be listed
        return
    for entry in entries:
        pid = entry.removeprefix(f"{name}.").removesuffix(".tmp")
        # If another process has the PID now, the file stays until that process has ended.
        if entry == f"{name}.{pid}.tmp" and pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
            _unlink_if_there(os.path.join(directory, entry))


def sync_directory(path: str) -> None:
    """Write a directory's entries to disk, so that renames and removals survive a crash of the host. fsync(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_new(path: str, content: bytes, mode: int) -> None:
    # O_EXCL: open(2) then follows no symlink in the last component and opens no file that somebody has planted.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, mode)
    except FileExistsError:
        # Left by a process that had the same PID, or planted by another user: it is not written to in either case.
        os.unlink(path)
        fd = os.open(path, flags, mode)
    try:
        # The umask has cleared bits of the mode that open() was given. umask(2).
        os.fchmod(fd, mode)
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)

"""Files that scplan keeps: written whole or not at all, checksummed, versioned, readable by their owner alone.

Every record is lines of `CRC32 JSON`, so that a torn or damaged line is told from a good one. Source of the order of
steps: rename(2), fsync(2).
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from typing import Any

from scplan.errors import KernelError, RecordDamaged

MAX_RECORD_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 16
DIRECTORY_MODE = 0o700
FILE_MODE = 0o600


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
        document = json.loads(text)
    except (ValueError, RecursionError):
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
        size = os.fstat(fd).st_size
        if size > MAX_RECORD_BYTES:
            raise RecordDamaged(f"{path} is too large to be a record of scplan ({size} bytes)")
        return _read(fd, size)
    except OSError as error:
        raise KernelError.from_os(f"read({path})", error) from None
    finally:
        os.close(fd)


def _read(fd: int, size: int) -> bytes:
    """What the file holds, which was `size` bytes long: one read more than that, unless it grew meanwhile."""
    chunks = [os.read(fd, size + 1)]
    while chunks[-1] and sum(map(len, chunks)) <= MAX_RECORD_BYTES:
        chunks.append(os.read(fd, _CHUNK_BYTES))
    return b"".join(chunks)


class Prepared:
    """A new version of a file, on disk beside it: `commit` only renames, which a full disk can't stop.

    With `content` None the file will be removed. With `keep_previous` the version before it
    stays as `path` + ".previous".
    """

    def __init__(self, path: str, content: bytes | None, *, keep_previous: bool = False) -> None:
        self.path = path
        self._keeps_previous = keep_previous
        self._temporary = f"{path}.{os.getpid()}.tmp"
        self._has_content = content is not None
        if content is None:
            return
        make_directory(os.path.dirname(path))
        try:
            _write_new(self._temporary, content)
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
            os.link(self.path, link)
            os.rename(link, f"{self.path}.previous")


def _rename_if_there(old: str, new: str) -> None:
    if os.path.exists(old):
        os.rename(old, new)


def replace_file(path: str, content: bytes) -> None:
    """Puts `content` at `path` for good: temporary file, fsync, rename, fsync of the directory."""
    prepared = Prepared(path, content)
    try:
        prepared.commit()
    finally:
        prepared.discard()


def sync_directory(path: str) -> None:
    """Makes renames and removals in a directory last."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_new(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)

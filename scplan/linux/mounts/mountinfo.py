"""Mounts as listed by the kernel. Source: /proc/PID/mountinfo, proc_pid_mountinfo(5)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from scplan.startup.named_tuple import NamedTuple

# A read ends before a line that would not fit into its 4 KiB. Lines without paths are short: below 1 KiB, none is left.
_SURELY_WHOLE = 1024
_FEW_POINTS = 8
REMOVED = "//deleted"
"""Suffix of the root of a mount whose file or directory was removed."""
_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """A line of mountinfo. `point` is where the process sees the mount; `root` the directory of the file system in it.

    `options` are those of the mount, not of its file system: "ro,nosuid,relatime".
    """

    id: int
    parent: int
    device: str
    root: str
    point: str
    read_only: bool
    shared: int
    master: int
    filesystem: str
    source: str
    options: str = ""
    unbindable: bool = False
    filesystem_read_only: bool = False

    @property
    def propagation(self) -> str:
        """private, slave or shared; shared if the mount is both."""
        if self.shared:
            return "shared"
        return "slave" if self.master else "private"

    @property
    def receives(self) -> bool:
        """True if mounts made elsewhere can appear below this mount."""
        return bool(self.shared or self.master)


def is_removed(mount: Mount) -> bool:
    """True if the mounted file or directory has since been removed."""
    return mount.root.endswith(REMOVED)


def read_all(fd: int, *, has_paths: bool = True) -> bytes:
    """Whole content of a file of /proc or a cgroup, from the start; the kernel returns about 4 KiB per read.

    Without paths a file has no long lines: a short first answer is the whole file, which spares a read.
    """
    chunk = os.pread(fd, 1 << 16, 0)
    if len(chunk) < _SURELY_WHOLE and not has_paths:
        return chunk
    chunks = []
    offset = 0
    while chunk:
        chunks.append(chunk)
        offset += len(chunk)
        chunk = os.pread(fd, 1 << 16, offset)
    return b"".join(chunks)


def parse_mountinfo(text: bytes, only: frozenset[bytes] | None = None, *, below: bool = False) -> list[Mount]:
    """Mounts in kernel order: parents first, and of stacked mounts the lowest first.

    `only` limits the list to these mount points, written as the kernel escapes them; `below` adds the mounts below
    them. Lines in other than the documented form are ignored.
    """
    mounts = []
    for line in text.split(b"\n") if only is None else _lines_with(text, only, below=below):
        fields = line.split(b" ")
        if only is not None and (len(fields) < 5 or not _is_among(fields[4], only, below=below)):
            continue
        mount = _parse_line(fields)
        if mount is not None:
            mounts.append(mount)
    return mounts


def _is_among(point: bytes, points: frozenset[bytes], *, below: bool) -> bool:
    if point in points or not below:
        return point in points
    while (point := point.rpartition(b"/")[0]) and point not in points:
        pass
    return bool(point)


def _lines_with(text: bytes, points: frozenset[bytes], *, below: bool) -> Iterable[bytes]:
    """Lines that may contain these mount points, in order: searching for a few is faster than splitting all lines."""
    if len(points) > _FEW_POINTS:
        return text.split(b"\n")
    lines: dict[int, bytes] = {}
    sought = [b" %b%b" % (point, end) for point in points for end in ((b" ", b"/") if below else (b" ",))]
    for words in sought:
        found = text.find(words)
        while found >= 0:
            begin, end = text.rfind(b"\n", 0, found) + 1, text.find(b"\n", found)
            lines[begin] = text[begin : end if end >= 0 else len(text)]
            found = text.find(words, begin + len(lines[begin]))
    return [lines[begin] for begin in sorted(lines)]


def escape(path: str) -> bytes:
    """Path as mountinfo writes it: space, tab, newline and backslash in octal."""
    raw = os.fsencode(path)
    if not any(byte in raw for byte in b" \t\n\\"):
        return raw
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in raw)


def _parse_line(fields: list[bytes]) -> Mount | None:
    try:
        # Optional fields, such as shared:N and master:N, end with a hyphen. proc_pid_mountinfo(5)
        separator = fields.index(b"-", 6)
        shared = master = 0
        for tag in fields[6:separator]:
            if tag.startswith(b"shared:"):
                shared = int(tag[7:])
            elif tag.startswith(b"master:"):
                master = int(tag[7:])
        return Mount(
            int(fields[0]),
            int(fields[1]),
            fields[2].decode(),
            unescape(fields[3]),
            unescape(fields[4]),
            b"ro" in fields[5].split(b","),
            shared,
            master,
            os.fsdecode(fields[separator + 1]),
            unescape(fields[separator + 2]),
            fields[5].decode(),
            b"unbindable" in fields[6:separator],
            b"ro" in fields[-1].split(b","),
        )
    except (ValueError, IndexError, UnicodeDecodeError):
        return None


def unescape(text: bytes | str) -> str:
    """Path from its form in mountinfo."""
    field = os.fsencode(text)
    if b"\\" in field:
        field = _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)
    return os.fsdecode(field)

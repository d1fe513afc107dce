"""Events of directories, as they happen: entries that appear, go or are written. inotify(7)."""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import struct

from scplan.errors import KernelError
from scplan.linux.closing import Closing
from scplan.startup.named_tuple import NamedTuple

# struct inotify_event without its name: wd, mask, cookie, length of the name.
_EVENT = struct.Struct("@iIII")
_BUFFER_BYTES = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)


class Mask(enum.IntFlag):
    """IN_* of inotify(7)."""

    CLOSE_WRITE = 0x8
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATE = 0x100
    DELETE = 0x200
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800
    Q_OVERFLOW = 0x4000  # events were lost
    IGNORED = 0x8000  # the kernel has removed the watch
    ONLYDIR = 0x1000000  # watch the path only if it is a directory


ENTRIES = Mask.CLOSE_WRITE | Mask.MOVED_FROM | Mask.MOVED_TO | Mask.CREATE | Mask.DELETE
"""All that can happen to the entries of a directory, except that their attributes change."""


class Happened(NamedTuple):
    """One event. `name` is "" if it is about the directory itself; `watch` is -1 if events were lost."""

    watch: int
    mask: Mask
    name: str


class Inotify(Closing):
    """An inotify instance; `fd` is readable while events are waiting."""

    def __init__(self) -> None:
        self.fd: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self.fd < 0:
            raise KernelError(
                "inotify_init1()", ctypes.get_errno(), hint="fs.inotify.max_user_instances is how many a user may have"
            )

    def close(self) -> None:
        os.close(self.fd)

    def add(self, directory: str, mask: Mask) -> int:
        """Watch a directory; return the watch's number, which is the same for a directory that is watched already.

        Raises OSError, because callers distinguish ENOENT, ENOTDIR and ENOSPC (fs.inotify.max_user_watches).
        """
        number: int = _libc.inotify_add_watch(self.fd, os.fsencode(directory), int(mask | Mask.ONLYDIR))
        if number < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), directory)
        return number

    def remove(self, watch: int) -> None:
        """End a watch. Does nothing if the kernel has ended it, because its directory has gone."""
        # EINVAL: no such watch. The kernel removes the watch of a deleted directory (IN_IGNORED).
        if _libc.inotify_rm_watch(self.fd, watch) < 0 and ctypes.get_errno() != errno.EINVAL:
            raise KernelError(f"inotify_rm_watch({watch})", ctypes.get_errno())

    def read(self) -> list[Happened]:
        """Events since the last call, at most 64 KiB of them; the fd stays readable while there are more."""
        try:
            data = os.read(self.fd, _BUFFER_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise KernelError.from_os("read(inotify)", error) from None
        found = []
        start = 0
        while start < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, start)
            start += _EVENT.size
            # The kernel pads the name with NUL bytes.
            name = data[start : start + length].rstrip(b"\0")
            found.append(Happened(watch, Mask(mask), os.fsdecode(name)))
            start += length
        return found

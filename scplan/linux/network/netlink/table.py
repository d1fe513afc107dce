"""Links of a namespace by index and by name, read and parsed only as far as they are asked for."""

from __future__ import annotations

import fcntl
import marshal
import os
from collections.abc import Iterator, Mapping
from typing import TypeVar

from scplan.linux.closing import Closing
from scplan.linux.network.netlink.records import Link
from scplan.linux.network.netlink.rtnl import Rtnl

T = TypeVar("T")
# So many links are read one by one; after that, one dump reads all.
_ALONE = 32
_MAX_NAME_BYTES = 15
_LENGTH_BYTES = 8


class SharedDump(Closing):
    """One dump of the links for all processes that are forked from its maker.

    The first process that needs the dump makes it, and all others wait: the kernel makes one dump at a time anyway, and
    takes as long for each.
    """

    def __init__(self) -> None:
        # A file in memory, which forked processes inherit. memfd_create(2)
        self._fd = os.memfd_create("links", os.MFD_CLOEXEC)

    def close(self) -> None:
        os.close(self._fd)

    def messages(self, rtnl: Rtnl) -> dict[int, bytes]:
        """Messages as of Rtnl.link_messages, at the time of the first call."""
        # A lock of the process (fcntl(2)): a flock(2) lock is shared by all processes that inherit the fd.
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            length = int.from_bytes(os.pread(self._fd, _LENGTH_BYTES, 0), "little")
            if length:
                known: dict[int, bytes] = marshal.loads(os.pread(self._fd, length, _LENGTH_BYTES))
                return known
            messages = rtnl.link_messages()
            data = marshal.dumps(messages)
            # The length is written last: a process that dies before leaves no dump.
            if os.pwrite(self._fd, data, _LENGTH_BYTES) == len(data):
                os.pwrite(self._fd, len(data).to_bytes(_LENGTH_BYTES, "little"), 0)
            return messages
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)


class LinkTable(Mapping[int, Link]):
    """Links by index, as they were when first asked for. A few look-ups after a change don't read a thousand links.

    Of a dump, only links that are asked for are parsed: most links of a host belong to other containers.
    """

    def __init__(self, rtnl: Rtnl, dump: SharedDump | None = None) -> None:
        """`dump` provides links that are not read one by one."""
        self._rtnl = rtnl
        self._dump = dump
        self._known: dict[int | str, Link | None] = {}
        self._messages: dict[int, bytes] | None = None
        self.by_name = LinkNames(self)

    def __getitem__(self, index: int) -> Link:
        return self.known(index)

    def get(self, index: int, default: T | None = None) -> Link | T | None:  # type: ignore[override]
        # Mapping.get() would raise and catch an exception for each missing link.
        link = self._known[index] if index in self._known else self._read(index)
        return default if link is None else link

    def __iter__(self) -> Iterator[int]:
        return iter(self._dumped())

    def __len__(self) -> int:
        return len(self._dumped())

    def known(self, which: int | str) -> Link:
        """A link by index or name; raises KeyError."""
        link = self._known[which] if which in self._known else self._read(which)
        if link is None:
            raise KeyError(which)
        return link

    def _read(self, which: int | str) -> Link | None:
        link = self._known[which] = self._look_up(which)
        return link

    def _look_up(self, which: int | str) -> Link | None:
        if not _is_possible(which):
            return None
        if self._messages is None and len(self._known) < _ALONE:
            return self._rtnl.link(which)
        if isinstance(which, str):
            self._known.update((link.name, link) for link in self.values())
            # The kernel also looks up alternative names, which this module parses from no dump.
            return self._known.get(which) or self._rtnl.link(which)
        message = self._dumped().get(which)
        return None if message is None else self._rtnl.parsed_link(message)

    def _dumped(self) -> dict[int, bytes]:
        if self._messages is None:
            self._messages = self._dump.messages(self._rtnl) if self._dump else self._rtnl.link_messages()
        return self._messages


class LinkNames(Mapping[str, Link]):
    """Links by name, but not by alternative names, which the kernel looks up too."""

    def __init__(self, table: LinkTable) -> None:
        self._table = table

    def __getitem__(self, name: str) -> Link:
        link = self._table.known(name)
        if link.name != name:
            raise KeyError(name)
        return link

    def __iter__(self) -> Iterator[str]:
        return (link.name for link in self._table.values())

    def __len__(self) -> int:
        return len(self._table)


def _is_possible(which: int | str) -> bool:
    """True if a link can have the index or name; for an impossible one the kernel gives all kinds of errors."""
    if isinstance(which, int):
        return which > 0
    raw = which.encode(errors="replace")
    return 0 < len(raw) <= _MAX_NAME_BYTES and raw.decode() == which

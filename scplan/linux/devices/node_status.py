"""Mode, owner, times, ACL and extended attributes of a file, read and set through its fd. Source: xattr(7), acl(5).

Every call may wait for the file system: for steps only, which have a time limit.
"""

from __future__ import annotations

import errno
import os
import stat

from scplan.errors import KernelError
from scplan.startup.named_tuple import NamedTuple

_NO_ATTRIBUTES = (errno.ENOTSUP, errno.ENOSYS)
_XATTR = "xattr:"


class NodeStatus(NamedTuple):
    """Status of a file. Ids are the host's, times in ns since the epoch; `attributes` are (name, value), sorted."""

    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    attributes: tuple[tuple[str, bytes], ...] = ()

    def encoded(self) -> str:
        """The status as one line of text, for journals and records."""
        words = [
            f"mode={self.mode:04o}",
            f"uid={self.uid}",
            f"gid={self.gid}",
            f"atime={self.atime_ns}",
            f"mtime={self.mtime_ns}",
            *(f"{_XATTR}{name.encode().hex()}={value.hex()}" for name, value in self.attributes),
        ]
        return " ".join(words)

    @classmethod
    def decoded(cls, text: str) -> NodeStatus:
        """Status from a line of `encoded`. Raises ValueError and KeyError for other texts."""
        words = dict(word.split("=", 1) for word in text.split(" "))
        attributes = tuple(
            (bytes.fromhex(name.removeprefix(_XATTR)).decode(), bytes.fromhex(value))
            for name, value in words.items()
            if name.startswith(_XATTR)
        )
        return cls(
            int(words["mode"], 8),
            int(words["uid"]),
            int(words["gid"]),
            int(words["atime"]),
            int(words["mtime"]),
            attributes,
        )


def read_status(fd: int) -> NodeStatus:
    """Status of an opened file; an O_PATH fd is enough."""
    found = os.stat(fd)
    return NodeStatus(
        stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_atime_ns, found.st_mtime_ns, _attributes(fd)
    )


def set_status(fd: int, wanted: NodeStatus, *, times: bool, name: str) -> None:
    """Set the status of a file, and with `times` its times; only differences are written.

    Raises KernelError that names the file `name`.
    """
    # fchmod(2) and fsetxattr(2) refuse an O_PATH fd; its link in /proc/self/fd works. open(2), O_PATH
    path = f"/proc/self/fd/{fd}"
    now = read_status(fd)
    try:
        if (now.uid, now.gid) != (wanted.uid, wanted.gid):
            os.chown(path, wanted.uid, wanted.gid)
        # After chown(), which clears set-user-ID bits; before the ACL, whose mask chmod() changes. acl(5)
        if stat.S_IMODE(os.stat(fd).st_mode) != wanted.mode:
            os.chmod(path, wanted.mode)
        if (there := dict(_attributes(fd))) != dict(wanted.attributes):
            for attribute in there.keys() - dict(wanted.attributes).keys():
                os.removexattr(path, attribute)
            for attribute, value in wanted.attributes:
                if there.get(attribute) != value:
                    os.setxattr(path, attribute, value)
        if times and (now.atime_ns, now.mtime_ns) != (wanted.atime_ns, wanted.mtime_ns):
            os.utime(path, ns=(wanted.atime_ns, wanted.mtime_ns))
    except OSError as error:
        raise KernelError.from_os(f"chmod, chown, setxattr({name})", error) from None


def _attributes(fd: int) -> tuple[tuple[str, bytes], ...]:
    path = f"/proc/self/fd/{fd}"
    try:
        return tuple((name, os.getxattr(path, name)) for name in sorted(os.listxattr(path)))
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES:
            return ()
        raise

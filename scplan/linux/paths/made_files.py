"""Owner, mode and extended attributes (with ACLs) of files and directories, as text. xattr(7), acl(5)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

from scplan.linux.mounts.mountinfo import escape, unescape

_UNSUPPORTED = (errno.ENOTSUP, errno.ENODATA)


def attributes_of(fd: int, path: str) -> str:
    """Attributes of an O_PATH fd as text: `0755 0:0 /path user.x=hex …`; `path` serves to find the file again.

    Only for a process with the host's /proc: without a readable fd, a file is reached through /proc/self/fd. Raises
    OSError.
    """
    found = os.fstat(fd)
    owner = f"{stat.S_IMODE(found.st_mode):04o} {found.st_uid}:{found.st_gid} {os.fsdecode(escape(path))}"
    return " ".join((owner, *(f"{name}={value.hex()}" for name, value in _extended(fd))))


def _extended(fd: int) -> list[tuple[str, bytes]]:
    place = f"/proc/self/fd/{fd}"
    try:
        # A name with a space can't be represented; no attribute in use has such a name.
        return [(name, os.getxattr(place, name)) for name in sorted(os.listxattr(place)) if " " not in name]
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return []
        raise


def path_of(text: str) -> str:
    """Path in a text of `attributes_of`."""
    return unescape(text.split(" ")[2])


def restore_attributes(fd: int, text: str) -> None:
    """Restore the attributes of an opened file or directory from a text of `attributes_of`. Raises OSError."""
    mode, owner, _, *extended = text.split(" ")
    uid, _, gid = owner.partition(":")
    place = f"/proc/self/fd/{fd}"
    # chown() first: it clears set-user-ID bits. chown(2)
    os.chown(place, int(uid), int(gid))
    os.chmod(place, int(mode, 8))
    for name, _, value in (word.partition("=") for word in extended):
        try:
            os.setxattr(place, name, bytes.fromhex(value))
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise


def text_about(texts: Iterable[str], path: str) -> str | None:
    """Text for a path among texts of `attributes_of`; None if there is none."""
    return next((text for text in texts if path_of(text) == path), None)

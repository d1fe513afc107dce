"""Network namespaces kept after their last process, each by a bind mount. Source: namespaces(7), ip-netns(8).

Without its namespace, a physical NIC would move to the machine's initial network namespace under the name that it had
in the container, and could be found only there.
"""

from __future__ import annotations

import errno
import os

from scplan.errors import KernelError
from scplan.linux.paths.rooted_path import opened
from scplan.linux.processes.process import PINS
from scplan.linux.syscalls import MNT_DETACH, UMOUNT_NOFOLLOW, move_mount, open_tree, umount2


def pin_path(netns_fd: int, name: str) -> str:
    """Path at which the namespace is kept for one NIC. While it is kept, its inode number is not reused."""
    return f"{PINS}/{os.fstat(netns_fd).st_ino}.{name}"


def pin(netns_fd: int, path: str) -> None:
    """Keep the namespace at `path`; does nothing if it is kept there already."""
    kept = open_pin(path)
    if kept is not None:
        os.close(kept)
        return
    try:
        os.makedirs(PINS, mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        # A bind mount of the file in /proc/PID/ns keeps the namespace. namespaces(7)
        with (
            opened(open_tree(f"/proc/self/fd/{netns_fd}", recursive=False)) as tree,
            opened(os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)) as place,
        ):
            move_mount(tree, place, name=path)
    except OSError as error:
        raise KernelError.from_os(f"open({path})", error, hint="the directory must be writable and stay") from None


def open_pin(path: str) -> int | None:
    """fd of the namespace that is kept at `path`; None if there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise KernelError.from_os(f"open({path})", error) from None
    if os.path.basename(path).partition(".")[0] == str(os.fstat(fd).st_ino) and os.path.ismount(path):
        return fd
    os.close(fd)
    return None


def unpin(path: str) -> None:
    """Release the namespace, which ends with its last process. Does nothing if it is not kept."""
    try:
        umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW)
    except OSError as error:
        # EINVAL: not a mount point. ENOENT, ENOTDIR: no such file.
        if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            raise KernelError.from_os(f"umount2({path})", error) from None
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise KernelError.from_os(f"unlink({path})", error) from None

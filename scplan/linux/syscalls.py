"""System calls that Python does not offer, under their own names and argument order.

Every refusal is a KernelError that names the call, its object, the decoded flags and the errno. Numbers from 424 on are
the same on all architectures (syscalls(2)).
"""

from __future__ import annotations

import ctypes
import enum
import os
import struct
from typing import NoReturn

from scplan.errors import KernelError

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
CLONE_NEWNS = 0x20000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
RENAME_NOREPLACE = 1
MS_REC = 1 << 14
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20

_FD_CLOEXEC = 1
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_STATX_MNT_ID = 0x1000
_STATX_ATTR_MOUNT_ROOT = 0x2000
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_FSOPEN = 430
_NR_FSCONFIG = 431
_NR_FSMOUNT = 432
_NR_OPENAT2 = 437
_NR_MOUNT_SETATTR = 442

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


class Resolve(enum.IntFlag):
    """How openat2(2) resolves a path."""

    NO_XDEV = 0x01
    NO_MAGICLINKS = 0x02
    NO_SYMLINKS = 0x04
    BENEATH = 0x08
    IN_ROOT = 0x10


class MountAttr(enum.IntFlag):
    """MOUNT_ATTR_* of mount_setattr(2)."""

    RDONLY = 0x1
    NOSUID = 0x2
    NODEV = 0x4
    NOEXEC = 0x8
    IDMAP = 0x100000


_PROPAGATION = {MS_PRIVATE: "MS_PRIVATE", MS_SLAVE: "MS_SLAVE", MS_SHARED: "MS_SHARED"}
_OPEN_HOW = struct.Struct("QQQ")
_MOUNT_ATTR = struct.Struct("QQQQ")


def system_call(number: int, *arguments: object) -> int:
    """The bare call, for probing; errno is in ctypes.get_errno()."""
    result: int = _syscall(number, *arguments)
    return result


def _raise(operation: str, *, detail: str = "", hint: str = "") -> NoReturn:
    raise KernelError(operation, ctypes.get_errno(), detail=detail, hint=hint)


def openat2(dir_fd: int, path: str, flags: int, *, resolve: int, mode: int = 0) -> int:
    """Opens `path` below `dir_fd`; O_CLOEXEC is added. openat2(2), Linux 5.6.

    Raises OSError as os.open does, since callers tell ENOENT, ELOOP and EAGAIN apart.
    """
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    fd: int = _syscall(_NR_OPENAT2, dir_fd, os.fsencode(path), how, len(how))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return fd


def open_tree(path: str, *, recursive: bool) -> int:
    """A detached clone of the mount tree at `path`. open_tree(2), Linux 5.2."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    fd: int = _syscall(_NR_OPEN_TREE, AT_FDCWD, os.fsencode(path), flags)
    if fd < 0:
        _raise(f"open_tree({path}, OPEN_TREE_CLONE{'|AT_RECURSIVE' if recursive else ''})")
    return fd


def open_tree_fd(dir_fd: int, *, recursive: bool, name: str) -> int:
    """A detached clone of the mount tree at an opened path; `name` says in errors what it is."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    fd: int = _syscall(_NR_OPEN_TREE, dir_fd, b"", flags)
    if fd < 0:
        _raise(f"open_tree({name}, OPEN_TREE_CLONE{'|AT_RECURSIVE' if recursive else ''})")
    return fd


def move_mount(from_fd: int, to_fd: int, *, name: str) -> None:
    """Attaches a detached tree at an opened path of this mount namespace. move_mount(2), Linux 5.2."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    if _syscall(_NR_MOVE_MOUNT, from_fd, b"", to_fd, b"", flags) < 0:
        _raise(f"move_mount(to {name})")


def new_mount(filesystem: str, source: str, attributes: MountAttr) -> int:
    """A new file system, mounted nowhere; `source` is its name in mountinfo. fsopen(2), fsmount(2), Linux 5.2."""
    what = f"{filesystem} {source}"
    context: int = _syscall(_NR_FSOPEN, os.fsencode(filesystem), _FD_CLOEXEC)
    if context < 0:
        _raise(f"fsopen({what})")
    try:
        steps = ((_FSCONFIG_SET_STRING, b"source", os.fsencode(source)), (_FSCONFIG_CMD_CREATE, None, None))
        for command, key, value in steps:
            if _syscall(_NR_FSCONFIG, context, command, key, value, 0) < 0:
                _raise(f"fsconfig({what})")
        fd: int = _syscall(_NR_FSMOUNT, context, _FD_CLOEXEC, int(attributes))
        if fd < 0:
            _raise(f"fsmount({what})")
        return fd
    finally:
        os.close(context)


def mount_setattr(
    fd: int, *, set_flags: int = 0, clear_flags: int = 0, propagation: int = 0, recursive: bool, name: str
) -> None:
    """Changes the attributes of an opened mount. mount_setattr(2), Linux 5.12."""
    attr = _MOUNT_ATTR.pack(set_flags, clear_flags, propagation, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    if _syscall(_NR_MOUNT_SETATTR, fd, b"", flags, attr, len(attr)) < 0:
        words = [
            f"set {MountAttr(set_flags)!r}" if set_flags else "",
            f"clear {MountAttr(clear_flags)!r}" if clear_flags else "",
        ]
        words.append(_PROPAGATION.get(propagation, ""))
        hint = ""
        if ctypes.get_errno() == 1:
            hint = "the mount may be locked by the user namespace that it was made for"
        _raise(f"mount_setattr({', '.join([name, *(word for word in words if word)])})", hint=hint)


def setns(fd: int, kind: int, *, name: str) -> None:
    """Moves this thread into the namespace of `fd` (a namespace fd or a pidfd). setns(2)."""
    if _libc.setns(fd, kind) < 0:
        _raise(f"setns({name})")


def unshare(flags: int, *, name: str) -> None:
    """unshare(2)."""
    if _libc.unshare(flags) < 0:
        _raise(f"unshare({name})")


def umount2(path: str, flags: int) -> None:
    """Unmounts the top mount at `path`, relative to the current directory. umount2(2).

    Raises OSError, since callers tell EBUSY and EINVAL (not a mount point) apart.
    """
    if _libc.umount2(os.fsencode(path), flags) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)


def make_rprivate(path: str) -> None:
    """Cuts propagation of everything below `path`. mount(2) with MS_REC|MS_PRIVATE."""
    if _libc.mount(None, os.fsencode(path), None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None) < 0:
        _raise(f"mount({path}, MS_REC|MS_PRIVATE)")


def mount_of(fd: int) -> tuple[int, bool]:
    """(id of the mount that an opened path is on, whether the path is that mount's root). statx(2), Linux 5.8.

    Works in every mount namespace, unlike /proc/self/fdinfo, which may be the container's /proc.
    """
    buffer = ctypes.create_string_buffer(256)
    if _libc.statx(fd, b"", AT_EMPTY_PATH, _STATX_MNT_ID, buffer) < 0:
        _raise("statx(STATX_MNT_ID)")
    (attributes,) = struct.unpack_from("Q", buffer, 8)
    (mount_id,) = struct.unpack_from("Q", buffer, 144)
    return mount_id, bool(attributes & _STATX_ATTR_MOUNT_ROOT)


def renameat2(dir_fd: int, old: str, new: str) -> None:
    """Renames within an opened directory and never replaces. renameat2(2) with RENAME_NOREPLACE.

    Raises OSError, since callers tell ENOENT, EEXIST and EBUSY apart.
    """
    if _libc.renameat2(dir_fd, os.fsencode(old), dir_fd, os.fsencode(new), RENAME_NOREPLACE) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), old, None, new)

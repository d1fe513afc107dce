"""System calls that Python does not offer, under their own names and argument order.

A call that fails raises KernelError with the call, its object, the decoded flags and the errno. Numbers from 424 on are
the same on all architectures (syscalls(2)).
"""

from __future__ import annotations

import ctypes
import enum
import errno
import fcntl
import os
import struct
from typing import NoReturn

from scplan.errors import KernelError
from scplan.startup.named_tuple import NamedTuple

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_STATX_DONT_SYNC = 0x4000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
MNT_DETACH = 2  # lazily: out of sight now, released after the last use
UMOUNT_NOFOLLOW = 8  # not the target of a symlink
RENAME_NOREPLACE = 1
MS_REC = 1 << 14
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20

_FD_CLOEXEC = 1
_MAX_FD = 2**32 - 1
_PR_SET_PDEATHSIG = 1
_SIGKILL = 9
_NS_GET_USERNS = 0xB701  # _IO(0xb7, 0x1) of linux/nsfs.h
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_STATX_BASIC_STATS = 0x7FF
_STATX_MNT_ID = 0x1000
_STATX_ATTR_MOUNT_ROOT = 0x2000
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_FSOPEN = 430
_NR_FSCONFIG = 431
_NR_FSMOUNT = 432
_NR_CLOSE_RANGE = 436
_NR_OPENAT2 = 437
_NR_MOUNT_SETATTR = 442

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long  # ctypes expects an int otherwise


class Resolve(enum.IntFlag):
    """RESOLVE_* of openat2(2)."""

    NO_XDEV = 0x01  # not into other mounts
    NO_MAGICLINKS = 0x02  # not over /proc/PID/fd/N, /proc/PID/root …
    NO_SYMLINKS = 0x04
    BENEATH = 0x08  # not out of the directory: EXDEV
    IN_ROOT = 0x10  # with the directory as root, as after chroot(2)
    CACHED = 0x20  # from the dentry cache alone, else EAGAIN


class MountAttr(enum.IntFlag):
    """MOUNT_ATTR_* of mount_setattr(2)."""

    RDONLY = 0x1
    NOSUID = 0x2
    NODEV = 0x4
    NOEXEC = 0x8
    NOATIME = 0x10
    STRICTATIME = 0x20
    ATIME = 0x70  # mask of the atime modes
    NODIRATIME = 0x80
    IDMAP = 0x100000
    NOSYMFOLLOW = 0x200000


_PROPAGATION = {MS_PRIVATE: "MS_PRIVATE", MS_SLAVE: "MS_SLAVE", MS_SHARED: "MS_SHARED"}
# struct open_how: flags, mode, resolve. openat2(2)
_OPEN_HOW = struct.Struct("QQQ")
# Of struct statx: stx_attributes; uid, gid, mode, ino, size; rdev, dev, mnt_id. statx(2)
_STATX = struct.Struct("@8xQ4xIIHxxQQ80xIIIIQ")
_STATX_BYTES = 256
_StatxBuffer = ctypes.c_char * _STATX_BYTES
# struct mount_attr: attr_set, attr_clr, propagation, userns_fd. mount_setattr(2)
_MOUNT_ATTR = struct.Struct("QQQQ")


def system_call(number: int, *arguments: object) -> int:
    """Result of the bare call, for probes; errno is in ctypes.get_errno()."""
    result: int = _syscall(number, *arguments)
    return result


def _raise(operation: str, *, detail: str = "", hint: str = "") -> NoReturn:
    raise KernelError(operation, ctypes.get_errno(), detail=detail, hint=hint)


def openat2(dir_fd: int, path: str, flags: int, *, resolve: int, mode: int = 0) -> int:
    """Open `path` below `dir_fd`; O_CLOEXEC is added. openat2(2), Linux 5.6.

    Raises OSError as os.open does, because callers distinguish ENOENT, ELOOP and EAGAIN.
    """
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    fd: int = _syscall(_NR_OPENAT2, dir_fd, os.fsencode(path), how, len(how))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return fd


def open_tree(path: str, *, recursive: bool) -> int:
    """Detached clone of the mount tree at `path`. open_tree(2), Linux 5.2."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    fd: int = _syscall(_NR_OPEN_TREE, AT_FDCWD, os.fsencode(path), flags)
    if fd < 0:
        _raise(f"open_tree({path}, OPEN_TREE_CLONE{'|AT_RECURSIVE' if recursive else ''})")
    return fd


def open_tree_fd(dir_fd: int, *, recursive: bool, name: str) -> int:
    """Detached clone of the mount tree at an opened path; `name` names the tree in errors."""
    # AT_EMPTY_PATH with an empty path: the fd itself.
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    fd: int = _syscall(_NR_OPEN_TREE, dir_fd, b"", flags)
    if fd < 0:
        _raise(f"open_tree({name}, OPEN_TREE_CLONE{'|AT_RECURSIVE' if recursive else ''})")
    return fd


def move_mount(from_fd: int, to_fd: int, *, name: str) -> None:
    """Attach a detached tree at an opened path of this mount namespace. move_mount(2), Linux 5.2."""
    # Both paths are empty: the tree and the target are the fds themselves.
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    if _syscall(_NR_MOVE_MOUNT, from_fd, b"", to_fd, b"", flags) < 0:
        _raise(f"move_mount(to {name})")


def new_mount(filesystem: str, source: str, attributes: MountAttr) -> int:
    """New file system, mounted nowhere; `source` is its name in mountinfo. fsopen(2), fsmount(2), Linux 5.2."""
    what = f"{filesystem} {source}"
    context: int = _syscall(_NR_FSOPEN, os.fsencode(filesystem), _FD_CLOEXEC)
    if context < 0:
        _raise(f"fsopen({what})")
    try:
        # FSCONFIG_CMD_CREATE makes the file system, fsmount() a mount of it.
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
    """Change the attributes of an opened mount. mount_setattr(2), Linux 5.12."""
    attr = _MOUNT_ATTR.pack(set_flags, clear_flags, propagation, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    if _syscall(_NR_MOUNT_SETATTR, fd, b"", flags, attr, len(attr)) < 0:
        words = [
            f"set {MountAttr(set_flags)!r}" if set_flags else "",
            f"clear {MountAttr(clear_flags)!r}" if clear_flags else "",
        ]
        words.append(_PROPAGATION.get(propagation, ""))
        hint = ""
        # EPERM: flags that a more privileged mount namespace has set are locked. mount_namespaces(7), "Restrictions"
        if ctypes.get_errno() == 1:
            hint = "the mount may be locked by the user namespace that it was made for"
        _raise(f"mount_setattr({', '.join([name, *(word for word in words if word)])})", hint=hint)


def setns(fd: int, kind: int, *, name: str) -> None:
    """Move this thread into the namespace of `fd` (a namespace fd or a pidfd). setns(2)."""
    if _libc.setns(fd, kind) < 0:
        _raise(f"setns({name})")


def unshare(flags: int, *, name: str) -> None:
    """Move this process into new namespaces: `flags` are CLONE_NEW*. unshare(2)."""
    if _libc.unshare(flags) < 0:
        _raise(f"unshare({name})")


def close_range(first: int, last: int = _MAX_FD) -> None:
    """Close all fds from `first` to `last`, both included. close_range(2), Linux 5.9."""
    if _syscall(_NR_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(last), 0) < 0:
        _raise(f"close_range({first}, {last})")


def die_with_parent(parent: int) -> None:
    """Make the kernel kill this process when its parent ends, by whatever cause. PR_SET_PDEATHSIG of prctl(2)."""
    if _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(_SIGKILL), 0, 0, 0) < 0:
        _raise("prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)  # the parent had ended before the call


def owner_of_namespace(fd: int, *, name: str) -> int:
    """fd of the user namespace that owns a namespace. NS_GET_USERNS of ioctl_ns(2), Linux 4.9."""
    try:
        return fcntl.ioctl(fd, _NS_GET_USERNS)
    except OSError as error:
        raise KernelError.from_os(f"ioctl({name}, NS_GET_USERNS)", error) from None


def is_owned_below(fd: int) -> bool:
    """True if this process's user namespace, or one below it, owns a namespace: else NS_GET_USERNS gives EPERM."""
    try:
        os.close(owner_of_namespace(fd, name="a namespace"))
    except KernelError as error:
        if error.errno != errno.EPERM:
            raise
        return False
    return True


def umount2(path: str, flags: int) -> None:
    """Unmount the top mount at `path`, relative to the current directory. umount2(2).

    Raises OSError, because callers distinguish EBUSY and EINVAL (not a mount point).
    """
    if _libc.umount2(os.fsencode(path), flags) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)


def make_rprivate(path: str) -> None:
    """Make all mounts at and below `path` private, so that nothing propagates. mount(2) with MS_REC|MS_PRIVATE."""
    if _libc.mount(None, os.fsencode(path), None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None) < 0:
        _raise(f"mount({path}, MS_REC|MS_PRIVATE)")


class FileStatus(NamedTuple):
    """Result of statx(2) for an opened file: fields of os.stat_result, and the mount through which it was opened."""

    st_mode: int
    st_uid: int
    st_gid: int
    st_ino: int
    st_dev: int
    st_rdev: int
    st_size: int
    mount_id: int
    is_mount_root: bool


def statx(fd: int) -> FileStatus:
    """Status of an opened file from the kernel's cache: no file system is asked, so that none can make scplan wait.

    Works in every mount namespace, unlike /proc/self/fdinfo: /proc may be the container's. statx(2), Linux 5.8.
    """
    buffer = _StatxBuffer()
    # AT_STATX_DONT_SYNC: attributes as cached, without a request to a remote or FUSE server.
    if _libc.statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, _STATX_BASIC_STATS | _STATX_MNT_ID, buffer) < 0:
        _raise("statx(AT_EMPTY_PATH|AT_STATX_DONT_SYNC)")
    attributes, uid, gid, mode, ino, size, rmajor, rminor, major, minor, mount_id = _STATX.unpack_from(buffer)
    device, number = os.makedev(major, minor), os.makedev(rmajor, rminor)
    is_mount_root = bool(attributes & _STATX_ATTR_MOUNT_ROOT)
    return FileStatus(mode, uid, gid, ino, device, number, size, mount_id, is_mount_root)


def renameat2(dir_fd: int, old: str, new: str) -> None:
    """Rename within an opened directory, without ever replacing a file. renameat2(2) with RENAME_NOREPLACE.

    Raises OSError, because callers distinguish ENOENT, EEXIST and EBUSY.
    """
    if _libc.renameat2(dir_fd, os.fsencode(old), dir_fd, os.fsencode(new), RENAME_NOREPLACE) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), old, None, new)

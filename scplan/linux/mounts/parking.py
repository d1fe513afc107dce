"""Clones of live mounts, parked on the host until the apply that unmounts the originals has ended.

Each apply has its own directory, named after its state directory and its ID, so that the clones can be found after a
crash. A private tmpfs is mounted on the directory: no mount below it propagates, and none outlives a boot.
Sources: open_tree(2), move_mount(2), mount_namespaces(7).
"""

from __future__ import annotations

import errno
import os
import stat

from scplan.errors import KernelError
from scplan.linux.host import file_identity
from scplan.linux.mounts.mountinfo import Mount
from scplan.linux.paths.made_files import attributes_of, restore_attributes
from scplan.linux.paths.rooted_path import opened
from scplan.linux.processes.process import run_directory
from scplan.linux.syscalls import (
    MNT_DETACH,
    MS_PRIVATE,
    UMOUNT_NOFOLLOW,
    MountAttr,
    mount_setattr,
    move_mount,
    new_mount,
    open_tree_fd,
    statx,
    umount2,
)

_SOURCE = "scplan"
_MAX_COPY_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_FOLLOW_NOTHING = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def _directory() -> str:
    return f"{run_directory()}/parked"


def place_of(state_dir: str, apply_id: str, name: str) -> str:
    """Path of an apply's clone with this name."""
    return f"{_directory()}/{_prefix(state_dir)}{apply_id}/{name}"


def _prefix(state_dir: str) -> str:
    """Prefix by st_dev:st_ino, because several paths can lead to a state directory."""
    return f"{file_identity(os.stat(state_dir))}."


def park(tree: int, place: str, flags: int) -> None:
    """Attach a detached tree at `place`, unless a clone is there already. Raises KernelError.

    A removed file or directory can't be attached anywhere (d_set_mounted() of fs/dcache.c refuses it): a copy of it is
    parked instead, with the `flags` of its mount.
    """
    directory, name = os.path.split(place)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with opened(_own_mount(directory)) as top:
            found = os.fstat(tree)
            _make_place(top, name, is_directory=stat.S_ISDIR(found.st_mode))
            with opened(os.open(name, _FOLLOW_NOTHING, dir_fd=top)) as fd:
                if statx(fd).is_mount_root:
                    return
                try:
                    move_mount(tree, fd, name=place)
                except KernelError as error:
                    if error.errno != errno.ENOENT:
                        raise
                    _park_copy(tree, fd, place, flags)
    except OSError as error:
        raise KernelError.from_os(f"open({place})", error, hint=f"{_directory()} must be writable") from None


def _park_copy(tree: int, place_fd: int, place: str, flags: int) -> None:
    _copy(tree, place_fd, place)
    with opened(open_tree_fd(place_fd, recursive=False, name=place)) as copy:
        mount_setattr(copy, set_flags=flags, clear_flags=int(MountAttr.ATIME), recursive=False, name=place)
        move_mount(copy, place_fd, name=place)


def _copy(tree: int, place_fd: int, place: str) -> None:
    """Copy content, owner, mode and extended attributes of a removed file; of a directory, all but the content.

    A removed directory is empty. Raises KernelError EFBIG for a file that is too large to be kept in memory.
    """
    found = os.fstat(tree)
    if stat.S_ISREG(found.st_mode):
        if found.st_size > _MAX_COPY_BYTES:
            raise KernelError(
                f"copy to {place}",
                errno.EFBIG,
                detail=f"the file that is mounted was removed on the host, and has {found.st_size} bytes",
                hint="no undo could bring it back: unmount it by hand first",
            )
        with open(f"/proc/self/fd/{tree}", "rb") as content, open(f"/proc/self/fd/{place_fd}", "wb") as copy:
            while chunk := content.read(_CHUNK_BYTES):
                copy.write(chunk)
    restore_attributes(place_fd, attributes_of(tree, "/"))
    os.utime(f"/proc/self/fd/{place_fd}", ns=(found.st_atime_ns, found.st_mtime_ns))


def is_copy(mount: Mount, name: str) -> bool:
    """True if a mount shows the copy of a removed file that is parked under this name."""
    return (mount.filesystem, mount.source, mount.root) == ("tmpfs", _SOURCE, f"/{name}")


def _own_mount(directory: str) -> int:
    """fd of the root of the directory's private tmpfs, which is mounted if missing."""
    fd = os.open(directory, _FOLLOW_NOTHING | os.O_DIRECTORY)
    if not statx(fd).is_mount_root:
        with opened(fd):
            attributes = MountAttr.NOSUID | MountAttr.NODEV | MountAttr.NOEXEC
            scratch = new_mount("tmpfs", _SOURCE, attributes)
            os.chmod(f"/proc/self/fd/{scratch}", 0o700)
            move_mount(scratch, fd, name=directory)
        fd = scratch
    # Below a shared /run the tmpfs becomes shared, and may have stayed so after a crash.
    mount_setattr(fd, propagation=MS_PRIVATE, recursive=False, name=directory)
    return fd


def _make_place(top: int, name: str, *, is_directory: bool) -> None:
    try:
        if is_directory:
            os.mkdir(name, 0o700, dir_fd=top)
        else:
            os.mknod(name, stat.S_IFREG | 0o600, dir_fd=top)
    except FileExistsError:
        return


def open_parked(place: str) -> int | None:
    """O_PATH fd of the root of the clone at `place`; None if there is none."""
    if not place.startswith(f"{_directory()}/"):
        return None
    try:
        fd = os.open(place, _FOLLOW_NOTHING)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise KernelError.from_os(f"open({place})", error) from None
    if statx(fd).is_mount_root:
        return fd
    os.close(fd)
    return None


def is_parked(place: str | None) -> bool:
    """True if a clone is parked at `place`."""
    fd = open_parked(place) if place else None
    if fd is None:
        return False
    os.close(fd)
    return True


def release(state_dir: str, apply_id: str) -> None:
    """Unmount all clones that an apply has parked. Does nothing if there are none."""
    directory = os.path.dirname(place_of(state_dir, apply_id, ""))
    try:
        fd = os.open(directory, _FOLLOW_NOTHING | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    except OSError as error:
        raise KernelError.from_os(f"open({directory})", error) from None
    with opened(fd):
        is_mounted = statx(fd).is_mount_root
        if is_mounted:
            # A clone is in the peer groups of its original: unmounting must not propagate to these.
            mount_setattr(fd, propagation=MS_PRIVATE, recursive=True, name=directory)
    try:
        if is_mounted:
            # MNT_DETACH takes the clones below along. umount2(2)
            umount2(directory, MNT_DETACH | UMOUNT_NOFOLLOW)
        os.rmdir(directory)
    except OSError as error:
        # Another scplan released the clones at the same moment.
        if error.errno not in (errno.ENOENT, errno.EINVAL):
            raise KernelError.from_os(f"umount2({directory})", error) from None


def kept_by(state_dir: str) -> list[str]:
    """IDs of the applies of a state directory that have parked clones, or may have."""
    try:
        prefix = _prefix(state_dir)
        return [name.removeprefix(prefix) for name in os.listdir(_directory()) if name.startswith(prefix)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise KernelError.from_os(f"listdir({_directory()})", error) from None

"""The node of a device in a container: made there, or for a user namespace made outside and bind-mounted.

Kernel: mknod(2), which fails with EPERM in a user namespace; linux/devices/loose_node.py for the node made outside.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from functools import partial

from scplan.errors import KernelError, ScplanError
from scplan.kinds.device.record import NODE_TYPES, Device
from scplan.kinds.paths import merged_paths
from scplan.linux.container import Container
from scplan.linux.devices.loose_node import is_loose_node, make_loose_node
from scplan.linux.devices.node_status import NodeStatus, read_status, set_status
from scplan.linux.host import device_numbers, file_identity
from scplan.linux.paths.rooted_path import (
    make_directory,
    missing_directories,
    open_in_root,
    opened,
    parent_of,
    remove_made,
)
from scplan.linux.syscalls import FileStatus, renameat2, statx

_FILE_TYPES = {
    stat.S_IFBLK: "block",
    stat.S_IFCHR: "char",
    stat.S_IFDIR: "directory",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "symlink",
}
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
SAVED_PREFIX = ".scplan-saved-"
"""Of the names under which files are kept whose place a node has taken."""
LEGACY_SAVED_NAME = ".{}.scplan-saved"
"""The name that earlier versions gave such a file; their records say so."""


def file_type(mode: int) -> str:
    """block, char, directory, file, symlink or other."""
    return _FILE_TYPES.get(stat.S_IFMT(mode), "other")


def nodes_below_dev(container: Container) -> list[str]:
    """Paths of device nodes in the container's /dev, up to three directories deep; terminals (pts) are left out."""
    what = f"read /dev of container {container.name}"
    return container.bounded(_list_nodes, what=what)


def _list_nodes(container: Container) -> list[str]:
    return list(_nodes_below(container.root_fd, "/dev", 3))


def _nodes_below(root_fd: int, directory: str, depth: int) -> Iterable[str]:
    """Paths of the device nodes below a directory, up to `depth` directories deep, without terminals."""
    try:
        fd = open_in_root(root_fd, directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno in _ABSENT:
            return
        raise KernelError.from_os(f"openat2({directory})", error) from None
    with opened(fd):
        for name in sorted(os.listdir(fd)):
            there = _stat_at(fd, name)
            kind = file_type(there.st_mode) if there is not None else ""
            if kind in NODE_TYPES:
                yield f"{directory}/{name}"
            # pts has the nodes of open terminals. pts(4)
            elif kind == "directory" and depth and name != "pts":
                yield from _nodes_below(root_fd, f"{directory}/{name}", depth - 1)


def with_former(container: Container, device: Device) -> Device:
    """`device` with the file that its node will replace, and the paths that will be made for it."""
    there = container.status(device.target)
    taken = is_in_the_way(container, there, device)
    made = _missing(container, device) if there is None or taken else ()
    if not _is_saved(container, device):
        # A random name, so that nobody in the container can have put a file there.
        saved = f"{SAVED_PREFIX}{os.urandom(8).hex()}" if taken else None
        identity = file_identity(there) if taken and there is not None else None
        device = device.replace(saved_as=saved, saved_identity=identity)
    # Paths that were made for the node before, and still exist, stay scplan's to remove.
    return device.replace(made=merged_paths(device.made, made))


def _missing(container: Container, device: Device) -> tuple[str, ...]:
    """Paths to make for an absent node: directories, and in a user namespace the file that it is mounted on."""
    directories = missing_directories(container.status, device.target)
    return (*directories, device.target) if container.has_user_namespace else directories


def is_in_the_way(container: Container, there: FileStatus | None, device: Device) -> bool:
    """True if another file is at the target.

    In a user namespace an empty file is not in the way: the node is mounted on it.
    """
    if there is None or _is_node(there, device):
        return False
    return not (container.has_user_namespace and stat.S_ISREG(there.st_mode) and there.st_size == 0)


# making


def type_in_place(container: Container, device: Device) -> str:
    """Type of the file that others have put in the node's place; "" if there is none."""
    there = container.status(device.target)
    return "" if there is None or _is_node(there, device) else file_type(there.st_mode)


def is_taken(container: Container, device: Device) -> bool:
    """True if an undo finds a file of others in the node's place, which it leaves there.

    A file that the node had replaced is restored when the node is removed, and is not a file of others.
    """
    could_be = device.taken_by is not None and (device.taken_by != "" or device.saved_as is None)
    return could_be and is_in_the_way(container, container.status(device.target), device)


def make_node(container: Container, device: Device) -> None:
    """Make the node, with its owner and mode; a node that exists only gets these."""
    there = container.status(device.target)
    if there is not None and _is_node(there, device):
        _own_node(container, device)
        _restore(container, device, times=False)
        return
    if there is not None and is_in_the_way(container, there, device):
        _move_aside(container, device, there)
    # Also paths that vanished since the capture: an undo must not fail because of a directory.
    device = device.replace(made=merged_paths(device.made, _missing(container, device)))
    make = _mount_node if container.has_user_namespace else _make_node
    make(container, device)
    _restore(container, device, times=True)


def _restore(container: Container, device: Device, *, times: bool) -> None:
    """Restore the node's status as the undone operation captured it."""
    if device.node is not None:
        wanted = NodeStatus.decoded(device.node)
        if device.mode is None or int(device.mode, 8) == wanted.mode:
            set_node_status(container, device, wanted, times=times)


def node_status(container: Container, device: Device) -> str | None:
    """Status of the device's node, encoded; None if another file, or none, is at the target."""
    there = container.status(device.target)
    if there is None or not _is_node(there, device):
        return None
    what = f"look at {device.target} in container {container.name}"
    return container.bounded(partial(_read_node, device=device), what=what)


def _read_node(container: Container, device: Device) -> str | None:
    """For a step: status of the device's node, encoded; None if it is absent."""
    try:
        with opened(open_in_root(container.root_fd, device.target)) as fd:
            return read_status(fd).encoded() if _is_node(statx(fd), device) else None
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise KernelError.from_os(f"getxattr({device.target})", error) from None


def set_node_status(container: Container, device: Device, wanted: NodeStatus, *, times: bool) -> None:
    """Set mode, owner, ACL and attributes of the device's node, and its times if `times`. Nothing if it is gone."""
    setting = partial(_set_node_status, device=device, wanted=wanted, times=times)
    container.bounded(setting, what=f"change {device.target} in container {container.name}")


def _set_node_status(container: Container, device: Device, wanted: NodeStatus, times: bool) -> None:
    """For a step: set the status of the device's node."""
    try:
        fd = open_in_root(container.root_fd, device.target)
    except OSError as error:
        if error.errno in _ABSENT:
            return
        raise KernelError.from_os(f"openat2({device.target})", error) from None
    with opened(fd):
        if _is_node(statx(fd), device):
            set_status(fd, wanted, times=times, name=device.target)


def _make_node(container: Container, device: Device) -> None:
    """Make the node and its directories in the container."""
    making = partial(_make_inside, device=device)
    try:
        container.as_its_root(making, what=f"make {device.target} in container {container.name}")
    except OSError as error:
        hint = ""
        if error.errno == errno.EROFS:
            hint = "the file system there is read-only; choose a target on a tmpfs such as /dev"
        raise KernelError.from_os(f"mknodat({device.target})", error, hint=hint) from None


def _make_inside(container: Container, device: Device) -> None:
    """For a step: make the missing directories and the node, with its owner and mode."""
    for directory in device.made or ():
        make_directory(container.root_fd, directory)
    with parent_of(container.root_fd, device.target) as (parent, name):
        _mknod(parent, name, device)
    _own(container, device)


def _mknod(parent: int, name: str, device: Device) -> None:
    """Make the node, unless it exists: the container may have hidden it a moment ago."""
    try:
        os.mknod(name, _type_of(device) | 0o600, _number_of(device), dir_fd=parent)
    except FileExistsError:
        there = _stat_at(parent, name)
        if there is None or not _is_node(there, device):
            raise


def _mount_node(container: Container, device: Device) -> None:
    """Make the node on the host, and mount it at the target in the container."""
    from scplan.linux.mounts import bind

    uid, gid = _owner_of(container, device)
    mode = int(device.mode or "0600", 8)
    name = os.path.basename(device.source)
    bind.attach(
        container,
        partial(make_loose_node, name, _type_of(device) | mode, _number_of(device), uid, gid),
        device.target,
        source=device.source,
        missing=bind.Missing(device.made or (), is_directory=False),
    )


def _own_node(container: Container, device: Device) -> None:
    """Set owner and mode of the node."""
    try:
        container.bounded(partial(_own, device=device), what=f"change {device.target} in container {container.name}")
    except OSError as error:
        raise KernelError.from_os(f"fchown({device.target})", error) from None


def _own(container: Container, device: Device) -> None:
    """For a step: set owner and mode through a fd of the node, since the container may swap the file at its path."""
    with opened(open_in_root(container.root_fd, device.target)) as fd:
        found = statx(fd)
        if not _is_node(found, device):
            raise ScplanError(f"{device.target} was changed inside the container while scplan made it")
        if is_owned(container, device, found):
            return
        refuse_foreign_node(container, device, found)
        # The fd is O_PATH, which fchown(2) and fchmod(2) refuse: EBADF. The path in /proc leads to its file. open(2)
        path = f"/proc/self/fd/{fd}"
        os.chown(path, *_new_owner(container, device))
        os.chmod(path, _mode_of(device, stat.S_IMODE(found.st_mode)))


def _new_owner(container: Container, device: Device) -> tuple[int, int]:
    """Host IDs for the node; -1 keeps an ID, as in chown(2)."""
    uid, gid = device.uid, device.gid
    return (
        -1 if uid is None else container.host_id("uid", uid),
        -1 if gid is None else container.host_id("gid", gid),
    )


def refuse_node_of_host(container: Container, device: Device) -> None:
    """Raise ScplanError if the device's node exists, is the host's, and would get another owner or mode."""
    there = container.status(device.target)
    if there is not None and _is_node(there, device) and not is_owned(container, device, there):
        refuse_foreign_node(container, device, there)


def is_owned(container: Container, device: Device, found: FileStatus) -> bool:
    """True if a node has the requested owner and mode.

    IDs are compared as the container sees them: some requested IDs may have no host ID.
    """
    uid, gid = container.inside_id("uid", found.st_uid), container.inside_id("gid", found.st_gid)
    mode = stat.S_IMODE(found.st_mode)
    return device.uid in (None, uid) and device.gid in (None, gid) and _mode_of(device, mode) == mode


def _mode_of(device: Device, otherwise: int) -> int:
    return otherwise if device.mode is None else int(device.mode, 8)


def refuse_foreign_node(container: Container, device: Device, found: FileStatus) -> None:
    """Raise ScplanError if the node is a mount that scplan has not made, or the container's root can't change it.

    Both are nodes of the host. The second occurs if the container bends the path to a directory of the host.
    """
    foreign = found.is_mount_root or not container.maps(found)
    if foreign and not any(mount.id == found.mount_id and is_loose_node(mount) for mount in container.mounts()):
        raise ScplanError(
            f"{device.target} in container {container.name} is the host's own node, which was mounted there",
            hint="its mode and owner are the host's: leave them out of the entry, or choose another target",
        )


def _move_aside(container: Container, device: Device, there: FileStatus) -> None:
    """Rename the file at the target, if the entry allows that."""
    if not device.replace_existing or device.saved_as is None:
        raise KernelError(
            f"mknodat({device.target})",
            errno.EEXIST,
            detail="something else is there",
            hint="remove it, or write `replace_existing: true`; it is put back when the device is removed",
        )
    if device.saved_identity not in (None, file_identity(there)):
        raise ScplanError(f"{device.target} was changed inside the container meanwhile", hint="plan again")
    _rename(container, device.target, os.path.basename(device.target), device.saved_as)


# removing


def remove_node(container: Container, device: Device) -> None:
    """Remove the node that scplan made, and all that was made for it; restore the file that it replaced.

    Any other file in its place belongs to the container.
    """
    from scplan.linux.mounts import bind

    made = _made_for(container, device)
    if container.has_user_namespace:
        # MNT_DETACH: as after unlink(2), processes that have the device open keep it. umount2(2)
        bind.detach(container, device.target, partial(_is_node_at, device=device), made=made, lazy=True)
    else:
        _unlink_node(container, device, made)
    _put_back(container, device)


def _unlink_node(container: Container, device: Device, made: tuple[str, ...]) -> None:
    unlinking = partial(_unlink_inside, device=device, made=made)
    container.bounded(unlinking, what=f"remove {device.target} in container {container.name}")


def _unlink_inside(container: Container, device: Device, made: tuple[str, ...]) -> None:
    """For a step: remove the node if it is the device's, and the paths that were made for it."""
    try:
        with parent_of(container.root_fd, device.target) as (parent, name):
            there = _stat_at(parent, name)
            if there is not None and _is_node(there, device):
                os.unlink(name, dir_fd=parent)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise KernelError.from_os(f"unlinkat({device.target})", error) from None
    remove_made(container.root_fd, made)


def _made_for(container: Container, device: Device) -> tuple[str, ...]:
    """Paths that were made. The target counts only after a former file was moved aside: until then it is that file."""
    made = device.made or ()
    if device.saved_as is None or device.target not in made:
        return made
    return made if _is_saved(container, device) else made[:-1]


def _put_back(container: Container, device: Device) -> None:
    """Restore the file that was moved aside, if it is there and has not been replaced.

    If the container has put another file at the target meanwhile, both files stay where they are: if the undo failed
    because of it, the container's root could block the changes of all other containers.
    """
    if not _is_saved(container, device):
        return
    name = os.path.basename(device.target)
    try:
        _rename(container, device.target, device.saved_as or "", name)
    except KernelError as error:
        if error.errno not in (errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EBUSY):
            raise


def _is_saved(container: Container, device: Device) -> bool:
    """True if the file that was moved aside is where scplan keeps it.

    Records of earlier versions do not identify the file.
    """
    if device.saved_as is None:
        return False
    there = container.status(_saved_path(device))
    return there is not None and device.saved_identity in (None, file_identity(there))


def _saved_path(device: Device) -> str:
    return os.path.join(os.path.dirname(device.target), device.saved_as or "")


def _rename(container: Container, target: str, old: str, new: str) -> None:
    """Rename within the target's directory, as the container's root.

    A file system of a user namespace refuses IDs that are not mapped there: EOVERFLOW.
    """

    renaming = partial(_rename_inside, target=target, old=old, new=new)
    try:
        container.as_its_root(renaming, what=f"rename {old} in container {container.name}")
    except OSError as error:
        raise KernelError.from_os(f"renameat2({old}, {new}) for {target}", error) from None


def _rename_inside(container: Container, target: str, old: str, new: str) -> None:
    with parent_of(container.root_fd, target) as (parent, _):
        renameat2(parent, old, new)


# nodes


def _is_node_at(_: Container, fd: int, device: Device) -> bool:
    return _is_node(statx(fd), device)


def _is_node(there: os.stat_result | FileStatus, device: Device) -> bool:
    return file_type(there.st_mode) == device.file_type and device_numbers(there.st_rdev) == device.numbers


def _type_of(device: Device) -> int:
    return NODE_TYPES[device.file_type or ""]


def _number_of(device: Device) -> int:
    major, minor = (int(number) for number in (device.numbers or "").split(":"))
    return os.makedev(major, minor)


def _owner_of(container: Container, device: Device) -> tuple[int, int]:
    """Host IDs of the owner."""
    return container.host_id("uid", device.uid or 0), container.host_id("gid", device.gid or 0)


def _stat_at(parent: int, name: str) -> os.stat_result | None:
    """Status of a directory entry, symlinks not followed; None if it is absent."""
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None

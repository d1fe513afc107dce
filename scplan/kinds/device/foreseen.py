"""Checks of planned devices in a container, before anything is changed: refusals, and processes that have a node open.

Sources: mknod(2), mount(2) MS_NODEV, admin-guide/cgroup-v1/devices, proc_pid_fd(5).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice

from scplan.errors import ScplanError
from scplan.kinds.device import rules
from scplan.kinds.device.node import (
    LEGACY_SAVED_NAME,
    file_type,
    is_in_the_way,
    is_owned,
    refuse_foreign_node,
    refuse_node_of_host,
)
from scplan.kinds.device.record import Device, is_same_device
from scplan.kinds.kind import Foreseen, Unsuitable
from scplan.kinds.paths import covering, shows_again
from scplan.linux.cgroups import cgroup_v1
from scplan.linux.cgroups.cgroup_v1 import Cgroup, access_without, device_rules, join_access
from scplan.linux.container import Container
from scplan.linux.host import Host, device_numbers
from scplan.linux.mounts.mountinfo import Mount
from scplan.linux.paths.rooted_path import missing_directories, opened
from scplan.linux.syscalls import FileStatus, statx
from scplan.model.address import Address
from scplan.model.change import Action, Change
from scplan.model.resource import Resource

_MAX_PROCESSES = 2000
_NAMED = 3
_LOOKED_AT = (Action.CREATE, Action.REPLACE, Action.UPDATE)


def foreseen(
    container: Container, host: Host, changes: Sequence[Change], after: Mapping[Address, Resource]
) -> Iterable[Foreseen]:
    """Findings about the planned changes of devices in one container. `changes` are those of all kinds."""
    managed = {address: one for address, one in after.items() if isinstance(one, Device)}
    managed |= {change.address: change.managed for change in changes if isinstance(change.managed, Device)}
    remade = frozenset(change.address for change in changes if _is_mounted_anew(change))
    for change in changes:
        device = change.after
        if isinstance(device, Device) and change.action in _LOOKED_AT:
            is_in_sight = not shows_again(container, device.target, changes, after)
            refused = _refusal(container, host, change, device, managed, after, remade, is_in_sight=is_in_sight)
            yield Foreseen(change.address, refused=refused, warning=_wider_rule(container, host, device))
        if isinstance(change.before, Device) and change.action in (Action.DELETE, Action.REPLACE):
            yield from _open_in(container, host, change, change.before)


def _is_mounted_anew(change: Change) -> bool:
    """True if the plan mounts something new at a target, or changes whether the mount is writable."""
    if change.address.kind != "mount":
        return False
    return change.action in (Action.CREATE, Action.REPLACE) or "read_only" in change.changed


def _refusal(
    container: Container,
    host: Host,
    change: Change,
    device: Device,
    managed: Mapping[Address, Device],
    after: Mapping[Address, Resource],
    remade: Collection[Address],
    *,
    is_in_sight: bool,
) -> Unsuitable | None:
    """The first refusal of the device, by its entries, rules, limits, owner or target; None if there is none."""
    try:
        return (
            _contradicts(change, managed)
            or _rule_refused(container, host, device)
            or _limits_refused(container, host, device)
            or _maker_refused(container, change, device)
            or (_node_refused(container, change, device, after, remade) if is_in_sight else None)
        )
    except ScplanError as error:
        return Unsuitable(error.diagnostics[0].summary, hint=error.diagnostics[0].hint)


# rules


def _rule_refused(container: Container, host: Host, device: Device) -> Unsuitable | None:
    """Refusal of access that the cgroup above does not allow: no cgroup can allow more than its parent."""
    cgroup = Cgroup(container, host, "devices")
    kind, numbers = (device.file_type or "")[:1], device.numbers or ""
    own = device_rules(cgroup)
    if own.allow_all:
        return None
    missing = access_without(device.permissions, own.exact(kind, numbers))
    if not missing:
        return None
    cgroup.refuse_shared()
    if not cgroup.may_write("devices.allow"):
        return _not_delegated(cgroup, "devices.allow")
    parent = cgroup.above()
    above = device_rules(parent)
    lacking = access_without(missing, join_access(above.exact(kind, numbers), above.wider(kind, numbers)))
    if not lacking:
        return None
    return Unsuitable(
        f"the cgroup above the container's does not allow {lacking} of {device.source} ({kind} {numbers})",
        hint=f"allow it in devices:{parent.path}, or start the container elsewhere",
    )


def _not_delegated(cgroup: Cgroup, file: str) -> Unsuitable:
    return Unsuitable(
        f"this user may not write {file} in {cgroup.controller}:{cgroup.path}",
        hint="run scplan as root, or have the cgroup delegated to the user",
    )


def _wider_rule(container: Container, host: Host, device: Device) -> tuple[str, str] | None:
    """A warning if the container may do more than `permissions`, by a wider rule that scplan can't take away."""
    allowed = device_rules(Cgroup(container, host, "devices"))
    may = rules.in_force(device, device.file_type or "block", device.numbers or "0:0", allowed)
    if may is None:
        return None
    return (
        f"the container may do {may} with {device.source}, more than `permissions: {device.permissions}`",
        "a rule for more devices than this one allows it, as runtimes set it for privileged containers;"
        " start the container without that, or write the permissions that it has",
    )


# limits


def _contradicts(change: Change, managed: Mapping[Address, Device]) -> Unsuitable | None:
    """Refusal of limits that another node of the same disk sets differently."""
    device = managed.get(change.address)
    for address, other in managed.items():
        if device is None or address == change.address or not is_same_device(device, other):
            continue
        if words := rules.contradiction(device, other):
            return Unsuitable(words, hint="write the same limits for both, or `io:` for one of them alone")
    return None


def _limits_refused(container: Container, host: Host, device: Device) -> Unsuitable | None:
    """Refusal of I/O limits that the kernel, the disk's scheduler or the user's permissions rule out."""
    if device.io is None:
        return None
    cgroup = Cgroup(container, host, "blkio")
    cgroup.refuse_shared()
    for name, file in cgroup_v1.LIMIT_FILES.items():
        if getattr(device.io, name) and not cgroup.has(file):
            return Unsuitable(f"io.{name}: this kernel has no {file}", hint="it needs CONFIG_BLK_DEV_THROTTLING")
    if not cgroup.may_write(cgroup_v1.LIMIT_FILES["read_bps"]):
        return _not_delegated(cgroup, cgroup_v1.LIMIT_FILES["read_bps"])
    if not device.io.weight or device.io.weight == rules.limits_now(cgroup, device)["weight"]:
        return None
    file_of_weight = cgroup_v1.weight_file(cgroup)
    if file_of_weight is None:
        return Unsuitable("io.weight: no I/O scheduler of this kernel knows weights", hint="load bfq")
    if "bfq" in file_of_weight and "[bfq]" not in _scheduler(device):
        path = f"/sys/dev/block/{device.numbers}/queue/scheduler"
        return Unsuitable(f"io.weight: {device.source} does not have the scheduler bfq", hint=f"echo bfq > {path}")
    return None


def _scheduler(device: Device) -> str:
    """Schedulers of the disk, the active one in brackets; "" if it has none. Documentation/block/switching-sched.rst"""
    try:
        with open(f"/sys/dev/block/{device.numbers}/queue/scheduler", encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""


# the node


def _maker_refused(container: Container, change: Change, device: Device) -> Unsuitable | None:
    """Refusal of the node at any target: its owner has no ID on the host, or scplan runs in a user namespace."""
    for kind, number in (("uid", device.uid), ("gid", device.gid)):
        if number is not None and change.action is not Action.UPDATE:
            container.host_id(kind, number)
    if change.action is not Action.UPDATE and not container.host.is_in_initial_user_namespace:
        return Unsuitable(
            "the kernel makes device nodes for nobody in a user namespace, not even for its root",
            hint=f"run scplan as the host's root, or bind the host's node: `mounts: [{device.source}:{device.target}]`",
        )
    return None


def _node_refused(
    container: Container,
    change: Change,
    device: Device,
    after: Mapping[Address, Resource],
    remade: Collection[Address],
) -> Unsuitable | None:
    """Refusal of the node by the files at its target: those of now, or of the source of a planned mount."""
    mounts = container.mounts()
    points = {mount.point for mount in mounts}
    entries = {other: after[other] for other in covering(change.address, device.target, after)}
    if any(other in remade or one.get("target") not in points for other, one in entries.items()):
        # The target will lie in a mount that does not exist yet.
        innermost = max(entries.values(), key=lambda one: len(one.get("target")))
        return _refused_in_source(container, change, device, innermost)
    there = container.status(device.target)
    if there is not None and (file_type(there.st_mode), device_numbers(there.st_rdev)) == (
        device.file_type,
        device.numbers,
    ):
        refuse_node_of_host(container, device)
        return None
    if change.action is Action.REPLACE and isinstance(change.owned, Device):
        # scplan's own node is there, and is removed first.
        return _former_comes_back(change.owned, device)
    if there is not None and there.is_mount_root:
        return Unsuitable(
            f"something is mounted on {device.target} in the container, so that nothing can take its place",
            hint="unmount it there, or choose another target",
        )
    return _place_refused(container, device, there, mounts)


def _former_comes_back(owned: Device, device: Device) -> Unsuitable | None:
    """Refusal of a node in the place of scplan's: the removal of the old node restores another file there."""
    if device.replace_existing or not (owned.saved_as or owned.former_node is not None):
        return None
    return Unsuitable(
        f"what was at {device.target} before scplan comes back when the node is replaced, and is in the way of another",
        hint="write `replace_existing: true`",
    )


def _place_refused(
    container: Container, device: Device, there: FileStatus | None, mounts: Sequence[Mount]
) -> Unsuitable | None:
    """Refusal of a new file at the target, because of its directory and the mount that it lies in."""
    missing = missing_directories(container.status, device.target)
    directory = os.path.dirname(missing[0] if missing else device.target)
    # A path that ends with "/." follows a symlink, and fails for all but directories. path_resolution(7)
    found = container.status(f"{directory.rstrip('/')}/.")
    if found is None:
        return Unsuitable(
            f"{directory} in the container is no directory, so that {device.target} can't be made in it",
            hint="remove what is there, or choose another target",
        )
    mount = next((one for one in mounts if one.id == found.mount_id), None)
    if mount is None:
        return None
    text = container.read_proc("mountinfo")
    # For a user namespace the node is a bind mount of its own, to which this mount's nodev does not apply.
    if not container.has_user_namespace and _has_option(text, mount.id, "nodev"):
        return Unsuitable(
            f"{device.target} lies on {mount.point}, which is mounted nodev: no device could be opened there",
            hint="choose a target on another mount, such as /dev",
        )
    is_written_to = there is None or is_in_the_way(container, there, device)
    if is_written_to and _has_option(text, mount.id, "ro"):
        return Unsuitable(
            f"{device.target} lies on {mount.point}, which is read-only in the container",
            hint="choose a target on a tmpfs such as /dev",
        )
    if is_written_to and not container.may_make_at(found):
        return Unsuitable(
            f"{device.target} lies in {directory}, where the root of container {container.name} may make nothing",
            hint="choose a target outside of it, such as in /dev, or make an empty file at the target from the host,"
            " and write `replace_existing: true`",
        )
    # The bind mount would propagate to the host. mount_namespaces(7)
    if container.has_user_namespace and mount.shared in container.host.peer_groups:
        return Unsuitable(
            f"{device.target} lies in a mount that the container shares with the host",
            hint="choose a target outside of it, or give the container's mount the propagation rslave",
        )
    legacy = os.path.join(os.path.dirname(device.target), LEGACY_SAVED_NAME.format(os.path.basename(device.target)))
    if there is not None and container.status(legacy) is not None:
        return Unsuitable(
            f"{legacy} is in the container: earlier versions of scplan kept there what a device took the place of",
            hint="see what it is, and remove or rename it",
        )
    return None


def _refused_in_source(container: Container, change: Change, device: Device, mount: Resource) -> Unsuitable | None:
    """Refusal of a node below a mount entry, from the entry's source on the host; None if the node can be made."""
    path = mount.get("source").rstrip("/") + device.target[len(mount.get("target")) :]
    if os.path.lexists(path):
        with opened(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
            there = statx(fd)
        if isinstance(change.owned, Device) and _goes_before(change, there):
            return _former_comes_back(change.owned, device)
        if not is_in_the_way(container, there, device) or not device.replace_existing:
            return _refused_on_host(container, device, path, there)
    directory = os.path.dirname(path)
    while not os.path.lexists(directory):
        directory = os.path.dirname(directory)
    if not os.path.isdir(directory):
        return Unsuitable(f"{device.target} lies below {directory} of the host, which is no directory")
    flags, hint = os.statvfs(directory).f_flag, "choose a target outside of that mount, such as in /dev"
    if mount.get("read_only") or flags & os.ST_RDONLY:
        return Unsuitable(f"{device.target} lies in the mount {mount.get('target')}, which is read-only", hint=hint)
    if not container.has_user_namespace:
        if flags & os.ST_NODEV:
            return Unsuitable(f"{device.target} lies in the mount {mount.get('target')}, which is nodev", hint=hint)
        return None
    # An absent source is made by the host's root (`create_source`).
    if os.path.lexists(mount.get("source")) and container.may_make_in(directory):
        return None
    return Unsuitable(
        f"{device.target} lies in {directory} of the host, where the container's root may make nothing",
        hint=f"{hint}, or make the file {path} there",
    )


def _goes_before(change: Change, there: FileStatus) -> bool:
    """True if a file is the node that a replacement removes before it makes the new one."""
    before = change.before
    return (
        change.action is Action.REPLACE
        and isinstance(before, Device)
        and (file_type(there.st_mode), device_numbers(there.st_rdev)) == (before.file_type, before.numbers)
    )


def _refused_on_host(container: Container, device: Device, path: str, there: FileStatus) -> Unsuitable | None:
    """Refusal of a node whose target has a file of the host that stays; None if the node can be made."""
    if is_in_the_way(container, there, device):
        return Unsuitable(
            f"{path} on the host, which will be at {device.target}, is something else",
            hint="remove it, or write `replace_existing: true`; it is put back when the device is removed",
        )
    if file_type(there.st_mode) == device.file_type and not is_owned(container, device, there):
        refuse_foreign_node(container, device, there)
    return None


def _has_option(text: bytes, mount_id: int, option: str) -> bool:
    """True if a mount, or its file system, has an option such as ro or nodev.

    `text` is mountinfo: field 6 has the options of the mount, the last field those of the file system.
    proc_pid_mountinfo(5)
    """
    for line in text.split(b"\n"):
        fields = line.split(b" ")
        if len(fields) > 5 and fields[0] == b"%d" % mount_id:
            options = {*fields[5].split(b","), *fields[-1].split(b",")}
            return option.encode() in options
    return False


# processes that have the node open


def _open_in(container: Container, host: Host, change: Change, device: Device) -> Iterable[Foreseen]:
    """A warning that names processes of the container which have the device open."""
    if not device.numbers or device.former_node is not None:
        return
    major, _, minor = device.numbers.partition(":")
    number = os.makedev(int(major), int(minor))
    found = [pid for pid in _processes(container, host) if _has_open(pid, device.file_type or "", number)]
    if not found:
        return
    named = ", ".join(f"{pid} ({_command(pid)})" for pid in found[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    yield Foreseen(
        change.address,
        warning=(
            f"in use: {device.target} is open in process{'es' if len(found) > 1 else ''} {named}{more}",
            "a process keeps what it has open; it can't open the device again once it is removed",
        ),
    )


def _processes(container: Container, host: Host) -> Iterable[int]:
    """PIDs in the container's cgroup and the cgroups below, at most _MAX_PROCESSES."""
    waiting = [Cgroup(container, host, "devices")]
    if not waiting[0].is_its_own:
        return
    pids: list[int] = []
    while waiting and len(pids) < _MAX_PROCESSES:
        cgroup = waiting.pop()
        pids += map(int, (cgroup.read("cgroup.procs") or "").split())
        waiting += cgroup.below()
    yield from islice(pids, _MAX_PROCESSES)


def _has_open(pid: int, kind: str, number: int) -> bool:
    """True if the process has the device open."""
    try:
        return any(_is_of(f"/proc/{pid}/fd/{fd}", kind, number) for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError:  # the process has ended
        return False


def _is_of(path: str, kind: str, number: int) -> bool:
    """True if a link in /proc/PID/fd leads to a node of the device."""
    try:
        # The link's text first: a file that a process has open may lie on a file system that does not answer.
        if not os.readlink(path).startswith("/"):
            return False
        # O_PATH does not call the device's driver. open(2)
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # the process has closed the file
        return False
    try:
        found = statx(fd)
        return file_type(found.st_mode) == kind and found.st_rdev == number
    finally:
        os.close(fd)


def _command(pid: int) -> str:
    """Command name of a process. proc_pid_comm(5)"""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return os.fsdecode(file.read().strip())
    except OSError:
        return "?"

"""The host as scplan sees it: its namespaces, links, paths and cgroup hierarchies. Sources: proc(5), cgroups(7)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from scplan.errors import KernelError, ScplanError
from scplan.linux.closing import Closing
from scplan.linux.devices import udev
from scplan.linux.devices.blockdev import is_whole_disk, partitions
from scplan.linux.mounts.mountinfo import Mount, parse_mountinfo
from scplan.linux.paths.lookup import Lookup
from scplan.linux.processes.namespaces import namespace_id
from scplan.linux.processes.process import INITIAL_USER_NAMESPACE
from scplan.linux.processes.steps import Stepper
from scplan.linux.syscalls import FileStatus, is_owned_below
from scplan.startup.named_tuple import NamedTuple

if TYPE_CHECKING:
    from scplan.linux.network.netlink import Link, LinkTable, Rtnl, SharedDump
    from scplan.linux.network.ovsdb import Ovsdb

_RTN_UNICAST = 1
_NODES_DEPTH = 2
_FILE_TYPES = {stat.S_IFBLK: "block", stat.S_IFCHR: "char", stat.S_IFDIR: "directory", stat.S_IFREG: "file"}


class HostPath(NamedTuple):
    """A path of the host, symlinks followed; the fields are those of model.live.PathFact."""

    real: str
    file_type: str
    identity: str
    numbers: str
    mode: str
    whole_disk: bool
    partitions: tuple[tuple[int, str, str], ...]
    nodes: tuple[str, ...]


def ovsdb_socket() -> str:
    """Path of Open vSwitch's database socket: db.sock in OVS_RUNDIR, else in /var/run/openvswitch. ovs-vsctl(8)."""
    return os.path.join(os.environ.get("OVS_RUNDIR") or "/var/run/openvswitch", "db.sock")


def device_numbers(rdev: int) -> str:
    """ "major:minor" of st_rdev."""
    return f"{os.major(rdev)}:{os.minor(rdev)}"


def file_identity(found: os.stat_result | FileStatus) -> str:
    """ "st_dev:st_ino", which identifies a file, whatever path leads to it."""
    return f"{found.st_dev}:{found.st_ino}"


@lru_cache(maxsize=1)
def boot_id() -> str:
    """ID of the host's current boot. Source: random(4)."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _nodes_below(directory: str, depth: int) -> Iterator[str]:
    """Paths of the device nodes in a directory and up to `depth` levels below it; empty if it can't be read."""
    try:
        with os.scandir(directory) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in found:
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            yield entry.path
        elif stat.S_ISDIR(mode) and depth:
            yield from _nodes_below(entry.path, depth - 1)


class Host(Closing):
    """The host, scplan's own side of every operation: the namespaces in which scplan runs."""

    def __init__(self, dump: SharedDump | None = None) -> None:
        """`dump` provides the links, for this process and others, until `forget`."""
        self._dump = dump
        self._namespace_ids: dict[str, int] = {}
        self.stepper = Stepper()
        """Takes the steps into containers."""
        self.cgroup_files: dict[tuple[str, str], bool] = {}
        """True if this kernel has a file, by controller and name; files that were looked up so far."""

    def close(self) -> None:
        """Close everything that was opened."""
        self.stepper.close()
        if "rtnl" in self.__dict__:
            self.rtnl.close()
        for namespace in ("netns_fd", "cgroupns_fd"):
            if namespace in self.__dict__:
                os.close(self.__dict__.pop(namespace))
        if "lookup" in self.__dict__:
            self.__dict__.pop("lookup").close()
        ovs = self.__dict__.pop("ovs", None)
        if ovs is not None:
            ovs.close()
        self.__dict__.pop("rtnl", None)

    def namespace_id(self, kind: str) -> int:
        """Inode of one of scplan's own namespaces: net, mnt, user."""
        if kind not in self._namespace_ids:
            self._namespace_ids[kind] = namespace_id(f"/proc/self/ns/{kind}")
        return self._namespace_ids[kind]

    @property
    def boot_id(self) -> str:
        """ID of the current boot; no resource survives a reboot."""
        return boot_id()

    @cached_property
    def root(self) -> tuple[int, int]:
        """st_dev and st_ino of the host's root directory."""
        found = os.stat("/")
        return found.st_dev, found.st_ino

    @cached_property
    def machine(self) -> str:
        """Identifier of the host; "" if it has no machine ID.

        A hash: machine-id(5) wants the ID itself kept confidential, and plans and snapshots are handed around.
        """
        try:
            with open("/etc/machine-id", "rb") as file:
                machine_id = file.read(64).strip()
        except OSError:
            return ""
        from scplan.startup.digest import sha256_hex

        return sha256_hex(b"scplan host " + machine_id)[:32] if machine_id else ""

    def identity(self) -> dict[str, str]:
        """Identifiers of this host and of its current boot."""
        return {"machine": self.machine, "boot_id": self.boot_id}

    @property
    def page_size(self) -> int:
        return os.sysconf("SC_PAGE_SIZE")

    # network

    @cached_property
    def netns_fd(self) -> int:
        return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @cached_property
    def owns_network(self) -> bool:
        """True if scplan's user namespace, or one below it, owns its network namespace."""
        return self.is_in_initial_user_namespace or is_owned_below(self.netns_fd)

    @property
    def is_in_initial_user_namespace(self) -> bool:
        """True if scplan is in the host's initial user namespace: mknod(2) of devices fails in all others."""
        return self.namespace_id("user") == INITIAL_USER_NAMESPACE

    @cached_property
    def rtnl(self) -> Rtnl:
        """rtnetlink socket in scplan's own network namespace."""
        from scplan.linux.network.netlink import Rtnl, open_socket

        return Rtnl(open_socket())

    @cached_property
    def _links(self) -> LinkTable:
        from scplan.linux.network.netlink import LinkTable

        return LinkTable(self.rtnl, self._dump)

    def links(self) -> Mapping[int, Link]:
        """Links of the host by index. Each is read on demand, once until `forget`."""
        return self._links

    @property
    def links_by_name(self) -> Mapping[str, Link]:
        """Links of the host by name, read as in `links`."""
        return self._links.by_name

    def link_called(self, name: str) -> Link:
        """Link by its name or an alternative name (ip-link(8), "property"). Raises KeyError."""
        return self._links.known(name)

    def forget(self) -> None:
        """Forget the links, bridges, mounts and cgroup files that were read: the next reader reads them again."""
        self._dump = None
        for known in ("_links", "uplinks", "known_mounts"):
            self.__dict__.pop(known, None)
        self.cgroup_files.clear()
        ovs = self.__dict__.get("ovs")
        if ovs is not None:
            ovs.forget()

    @cached_property
    def uplinks(self) -> frozenset[str]:
        """Names of the links that the host's default routes go over. Read once until `forget`."""
        links = self.links()
        routes = self.rtnl.routes(type=_RTN_UNICAST)
        indexes = {index for route in routes if route.dst == "default" for index in route.oifs}
        return frozenset(links[index].name for index in indexes if index in links)

    @cached_property
    def ovs(self) -> Ovsdb | None:
        """Open vSwitch's database; None if it has no socket."""
        path = ovsdb_socket()
        if not os.path.exists(path):
            return None
        from scplan.linux.network.ovsdb import Ovsdb

        return Ovsdb(path)

    @cached_property
    def cgroupns_fd(self) -> int:
        return os.open("/proc/self/ns/cgroup", os.O_RDONLY | os.O_CLOEXEC)

    # paths

    @cached_property
    def lookup(self) -> Lookup:
        """Look-ups of container paths."""
        return Lookup()

    def disks(self) -> list[str]:
        """Device nodes of the host's disks and partitions."""
        # sysfs writes "/" in a device's name as "!": kobject_set_name_vargs() of lib/kobject.c.
        return [f"/dev/{name.replace('!', '/')}" for name in os.listdir("/sys/class/block")]

    def mountinfo(self) -> bytes:
        """Content of the host's mountinfo now, for parse_mountinfo."""
        with open("/proc/self/mountinfo", "rb") as file:
            return file.read()

    def mounts(self) -> list[Mount]:
        """Mounts of the host now, in kernel order."""
        return parse_mountinfo(self.mountinfo())

    @cached_property
    def known_mounts(self) -> list[Mount]:
        """Mounts of the host in kernel order. Read once until `forget`."""
        return self.mounts()

    @cached_property
    def _mounts(self) -> dict[str, Mount]:
        # Of mounts stacked on a point, the last in the list is the visible one.
        return {mount.point: mount for mount in parse_mountinfo(self.mountinfo())}

    def look_up(self, path: str) -> HostPath | None:
        """The file at a path of the host, symlinks followed; None if absent."""
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise KernelError.from_os(f"stat({path})", error) from None
        file_type = _FILE_TYPES.get(stat.S_IFMT(found.st_mode), "other")
        is_device = file_type in ("block", "char")
        numbers = device_numbers(found.st_rdev) if is_device else ""
        return HostPath(
            real=os.path.realpath(path) if is_device or file_type == "directory" else path,
            file_type=file_type,
            identity=file_identity(found),
            numbers=numbers,
            mode=f"{stat.S_IMODE(found.st_mode):04o}",
            whole_disk=file_type == "block" and is_whole_disk(numbers),
            partitions=partitions(numbers) if file_type == "block" else (),
            nodes=tuple(_nodes_below(path.rstrip("/"), _NODES_DEPTH)) if path.endswith("/") else (),
        )

    @cached_property
    def peer_groups(self) -> frozenset[int]:
        """Peer groups of the host's shared mounts: a mount made in a member of these groups appears on the host."""
        return frozenset(mount.shared for mount in self._mounts.values()) - {0}

    @cached_property
    def _propagates(self) -> bool:
        return any(mount.receives for mount in self._mounts.values())

    def receives(self, path: str) -> bool:
        """True if mounts made elsewhere can appear below a path: its mount is shared, or a slave."""
        if not self._propagates:
            return False
        path = os.path.realpath(path)
        while path not in self._mounts and path != "/":
            path = os.path.dirname(path)
        return path in self._mounts and self._mounts[path].receives

    # devices

    @cached_property
    def has_udev(self) -> bool:
        """True if udevd runs, which reports devices that come and go."""
        return udev.is_running()

    # cgroups

    @cached_property
    def cgroup_mounts(self) -> dict[str, str]:
        """Mount point of each cgroup v1 controller; "" is the v2 hierarchy."""
        points: dict[str, str] = {}
        for mount in self._mounts.values():
            if mount.filesystem == "cgroup2":
                points.setdefault("", mount.point)
            elif mount.filesystem == "cgroup":
                # Controllers that are mounted together share a mount point: /sys/fs/cgroup/cpu,cpuacct.
                for controller in os.path.basename(mount.point).split(","):
                    points.setdefault(controller, mount.point)
        return points

    def cgroup_mount(self, controller: str) -> str:
        """Mount point of a v1 controller. Raises ScplanError if it is not mounted."""
        try:
            return self.cgroup_mounts[controller]
        except KeyError:
            raise ScplanError(
                f"the cgroup v1 controller {controller!r} is not mounted on this host",
                hint="`scplan doctor` lists what this host has",
            ) from None

    @cached_property
    def own_cgroups(self) -> dict[str, str]:
        """scplan's own cgroup path in each hierarchy, by v1 controller."""
        paths = {}
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            for line in file:
                # HIERARCHY:CONTROLLERS:PATH. cgroups(7)
                _, names, path = line.rstrip("\n").split(":", 2)
                for name in names.split(","):
                    paths[name] = path
        return paths

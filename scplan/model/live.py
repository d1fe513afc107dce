"""Live state: the resources of each container in the kernel, and the facts of the host that planning needs."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from scplan.model.address import Address
from scplan.model.resource import Resource
from scplan.startup.named_tuple import NamedTuple

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Status(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class Naming(NamedTuple):
    """The rule by which a record finds its container after the container was made again, with another ID.

    `by` "id": a container made again is another container. `by` "name": the record follows the name. `by` "" (not
    configured): the record follows the name only if the engine removes the container when it ends. The new container
    must match `image` (a glob) and `label` (KEY=VALUE), if they are set.
    """

    by: str = ""
    image: str = ""
    label: str = ""

    @property
    def follows_name(self) -> bool:
        return self.by == "name" or bool(not self.by and self.image)


class ContainerFacts(NamedTuple):
    """A container: its identity, status and first process.

    `pid` is the container's first process, `start_time` field 22 of /proc/PID/stat, in clock ticks since boot
    (proc_pid_stat(5)); 0 if stopped. `pid_namespace` is the inode of the process's PID namespace; 0 if not known, and
    in plans and journals. `cgroup` is the common end of the paths, in all hierarchies, of the cgroup that the runtime
    made; "" if not known.

    `root` is set while the container is being started and its process has not entered its root directory yet: that
    directory, as a path in its mount namespace. `bundle` is the directory of its OCI configuration; "" if not known,
    and in plans and journals.

    `place` is where the runtime keeps the container, which distinguishes containers of the same name and ID: the root
    directory of runc, containerd's directory of a namespace's tasks, a daemon's socket, an lxcpath; "" if not known.
    `image` is the name of its image, `labels` are KEY=VALUE (None if not known). `is_temporary` is True if the engine
    removes the container when it ends. `naming` is the configured rule; None if no configuration is read. `renamed_to`
    is the current name, if it differs from the name in the records.
    """

    name: str
    runtime: str
    id: str
    status: Status
    pid: int = 0
    start_time: int = 0
    root: str = ""
    bundle: str = ""
    cgroup: str = ""
    pid_namespace: int = 0
    place: str = ""
    image: str = ""
    labels: tuple[str, ...] | None = None
    is_temporary: bool = False
    naming: Naming | None = None
    renamed_to: str = ""

    @property
    def recorded_naming(self) -> Naming | None:
        """The naming to record: one that follows the name gets the current image, to check a container made again."""
        if self.naming is None or self.naming.by == "id" or self.naming.image or self.naming.label:
            return self.naming
        is_followed = self.naming.by == "name" or self.is_temporary
        return self.naming._replace(image=_literal(self.image)) if is_followed else self.naming


def _literal(text: str) -> str:
    """A glob that matches `text` alone."""
    # In brackets these characters stand for themselves. glob(7).
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


class PathFact(NamedTuple):
    """The file at a path of the host, symlinks followed.

    `real` is the path without symlinks; `file_type` is block, char, directory, file or other. `identity` is
    "st_dev:st_ino", which identifies the file itself (inode(7)). `numbers` is "major:minor" of a device node, else "".
    `mode` is octal ("0660"). `whole_disk` and `partitions` ((number, path, numbers), by number) are for block devices.
    `nodes` are the device nodes in a directory, for a path with a trailing slash; snapshots don't keep them.
    """

    real: str
    file_type: str
    identity: str
    numbers: str = ""
    mode: str = ""
    whole_disk: bool = False
    partitions: tuple[tuple[int, str, str], ...] = ()
    nodes: tuple[str, ...] = ()


class LinkFact(NamedTuple):
    """A network interface of the host.

    `kind` is IFLA_INFO_KIND: "veth", "bridge", or "" for a physical NIC. `master` is the name of the bridge, bond or
    other interface that the interface is a port of.
    """

    name: str
    kind: str
    mac: str
    mtu: int
    master: str = ""


class HostFacts(NamedTuple):
    """Facts of the host that planning needs.

    `paths` are the paths that the configuration names; None if absent. `uplinks` are the links of the host's default
    routes. `ovs_bridges` are the bridges of Open vSwitch. `machine` is set for snapshots only. `has_udev` is True if
    udevd runs; snapshots don't keep it.
    """

    paths: Mapping[str, PathFact | None] = _NOTHING
    links: Mapping[str, LinkFact] = _NOTHING
    uplinks: frozenset[str] = frozenset()
    ovs_bridges: frozenset[str] = frozenset()
    page_size: int = 4096
    boot_id: str = ""
    machine: str = ""
    has_udev: bool = True

    def identity(self) -> dict[str, str]:
        """The host's machine ID and boot ID; "" if not known."""
        return {"machine": self.machine, "boot_id": self.boot_id}


class Live(NamedTuple):
    """All live state, as `observe` returns it and a snapshot keeps it."""

    host: HostFacts
    containers: Mapping[str, ContainerFacts]
    resources: Mapping[Address, Resource]

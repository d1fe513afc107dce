"""Live state: what the kernel holds for each container, and the facts of the host that planning needs."""

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
    """The way in which a record finds its container when that was made again, with another ID.

    `by` is "id": a container made again is another one; "name": the record follows the name; "": the files say nothing,
    and the record follows the name only where the engine removes the container as it ends. The new container must be
    made of `image` (a glob) and have `label` (KEY=VALUE), as far as they are set.
    """

    by: str = ""
    image: str = ""
    label: str = ""

    @property
    def follows_name(self) -> bool:
        return self.by == "name" or bool(not self.by and self.image)


class ContainerFacts(NamedTuple):
    """Which container it is. `start_time` is field 22 of /proc/PID/stat, in clock ticks since boot; 0 when stopped.

    `cgroup` is the end that the paths of the cgroup which its runtime made have in all hierarchies; "": not known.
    `pid_namespace` is the inode of its process's PID namespace; 0: not known, in plans and journals, too.
    `root` is its root directory while it is being started, as a path in its mount namespace: its process is not in it
    yet. "" once it is. `bundle` is the directory of its OCI configuration; "" where it is not known. Plans and journals
    don't keep it. `place` is where its runtime keeps it, which distinguishes containers of the same name and ID: runc's
    root, containerd's directory of the tasks of a namespace, a daemon's socket, an lxcpath; "" where it is not known.
    `image` is the name of the image that it is made of, `labels` are its labels as KEY=VALUE (None: not known), and
    `is_temporary` says that its engine removes it as it ends. `naming` is what the files say of its identity; None
    where no files are read. `renamed_to` is its name now, where that is another one than in its records.
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
        """The naming that a record keeps: with the image by which a container made again is checked."""
        if self.naming is None or self.naming.by == "id" or self.naming.image or self.naming.label:
            return self.naming
        is_followed = self.naming.by == "name" or self.is_temporary
        return self.naming._replace(image=_literal(self.image)) if is_followed else self.naming


def _literal(text: str) -> str:
    """A glob that only `text` fits."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


class PathFact(NamedTuple):
    """A path of the host, symlinks followed.

    `real` is the path without symlinks; `file_type` one of block, char, directory, file, other. `identity` is
    "st_dev:st_ino" and names the file itself; `numbers` is "major:minor" of a device node, else "". `mode` is
    octal ("0660"). `whole_disk` and `partitions` ((number, path, numbers), by number) are for block devices. `nodes`
    are the device nodes in a directory, for a path with a slash at its end; snapshots don't keep them.
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
    """A network interface of the host. `kind` is IFLA_INFO_KIND ("veth", "bridge", "" for a NIC); `master` a name."""

    name: str
    kind: str
    mac: str
    mtu: int
    master: str = ""


class HostFacts(NamedTuple):
    """What planning needs to know of the host.

    `paths` has the paths that the configuration names; None: absent. `uplinks` are the links of the host's default
    routes. `ovs_bridges` are the bridges of Open vSwitch. `machine` is filled in for snapshots only. `has_udev` tells
    whether udevd runs; snapshots don't keep it.
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
        """Which host this is, and which run of it; "" where that is not known."""
        return {"machine": self.machine, "boot_id": self.boot_id}


class Live(NamedTuple):
    """The whole of live state, as `observe` returns and `snapshot` keeps it."""

    host: HostFacts
    containers: Mapping[str, ContainerFacts]
    resources: Mapping[Address, Resource]

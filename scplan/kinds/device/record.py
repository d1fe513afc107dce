"""Attributes of a device, and their notation."""

from __future__ import annotations

import stat

from scplan.model.resource import Attributes, Resource, Role, attr, nested
from scplan.model.values import (
    ABSOLUTE_PATH,
    BOOL,
    BYTES_PER_SECOND,
    ID,
    MODE,
    OPERATIONS_PER_SECOND,
    PERMISSIONS,
    TEXT,
    integer,
)

NODE_TYPES = {"block": stat.S_IFBLK, "char": stat.S_IFCHR}


class IoLimits(Attributes):
    """Limits of a container's access to one disk. 0 is no limit."""

    read_bps: int | None = attr("bytes per second read", BYTES_PER_SECOND, on_unset=0)
    write_bps: int | None = attr("bytes per second written", BYTES_PER_SECOND, on_unset=0)
    read_iops: int | None = attr("read operations per second", OPERATIONS_PER_SECOND, on_unset=0)
    write_iops: int | None = attr("write operations per second", OPERATIONS_PER_SECOND, on_unset=0)
    weight: int | None = attr(
        "share of the disk's time, where its scheduler knows weights", integer(1, 10000), on_unset=0
    )


class Device(Resource):
    """A device of the host, as a node in the container."""

    source: str = attr("host device node; symlinks are followed", ABSOLUTE_PATH, role=Role.REFERENCE, required=True)
    target: str = attr("path in the container; the source's when absent", ABSOLUTE_PATH, role=Role.IDENTITY, default="")
    permissions: str = attr("what the container may do: r, w, m (mknod)", PERMISSIONS, default="rwm")
    mode: str | None = attr("file mode of the node; the host node's when absent", MODE)
    uid: int | None = attr("owner, as an id in the container; its root when absent", ID)
    gid: int | None = attr("group, as an id in the container; its root's when absent", ID)
    partitions: bool = attr(
        "also the disk's partitions, with those that come later where udev(7) runs", BOOL, default=False
    )
    replace_existing: bool = attr("may take the place of another file at target", BOOL, role=Role.POLICY, default=False)
    required: bool = attr("an absent host device is an error", BOOL, role=Role.POLICY, default=True)
    io: IoLimits | None = nested("I/O limits, for whole disks", IoLimits)
    file_type: str | None = attr("block, char; of something else at target its type", TEXT, role=Role.RESOLVED)
    numbers: str | None = attr("major:minor of the host device", TEXT, role=Role.RESOLVED)
    partition_of: str | None = attr("identity of the disk whose entry brought this partition", TEXT, role=Role.ORIGIN)
    prior_access: str | None = attr("what the container could do before scplan", TEXT, role=Role.FORMER)
    prior_limits: str | None = attr("the disk's I/O limits before scplan", TEXT, role=Role.FORMER)
    former_node: str | None = attr(
        "mode, owner, times and attributes of a node that others had made and scplan took over",
        TEXT,
        role=Role.FORMER,
        lasting=True,  # its maker makes the node again at the next start
    )
    default_mode: str | None = attr("mode that it was made with where the entry says nothing", MODE, role=Role.PROMISED)
    default_uid: int | None = attr("owner that it was made with where the entry says nothing", ID, role=Role.PROMISED)
    default_gid: int | None = attr("group that it was made with where the entry says nothing", ID, role=Role.PROMISED)
    node: str | None = attr(
        "mode, owner, times and attributes of the node just before the operation", TEXT, role=Role.CARRIED
    )
    in_force: str | None = attr(
        "what the container may do where rules for more devices allow more than `permissions`", TEXT, role=Role.CARRIED
    )
    access_of_others: str | None = attr(
        "what others allowed the container of the device just before the operation, besides all that is recorded",
        TEXT,
        role=Role.CARRIED,
    )
    saved_as: str | None = attr("where the file that was at target is kept", TEXT, role=Role.FORMER, lasting=True)
    saved_identity: str | None = attr("which file that is: st_dev:st_ino", TEXT, role=Role.FORMER, lasting=True)
    taken_by: str | None = attr(
        "type of what others had put in the node's place when it was removed or changed", TEXT, role=Role.CARRIED
    )
    rule: str | None = attr("udev rule on the host that tells of later partitions", TEXT, role=Role.FORMER)
    made: tuple[str, ...] | None = attr(
        "what was made in the container for it", TEXT, role=Role.FORMER, many=True, lasting=True
    )

    def remark(self) -> str:
        return f"may {self.in_force} by a wider rule" if self.in_force else ""

    def shown(self, path: str, value: object) -> str:
        """Permissions, with the access that a wider rule allows besides."""
        words = super().shown(path, value)
        return f"{words} ({self.in_force} by a wider rule)" if path == "permissions" and self.in_force else words


def is_same_device(one: Device, other: Device) -> bool:
    """True if both are nodes of the same device of the host."""
    return (one.file_type, one.numbers) == (other.file_type, other.numbers)

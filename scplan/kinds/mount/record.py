"""Attributes of a bind mount: those that users write, and those that the kernel and the records have."""

from __future__ import annotations

from scplan.linux.syscalls import MS_PRIVATE, MS_SHARED, MS_SLAVE
from scplan.model.resource import Resource, Role, attr
from scplan.model.values import ABSOLUTE_PATH, BOOL, FILE_IDENTITY, TEXT, choice

PROPAGATION = {"private": MS_PRIVATE, "slave": MS_SLAVE, "shared": MS_SHARED}
WORDS = tuple(prefix + word for word in PROPAGATION for prefix in ("", "r"))


class BindMount(Resource):
    """A file or directory of the host, mounted in the container."""

    source: str = attr("host path, file or directory", ABSOLUTE_PATH, role=Role.REFERENCE, required=True)
    target: str = attr("path in the container, never /", ABSOLUTE_PATH, role=Role.IDENTITY, required=True)
    read_only: bool = attr(
        "nothing can be written through it, or through what the host has mounted below the source; what the host mounts"
        " there later is reported as drift. `false` lifts nothing that the host's own mount has",
        BOOL,
        default=False,
    )
    recursive: bool = attr("mounts below the source come along", BOOL, role=Role.FIXED, default=True)
    propagation: str = attr(
        "how later mounts spread between host and container", choice(*WORDS), role=Role.FIXED, default="rslave"
    )
    create_source: bool = attr(
        "make the host directory when absent; goes with the last mount", BOOL, role=Role.POLICY, default=False
    )
    required: bool = attr("an absent source is an error", BOOL, role=Role.POLICY, default=True)
    source_identity: str | None = attr("st_dev:st_ino of the source", FILE_IDENTITY, role=Role.RESOLVED)
    flags: str | None = attr("flags of the mount: nosuid, nodev, noexec …", TEXT, role=Role.PROMISED)
    submounts: tuple[str, ...] | None = attr(
        "mounts below the source that came along, with their flags", TEXT, role=Role.PROMISED, many=True
    )
    made_read_only: tuple[str, ...] | None = attr(
        "paths of mounts in it that `read_only` made read-only", TEXT, role=Role.FORMER, many=True
    )
    taken: bool | None = attr(
        "others had something mounted at target when it was removed or changed", BOOL, role=Role.CARRIED
    )
    tree: tuple[str, ...] | None = attr("the mount and all below it, as they were", TEXT, role=Role.CARRIED, many=True)
    parked: str | None = attr("where a clone of the mount is kept until the apply has ended", TEXT, role=Role.CARRIED)
    put_back: tuple[str, ...] | None = attr(
        "paths below target of mounts of others that are put back", TEXT, role=Role.CARRIED, many=True
    )
    made_as: tuple[str, ...] | None = attr(
        "owner, mode and extended attributes of what was made", TEXT, role=Role.CARRIED, many=True
    )
    made_source_as: tuple[str, ...] | None = attr(
        "owner, mode and extended attributes of the host directories made", TEXT, role=Role.CARRIED, many=True
    )
    leads_to: str | None = attr("source without symlinks, when it was planned", TEXT, role=Role.CARRIED)
    made: tuple[str, ...] | None = attr(
        "what was made in the container to mount on", TEXT, role=Role.FORMER, many=True, lasting=True
    )
    made_source: tuple[str, ...] | None = attr("host directories made", TEXT, role=Role.FORMER, many=True, lasting=True)

"""Authority over namespaces: the rights to change them. capabilities(7), user_namespaces(7), ioctl_ns(2)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from scplan.linux.container import Container
from scplan.linux.processes.privileges import missing_capabilities
from scplan.linux.syscalls import is_owned_below

_CAPABILITIES: Mapping[str, tuple[str, ...]] = {
    "mnt": ("CAP_SYS_ADMIN", "CAP_SYS_CHROOT"),
    "net": ("CAP_SYS_ADMIN", "CAP_NET_ADMIN"),
}
_THINGS = {"mnt": "mounts", "net": "network"}


def lacking(container: Container, kind: Literal["mnt", "net"], *, of_host: bool) -> str:
    """Reason why this process may not change a container's namespace of a kind; "" if it may.

    With `of_host`, scplan's own namespace is changed, too: a veth pair has an end in each.
    """
    missing = missing_capabilities(_CAPABILITIES[kind])
    if missing:
        return f"to change the {_THINGS[kind]} of a container takes {' and '.join(missing)}"
    if container.host.is_in_initial_user_namespace:
        return ""
    fd = container.open_proc(f"ns/{kind}")
    try:
        if not is_owned_below(fd):
            return f"another user namespace than scplan's owns the {_THINGS[kind]} of container {container.name}"
    finally:
        os.close(fd)
    if of_host and not container.host.owns_network:
        return "another user namespace than scplan's owns the network that scplan runs in"
    return ""

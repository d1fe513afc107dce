"""Kernel interfaces that exist: each is called so that it must fail; with ENOSYS it is missing."""

from __future__ import annotations

import ctypes
import errno
import os

from scplan.linux.syscalls import system_call

INTERFACES = {
    "open_tree": (428, "5.2", "mounts"),
    "move_mount": (429, "5.2", "mounts"),
    "fsmount": (432, "5.2", "devices in user namespaces"),
    "pidfd_open": (434, "5.3", "time limits"),
    "openat2": (437, "5.6", "everything in a container"),
    "mount_setattr": (442, "5.12", "mounts"),
}
"""Name: number on all architectures, the Linux version that brought it, what needs it."""

CAPABILITIES = {
    "CAP_SYS_ADMIN": (21, "namespaces and mounts"),
    "CAP_NET_ADMIN": (12, "nics and routes"),
    "CAP_MKNOD": (27, "devices"),
    "CAP_SYS_PTRACE": (19, "looking into containers of other users"),
    "CAP_DAC_OVERRIDE": (1, "runtimes' state and cgroup files"),
}


def has_system_call(number: int) -> bool:
    """True if the kernel has the call; a security filter that hides it counts as missing."""
    return system_call(number, -1, None, 0, None, 0) >= 0 or ctypes.get_errno() != errno.ENOSYS


def effective_capabilities() -> int:
    """CapEff of this process as a bit set. Source: /proc/self/status, capabilities(7)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0


def kernel_release() -> str:
    return os.uname().release

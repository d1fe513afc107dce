"""Capabilities and limits of this process. capabilities(7), getrlimit(2)."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping

_NUMBERS: Mapping[str, int] = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_MKNOD": 27,
}


def missing_capabilities(names: Iterable[str]) -> list[str]:
    """Names of capabilities that this process does not have in effect."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        effective = next((int(line.split()[1], 16) for line in file if line.startswith("CapEff:")), 0)
    return [name for name in names if not effective >> _NUMBERS[name] & 1]


def raise_open_files(wanted: int) -> int:
    """Raise the limit of open files to `wanted`, as far as the system allows; return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted <= soft:
        return soft
    # Raising the hard limit takes CAP_SYS_RESOURCE. getrlimit(2)
    for limits in ((wanted, max(hard, wanted)), (min(wanted, hard), hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            return limits[0]
        except (ValueError, PermissionError, OSError):
            continue  # above what this user, or fs.nr_open, allows
    return soft

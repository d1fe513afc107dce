"""What tests may ask of the machine with `@needs(…)`, each found out by trying it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tests.containers import cgroups

INCUSD = Path("/usr/libexec/incus/incusd")
NETAVARK = Path("/usr/lib/podman/netavark")


def missing(needs: tuple[str, ...]) -> list[str]:
    """Those of the needs that this machine does not meet. An unknown need is an error of the test."""
    return [need for need in needs if not _is_met(need)]


@cache
def _is_met(need: str) -> bool:
    if need in _PROBES:
        return _PROBES[need]()
    if need in _PROGRAMS:
        return shutil.which(need) is not None
    raise ValueError(f"unknown need {need!r}; known are {', '.join(sorted((*_PROBES, *_PROGRAMS)))}")


def _has_user_namespaces() -> bool:
    return _works("unshare", "--user", "true")


def _has_link_kind(kind: str) -> Callable[[], bool]:
    """Tried in a network namespace of its own, which takes the link with it."""
    script = f"ip link add probe0 type {kind}"
    return lambda: os.geteuid() == 0 and _works("unshare", "--net", "sh", "-c", script)


def _can_open(device: str) -> bool:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0
    except FileNotFoundError:
        return False


_PROBES: dict[str, Callable[[], bool]] = {
    "incusd": lambda: INCUSD.exists(),
    "netavark": lambda: NETAVARK.exists(),
    "root": lambda: os.geteuid() == 0,
    "userns": _has_user_namespaces,
    "loop": lambda: os.geteuid() == 0 and Path("/dev/loop-control").exists() and _works("losetup", "--find"),
    "fuse": lambda: os.geteuid() == 0 and _can_open("/dev/fuse"),
    "cgroup1": lambda: not cgroups.is_v2() and bool(cgroups.hierarchies()),
    "cgroup2": cgroups.is_v2,
    "cgroup2-mount": lambda: os.geteuid() == 0 and cgroups.v2_mount() is not None,
    "x86_64": lambda: platform.machine() == "x86_64",
    "bfq": lambda: Path("/sys/fs/cgroup/blkio/blkio.bfq.weight").exists() or Path("/sys/block/loop0/bfq").exists(),
    **{kind: _has_link_kind(kind) for kind in ("veth", "bridge", "ifb", "macvlan", "vxlan", "dummy")},
}
_PROGRAMS = (
    "runc",
    "crun",
    "busybox",
    "strace",
    "ovs-vswitchd",
    "tmux",
    "gcc",
    "podman",
    "slirp4netns",
    "docker",
    "dockerd",
    "containerd",
    "ctr",
    "lxc-start",
    "incus",
    "systemd-nspawn",
    "partx",
    "udevadm",
    "modprobe",
)

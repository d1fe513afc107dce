"""Properties of a process: start, cgroup, namespaces, owner. Sources: proc_pid_stat(5), ioctl_ns(2)."""

from __future__ import annotations

import array
import fcntl
import os
from collections.abc import Sequence

_NS_GET_OWNER_UID = 0xB704
# /proc/PID/stat is one line, which the kernel returns whole.
_STAT_BYTES = 4096
_CGROUPS, _FREEZER = "/sys/fs/cgroup", "freezer"
_OVER = (b"Z", b"X")  # zombie, dead. proc_pid_stat(5)
INITIAL_USER_NAMESPACE = 0xEFFFFFFD
"""Inode of the user namespace of the host's init: PROC_USER_INIT_INO of the kernel's include/linux/proc_ns.h."""
INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""The same of its PID namespace: PROC_PID_INIT_INO."""
_GENERATED_ID_LENGTH = 64
_STATE, _PARENT, _START_TIME = 0, 1, 19
"""Places after the command's name, which may hold spaces and brackets; fields 3, 4 and 22."""


PINS = "/run/scplan/netns"
"""Directory of kept network namespaces with NICs of the host (pins.py); here, since hooks need no more of it."""


def start_of(pid: int) -> int:
    """Start time of a process in clock ticks after boot; 0 if it does not exist, or only its exit status is left."""
    if pid <= 0:
        return 0
    try:
        # Not open(): a plan reads this of every container, and a buffered file makes ten system calls instead of three.
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return start_time(os.read(fd, _STAT_BYTES))
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def parent_of(pid: int) -> int:
    """PID of a process's parent; 0 if the process does not exist, or its parent is in another PID namespace."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read(_STAT_BYTES).rpartition(b")")[2].split()[_PARENT])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def working_directory(pid: int) -> str:
    """Working directory of a process; "" if it can't be read. A containerd shim's is its container's bundle."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def cgroup_of(pid: int) -> str:
    """Last parts of a process's cgroup path, common to all v1 hierarchies: `docker/4f6c`; "" if none are."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except (FileNotFoundError, ProcessLookupError):
        return ""  # the process has ended, which the caller notices when it acts
    # Hierarchy 0 is cgroup v2. cgroups(7)
    return common_end([path for number, _, path in lines if number != "0"])


def is_in_cgroup(pid: int, end: str) -> bool | None:
    """True if the process is in a cgroup whose path ends with `end`, or below one; None if its cgroups are unknown.

    Unknown cgroups show "/" everywhere: those of an exiting process, which leaves its v1 hierarchies before it is seen
    to have ended, and those at the root of scplan's cgroup namespace. See proc_cgroup_show() of the kernel.
    """
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except (FileNotFoundError, ProcessLookupError):
        return None
    paths = [path for number, _, path in lines if number != "0"] or [path for _, _, path in lines]
    if all(path == "/" for path in paths):
        return None
    wanted = end.split("/")
    for path in paths:
        # The kernel marks a removed cgroup with " (deleted)". cgroup-v2.rst
        parts = path.removesuffix(" (deleted)").strip("/").split("/")
        if any(ends_in_cgroup(parts[:count], wanted) for count in range(len(wanted), len(parts) + 1)):
            return True
    return False


def ends_in_cgroup(parts: Sequence[str], end: Sequence[str]) -> bool:
    """True if the path of a cgroup ends with `end`. A generated ID may be part of a name: docker-4f6c….scope."""
    if len(end) == 1 and len(end[0]) == _GENERATED_ID_LENGTH:
        return end[0] in parts[-1]
    return list(parts[-len(end) :]) == list(end)


def pid_namespace_of(pid: int) -> int:
    """Inode of the process's PID namespace, which identifies it; 0 if the process has ended or may not be examined.

    Also 0 if scplan is not in the host's initial PID namespace, where the process has another PID.
    """
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino if pid and sees_all_processes() else 0
    except OSError:
        return 0


def sees_all_processes() -> bool:
    """True if scplan is in the host's initial PID namespace. pid_namespaces(7)"""
    return os.stat("/proc/self/ns/pid").st_ino == INITIAL_PID_NAMESPACE


def acts_for_user() -> bool:
    """True unless this is the host's root: for other users, and for root in their namespaces (`podman unshare`)."""
    return os.geteuid() != 0 or "_CONTAINERS_ROOTLESS_UID" in os.environ


def run_directory() -> str:
    """Directory for files kept until the next boot: /run/scplan, for users a directory of their own."""
    if not acts_for_user():
        return "/run/scplan"
    return os.path.join(os.environ.get("XDG_RUNTIME_DIR") or os.path.expanduser("~/.local/state"), "scplan-run")


def user_namespace_owner(pid: int) -> int | None:
    """User who made the process's user namespace; None for the host's initial one, and for a process that is gone."""
    try:
        fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.fstat(fd).st_ino == INITIAL_USER_NAMESPACE:
            return None
        # The ioctl writes a uid_t through a pointer. ioctl_ns(2)
        uid = array.array("I", [0])
        fcntl.ioctl(fd, _NS_GET_OWNER_UID, uid)
        return uid[0]
    finally:
        os.close(fd)


def is_frozen(pid: int) -> bool:
    """True if the freezer has stopped the process, through its own cgroup or a cgroup above.

    Source: freezer-subsystem (cgroup v1): FROZEN, or FREEZING on the way there; cgroup v2: cgroup.events, "frozen".
    """
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except (FileNotFoundError, ProcessLookupError):
        return False
    by_controllers = {controllers: path for _, controllers, path in lines}
    if _FREEZER in by_controllers:
        return _first_word(f"{_CGROUPS}/{_FREEZER}{by_controllers[_FREEZER]}/freezer.state") in (b"FROZEN", b"FREEZING")
    return "" in by_controllers and is_frozen_cgroup(f"{_CGROUPS}{by_controllers['']}")


def is_frozen_cgroup(directory: str) -> bool:
    """True if a v2 cgroup is frozen, through its own cgroup.freeze or that of a cgroup above."""
    try:
        with open(f"{directory}/cgroup.events", "rb", buffering=0) as events:
            return b"frozen 1\n" in events.read(_STAT_BYTES)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False


def _first_word(path: str) -> bytes:
    """The only word of a cgroup's file; b"" if its hierarchy is not mounted there, or the cgroup is gone."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(_STAT_BYTES).strip()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return b""


def common_end(paths: Sequence[str]) -> str:
    """Last parts that all paths have in common: `b/c` of /x/b/c and /y/b/c."""
    parts = [path.strip("/").split("/") for path in paths]
    shared: list[str] = []
    for same in zip(*map(reversed, parts), strict=False):
        if len({*same}) > 1 or not same[0]:
            break
        shared.append(same[0])
    return "/".join(reversed(shared))


def start_time(stat: bytes) -> int:
    """Start time as of `start_of`, from the content of /proc/PID/stat."""
    # The command's name, in brackets, may hold spaces and brackets: fields are counted from the last ")".
    fields = stat.rpartition(b")")[2].split()
    return 0 if fields[_STATE] in _OVER else int(fields[_START_TIME])

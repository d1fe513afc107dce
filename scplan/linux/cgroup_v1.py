"""A container's cgroup v1 files: settings, device rules and I/O limits. cgroups(7), admin-guide/cgroup-v1."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from scplan.errors import KernelError, ScplanError
from scplan.linux.closing import Closing
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.linux.mountinfo import read_all

LIMIT_FILES = {
    "read_bps": "blkio.throttle.read_bps_device",
    "write_bps": "blkio.throttle.write_bps_device",
    "read_iops": "blkio.throttle.read_iops_device",
    "write_iops": "blkio.throttle.write_iops_device",
}
_WEIGHT_FILES = ("blkio.bfq.weight_device", "blkio.weight_device")
_ACCESS = "rwm"


class Cgroup(Closing):
    """The container's directory in the hierarchy of one controller, opened; use it in a `with` block."""

    def __init__(self, container: Container, host: Host, controller: str) -> None:
        self.container = container
        self.controller = controller
        self.path = container.cgroup_path(controller)
        self.is_its_own = self.path not in ("/", _own_path(host, controller))
        directory = host.cgroup_mount(controller) + self.path
        try:
            self.fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise KernelError.from_os(f"open({directory})", error) from None

    def close(self) -> None:
        os.close(self.fd)

    def read(self, file: str) -> str | None:
        """The file's text without the last newline; None when this kernel has no such file."""
        try:
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refused("open", file, error) from None
        try:
            return read_all(fd, has_paths=False).decode(errors="replace").rstrip("\n")
        except OSError as error:
            raise self._refused("read", file, error) from None
        finally:
            os.close(fd)

    def refuse_shared(self) -> None:
        """Raises ScplanError when the cgroup is the host's root or scplan's own: a limit there would hit others."""
        if not self.is_its_own:
            raise ScplanError(
                f"container {self.container.name} has no {self.controller} cgroup of its own (it is in {self.path})",
                hint="a setting there would apply to other processes of the host; start it in a cgroup of its own",
            )

    def write(self, file: str, text: str, *, hint: str = "") -> None:
        """Writes one value in one write(2), as cgroup files want it. Raises ScplanError as `refuse_shared` does."""
        self.refuse_shared()
        try:
            fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.fd)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise self._refused(f"write {text!r} to", file, error, hint=hint) from None

    def _refused(self, verb: str, file: str, error: OSError, *, hint: str = "") -> KernelError:
        return KernelError.from_os(f"{verb} {self.controller}:{self.path}/{file}", error, hint=hint)


def _own_path(host: Host, controller: str) -> str:
    """scplan's own path in the hierarchy of a controller."""
    return host.own_cgroups.get(controller, "/")


class DeviceRule(NamedTuple):
    """One line of devices.list: `c 1:3 rwm`; "*" is any number, and the type "a" any device."""

    type: str
    major: str
    minor: str
    access: str


def device_rules(cgroup: Cgroup) -> list[DeviceRule]:
    """The rules of the container's devices cgroup."""
    rules = []
    for line in (cgroup.read("devices.list") or "").splitlines():
        kind, numbers, access = line.split()
        major, minor = numbers.split(":")
        rules.append(DeviceRule(kind, major, minor, access))
    return rules


def exact_access(rules: list[DeviceRule], kind: str, numbers: str) -> str:
    """What a rule for exactly this device allows: a subset of "rwm". `kind` is "b" or "c"."""
    allowed = {
        letter
        for rule in rules
        if (rule.type, f"{rule.major}:{rule.minor}") == (kind, numbers)
        for letter in rule.access
    }
    return join_access(allowed)


def wildcard_access(rules: list[DeviceRule], kind: str, numbers: str) -> str:
    """What rules for more than this one device allow it."""
    major, minor = numbers.split(":")
    allowed: set[str] = set()
    for rule in rules:
        if (
            rule.type in ("a", kind)
            and "*" in (rule.major, rule.minor)
            and rule.major in ("*", major)
            and rule.minor in ("*", minor)
        ):
            allowed |= set(rule.access)
    return join_access(allowed)


def join_access(*parts: str | set[str]) -> str:
    """The union, in the order r, w, m."""
    union = {letter for part in parts for letter in part}
    return "".join(letter for letter in _ACCESS if letter in union)


def set_exact_access(cgroup: Cgroup, kind: str, numbers: str, wanted: str) -> None:
    """Makes the rule for exactly this device allow `wanted` and no more; nothing is written where it does already.

    Where a wider rule allows everything (no whitelist) there is nothing to grant, and nothing is denied.
    """
    rules = device_rules(cgroup)
    if any(rule.type == "a" for rule in rules):
        return
    now = exact_access(rules, kind, numbers)
    hint = "a parent cgroup does not allow the device; allow it there, or start the container without that limit"
    if missing := join_access(set(wanted) - set(now)):
        cgroup.write("devices.allow", f"{kind} {numbers} {missing}", hint=hint)
    if surplus := join_access(set(now) - set(wanted)):
        cgroup.write("devices.deny", f"{kind} {numbers} {surplus}")


def read_limits(cgroup: Cgroup, numbers: str) -> dict[str, int]:
    """The four throttle limits of one disk by name, as in LIMIT_FILES; 0 is no limit."""
    return {name: _line_of(cgroup.read(file), numbers) for name, file in LIMIT_FILES.items()}


def read_weight(cgroup: Cgroup, numbers: str) -> int:
    """The disk's own weight; 0 when it has none."""
    texts = (cgroup.read(file) for file in _WEIGHT_FILES)
    return _line_of(next((text for text in texts if text is not None), None), numbers)


def weight_file(cgroup: Cgroup) -> str | None:
    """The file of per-device weights that this kernel has: BFQ's, or the CFQ scheduler's on old kernels."""
    return next((file for file in _WEIGHT_FILES if cgroup.read(file) is not None), None)


def write_limit(cgroup: Cgroup, name: str, numbers: str, value: int) -> None:
    """Sets one throttle limit; 0 lifts it. One line a write: the kernel drops all others."""
    cgroup.write(LIMIT_FILES[name], f"{numbers} {value}", hint="limits are for whole disks; is the disk still there?")


def write_weight(cgroup: Cgroup, numbers: str, value: int) -> None:
    """Sets the disk's weight; 0 takes it away."""
    file = weight_file(cgroup)
    if file is None:
        if not value:
            return
        raise KernelError(
            "blkio weight", errno.ENOTSUP, detail="no I/O scheduler of this kernel knows weights", hint="load bfq"
        )
    hint = f"the disk needs the scheduler bfq: echo bfq > /sys/dev/block/{numbers}/queue/scheduler"
    cgroup.write(file, f"{numbers} {value}", hint=hint)


def _line_of(text: str | None, numbers: str) -> int:
    for line in (text or "").splitlines():
        device, _, value = line.partition(" ")
        if device == numbers and value.isdigit():
            return int(value)
    return 0

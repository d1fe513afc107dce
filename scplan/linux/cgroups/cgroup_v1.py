"""A container's cgroup v1 files: settings, device rules and I/O limits. cgroups(7), admin-guide/cgroup-v1."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from copy import copy
from functools import lru_cache

from scplan.errors import KernelError, ScplanError
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.linux.mounts.mountinfo import read_all

LIMIT_FILES = {
    "read_bps": "blkio.throttle.read_bps_device",
    "write_bps": "blkio.throttle.write_bps_device",
    "read_iops": "blkio.throttle.read_iops_device",
    "write_iops": "blkio.throttle.write_iops_device",
}
_WEIGHT_FILES = ("blkio.bfq.weight_device", "blkio.weight_device")
_ACCESS = "rwm"


class Cgroup:
    """The container's directory in the hierarchy of one controller."""

    def __init__(self, container: Container, host: Host, controller: str) -> None:
        self.container = container
        self.host = host
        self.controller = controller
        self.path = container.cgroup_path(controller)
        self.is_its_own = self.path not in ("/", host.own_cgroups.get(controller, "/"))
        self._directory = host.cgroup_mount(controller) + self.path

    def read(self, file: str) -> str | None:
        """Text of the file without the last newline; None if this kernel has no such file."""
        try:
            fd = os.open(f"{self._directory}/{file}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            self._refuse_missing(error)
            return None
        except OSError as error:
            raise self._refused("open", file, error) from None
        try:
            return read_all(fd, has_paths=False).decode(errors="replace").rstrip("\n")
        except OSError as error:
            raise self._refused("read", file, error) from None
        finally:
            os.close(fd)

    def may_write(self, file: str) -> bool:
        """True if this process may write to the file: without delegation, a cgroup belongs to root."""
        return os.access(f"{self._directory}/{file}", os.W_OK, effective_ids=True)

    def above(self) -> Cgroup:
        """Parent of this cgroup, for reading."""
        parent = copy(self)
        parent.path, parent._directory = os.path.dirname(self.path), os.path.dirname(self._directory)
        return parent

    def has(self, file: str) -> bool:
        """True if this kernel has the file. Cached, because all containers have the same files."""
        known = self.host.cgroup_files
        if (self.controller, file) not in known:
            try:
                os.stat(f"{self._directory}/{file}")
            except FileNotFoundError as error:
                self._refuse_missing(error)
                known[self.controller, file] = False
            else:
                known[self.controller, file] = True
        return known[self.controller, file]

    def _refuse_missing(self, error: OSError) -> None:
        if not os.path.isdir(self._directory):
            raise KernelError.from_os(f"open({self._directory})", error) from None

    def refuse_shared(self) -> None:
        """Raise ScplanError if the cgroup is the host's root or scplan's own: a limit there would affect others.

        Raises ContainerGone if the process is ending, which shows it in the root of the hierarchy.
        """
        if not self.is_its_own:
            self.container.check_staying()
            raise ScplanError(
                f"container {self.container.name} has no {self.controller} cgroup of its own (it is in {self.path})",
                hint="a setting there would apply to other processes of the host; start it in a cgroup of its own",
            )

    def below(self) -> list[Cgroup]:
        """Children of this cgroup, for reading."""
        try:
            with os.scandir(self._directory) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []
        found = []
        for name in names:
            child = copy(self)
            child.path, child._directory = os.path.join(self.path, name), f"{self._directory}/{name}"
            found.append(child)
        return found

    def write(self, file: str, text: str, *, hint: str = "", hints: Mapping[int, str] | None = None) -> None:
        """Write one value in one write(2), as cgroup files require; `hints` are hints for errors, by errno.

        Raises ScplanError as `refuse_shared` does.
        """
        self.refuse_shared()
        try:
            fd = os.open(f"{self._directory}/{file}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        except OSError as error:
            hint = (hints or {}).get(error.errno or 0, hint)
            raise self._refused(f"write {text.strip()!r} to", file, error, hint=hint) from None

    def _refused(self, verb: str, file: str, error: OSError, *, hint: str = "") -> KernelError:
        return KernelError.from_os(f"{verb} {self.controller}:{self.path}/{file}", error, hint=hint)


class DeviceRules:
    """Rules of a devices.list: lines of `c 1:3 rwm`, in which "*" is any number, and the type "a" any device."""

    def __init__(self, text: str) -> None:
        self._exact: dict[tuple[str, str], str] = {}
        self._wider: list[tuple[str, str, str, str]] = []
        for line in text.splitlines():
            kind, numbers, access = line.split()
            major, minor = numbers.split(":")
            if kind == "a" or "*" in (major, minor):
                self._wider.append((kind, major, minor, access))
            else:
                self._exact[kind, numbers] = join_access(self._exact.get((kind, numbers), ""), access)

    @property
    def allow_all(self) -> bool:
        """True without a whitelist: all devices are allowed, and none can be granted or denied."""
        # Then the kernel lists "a *:* rwm": devcgroup_seq_show() of security/device_cgroup.c.
        return any(kind == "a" for kind, *_ in self._wider)

    def exact(self, kind: str, numbers: str) -> str:
        """Access that a rule for exactly this device allows: a subset of "rwm". `kind` is "b" or "c"."""
        return self._exact.get((kind, numbers), "")

    def wider(self, kind: str, numbers: str) -> str:
        """Access that rules for more than this device allow to it."""
        major, minor = numbers.split(":")
        return join_access(
            *(
                access
                for kind_, major_, minor_, access in self._wider
                if kind_ in ("a", kind) and major_ in ("*", major) and minor_ in ("*", minor)
            )
        )


# Cached: most containers of a host have the same rules.
_rules_of = lru_cache(maxsize=64)(DeviceRules)


def device_rules(cgroup: Cgroup) -> DeviceRules:
    """Rules of the container's devices cgroup."""
    return _rules_of(cgroup.read("devices.list") or "")


@lru_cache(maxsize=1024)
def join_access(*parts: str) -> str:
    """Union of accesses, in the order r, w, m."""
    return "".join(letter for letter in _ACCESS if any(letter in part for part in parts))


@lru_cache(maxsize=1024)
def access_without(access: str, other: str) -> str:
    """Letters of `access` that are not in `other`."""
    return "".join(letter for letter in access if letter not in other)


@lru_cache(maxsize=1024)
def common_access(one: str, other: str) -> str:
    """Letters in both accesses."""
    return "".join(letter for letter in _ACCESS if letter in one and letter in other)


def set_exact_access(cgroup: Cgroup, kind: str, numbers: str, wanted: str) -> None:
    """Make the rule for exactly this device allow `wanted` and no more; only differences are written.

    If a wider rule allows all devices (no whitelist), there is nothing to grant, and nothing is denied.
    """
    rules = device_rules(cgroup)
    if rules.allow_all:
        return
    now = rules.exact(kind, numbers)
    hint = "a parent cgroup does not allow the device; allow it there, or start the container without that limit"
    if missing := access_without(wanted, now):
        cgroup.write("devices.allow", f"{kind} {numbers} {missing}", hint=hint)
    if surplus := access_without(now, wanted):
        cgroup.write("devices.deny", f"{kind} {numbers} {surplus}")


def read_limits(cgroup: Cgroup, numbers: str) -> dict[str, int]:
    """The four throttle limits of a disk by name, as in LIMIT_FILES; 0 is no limit."""
    return {name: _line_of(cgroup.read(file), numbers) for name, file in LIMIT_FILES.items()}


def read_weight(cgroup: Cgroup, numbers: str) -> int:
    """Weight of a disk; 0 if it has none of its own."""
    file = weight_file(cgroup)
    return _line_of(cgroup.read(file), numbers) if file is not None else 0


def weight_file(cgroup: Cgroup) -> str | None:
    """File of weights per device in this kernel: BFQ's, or the CFQ scheduler's on old kernels; None without either."""
    return next((file for file in _WEIGHT_FILES if cgroup.has(file)), None)


def write_limit(cgroup: Cgroup, name: str, numbers: str, value: int) -> None:
    """Set one throttle limit; 0 removes it. One line per write: the kernel ignores all further lines."""
    cgroup.write(LIMIT_FILES[name], f"{numbers} {value}", hint="limits are for whole disks; is the disk still there?")


def write_weight(cgroup: Cgroup, numbers: str, value: int) -> None:
    """Set the weight of a disk; 0 removes it."""
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

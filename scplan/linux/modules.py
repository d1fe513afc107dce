"""Kernel modules that containers need: finding missing ones, and loading them with the host's modprobe(8).

Source: /sys/module, modules.builtin of kmod; /proc/sys/kernel/modprobe names the program that the kernel itself calls.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from scplan.errors import KernelError, ScplanError

_PROGRAMS = ("/usr/sbin/modprobe", "/sbin/modprobe", "/usr/bin/modprobe", "/bin/modprobe")
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
_TIMEOUT_S = 30.0
_SAID_BYTES = 2000


def missing(names: Iterable[str]) -> list[str]:
    """Modules that are neither loaded nor built in. Aliases count as missing: only modprobe can resolve them."""
    absent = [name for name in dict.fromkeys(names) if not os.path.isdir(f"/sys/module/{_as_listed(name)}")]
    builtin = _builtin() if absent else frozenset[str]()
    return [name for name in absent if _as_listed(name) not in builtin]


def _as_listed(name: str) -> str:
    """Name as the kernel writes it: with _ where users may write -."""
    return name.replace("-", "_")


def _builtin() -> frozenset[str]:
    """Modules that are built into the kernel; those without parameters are not in /sys/module."""
    path = f"/lib/modules/{os.uname().release}/modules.builtin"
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            # A line is the path of a module: kernel/drivers/net/veth.ko.
            return frozenset(_as_listed(os.path.basename(line.strip()).partition(".ko")[0]) for line in file)
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise KernelError.from_os(f"open({path})", error) from None


def load(names: Iterable[str]) -> list[str]:
    """Load the missing modules; return their names. Raises ScplanError for the first that can't be loaded."""
    absent = missing(names)
    for name in absent:
        _load(name)
    return absent


def _load(name: str) -> None:
    from scplan.linux.processes.programs import run_bounded

    ended = run_bounded([_program(), "--", name], _ENVIRONMENT, timeout_s=_TIMEOUT_S, output_bytes=_SAID_BYTES)
    if ended.status == 0:
        return
    said = ended.output.decode(errors="replace").strip()
    why = (
        f"modprobe did not end within {_TIMEOUT_S:g} s" if ended.status is None else said or f"exit code {ended.status}"
    )
    raise ScplanError(
        f"kernel module {name} can't be loaded",
        detail=why,
        hint="take it out of `modules:`, or install it for the kernel that runs; nothing was changed",
    )


def _program() -> str:
    """Path of the host's modprobe. Raises ScplanError if the host has none."""
    for path in (_of_kernel(), *_PROGRAMS):
        if path and os.access(path, os.X_OK):
            return path
    raise ScplanError(
        "the host has no modprobe, so that no kernel module can be loaded",
        hint="install kmod, or take the modules out of the configuration",
    )


def _of_kernel() -> str:
    """Path of the program that the kernel runs to load modules; "" if it runs none. Source: proc_sys_kernel(5)."""
    try:
        with open("/proc/sys/kernel/modprobe", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except FileNotFoundError:  # a kernel without modules
        return ""

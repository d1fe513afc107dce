"""Settings of one link below /proc/sys/net: conf and neigh, of IPv4 and IPv6. proc(5), ip-sysctl.rst of the kernel.

Files of /proc/sys/net show the network namespace of the thread that opens them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import TypeVar

from scplan.errors import KernelError
from scplan.linux.network.links import NetworkNamespace
from scplan.linux.network.netlink import Link
from scplan.linux.paths.rooted_path import opened
from scplan.linux.syscalls import CLONE_NEWNET, setns

T = TypeVar("T")
_DIRECTORIES = ("ipv4/conf", "ipv6/conf", "ipv4/neigh", "ipv6/neigh")
# IPv6's mtu follows the link's.
_LEFT_OUT = frozenset(("ipv6/conf/mtu",))
_VALUE_BYTES = 256


def read_own(namespace: NetworkNamespace, link: Link) -> dict[str, str]:
    """Settings of a link that differ from those of new links: {"ipv4/conf/rp_filter": "2"}."""
    return _inside(namespace, lambda: _differing(link.name))


def write(namespace: NetworkNamespace, link: Link, wanted: Mapping[str, str]) -> None:
    """Set settings of a link where they differ. Raises KernelError for the first that is refused."""
    _inside(namespace, lambda: _write_all(link.name, wanted))


def _inside(namespace: NetworkNamespace, work: Callable[[], T]) -> T:
    if namespace.fd == namespace.own_fd:
        return work()
    setns(namespace.fd, CLONE_NEWNET, name="the network namespace of the link")
    try:
        return work()
    finally:
        setns(namespace.own_fd, CLONE_NEWNET, name="scplan's own network namespace")


def _differing(name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for directory in _DIRECTORIES:
        mine, usual = _values(directory, name), _values(directory, "default")
        found |= {
            f"{directory}/{key}": value
            for key, value in mine.items()
            if usual.get(key) != value and f"{directory}/{key}" not in _LEFT_OUT
        }
    return found


def _values(directory: str, name: str) -> dict[str, str]:
    """Settings in a directory; empty if the directory does not exist, as without IPv6."""
    try:
        fd = os.open(f"/proc/sys/net/{directory}/{name}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    with opened(fd):
        return {
            key: value for key in sorted(os.listdir(f"/proc/self/fd/{fd}")) if (value := _value(fd, key)) is not None
        }


def _value(directory_fd: int, key: str) -> str | None:
    try:
        with opened(os.open(key, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)) as fd:
            return os.read(fd, _VALUE_BYTES).decode("ascii", "replace").strip()
    except OSError as error:
        # EACCES, EPERM: write-only. ENOENT: gone meanwhile. EIO: a secret (stable_secret) that was never set.
        if error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.EIO):
            return None
        raise KernelError.from_os(f"read(/proc/sys/net/…/{key})", error) from None


def _write_all(name: str, wanted: Mapping[str, str]) -> None:
    for setting, value in wanted.items():
        directory, _, key = setting.rpartition("/")
        path = f"/proc/sys/net/{directory}/{name}/{key}"
        try:
            with opened(os.open(path, os.O_RDWR | os.O_CLOEXEC)) as fd:
                if os.read(fd, _VALUE_BYTES).decode("ascii", "replace").strip() != value:
                    os.pwrite(fd, value.encode(), 0)
        except OSError as error:
            if error.errno != errno.ENOENT:  # this kernel lacks the setting, or IPv6 is off
                raise KernelError.from_os(f"write({path}, {value!r})", error) from None

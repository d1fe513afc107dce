"""Block devices: whole disks and their partitions. Source: /sys/dev/block, sysfs(5), ABI/testing/sysfs-block."""

from __future__ import annotations

import errno
import os

from scplan.errors import KernelError


def _sysfs(numbers: str) -> str:
    return f"/sys/dev/block/{numbers}"


def is_whole_disk(numbers: str) -> bool:
    """True if "major:minor" is a whole disk; False for a partition, and for a number without a device."""
    # In sysfs only a partition has the file "partition", with its number.
    return os.path.exists(_sysfs(numbers)) and not os.path.exists(f"{_sysfs(numbers)}/partition")


def partitions(numbers: str) -> tuple[tuple[int, str, str], ...]:
    """(number, device path, "major:minor") of each partition of the disk, by number."""
    found = []
    try:
        entries = os.listdir(_sysfs(numbers))
    except FileNotFoundError:
        return ()
    for entry in entries:
        number = _read(f"{_sysfs(numbers)}/{entry}/partition")
        if number.isdigit():
            # sysfs writes "/" in a device's name as "!".
            path = f"/dev/{entry.replace('!', '/')}"
            found.append((int(number), path, _read(f"{_sysfs(numbers)}/{entry}/dev")))
    return tuple(sorted(found))


def disk_name(numbers: str) -> str:
    """Kernel's name of a block device: sdb for 8:16, as in sysfs paths. Raises KernelError if it does not exist."""
    try:
        # A symlink to the directory of the device, which has the device's name.
        return os.path.basename(os.readlink(_sysfs(numbers)))
    except OSError as error:
        raise KernelError.from_os(f"readlink({_sysfs(numbers)})", error) from None


def device_path(file_type: str, numbers: str) -> str:
    """Usual node of a device on the host: /dev/sdb for block 8:16; "" if the kernel has no such device."""
    for line in _read(f"/sys/dev/{file_type}/{numbers}/uevent").splitlines():
        if line.startswith("DEVNAME="):
            return f"/dev/{line[8:]}"
    return ""


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError as error:
        # ENODEV and EIO: the device was removed between listing and reading.
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.EIO):
            return ""
        raise KernelError.from_os(f"read({path})", error) from None

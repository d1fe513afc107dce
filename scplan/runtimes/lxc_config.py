"""NICs, mounts, devices and limits in the configuration of an LXC container. lxc.container.conf(5), fstab(5)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from scplan.model.provided import ANY_VALUE, Provided
from scplan.runtimes.provided import in_container, limit_values, swap_limit
from scplan.runtimes.state_files import list_suffixed, read_file

_DEPTH = 8
_NO_NIC = ("empty", "none")
_V1_LIMITS = {
    "memory.limit_in_bytes": "memory.max",
    "memory.memsw.limit_in_bytes": "memory.swap.max",
    "memory.soft_limit_in_bytes": "memory.low",
    "cpu.shares": "cpu.weight",
    "cpu.cfs_quota_us": "cpu.max",
    "cpu.cfs_period_us": "cpu.max",
}


def of_lxc(path: str) -> Provided:
    """NICs, mounts, devices and limits in a configuration and in all files that it includes."""
    mounts: dict[str, str] = {}
    devices: dict[str, str] = {}
    types: dict[str, str] = {}
    names: dict[str, str] = {}
    settings: dict[str, frozenset[str]] = {}
    written: dict[str, str] = {}
    for key, value in _lines(path, _DEPTH):
        match key.split(".")[1:]:
            case ["net", index, "type"]:
                types[index] = value
            case ["net", index, "name"]:
                names[index] = value
            case ["mount", "entry"]:
                _add_entry(value, mounts, devices)
            case ["mount", "fstab"]:
                for line in _text(value).splitlines():
                    _add_entry(line, mounts, devices)
            case ["cgroup", *file]:
                name = ".".join(file)
                # cgroup v1 has other files and units: LXC may have set any value of the v2 file.
                settings |= {_V1_LIMITS[name]: frozenset((ANY_VALUE,))} if name in _V1_LIMITS else {}
                settings |= limit_values({name: value})
                written[name] = value
            case ["cgroup2", *file]:
                settings |= limit_values({".".join(file): ANY_VALUE})
    settings |= {name: settings[name] | values for name, values in _memory_limits(written).items()}
    nics = {}
    for place, index in enumerate(sorted((index for index in types if types[index] not in _NO_NIC), key=_number)):
        nics[names.get(index) or f"eth{place}"] = f"the NIC of lxc.net.{index}"
    return Provided(nics=nics, mounts=mounts, devices=devices, settings=settings)


def _memory_limits(written: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Limits of memory, and of swap alone, from the cgroup v1 files in LXC's configuration."""
    # memory.memsw limits memory plus swap: Documentation/admin-guide/cgroup-v1/memory.rst.
    limit, both = (_bytes(written.get(f"memory.{file}_in_bytes", "")) for file in ("limit", "memsw.limit"))
    found = limit_values({"memory.max": limit})
    return found | swap_limit(both - limit) if limit is not None and both is not None and both >= limit else found


def _bytes(text: str) -> int | None:
    """Bytes of a number such as 512M, as the kernel parses it; None for other texts. lib/cmdline.c, memparse()."""
    match = re.fullmatch(r"(\d+)([kKmMgGtT]?)", text, re.ASCII)
    return int(match[1]) << 10 * " kmgt".index(match[2].lower() or " ") if match else None


def _add_entry(line: str, mounts: dict[str, str], devices: dict[str, str]) -> None:
    """Adds the target of an fstab line as a mount and a device: a bind-mounted device node is a device to scplan."""
    words = line.split()
    if len(words) < 2 or words[0].startswith("#"):
        return
    # fstab(5): \040 is a space in a path.
    target = in_container(words[1].replace("\\040", " "))
    mounts[target] = "a mount of LXC's configuration"
    devices[target] = "a device of LXC's configuration"


def _lines(path: str, depth: int) -> Iterator[tuple[str, str]]:
    """(key, value) of each line. An included file stands for its lines, an included directory for its .conf files."""
    for line in _text(path).splitlines():
        key, _, value = line.partition("=")
        key, value = key.strip(), value.strip()
        if key != "lxc.include":
            yield key, value
        elif depth and os.path.isdir(value):
            for name in sorted(list_suffixed(value, ".conf")):
                yield from _lines(f"{value}/{name}", depth - 1)
        elif depth:
            yield from _lines(value, depth - 1)


def _text(path: str) -> str:
    return (read_file(path) or b"").decode(errors="replace")


def _number(index: str) -> int:
    return int(index) if index.isdecimal() else 0

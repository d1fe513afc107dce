"""A complete picture of what scplan could have changed, for comparisons of before and after.

Takes nothing from scplan: links, addresses and routes come from `ip`, files from the kernel.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.containers import cgroups
from tests.containers.container import Container

Fingerprint = dict[str, Any]

# What changes by itself: counters, timers, and the numbers that the kernel hands out anew.
_VOLATILE = {
    "stats",
    "stats64",
    "ifindex",
    "link_index",
    "link_netnsid",
    "valid_life_time",
    "preferred_life_time",
    "expires",
    "cache_info",
    "hello_timer",
    "tcn_timer",
    "topology_change_timer",
    "forward_delay_timer",
    "message_age_timer",
    "hold_timer",
    "topology_change",
    "topology_change_detected",
    "operstate",
    "tso_max_size",
    "tso_max_segs",
    "gc_timer",
    "age",
    "used",
}
# A bridge numbers its ports in the order in which they come.
_VOLATILE_OF_PORT = {"no", "id", "designated_port"}
# `tentative` goes a second after an IPv6 address came; carrier follows a link's peer or a bridge's ports, with delay.
_VOLATILE_FLAGS = {"tentative", "dadfailed", "optimistic"}
_CARRIER_FLAGS = {"NO-CARRIER", "LOWER_UP", "linkdown"}
_CGROUP_FILES = (
    "devices.list",
    "blkio.throttle.read_bps_device",
    "blkio.throttle.write_bps_device",
    "blkio.throttle.read_iops_device",
    "blkio.throttle.write_iops_device",
    "blkio.bfq.weight",
    "blkio.bfq.weight_device",
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.soft_limit_in_bytes",
    "memory.swappiness",
    "blkio.weight_device",
    "memory.use_hierarchy",
    "cpu.shares",
    "cpu.idle",
    "cpu.cfs_quota_us",
    "cpu.cfs_period_us",
    "cpu.cfs_burst_us",
    "cpuset.cpus",
    "cpuset.mems",
    "cpuset.cpu_exclusive",
    "cpuset.mem_exclusive",
    "pids.max",
    "io.max",
    "io.weight",
    "io.bfq.weight",
    "memory.max",
    "memory.high",
    "memory.low",
    "memory.min",
    "memory.swap.max",
    "cpu.max",
    "cpu.weight",
)


def fingerprint(containers: Iterable[Container] = (), *, state_dir: Path | None = None) -> Fingerprint:
    """The host and the running containers as nested plain values; two of them compare equal when nothing has changed.

    Use `difference` to say what has. Only links of test sessions and links that they made are looked at on the host.
    """
    picture: Fingerprint = {"host": host_fingerprint()}
    for container in containers:
        picture[container.name] = container_fingerprint(container)
    if state_dir is not None:
        picture["state"] = dict(_files(state_dir))
    return picture


def host_fingerprint() -> Fingerprint:
    """The host's network and mounts. Device nodes and cgroups of the host are not scplan's to change."""
    return {
        **_network([]),
        "mounts": _mounts(os.getpid()),
    }


def _loops(prefix: str) -> Iterator[str]:
    """Loop devices over files below `prefix`; others belong to whoever else is at work on this machine."""
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        if path.read_text().startswith(prefix):
            yield path.parent.parent.name


def container_fingerprint(container: Container) -> Fingerprint:
    """A running container's network, mounts, /dev and the cgroup files that limit it."""
    enter = ["nsenter", "--target", str(container.pid), "--net"]
    return {
        **_network(enter),
        "mounts": _mounts(container.pid),
        "devices": dict(_nodes(container)),
        "cgroup": dict(_cgroup_files(container)),
    }


def difference(before: Fingerprint, after: Fingerprint, path: str = "") -> list[str]:
    """`web.routes: was …, is …` for everything that differs."""
    found = []
    for key in sorted(before.keys() | after.keys()):
        one, other, place = before.get(key), after.get(key), f"{path}.{key}".lstrip(".")
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            found += difference(one, other, place)
        elif isinstance(one, list) and isinstance(other, list):
            found += [f"{place}: gone: {item}" for item in one if item not in other]
            found += [f"{place}: new: {item}" for item in other if item not in one]
            if sorted(map(repr, one)) == sorted(map(repr, other)):
                found.append(f"{place}: another order: was {one}, is {other}")
        else:
            found.append(f"{place}: was {one!r}, is {other!r}")
    return found


def _network(enter: list[str]) -> Fingerprint:
    # Without a family: the rules are those of IPv4, and all else is of both.
    asked = ("link show", "address show", "route show table all", "rule show", "neighbour show nud permanent")
    links, addressed, routes, rules, neighbours = _ip(enter, *asked)
    (rules_6,) = _ip(enter, "rule show", options=("-6",))
    # Link-local addresses come some seconds after a link is up, and their routes with them: the kernel's own doing.
    return {
        "links": {link["ifname"]: _as_set(link) for link in links},
        "addresses": {
            link["ifname"]: addresses
            for link in addressed
            # Of IPv4 the first ones are those from which packets go.
            if (addresses := sorted((one for one in link.get("addr_info", ()) if not _is_link_local(one)), key=_turn))
        },
        "routes": sorted(
            (
                route
                for route in routes
                # The kernel's own of each address, of which those of IPv6 come when the address has proved unique.
                if route.get("table") != "local" and not _is_kernel_made(route)
            ),
            key=repr,
        ),
        "rules": [*rules, *rules_6],
        "neighbours": sorted(neighbours, key=repr),
    }


def _as_set(link: dict[str, Any]) -> dict[str, Any]:
    """Without the queueing of a link that is down: the kernel's own, and another one once it was up."""
    return link if "UP" in link["flags"] else {key: value for key, value in link.items() if key != "qdisc"}


def _turn(address: dict[str, Any]) -> str:
    return "" if address["family"] == "inet" else repr(address)


def _is_link_local(address: dict[str, Any]) -> bool:
    return bool(address["family"] == "inet6" and address.get("scope") == "link")


def _is_kernel_made(route: dict[str, Any]) -> bool:
    return bool(route["dst"].startswith(("fe80:", "ff00:")))


def _ip(enter: list[str], *questions: str, options: tuple[str, ...] = ()) -> list[list[dict[str, Any]]]:
    """The rows that answer each question, all asked of one process: a picture is taken after every crash."""
    command = [*enter, "ip", *options, "-details", "-json", "-batch", "-"]
    ended = subprocess.run(command, input="\n".join(questions), check=True, capture_output=True, text=True, timeout=30)
    answers = [json.loads(line) for line in ended.stdout.splitlines() if line]
    assert len(answers) == len(questions), f"{command}: {ended.stdout}"
    return [[_steady(row) for row in rows if row] for rows in answers]


def _steady(value: Any) -> Any:
    """The value without what changes by itself."""
    if isinstance(value, dict):
        steady = {
            key: _steady(item) for key, item in value.items() if key not in _VOLATILE and key not in _VOLATILE_FLAGS
        }
        if "info_slave_data" in steady:
            port = steady["info_slave_data"].items()
            steady["info_slave_data"] = {key: item for key, item in port if key not in _VOLATILE_OF_PORT}
        return steady
    if isinstance(value, list):
        return [_steady(item) for item in value if not (isinstance(item, str) and item in _CARRIER_FLAGS)]
    return value


def _mounts(pid: int) -> list[str]:
    """Mount points with their source, options and propagation, without the IDs of mounts.

    A peer group is called after its members on the host, or else those beside it. Nor with the number of a tmpfs that
    scplan made: it is the next one that is free.

    Sorted by mount point; mounts stacked on the same one stay in their order, which is what can be seen of them.
    """
    lines = []
    listed = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    groups = _peer_groups(listed) | _peer_groups(Path("/proc/self/mountinfo").read_text().splitlines())
    for line in listed:
        _, _, numbers, root, point, options, *rest = line.split()
        tags = (tag.partition(":") for tag in rest[: rest.index("-")])
        tail = " ".join([*(f"{word}({groups.get(group, '')})" for word, _, group in tags), *rest[rest.index("-") :]])
        if rest[-3:-1] == ["tmpfs", "scplan"]:
            numbers = "0:*"
        lines.append((point, f"{point} {root} {numbers} {options} {tail}"))
    return [line for _, line in sorted(lines, key=lambda pair: pair[0])]


def _peer_groups(listed: list[str]) -> dict[str, str]:
    """The mount points of each group of shared mounts, by its number."""
    groups: dict[str, list[str]] = {}
    for line in listed:
        fields = line.split()
        for tag in fields[6 : fields.index("-")]:
            if tag.startswith("shared:") and not fields[4].startswith("/run/scplan/"):
                groups.setdefault(tag.removeprefix("shared:"), []).append(fields[4])
    return {group: ",".join(sorted(points)) for group, points in groups.items()}


def _nodes(container: Container) -> Iterator[tuple[str, str]]:
    """Everything below /dev of the container, as root of the host sees it; of device nodes their attributes, too."""
    root = f"/proc/{container.pid}/root"
    device, of_host = os.lstat(f"{root}/dev").st_dev, os.lstat("/dev").st_dev
    waiting = [f"{root}/dev"]
    while waiting:
        path = waiting.pop()
        found = os.lstat(path)
        words = [
            stat.filemode(found.st_mode),
            # A node of the host's that is bound there: OCI runtimes chown /dev/null, if it is the stdio of a container.
            f"{found.st_uid}:{found.st_gid}" if found.st_dev != of_host or device == of_host else "as on the host",
            f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}",
        ]
        if stat.S_ISLNK(found.st_mode):
            words.append(os.readlink(path))
        elif stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode):
            words += [f"{name}={os.getxattr(path, name).hex()}" for name in sorted(os.listxattr(path))]
        elif stat.S_ISDIR(found.st_mode) and found.st_dev == device:
            waiting += [f"{path}/{name}" for name in os.listdir(path)]
        # The name under which scplan keeps a file is random at its end.
        yield re.sub(r"(\.scplan-saved-)[0-9a-f]+$", r"\1*", path.removeprefix(root)), " ".join(words)


def times_of_nodes(container: Container, *paths: str) -> dict[str, tuple[int, int]]:
    """When nodes were read and written last, in ns: an undo returns these, too; who makes a node anew does not."""
    found = {path: os.lstat(f"/proc/{container.pid}/root{path}") for path in paths}
    return {path: (one.st_atime_ns, one.st_mtime_ns) for path, one in found.items()}


def _cgroup_files(container: Container) -> Iterator[tuple[str, str]]:
    for path in sorted(set(cgroups.of_process(container.pid).values())):
        for name in _CGROUP_FILES:
            if (path / name).exists():
                # The kernel lists devices in the order of insertion, which says nothing.
                yield name, "\n".join(sorted((path / name).read_text().split("\n"))).strip()


def _files(directory: Path) -> Iterator[tuple[str, str]]:
    """Files below the directory: mode, owner and a digest of the content."""
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        text = f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid}"
        if path.is_file():
            text += " " + hashlib.sha256(path.read_bytes()).hexdigest()
        yield str(path.relative_to(directory)), text

"""NICs, mounts, devices and limits from a container's OCI configuration or CNI plugins. OCI and CNI specifications."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

from scplan.model.provided import ANY_VALUE, NOTHING_PROVIDED, Provided
from scplan.runtimes.state_files import list_suffixed, read_state

_CNI_RESULTS = "/var/lib/cni/results"
_NO_LIMIT = ("", "0", "-1", "max", "None")


def of_bundle(bundle: str, runtime: str) -> Provided:
    """Mounts, devices and limits in a bundle's config.json, and the NIC of a network namespace created for it."""
    config = read_state(f"{bundle}/config.json")
    if config is None:
        return NOTHING_PROVIDED
    linux = _object(config.get("linux"))
    mounts = {in_container(one): f"a mount of {runtime}'s" for one in _texts(config.get("mounts"), "destination")}
    devices = {in_container(one): f"a device of {runtime}'s" for one in _texts(linux.get("devices"), "path")}
    spaces = [str(one.get("path", "")) for one in _objects(linux.get("namespaces")) if one.get("type") == "network"]
    # The engine created a named network namespace, and attached its NICs, before it called the OCI runtime.
    nics = {"eth0": f"the NIC of {runtime}'s network"} if any("/netns/" in path for path in spaces) else {}
    return Provided(nics=nics, mounts=mounts, devices=devices, settings=_settings(_object(linux.get("resources"))))


def of_cni(container_id: str, runtime: str) -> Provided:
    """NICs that CNI plugins attached to a container, from the results that libcni keeps."""
    nics = {}
    for name in list_suffixed(_CNI_RESULTS, "") if container_id else ():
        if f"-{container_id}-" in name:
            result = read_state(f"{_CNI_RESULTS}/{name}") or {}
            nic = result.get("ifName")
            if result.get("containerId") == container_id and isinstance(nic, str):
                nics[nic] = f"the NIC of {runtime}'s network {result.get('networkName', '')}".rstrip()
    return Provided(nics=nics)


def in_container(path: str) -> str:
    """Absolute path in the container, for a path that is absolute or relative to the container's root."""
    return posixpath.normpath("/" + path.lstrip("/"))


def limit_values(values: Mapping[str, object]) -> dict[str, frozenset[str]]:
    """Settings with values as the kernel keeps them, without values that set no limit."""
    return {name: frozenset((_kept(name, value),)) for name, value in values.items() if str(value) not in _NO_LIMIT}


def _kept(name: str, value: object) -> str:
    """A value as text; the kernel rounds memory limits down to whole pages: page_counter_memparse()."""
    text = str(value)
    if not name.startswith("memory.") or not text.isdecimal():
        return text
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return str(int(text) // page_bytes * page_bytes)


def cpu_max(quota: object, period: object) -> str | None:
    """Text of cpu.max for a quota and its period in µs; None without a limit."""
    if not isinstance(quota, int) or quota <= 0:
        return None
    return f"{quota} {period if isinstance(period, int) and period > 0 else 100000}"


def _settings(resources: dict[str, Any]) -> dict[str, frozenset[str]]:
    memory, cpu = _object(resources.get("memory")), _object(resources.get("cpu"))
    # OCI's `swap` limits memory plus swap; memory.swap.max of cgroup v2 limits swap alone.
    limit, both = memory.get("limit"), memory.get("swap")
    settings = limit_values(
        {
            "memory.max": limit,
            "memory.low": memory.get("reservation"),
            "pids.max": _object(resources.get("pids")).get("limit"),
            "cpuset.cpus": cpu.get("cpus"),
            "cpuset.mems": cpu.get("mems"),
            "cpu.idle": cpu.get("idle"),
            # Runtimes round when they convert shares to a weight, so any weight may be theirs.
            "cpu.weight": ANY_VALUE if cpu.get("shares") else None,
            "cpu.max": cpu_max(cpu.get("quota"), cpu.get("period")),
        }
    )
    if isinstance(both, int) and isinstance(limit, int) and both >= limit > 0:
        settings |= swap_limit(both - limit)
    unified = {name: value for name, value in _object(resources.get("unified")).items() if isinstance(value, str)}
    return {**settings, **{name: frozenset((value.strip(),)) for name, value in unified.items()}}


def swap_limit(limit_bytes: int) -> dict[str, frozenset[str]]:
    """The setting that limits swap alone; the limit can be 0."""
    return {"memory.swap.max": frozenset((_kept("memory.swap.max", limit_bytes),))}


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> Iterable[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _texts(value: object, key: str) -> list[str]:
    return [text for one in _objects(value) if isinstance(text := one.get(key), str)]

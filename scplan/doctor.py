"""What this host supports: kernel interfaces, cgroups, runtimes, privileges."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from scplan.linux import probe
from scplan.linux.host import Host
from scplan.model.report import Finding, Support

_CONTROLLERS = {"devices": "devices", "blkio": "io limits", "memory": "memory.*", "cpu": "cpu.*"}
_CONTROLLERS |= {"cpuset": "cpuset.*", "pids": "pids.max"}


def examine(host: Host, runtimes: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Findings by topic, in the order in which they are worth reading; `runtimes` are names, with where each looks."""
    return [*_privileges(), *_kernel(), *_cgroups(host), *_runtimes(runtimes), *_network(host)]


def _found(topic: str, subject: str, there: bool, detail: str = "", needed_for: str = "") -> Finding:
    support = Support.YES if there else Support.NO
    return Finding(topic=topic, subject=subject, support=support, detail=detail, needed_for=needed_for)


def _privileges() -> Iterator[Finding]:
    held = probe.effective_capabilities()
    for name, (bit, needed_for) in probe.CAPABILITIES.items():
        yield _found("privileges", name, bool(held >> bit & 1), f"user {os.geteuid()}", needed_for)


def _kernel() -> Iterator[Finding]:
    for name, (number, since, needed_for) in probe.INTERFACES.items():
        there = probe.has_system_call(number)
        detail = probe.kernel_release() if there else f"needs Linux {since}, this is {probe.kernel_release()}"
        yield _found("kernel", name, there, detail, needed_for)


def _cgroups(host: Host) -> Iterator[Finding]:
    for controller, needed_for in _CONTROLLERS.items():
        point = host.cgroup_mounts.get(controller, "")
        yield _found("cgroup v1", controller, bool(point), point, needed_for)
    point = host.cgroup_mounts.get("", "")
    yield Finding(
        topic="cgroup v2",
        subject="hierarchy",
        support=Support.YES if point else Support.NO,
        detail=point and f"{point}; scplan writes to v1 controllers",
    )


def _runtimes(runtimes: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    for name, places in runtimes.items():
        there = [place for place in places if os.path.exists(place)]
        yield _found("runtimes", name, bool(there), ", ".join(there) or f"looked for {', '.join(places) or 'nothing'}")


def _network(host: Host) -> Iterator[Finding]:
    yield _found("network", "bridges", True, ", ".join(_bridges(host)) or "none yet")
    yield _found("network", "Open vSwitch", host.ovs is not None, needed_for="bridges of Open vSwitch")
    yield _found("network", "uplink", True, ", ".join(sorted(host.uplinks)) or "no default route")


def _bridges(host: Host) -> list[str]:
    return sorted(link.name for link in host.links().values() if link.kind == "bridge")

"""Findings about this host: privileges, kernel interfaces, cgroups, runtimes, network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence

from scplan.linux import interfaces
from scplan.linux.host import Host
from scplan.model.report import Finding, Support
from scplan.startup.named_tuple import NamedTuple

_CONTROLLERS = {"devices": "devices", "blkio": "io limits", "memory": "memory.*", "cpu": "cpu.*"}
_CONTROLLERS |= {"cpuset": "cpuset.*", "pids": "pids.max"}


class Looked(NamedTuple):
    """Places where a runtime is looked for; `problem` is the reason if they are not known."""

    places: Sequence[str] = ()
    evidence: Sequence[str] = ()
    programs: Sequence[str] = ()
    problem: str = ""


def examine(host: Host, runtimes: Mapping[str, Looked]) -> list[Finding]:
    """Findings by topic, the most important topic first; `runtimes` are by name."""
    return [*_privileges(), *_kernel(), *_cgroups(host), *_runtimes(runtimes), *_network(host)]


def _found(topic: str, subject: str, there: bool, detail: str = "", needed_for: str = "") -> Finding:
    support = Support.YES if there else Support.NO
    return Finding(topic=topic, subject=subject, support=support, detail=detail, needed_for=needed_for)


def _privileges() -> Iterator[Finding]:
    # The bit of a capability in CapEff of /proc/self/status. capabilities(7), proc_pid_status(5).
    held = interfaces.effective_capabilities()
    for name, (bit, needed_for) in interfaces.CAPABILITIES.items():
        yield _found("privileges", name, bool(held >> bit & 1), f"user {os.geteuid()}", needed_for)


def _kernel() -> Iterator[Finding]:
    for name, (number, since, needed_for) in interfaces.INTERFACES.items():
        # Called with invalid arguments: any error but ENOSYS means that the kernel has the system call.
        there = interfaces.has_system_call(number)
        detail = interfaces.kernel_release() if there else f"needs Linux {since}, this is {interfaces.kernel_release()}"
        yield _found("kernel", name, there, detail, needed_for)


def _cgroups(host: Host) -> Iterator[Finding]:
    # cgroup v1 has a mount per controller; the v2 hierarchy is known under the empty name here. cgroups(7).
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


def _runtimes(runtimes: Mapping[str, Looked]) -> Iterator[Finding]:
    for name, looked in runtimes.items():
        yield _runtime(name, looked)


def _runtime(name: str, looked: Looked) -> Finding:
    """Finding about one runtime: found, installed without a container so far, absent, or unknown."""
    places = ", ".join(looked.places) or "nothing"
    if looked.problem:
        return Finding(topic="runtimes", subject=name, support=Support.UNKNOWN, detail=looked.problem)
    there = [place for place in looked.places if os.path.exists(place)]
    if there:
        return _found("runtimes", name, True, ", ".join(there))
    installed = [path for path in looked.evidence if os.path.exists(path)]
    installed += [path for program in looked.programs if (path := shutil.which(program)) is not None]
    if installed:
        return _found("runtimes", name, True, f"{installed[0]}; no container yet: there is no {places}")
    return _found("runtimes", name, False, f"looked for {places}")


def _network(host: Host) -> Iterator[Finding]:
    yield _found("network", "bridges", True, ", ".join(_bridges(host)) or "none yet")
    yield _found("network", "Open vSwitch", host.ovs is not None, needed_for="bridges of Open vSwitch")
    yield _found("network", "uplink", True, ", ".join(sorted(host.uplinks)) or "no default route")


def _bridges(host: Host) -> list[str]:
    return sorted(link.name for link in host.links().values() if link.kind == "bridge")

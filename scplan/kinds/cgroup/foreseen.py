"""Refusals of a setting by the kernel, predicted before anything is written.

Sources: cgroups(7), admin-guide/cgroup-v1, cpuset(7).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from scplan.kinds.cgroup.record import CgroupSetting
from scplan.kinds.cgroup.settings import (
    LIMIT,
    MEMSW,
    NOT_IN_FORCE,
    PERIOD,
    QUOTA,
    SETTINGS,
    Files,
    Setting,
    bytes_of,
    grouped_with,
    laid_over,
    listed,
    members_of,
)
from scplan.kinds.kind import Unsuitable
from scplan.linux.cgroups.cgroup_v1 import Cgroup
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.model.provided import ANY_VALUE
from scplan.model.values import show_size

_BURST = "cpu.cfs_burst_us"
Given = Mapping[str, frozenset[str]]
"""Values that a runtime sets, by the names of settings, as in Provided."""


def removal_refusal(removed: CgroupSetting, values: Mapping[str, str]) -> Unsuitable | None:
    """Refusal of a removal that would leave another setting impossible; None if there is none."""
    if removed.name != "cpu.idle" or removed.former != "1" or "cpu.weight" not in values:
        return None
    return Unsuitable(
        "without cpu.idle the cgroup is idle as before, and the kernel keeps no cpu.weight of it then",
        hint="take cpu.weight out, too, or write cpu.idle: 0",
    )


def refusal(
    container: Container, host: Host, wanted: CgroupSetting, values: Mapping[str, str], formers: Mapping[str, str]
) -> Unsuitable | None:
    """Refusal of the setting by the kernel; None if it should accept it.

    `values` are all settings that the container will have, `formers` the former values of removed settings.
    """
    setting = SETTINGS[wanted.name]
    cgroup = Cgroup(container, host, setting.controller)
    if setting.read(cgroup) is None:
        return Unsuitable(
            f"this kernel has no cgroup v1 equivalent of {wanted.name}",
            hint="memory+swap is counted with swapaccount=1 on the kernel's command line"
            if wanted.name == "memory.swap.max"
            else "leave it out on this host",
        )
    unwritable = next((file for file in setting.own if cgroup.is_its_own and not cgroup.may_write(file)), None)
    if unwritable is not None:
        return Unsuitable(
            f"this user may not write {unwritable} in {cgroup.controller}:{cgroup.path}",
            hint="run scplan as root, or have the cgroup delegated to the user",
        )
    match wanted.name:
        case "memory.max" | "memory.swap.max":
            limit = values.get("memory.max", "max")
            if limit != "max" and (refused := _not_reclaimable(cgroup, int(limit))) is not None:
                return refused
            return _memory(cgroup, setting, wanted.name, values, formers)
        case "cpuset.cpus" | "cpuset.mems":
            return _cpuset(cgroup, wanted)
        case "cpu.weight":
            return _weight(cgroup, setting, values, formers)
        case "cpu.max":
            return _cpu_max(cgroup, wanted)
    return None


def start_refusal(host: Host, wanted: CgroupSetting, values: Mapping[str, str], given: Given) -> Unsuitable | None:
    """Refusal of the setting at the container's start; None if the kernel should accept it, or that is not known.

    `values` are all settings that the container will have, `given` the settings that its runtime makes before.
    """
    match wanted.name:
        case "memory.max" | "memory.swap.max" if "memory" in host.cgroup_mounts:
            now = _memory_files(host, given)
            return None if now is None else _memory_refusal(wanted.name, now, values, "its runtime gives the container")
        case "cpuset.cpus" | "cpuset.mems" if "cpuset" in host.cgroup_mounts:
            allowed = members_of(_of_root(host, "cpuset", wanted.name) or "")
            if missing := members_of(wanted.value) - allowed:
                return _not_there(wanted.name, missing, f"the host has {listed(allowed)}")
        case "cpu.weight" if "cpu.idle" not in values and _only(given, "cpu.idle") == "1":
            return Unsuitable(
                "cpu.weight: the container's runtime makes its cgroup idle, and the kernel keeps no weight of it then",
                hint="write cpu.idle: 0, too, to end that",
            )
    return None


def _memory_files(host: Host, given: Given) -> dict[str, str] | None:
    """Files of a cgroup with the runtime's limits in them; None if these are not known."""
    if any(name in given and _only(given, name) is None for name in ("memory.max", "memory.swap.max")):
        return None
    files = {LIMIT: "-1"}
    if _of_root(host, "memory", MEMSW) is not None:
        files[MEMSW] = "-1"
    limits = {name: value for name in ("memory.max", "memory.swap.max") if (value := _only(given, name)) is not None}
    return laid_over(files, limits) if MEMSW in files else files


def _only(given: Given, name: str) -> str | None:
    """The value that the runtime sets; None if it sets none, or if several are possible."""
    values = given.get(name, frozenset()) - {ANY_VALUE}
    return next(iter(values)) if len(values) == 1 else None


def _of_root(host: Host, controller: str, file: str) -> str | None:
    """Text of a file in the root cgroup, whose limits no other cgroup can exceed; None if the file is absent."""
    try:
        with open(f"{host.cgroup_mount(controller)}/{file}", encoding="ascii") as opened:
            return opened.read().strip()
    except FileNotFoundError:
        return None


def _weight(
    cgroup: Cgroup, setting: Setting, values: Mapping[str, str], formers: Mapping[str, str]
) -> Unsuitable | None:
    """Refusal of a weight for a cgroup that is idle without an entry: sched_group_set_shares() refuses shares then."""
    if "cpu.idle" in values:
        return None
    is_idle = setting.value(setting.group.read(cgroup)) == NOT_IN_FORCE
    if formers.get("cpu.idle", "1" if is_idle else "0") == "0":
        return None
    return Unsuitable(
        "cpu.weight: the container's cgroup is idle without an entry, and the kernel keeps no weight of it then",
        hint="write cpu.idle: 0, too, to end that",
    )


def _not_reclaimable(cgroup: Cgroup, limit: int) -> Unsuitable | None:
    """Refusal of a limit below the anonymous memory in use, if there is no swap to move that to. proc(5)."""
    # total_rss is anonymous memory, that of the cgroups below included. admin-guide/cgroup-v1/memory
    stat = dict(line.split(" ", 1) for line in (cgroup.read("memory.stat") or "").splitlines() if " " in line)
    used = int(stat.get("total_rss", "0"))
    if limit >= used or _has_swap():
        return None
    return Unsuitable(
        f"memory.max {show_size(limit)} is below the {show_size(used)} that the container uses, and there is no swap",
        hint="choose a higher limit, or stop what uses it",
    )


def _has_swap() -> bool:
    with open("/proc/meminfo", encoding="ascii") as file:
        return any(line.split()[:2] != ["SwapTotal:", "0"] for line in file if line.startswith("SwapTotal:"))


def _memory(
    cgroup: Cgroup, setting: Setting, name: str, values: Mapping[str, str], formers: Mapping[str, str]
) -> Unsuitable | None:
    """Refusal of a limit of memory or swap by the limits that the container has now, without the removed settings."""
    names = grouped_with(name)
    now = laid_over(setting.group.read(cgroup), {one: value for one, value in formers.items() if one in names})
    return _memory_refusal(name, now, values, "the container has")


def _memory_refusal(name: str, now: Files, values: Mapping[str, str], whose: str) -> Unsuitable | None:
    """Refusal of a limit of memory and swap, given the present limits.

    `whose` introduces the owner of the present limits in the message ("the container has").
    """
    names = grouped_with(name)
    if MEMSW not in now:
        return None
    goal = laid_over(now, {one: value for one, value in values.items() if one in names})
    if "memory.swap.max" in values:
        if values["memory.swap.max"] != "max" and bytes_of(goal[MEMSW]) - bytes_of(goal[LIMIT]) != int(
            values["memory.swap.max"]
        ):
            return Unsuitable(
                f"{name}: cgroup v1 limits memory and swap together, so a limit of swap takes one of memory",
                hint="write memory.max, too, or memory.swap.max: max",
            )
        return None
    if name == "memory.max" and bytes_of(goal[LIMIT]) > bytes_of(now[MEMSW]):
        return Unsuitable(
            f"memory.max {_size(goal[LIMIT])} is above the limit of memory+swap that {whose},"
            f" {show_size(bytes_of(now[MEMSW]))}",
            hint="write memory.swap.max, too: swap alone, which cgroup v1 adds to memory.max",
            taken=True,
        )
    return None


def _size(text: str) -> str:
    value = int(text)
    return show_size(value) if value >= 0 else "max"


def _cpuset(cgroup: Cgroup, wanted: CgroupSetting) -> Unsuitable | None:
    """Refusal of CPUs or memory nodes that the cgroup above lacks, or of too few for a cgroup below. cpuset(7)"""
    file, members = wanted.name, members_of(wanted.value)
    allowed = members_of(cgroup.above().read(file) or "")
    if missing := members - allowed:
        return _not_there(file, missing, f"the cgroup that its own lies in has {listed(allowed) or 'none'}")
    for child in cgroup.below():
        if lost := members_of(child.read(file) or "") - members:
            return Unsuitable(
                f"{file}: {child.path}, a cgroup inside the container's, has {_things(file)} {listed(lost)}, too",
                hint="the kernel answers EBUSY: take them from that one first, or write them here",
            )
    return None


def _not_there(file: str, missing: Iterable[int], hint: str) -> Unsuitable:
    return Unsuitable(f"{file}: the container can't have {_things(file)} {listed(missing)}", hint=hint)


def _things(file: str) -> str:
    return "CPUs" if file == "cpuset.cpus" else "memory nodes"


def _cpu_max(cgroup: Cgroup, wanted: CgroupSetting) -> Unsuitable | None:
    """Refusal of a quota below the cgroup's burst, above the share of a cgroup above, or below that of a cgroup below.

    tg_set_cfs_bandwidth() and tg_cfs_schedulable_down() in kernel/sched/core.c
    """
    quota, period = wanted.value.split()
    if quota == "max":
        return None
    burst = int(cgroup.read(_BURST) or 0)
    if burst > int(quota):
        return Unsuitable(
            f"cpu.max: its quota of {quota} µs is less than the cgroup's burst, {burst} µs ({_BURST})",
            hint="write a larger quota, or lower the burst first",
        )
    share = int(quota) / int(period)
    limit = _share_above(cgroup)
    if limit is not None and share > limit:
        return Unsuitable(
            f"cpu.max: the container can't have {share:g} CPUs, since the cgroups above have {limit:g}",
            hint="write less, or raise cpu.cfs_quota_us there",
        )
    greedy = next(((path, above) for path, above in _shares_below(cgroup) if above > share), None)
    if greedy is not None:
        return Unsuitable(
            f"cpu.max: {greedy[0]}, a cgroup inside the container's, has {greedy[1]:g} CPUs, more than {share:g}",
            hint="write more, or lower cpu.cfs_quota_us there first",
        )
    return None


def _share_above(cgroup: Cgroup) -> float | None:
    """CPUs of the nearest limited cgroup above; None if none is limited."""
    while cgroup.path != "/":
        cgroup = cgroup.above()
        share = _share(cgroup)
        if share is not None:
            return share
    return None


def _shares_below(cgroup: Cgroup) -> Iterable[tuple[str, float]]:
    """Path and CPUs of every limited cgroup below."""
    for child in cgroup.below():
        share = _share(child)
        if share is not None:
            yield child.path, share
        yield from _shares_below(child)


def _share(cgroup: Cgroup) -> float | None:
    """CPUs of a cgroup, quota divided by period; None if it is not limited."""
    # A quota of -1 is no limit. Documentation/scheduler/sched-bwc.rst
    quota, period = cgroup.read(QUOTA), cgroup.read(PERIOD)
    if quota is None or period is None or int(quota) < 0:
        return None
    return int(quota) / int(period)

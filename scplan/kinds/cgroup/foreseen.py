"""What the kernel will refuse of a setting, known before it is tried. cgroups(7), admin-guide/cgroup-v1, cpuset(7)."""

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
    Setting,
    bytes_of,
    grouped_with,
    laid_over,
    listed,
    members_of,
)
from scplan.kinds.kind import Unsuitable
from scplan.linux.cgroup_v1 import Cgroup
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.model.values import show_size

_BURST = "cpu.cfs_burst_us"


def removal_refusal(removed: CgroupSetting, values: Mapping[str, str]) -> Unsuitable | None:
    """Why a setting that stays can't be kept once another one is removed; None if it can."""
    if removed.name != "cpu.idle" or removed.former != "1" or "cpu.weight" not in values:
        return None
    return Unsuitable(
        "without cpu.idle the cgroup is idle as before, and the kernel keeps no cpu.weight of it then",
        hint="take cpu.weight out, too, or write cpu.idle: 0",
    )


def refusal(
    container: Container, host: Host, wanted: CgroupSetting, values: Mapping[str, str], formers: Mapping[str, str]
) -> Unsuitable | None:
    """Why the kernel will not take the setting; None if it should.

    `values` are all settings that the container will have, `formers` the former values of those that go.
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


def _weight(
    cgroup: Cgroup, setting: Setting, values: Mapping[str, str], formers: Mapping[str, str]
) -> Unsuitable | None:
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
    """The refusal of a limit below the anonymous memory in use, where there is no swap to move it to. proc(5)."""
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
    names = grouped_with(name)
    now = laid_over(setting.group.read(cgroup), {one: value for one, value in formers.items() if one in names})
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
            f"memory.max {_size(goal[LIMIT])} is above the limit of memory+swap that the container has,"
            f" {show_size(bytes_of(now[MEMSW]))}",
            hint="write memory.swap.max, too: swap alone, which cgroup v1 adds to memory.max",
            taken=True,
        )
    return None


def _size(text: str) -> str:
    value = int(text)
    return show_size(value) if value >= 0 else "max"


def _cpuset(cgroup: Cgroup, wanted: CgroupSetting) -> Unsuitable | None:
    file, members = wanted.name, members_of(wanted.value)
    things = "CPUs" if file == "cpuset.cpus" else "memory nodes"
    allowed = members_of(cgroup.above().read(file) or "")
    if missing := members - allowed:
        return Unsuitable(
            f"{file}: the container can't have {things} {listed(missing)}",
            hint=f"the cgroup that its own lies in has {listed(allowed) or 'none'}",
        )
    for child in cgroup.below():
        if lost := members_of(child.read(file) or "") - members:
            return Unsuitable(
                f"{file}: {child.path}, a cgroup inside the container's, has {things} {listed(lost)}, too",
                hint="the kernel answers EBUSY: take them from that one first, or write them here",
            )
    return None


def _cpu_max(cgroup: Cgroup, wanted: CgroupSetting) -> Unsuitable | None:
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
    """CPUs that the nearest limited cgroup above has; None where none of them is limited."""
    while cgroup.path != "/":
        cgroup = cgroup.above()
        share = _share(cgroup)
        if share is not None:
            return share
    return None


def _shares_below(cgroup: Cgroup) -> Iterable[tuple[str, float]]:
    for child in cgroup.below():
        share = _share(child)
        if share is not None:
            yield child.path, share
        yield from _shares_below(child)


def _share(cgroup: Cgroup) -> float | None:
    quota, period = cgroup.read(QUOTA), cgroup.read(PERIOD)
    if quota is None or period is None or int(quota) < 0:
        return None
    return int(quota) / int(period)

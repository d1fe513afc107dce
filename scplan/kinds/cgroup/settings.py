"""The settings: their notation in YAML, and their files on cgroup v1. Values to files, files to values.

Files that the kernel checks or changes together form a group: they are captured together, and written in an order in
which the kernel accepts every step.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Mapping

from scplan.linux.cgroups.cgroup_v1 import Cgroup
from scplan.model.values import parse_size
from scplan.startup.named_tuple import NamedTuple

Files = Mapping[str, str]
"""Texts of the kernel's files, by file name."""

# The kernel shows "no limit" as the largest multiple of the page size below 2**63.
_UNLIMITED_MEMORY = 1 << 62
_UNLIMITED = "-1"
# The kernel's default. Documentation/scheduler/sched-bwc.rst
PERIOD_US = 100_000
_MAX_CPU = 1 << 16
# PID_MAX_LIMIT of linux/threads.h, on 64 bits.
_PID_MAX = 4194304
_LEGACY_SHARES = "cpu.shares "
# Shares that sched_group_set_idle() of kernel/sched/fair.c gives a group which is no longer idle: NICE_0_LOAD.
_SHARES_AFTER_IDLE = "1024"
NOT_IN_FORCE = "0"
"""cpu.weight of a cgroup that is idle, as cgroup v2 has it."""

LIMIT, MEMSW = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
SHARES, IDLE = "cpu.shares", "cpu.idle"
QUOTA, PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"


class Group(NamedTuple):
    """Files that depend on each other.

    `write(cgroup, now, goal)` changes the files that differ, in an order that the kernel accepts. `kept(files)` returns
    the values that the kernel keeps, for files that at times show others.
    """

    files: tuple[str, ...]
    write: Callable[[Cgroup, Files, Files], None]
    kept: Callable[[dict[str, str]], dict[str, str]] = dict

    def read(self, cgroup: Cgroup) -> dict[str, str]:
        """Texts of the files that this kernel has."""
        texts = ((file, cgroup.read(file)) for file in self.files)
        return self.kept({file: text for file, text in texts if text is not None})


class Setting(NamedTuple):
    """One cgroup v2 file. Its value is made of `files` of the group; `own` are the files that no other setting uses.

    `normalise(text, page_size)` returns the canonical v2 value. `value(files)` returns the v2 value of the kernel's
    files, or None if this kernel lacks one of them. `lay(value, files)` returns the group's files with the value in
    them.
    """

    controller: str
    group: Group
    files: tuple[str, ...]
    own: tuple[str, ...]
    normalise: Callable[[str, int], str]
    value: Callable[[Files], str | None]
    lay: Callable[[str, Files], dict[str, str]]
    usual: str | None = None
    """Value of a new cgroup; None: the value of the cgroup above it."""

    def read(self, cgroup: Cgroup) -> str | None:
        """The live value; None if this kernel has no such file."""
        texts = ((file, cgroup.read(file)) for file in self.files)
        return self.value({file: text for file, text in texts if text is not None})


def laid_over(files: Files, values: Mapping[str, str]) -> dict[str, str]:
    """Files of a group with the values of all these settings in them."""
    found = dict(files)
    for name in SETTINGS:
        if name in values:
            found = SETTINGS[name].lay(values[name], found)
    return found


def encoded(files: Files) -> str:
    """The files as one text: `cpu.shares=1000; cpu.idle=0`."""
    return "; ".join(f"{file}={text}" for file, text in files.items())


def decoded(text: str) -> dict[str, str]:
    """The files in a text of `encoded`."""
    pairs = (part.partition("=") for part in text.split("; ") if part)
    return {file: value for file, _, value in pairs}


# settings with a file of their own


def _write_each(hints: Mapping[int, str] | None = None) -> Callable[[Cgroup, Files, Files], None]:
    """A function that writes the files which differ from the goal."""

    def write(cgroup: Cgroup, now: Files, goal: Files) -> None:
        for file, text in goal.items():
            if now.get(file) != text:
                # A write of no bytes would change nothing: for the kernel a newline is an empty list.
                cgroup.write(file, text or "\n", hints=hints)

    return write


def _alone(
    controller: str,
    file: str,
    normalise: Callable[[str, int], str],
    *,
    hints: Mapping[int, str] | None = None,
    usual: str | None = None,
) -> Setting:
    """A setting whose file no other setting uses."""
    return Setting(
        controller,
        Group((file,), _write_each(hints)),
        (file,),
        (file,),
        normalise,
        lambda files: files.get(file),
        lambda value, files: {**files, file: value},
        usual,
    )


# memory


def _memory(text: str, page_size: int) -> str:
    """Bytes in whole pages, as the kernel keeps them, or max."""
    if text == "max":
        return text
    value = parse_size(text)
    return str(value - value % page_size)


def bytes_of(text: str) -> int:
    """A limit in bytes; the largest possible limit for "no limit"."""
    value = int(text)
    return value if 0 <= value < _UNLIMITED_MEMORY else _UNLIMITED_MEMORY


def holds_same(file: str, one: str, other: str) -> bool:
    """True if both texts mean the same to the kernel: no limit of memory is -1, or a number of pages that it rounds."""
    return one == other or (file in (LIMIT, MEMSW, _SOFT) and bytes_of(one) == bytes_of(other))


def _memory_value(file: str) -> Callable[[Files], str | None]:
    """A function that returns a file's limit as cgroup v2 shows it: in bytes, or max."""

    def value_in(files: Files) -> str | None:
        if file not in files:
            return None
        value = bytes_of(files[file])
        return "max" if value == _UNLIMITED_MEMORY else str(value)

    return value_in


def _memory_text(value: str) -> str:
    return _UNLIMITED if value == "max" else value


def _lay_memory_max(value: str, files: Files) -> dict[str, str]:
    return with_room_for_memory({**files, LIMIT: _memory_text(value)})


def with_room_for_memory(files: Files) -> dict[str, str]:
    """The files with memory+swap raised to memory if it is lower, since the kernel refuses that."""
    found = dict(files)
    if MEMSW in found and LIMIT in found and bytes_of(found[MEMSW]) < bytes_of(found[LIMIT]):
        found[MEMSW] = found[LIMIT]
    return found


def _swap_value(files: Files) -> str | None:
    """Swap alone, as in cgroup v2: the difference of both v1 limits."""
    if LIMIT not in files or MEMSW not in files:
        return None
    both = bytes_of(files[MEMSW])
    return "max" if both == _UNLIMITED_MEMORY else str(max(both - bytes_of(files[LIMIT]), 0))


def _lay_swap_max(value: str, files: Files) -> dict[str, str]:
    """Swap alone, as in cgroup v2; cgroup v1 limits memory and swap together."""
    limit = bytes_of(files[LIMIT]) if LIMIT in files else _UNLIMITED_MEMORY
    both = _UNLIMITED_MEMORY if value == "max" else min(limit + int(value), _UNLIMITED_MEMORY)
    return {**files, MEMSW: _UNLIMITED if both == _UNLIMITED_MEMORY else str(both)}


_IN_USE = "more is in use and can't be reclaimed; choose a higher limit, or stop what uses it"
_MEMORY_HINTS = {
    errno.EBUSY: _IN_USE,
    errno.EINVAL: "on cgroup v1 memory+swap can't be below memory: write memory.swap.max, too",
}


def _write_memory(cgroup: Cgroup, now: Files, goal: Files) -> None:
    """Write memory+swap first if it rises, last if it falls.

    The kernel refuses memory+swap below memory with EINVAL. mem_cgroup_resize_max()
    """
    rises = MEMSW in goal and bytes_of(goal[MEMSW]) >= bytes_of(now.get(MEMSW, "0"))
    for file in (MEMSW, LIMIT) if rises else (LIMIT, MEMSW):
        if file in goal and bytes_of(goal[file]) != bytes_of(now.get(file, "0")):
            text = goal[file] if bytes_of(goal[file]) < _UNLIMITED_MEMORY else _UNLIMITED
            cgroup.write(file, text, hints=_MEMORY_HINTS)


_MEMORY = Group((LIMIT, MEMSW), _write_memory)


def _write_soft_limit(cgroup: Cgroup, now: Files, goal: Files) -> None:
    for file, text in goal.items():
        if bytes_of(text) != bytes_of(now.get(file, "0")):
            cgroup.write(file, text if bytes_of(text) < _UNLIMITED_MEMORY else _UNLIMITED)


_SOFT = "memory.soft_limit_in_bytes"


# cpu


def _cpu_max(text: str, _: int) -> str:
    """`QUOTA PERIOD` in microseconds; the quota may be max, the period defaults to 100000."""
    fields = text.split()
    if not 1 <= len(fields) <= 2 or not all(field.isdecimal() for field in fields[1:]):
        raise ValueError(f"cpu.max is QUOTA [PERIOD] in microseconds, such as '50000 100000', not {text!r}")
    period = int(fields[1]) if len(fields) == 2 else PERIOD_US
    # min_cfs_quota_period and max_cfs_quota_period of kernel/sched/core.c.
    if not 1000 <= period <= 1_000_000:
        raise ValueError(f"the period of cpu.max must be between 1000 and 1000000 microseconds, not {period}")
    if fields[0] == "max":
        return f"max {period}"
    if not fields[0].isdecimal() or not 1000 <= int(fields[0]) <= period * _MAX_CPU:
        raise ValueError(f"the quota of cpu.max must be 'max' or at least 1000 microseconds, not {fields[0]}")
    return f"{int(fields[0])} {period}"


def _cpu_max_value(files: Files) -> str | None:
    if QUOTA not in files or PERIOD not in files:
        return None
    return f"{'max' if int(files[QUOTA]) < 0 else files[QUOTA]} {files[PERIOD]}"


def _lay_cpu_max(value: str, files: Files) -> dict[str, str]:
    quota, period = value.split()
    return {**files, QUOTA: _UNLIMITED if quota == "max" else quota, PERIOD: period}


_QUOTA_HINTS = {
    errno.EINVAL: "a cgroup can't have more than its parent's share, nor less than that of a child or than its burst"
}


def _write_cpu_max(cgroup: Cgroup, now: Files, goal: Files) -> None:
    """Write quota and period, if one of them differs."""
    if all(now.get(file) == text for file, text in goal.items()):
        return
    # The quota is lifted first: the kernel checks each pair of quota and period against the parent's bandwidth.
    cgroup.write(QUOTA, _UNLIMITED)
    cgroup.write(PERIOD, goal[PERIOD])
    if goal[QUOTA] != _UNLIMITED:
        cgroup.write(QUOTA, goal[QUOTA], hints=_QUOTA_HINTS)


def _number(low: int, high: int, word: str | None = None) -> Callable[[str, int], str]:
    """A function that returns a whole number between both limits, or the word, in canonical form."""

    def normalise(text: str, _: int) -> str:
        if text == word:
            return text
        if not re.fullmatch(r"\d{1,20}", text, re.ASCII) or not low <= int(text) <= high:
            alternative = f" or {word!r}" if word else ""
            raise ValueError(f"{text!r} must be a whole number between {low} and {high}{alternative}")
        return str(int(text))

    return normalise


def weight_near(shares: str) -> str:
    """cpu.weight nearest to cpu.shares, by the mapping that OCI runtimes use: 2…262144 to 1…10000."""
    return str(1 + round((int(shares) - 2) * 9999 / 262142))


def _shares_of(weight: str) -> str:
    return str(2 + round((int(weight) - 1) * 262142 / 9999))


def _weight_value(files: Files) -> str | None:
    """cpu.weight; `cpu.shares 1000` if no weight is exactly that: there are 26 times as many shares as weights."""
    if SHARES not in files:
        return None
    if files.get(IDLE) == "1":
        return NOT_IN_FORCE
    weight = weight_near(files[SHARES])
    return weight if _shares_of(weight) == files[SHARES] else f"{_LEGACY_SHARES}{files[SHARES]}"


def _lay_weight(value: str, files: Files) -> dict[str, str]:
    """The files with a weight, which takes the cgroup out of idle unless cpu.idle is laid over the files afterwards."""
    if value == NOT_IN_FORCE:
        return {**files, IDLE: "1"}
    shares = value.removeprefix(_LEGACY_SHARES) if value.startswith(_LEGACY_SHARES) else _shares_of(value)
    return {**files, SHARES: shares, **({IDLE: "0"} if IDLE in files else {})}


def _lay_idle(value: str, files: Files) -> dict[str, str]:
    """The files with cpu.idle, and without cpu.shares if the cgroup is idle: the kernel keeps none then."""
    kept = {file: text for file, text in files.items() if file != SHARES or value != "1"}
    return {**kept, IDLE: value}


def _write_weight(cgroup: Cgroup, now: Files, goal: Files) -> None:
    """Write cpu.idle before cpu.shares: the kernel refuses shares of an idle cgroup, and resets them when idle ends."""
    shares = now.get(SHARES)
    if goal.get(IDLE) != now.get(IDLE):
        cgroup.write(IDLE, goal[IDLE])
        shares = _SHARES_AFTER_IDLE
    if goal.get(IDLE) != "1" and goal[SHARES] != shares:
        cgroup.write(SHARES, goal[SHARES])


def _kept_weight(files: dict[str, str]) -> dict[str, str]:
    """Shares that the cgroup will have when idle ends: an idle cgroup shows 3. sched_group_set_idle()"""
    return files | {SHARES: _SHARES_AFTER_IDLE} if files.get(IDLE) == "1" and SHARES in files else files


_WEIGHT = Group((SHARES, IDLE), _write_weight, _kept_weight)


# cpuset


def members_of(text: str) -> set[int]:
    """Numbers of a list such as 0-3,7. Raises ValueError for a text that is no list."""
    members: set[int] = set()
    for part in text.split(",") if text.strip() else ():
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part, re.ASCII)
        if not match or int(match[1]) > int(match[2] or match[1]):
            raise ValueError(f"{text!r} is not a list of numbers and ranges such as 0-3,7")
        members.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return members


def listed(members: Iterable[int]) -> str:
    """`0-3,7` as the kernel prints a list: sorted, joined into ranges."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(members):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ",".join(f"{low}-{high}" if low < high else str(low) for low, high in ranges)


def _cpu_list(text: str, _: int) -> str:
    if not text.strip():
        raise ValueError(f"{text!r} is not a list of numbers and ranges such as 0-3,7")
    return listed(members_of(text))


_CPUSET_HINTS = {
    errno.EBUSY: "a cgroup inside the container has more: change that first, or stop what runs in it",
    errno.EACCES: "the cgroup that the container's lies in has fewer",
    errno.EINVAL: "they do not exist, or another cgroup has them for itself (cpuset.cpu_exclusive)",
    errno.ERANGE: "they do not exist on this host",
    errno.ENOSPC: "processes that run in the cgroup would be left with none",
}

SETTINGS: Mapping[str, Setting] = {
    "memory.max": Setting("memory", _MEMORY, (LIMIT,), (LIMIT,), _memory, _memory_value(LIMIT), _lay_memory_max, "max"),
    "memory.swap.max": Setting("memory", _MEMORY, (LIMIT, MEMSW), (MEMSW,), _memory, _swap_value, _lay_swap_max, "max"),
    "memory.low": Setting(
        "memory",
        Group((_SOFT,), _write_soft_limit),
        (_SOFT,),
        (_SOFT,),
        _memory,
        _memory_value(_SOFT),
        lambda value, files: {**files, _SOFT: _memory_text(value)},
        "max",
    ),
    "cpu.max": Setting(
        "cpu",
        Group((QUOTA, PERIOD), _write_cpu_max),
        (QUOTA, PERIOD),
        (QUOTA, PERIOD),
        _cpu_max,
        _cpu_max_value,
        _lay_cpu_max,
        f"max {PERIOD_US}",
    ),
    "cpu.weight": Setting(
        "cpu", _WEIGHT, (SHARES, IDLE), (SHARES,), _number(1, 10000), _weight_value, _lay_weight, weight_near("1024")
    ),
    "cpu.idle": Setting(
        "cpu",
        _WEIGHT,
        (IDLE,),
        (IDLE,),
        _number(0, 1),
        lambda files: files.get(IDLE),
        _lay_idle,
        "0",
    ),
    "cpuset.cpus": _alone("cpuset", "cpuset.cpus", _cpu_list, hints=_CPUSET_HINTS),
    "cpuset.mems": _alone("cpuset", "cpuset.mems", _cpu_list, hints=_CPUSET_HINTS),
    "pids.max": _alone("pids", "pids.max", _number(0, _PID_MAX, "max"), usual="max"),
}


def setting_of(name: str) -> Setting:
    """The setting of a v2 file. Raises ValueError for a name that scplan does not know."""
    try:
        return SETTINGS[name]
    except KeyError:
        pass
    if name.startswith("io."):
        raise ValueError(f"{name} is written as `io:` of a device")
    import difflib

    close = difflib.get_close_matches(name, SETTINGS, 1)
    guess = f'; did you mean "{close[0]}"?' if close else f"; there are {', '.join(SETTINGS)}"
    raise ValueError(f"{name} is not a cgroup setting that scplan knows{guess}")


def grouped_with(name: str) -> tuple[str, ...]:
    """Names of the settings in the same group, with this one."""
    return tuple(other for other, setting in SETTINGS.items() if setting.group is SETTINGS[name].group)

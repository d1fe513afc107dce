"""Cgroup settings under their v2 names, on v1 written to the equivalent file. cgroups(7), admin-guide/cgroup-v1."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from scplan.errors import ScplanError
from scplan.kinds.kind import Described, Kind, Target
from scplan.linux.cgroup_v1 import Cgroup
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.model.live import HostFacts
from scplan.model.resource import Resource, Role, attr
from scplan.model.values import TEXT, parse_size, show_size
from scplan.named_tuple import NamedTuple

_UNLIMITED_MEMORY = 1 << 62
_PERIOD_US = 100_000
_MAX_CPU = 1 << 16
_PID_MAX = 4194304
_SHARES = "cpu.shares "


class CgroupSetting(Resource):
    """One setting, such as memory.max: its value as cgroup v2 writes it."""

    name: str = attr("name of the cgroup v2 file", TEXT, role=Role.IDENTITY, required=True)
    value: str = attr("what the file holds", TEXT, required=True, examples=("2GiB", "50000 100000", 512))
    former: str | None = attr("what was there before scplan set it, given back on removal", TEXT, role=Role.FORMER)

    def shown(self, path: str, value: object) -> str:
        """Sizes of memory with their unit."""
        if self.name.startswith("memory.") and isinstance(value, str) and value.isdecimal():
            return show_size(int(value))
        return super().shown(path, value)


class Setting(NamedTuple):
    """How one v2 file is written in YAML and mapped to v1.

    `normalise(text, page_size)` gives the canonical v2 value. `read` and `write` translate for a v1 cgroup. Where that
    loses something, `read_former` reads in a form that `write` gives back exactly, and that `value_of` translates.
    """

    controller: str
    normalise: Callable[[str, int], str]
    read: Callable[[Cgroup], str | None]
    write: Callable[[Cgroup, str], None]
    read_former: Callable[[Cgroup], str | None] | None = None
    value_of: Callable[[str], str] = str
    usual: str | None = None
    """What the kernel gives a new cgroup; None: what the one above it has."""

    def former(self, cgroup: Cgroup) -> str | None:
        """What is there now, as `write` gives it back exactly; None when this kernel has no such file."""
        return (self.read_former or self.read)(cgroup)


class CgroupKind(Kind[CgroupSetting]):
    name = "cgroup"
    section = "cgroup"
    section_form = "mapping"
    record = CgroupSetting

    def normalise(self, desired: CgroupSetting) -> CgroupSetting:
        setting = _setting(desired.name)
        return desired.but(value=setting.normalise(desired.value, 1))

    def identity(self, resource: CgroupSetting) -> str:
        return resource.name

    def resolve(self, desired: CgroupSetting, host: HostFacts) -> tuple[CgroupSetting]:
        return (desired.but(value=_setting(desired.name).normalise(desired.value, host.page_size)),)

    def can_take_over(self, desired: CgroupSetting, live: CgroupSetting) -> bool:
        return True

    def is_given_back(self, removed: CgroupSetting, live: CgroupSetting) -> bool:
        return removed.former is None or _setting(removed.name).value_of(removed.former) == live.value

    def read(
        self, container: Container, host: Host, wanted: Mapping[str, CgroupSetting] | None
    ) -> dict[str, CgroupSetting]:
        names = SETTINGS.keys() if wanted is None else wanted.keys()
        found = {}
        for name in names:
            setting = SETTINGS.get(name)
            if setting is None or (wanted is None and setting.controller not in host.cgroup_mounts):
                continue
            cgroup = Cgroup(container, host, setting.controller)
            if wanted is not None:
                cgroup.refuse_shared()
            value = setting.read(cgroup)
            if value is not None:
                found[name] = CgroupSetting(name=name, value=value)
        return found

    def describe(self, container: Container, host: Host) -> Described[CgroupSetting]:
        entries, left_out = {}, {}
        for name, setting in SETTINGS.items():
            if setting.controller not in host.cgroup_mounts:
                continue
            cgroup = Cgroup(container, host, setting.controller)
            value = setting.read(cgroup)
            if not cgroup.is_its_own:
                left_out[setting.controller] = f"the container has no cgroup of its own there, it is in {cgroup.path}"
            elif value not in (None, "", setting.usual, _inherited(cgroup, setting)):
                entries[name] = CgroupSetting(name=name, value=str(value))
        return Described(entries, tuple(left_out.items()))

    def capture(
        self, target: Target[CgroupSetting], before: CgroupSetting | None, after: CgroupSetting | None
    ) -> tuple[CgroupSetting | None, CgroupSetting | None]:
        if after is not None and after.former is None:
            setting = _setting(after.name)
            cgroup = Cgroup(target.container, target.host, setting.controller)
            cgroup.refuse_shared()
            after = after.but(former=setting.former(cgroup))
        return before, after

    def create(self, target: Target[CgroupSetting], after: CgroupSetting) -> None:
        self._write(target, after.name, after.value)

    def update(self, target: Target[CgroupSetting], before: CgroupSetting, after: CgroupSetting) -> None:
        self._write(target, after.name, after.value)

    def delete(self, target: Target[CgroupSetting], before: CgroupSetting) -> None:
        if before.former is None:
            return
        setting = _setting(before.name)
        cgroup = Cgroup(target.container, target.host, setting.controller)
        # Nothing is written where `create` could not write either: an undo must not be refused for its reason.
        if cgroup.is_its_own and setting.former(cgroup) not in (None, before.former):
            setting.write(cgroup, before.former)

    def _write(self, target: Target[CgroupSetting], name: str, value: str) -> None:
        setting = _setting(name)
        cgroup = Cgroup(target.container, target.host, setting.controller)
        if setting.read(cgroup) is None:
            raise ScplanError(f"this kernel has no cgroup v1 equivalent of {name}")
        setting.write(cgroup, value)


def _inherited(cgroup: Cgroup, setting: Setting) -> str | None:
    """What a new cgroup there gets from the one above it; None where the kernel has a value of its own for it."""
    return setting.read(cgroup.above()) if setting.usual is None else None


def _setting(name: str) -> Setting:
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


# memory


def _memory(text: str, page_size: int) -> str:
    """Bytes in whole pages, as the kernel keeps them, or max."""
    if text == "max":
        return text
    value = parse_size(text)
    return str(value - value % page_size)


def _read_memory(file: str) -> Callable[[Cgroup], str | None]:
    def read(cgroup: Cgroup) -> str | None:
        text = cgroup.read(file)
        if text is None:
            return None
        return "max" if int(text) >= _UNLIMITED_MEMORY else text

    return read


def _write_memory(file: str) -> Callable[[Cgroup, str], None]:
    def write(cgroup: Cgroup, value: str) -> None:
        hint = ""
        if file == "memory.limit_in_bytes":
            hint = "EBUSY: more is in use and can't be reclaimed; EINVAL: above the memory+swap limit"
        cgroup.write(file, "-1" if value == "max" else value, hint=hint)

    return write


# cpu


def _cpu_max(text: str, _: int) -> str:
    """`QUOTA PERIOD` in microseconds; the quota may be max, the period defaults to 100000."""
    fields = text.split()
    if not 1 <= len(fields) <= 2 or not all(field.isdecimal() for field in fields[1:]):
        raise ValueError(f"cpu.max is QUOTA [PERIOD] in microseconds, such as '50000 100000', not {text!r}")
    period = int(fields[1]) if len(fields) == 2 else _PERIOD_US
    if not 1000 <= period <= 1_000_000:
        raise ValueError(f"the period of cpu.max must be between 1000 and 1000000 microseconds, not {period}")
    if fields[0] == "max":
        return f"max {period}"
    if not fields[0].isdecimal() or not 1000 <= int(fields[0]) <= period * _MAX_CPU:
        raise ValueError(f"the quota of cpu.max must be 'max' or at least 1000 microseconds, not {fields[0]}")
    return f"{int(fields[0])} {period}"


def _read_cpu_max(cgroup: Cgroup) -> str | None:
    quota, period = cgroup.read("cpu.cfs_quota_us"), cgroup.read("cpu.cfs_period_us")
    if quota is None or period is None:
        return None
    return f"{'max' if int(quota) < 0 else quota} {period}"


def _write_cpu_max(cgroup: Cgroup, value: str) -> None:
    quota, period = value.split()
    # Lifted first: the kernel checks every pair on the way against the parent's bandwidth.
    cgroup.write("cpu.cfs_quota_us", "-1")
    cgroup.write("cpu.cfs_period_us", period)
    if quota != "max":
        hint = "a cgroup can't have more than its parent's share, nor less than the sum of its children"
        cgroup.write("cpu.cfs_quota_us", quota, hint=hint)


def _number(low: int, high: int, word: str | None = None) -> Callable[[str, int], str]:
    def normalise(text: str, _: int) -> str:
        if text == word:
            return text
        if not re.fullmatch(r"\d{1,20}", text, re.ASCII) or not low <= int(text) <= high:
            alternative = f" or {word!r}" if word else ""
            raise ValueError(f"{text!r} must be a whole number between {low} and {high}{alternative}")
        return str(int(text))

    return normalise


def _weight_of(shares: str) -> str:
    """cpu.weight for cpu.shares, by the mapping that OCI runtimes use: 2…262144 to 1…10000."""
    return str(1 + round((int(shares) - 2) * 9999 / 262142))


def _shares_of(weight: str) -> str:
    return str(2 + round((int(weight) - 1) * 262142 / 9999))


def _read_weight(cgroup: Cgroup) -> str | None:
    shares = cgroup.read("cpu.shares")
    return None if shares is None else _weight_of(shares)


def _read_former_weight(cgroup: Cgroup) -> str | None:
    """The weight; `cpu.shares 1000` where no weight means that: there are 26 times as many shares as weights."""
    shares = cgroup.read("cpu.shares")
    if shares is None:
        return None
    weight = _weight_of(shares)
    return weight if _shares_of(weight) == shares else f"{_SHARES}{shares}"


def _weight_of_former(former: str) -> str:
    return _weight_of(former.removeprefix(_SHARES)) if former.startswith(_SHARES) else former


def _write_weight(cgroup: Cgroup, value: str) -> None:
    shares = value.removeprefix(_SHARES) if value.startswith(_SHARES) else _shares_of(value)
    cgroup.write("cpu.shares", shares)


# cpuset


def _cpu_list(text: str, _: int) -> str:
    """`0-3,7` as the kernel prints it: sorted, joined into ranges."""
    members: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part, re.ASCII)
        if not match or int(match[1]) > int(match[2] or match[1]):
            raise ValueError(f"{text!r} is not a list of numbers and ranges such as 0-3,7")
        members.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return ",".join(f"{low}-{high}" if low < high else str(low) for low, high in _ranges(sorted(members)))


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def _write_cpuset(file: str) -> Callable[[Cgroup, str], None]:
    def write(cgroup: Cgroup, value: str) -> None:
        hint = "the CPUs or nodes must exist and be allowed in the parent cgroup"
        # os.write of nothing would be no write at all: an empty list is a newline to the kernel.
        cgroup.write(file, value or "\n", hint=hint)

    return write


def _plain(file: str) -> tuple[Callable[[Cgroup], str | None], Callable[[Cgroup, str], None]]:
    def read(cgroup: Cgroup) -> str | None:
        return cgroup.read(file)

    def write(cgroup: Cgroup, value: str) -> None:
        cgroup.write(file, value)

    return read, write


SETTINGS: Mapping[str, Setting] = {
    "memory.max": Setting(
        "memory", _memory, _read_memory("memory.limit_in_bytes"), _write_memory("memory.limit_in_bytes"), usual="max"
    ),
    "memory.low": Setting(
        "memory",
        _memory,
        _read_memory("memory.soft_limit_in_bytes"),
        _write_memory("memory.soft_limit_in_bytes"),
        usual="max",
    ),
    "cpu.max": Setting("cpu", _cpu_max, _read_cpu_max, _write_cpu_max, usual=f"max {_PERIOD_US}"),
    "cpu.weight": Setting(
        "cpu",
        _number(1, 10000),
        _read_weight,
        _write_weight,
        _read_former_weight,
        _weight_of_former,
        usual=_weight_of("1024"),
    ),
    "cpu.idle": Setting("cpu", _number(0, 1), *_plain("cpu.idle"), usual="0"),
    "cpuset.cpus": Setting("cpuset", _cpu_list, _plain("cpuset.cpus")[0], _write_cpuset("cpuset.cpus")),
    "cpuset.mems": Setting("cpuset", _cpu_list, _plain("cpuset.mems")[0], _write_cpuset("cpuset.mems")),
    "pids.max": Setting("pids", _number(0, _PID_MAX, "max"), *_plain("pids.max"), usual="max"),
}

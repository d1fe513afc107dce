"""The kind of cgroup settings: read, set, and returned to their former values. cgroups(7), admin-guide/cgroup-v1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from scplan.errors import ScplanError
from scplan.kinds.cgroup.record import CgroupSetting
from scplan.kinds.cgroup.settings import (
    IDLE,
    NOT_IN_FORCE,
    SETTINGS,
    SHARES,
    Files,
    Setting,
    decoded,
    encoded,
    grouped_with,
    holds_same,
    laid_over,
    setting_of,
    weight_near,
    with_room_for_memory,
)
from scplan.kinds.kind import Described, Foreseen, Kind, Target
from scplan.linux.cgroups.cgroup_v1 import Cgroup
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.model.address import Address
from scplan.model.change import Change
from scplan.model.live import HostFacts
from scplan.model.resource import Resource

if TYPE_CHECKING:
    from scplan.model.provided import Provided


class CgroupKind(Kind[CgroupSetting]):
    name = "cgroup"
    section = "cgroup"
    section_form = "mapping"
    record = CgroupSetting
    lives_in = "cgroup"
    foresees_starts = True

    def normalise(self, desired: CgroupSetting) -> CgroupSetting:
        setting = setting_of(desired.name)
        return desired.replace(value=setting.normalise(desired.value, 1))

    def identity(self, resource: CgroupSetting) -> str:
        return resource.name

    def resolve(self, desired: CgroupSetting, host: HostFacts) -> tuple[CgroupSetting]:
        return (desired.replace(value=setting_of(desired.name).normalise(desired.value, host.page_size)),)

    def can_take_over(self, desired: CgroupSetting, live: CgroupSetting) -> bool:
        return True

    def requires(
        self, resource: CgroupSetting, others: Mapping[Address, Resource], address: Address
    ) -> Iterable[Address]:
        """memory.max of memory.swap.max, and cpu.idle of cpu.weight.

        On cgroup v1 a swap limit is counted on top of the memory limit, and an idle cgroup accepts no weight.
        """
        needed = {"memory.swap.max": "memory.max", "cpu.weight": "cpu.idle"}.get(resource.name)
        if needed is not None and (place := address._replace(identity=needed)) in others:
            yield place

    def is_given_back(self, removed: CgroupSetting, live: CgroupSetting) -> bool:
        if removed.former is None or live.files is not None:
            return True
        former = removed.former
        files = removed.found if removed.found is not None else removed.former_files
        if files is not None:
            texts = decoded(files)
            if removed.name == "cpu.weight" and IDLE in texts:
                texts[IDLE] = "0"  # a visible weight proves that the cgroup is not idle
            former = setting_of(removed.name).value(texts) or former
        return _weight(former) == _weight(live.value)

    def read(
        self, container: Container, host: Host, wanted: Mapping[str, CgroupSetting] | None
    ) -> dict[str, CgroupSetting]:
        names = SETTINGS.keys() if wanted is None else wanted.keys()
        found: dict[str, CgroupSetting] = {}
        for name in names:
            setting = SETTINGS.get(name)
            if setting is None or (wanted is None and setting.controller not in host.cgroup_mounts):
                continue
            cgroup = Cgroup(container, host, setting.controller)
            if wanted is not None:
                cgroup.refuse_shared()
            value = setting.read(cgroup)
            if _is_hidden(name, value):
                found |= _while_idle(wanted)
            elif value is not None:
                found[name] = CgroupSetting(name=name, value=value)
        return found

    def came_with(self, resource: CgroupSetting, provided: Provided) -> str:
        return "a limit of the runtime's" if provided.sets(resource.name, resource.value) else ""

    def describe(self, container: Container, host: Host) -> Described[CgroupSetting]:
        entries: dict[str, CgroupSetting] = {}
        left_out: dict[str, str] = {}
        for name, setting in SETTINGS.items():
            if setting.controller not in host.cgroup_mounts:
                continue
            cgroup = Cgroup(container, host, setting.controller)
            value = setting.read(cgroup)
            if not cgroup.is_its_own:
                left_out[setting.controller] = f"the container has no cgroup of its own there, it is in {cgroup.path}"
            elif value in (None, "", setting.usual, _inherited(cgroup, setting)):
                continue
            elif name == "cpu.weight":
                entries |= _describe_weight(value, left_out)
            else:
                entries[name] = CgroupSetting(name=name, value=str(value))
        return Described(entries, tuple(left_out.items()))

    def foresee(
        self, container: Container, host: Host, changes: Sequence[Change], after: Mapping[Address, Resource]
    ) -> Iterable[Foreseen]:
        from scplan.kinds.cgroup.foreseen import refusal, removal_refusal

        values = {
            address.identity: one.value
            for address, one in after.items()
            if address.kind == self.name and isinstance(one, CgroupSetting)
        }
        formers = {
            change.address.identity: former
            for change in changes
            if change.after is None and (former := getattr(change.before, "former", None)) is not None
        }
        for change in changes:
            if change.after is None and isinstance(change.before, CgroupSetting):
                refused = removal_refusal(change.before, values)
                if refused is not None:
                    yield Foreseen(change.address, refused=refused)
            if change.after is not None and isinstance(change.after, CgroupSetting):
                refused = refusal(container, host, change.after, values, formers)
                if refused is not None:
                    yield Foreseen(change.address, refused=refused)

    def foresee_start(
        self, host: Host, after: Mapping[Address, Resource], settings: Mapping[str, frozenset[str]]
    ) -> Iterable[Foreseen]:
        from scplan.kinds.cgroup.foreseen import start_refusal

        wanted = {address: one for address, one in after.items() if isinstance(one, CgroupSetting)}
        values = {address.identity: one.value for address, one in wanted.items()}
        for address, one in wanted.items():
            refused = start_refusal(host, one, values, settings)
            if refused is not None:
                yield Foreseen(address, refused=refused)

    def capture(
        self, target: Target[CgroupSetting], before: CgroupSetting | None, after: CgroupSetting | None
    ) -> tuple[CgroupSetting | None, CgroupSetting | None]:
        name = (after or before or CgroupSetting(name="", value="")).name
        setting = setting_of(name)
        cgroup = Cgroup(target.container, target.host, setting.controller)
        if after is not None:
            cgroup.refuse_shared()
        elif not cgroup.is_its_own:
            return before, after
        now = setting.group.read(cgroup)
        if before is not None:
            before = before.replace(files=encoded(now), found=None, value=_value_before(before, setting, now))
        if after is not None and after.former is None:
            former = _former_files(target, name, now)
            after = after.replace(former=setting.value(former), former_files=encoded(former))
        if after is not None:
            # The undo of a creation is exact; a later removal uses `former`. What an earlier apply carried is outdated,
            # except the shares of an idle cgroup: the kernel does not keep them until the cgroup is no longer idle.
            files = after.files if name == "cpu.idle" and now.get(IDLE) == "1" else None
            after = after.replace(found=encoded(now) if before is None else None, files=files)
        return before, after

    def create(self, target: Target[CgroupSetting], after: CgroupSetting) -> None:
        setting = setting_of(after.name)
        cgroup = Cgroup(target.container, target.host, setting.controller)
        now = setting.group.read(cgroup)
        if setting.value(now) is None:
            raise ScplanError(f"this kernel has no cgroup v1 equivalent of {after.name}")
        setting.group.write(cgroup, now, _goal(target, after, setting, now))

    def update(self, target: Target[CgroupSetting], before: CgroupSetting, after: CgroupSetting) -> None:
        self.create(target, after)

    def delete(self, target: Target[CgroupSetting], before: CgroupSetting) -> None:
        if before.former is None:
            return
        setting = setting_of(before.name)
        cgroup = Cgroup(target.container, target.host, setting.controller)
        # Write nothing where `create` could not write either: an undo must not be refused for the same reason.
        if cgroup.is_its_own:
            now = setting.group.read(cgroup)
            if setting.value(now) is not None:
                found = decoded(before.found) if before.found is not None else {}
                is_undo = found.keys() == now.keys()
                setting.group.write(cgroup, now, found if is_undo else _without(target, before, setting, now))


def _while_idle(wanted: Mapping[str, CgroupSetting] | None) -> dict[str, CgroupSetting]:
    """cpu.weight of an idle cgroup: the kernel keeps none, as `files` notes.

    If the cgroup is meant to be idle, scplan's weight counts as set: it is written when the cgroup is no longer idle.
    Otherwise no weight is in force.
    """
    if wanted is None:
        return {}
    idle, weight = wanted.get("cpu.idle"), wanted["cpu.weight"]
    is_meant = idle is not None and idle.value == "1" and weight.former is not None
    value = weight.value if is_meant else NOT_IN_FORCE
    return {"cpu.weight": CgroupSetting(name="cpu.weight", value=value, files=encoded({IDLE: "1"}))}


def _weight(value: str) -> str:
    """`39` of `cpu.shares 1000`: the nearest weight; other values unchanged."""
    shares = value.removeprefix("cpu.shares ")
    return value if shares == value else weight_near(shares)


def _describe_weight(value: str | None, left_out: dict[str, str]) -> dict[str, CgroupSetting]:
    """The entry of cpu.weight; shares that are not exactly a weight go to `left_out`."""
    shares = (value or "").removeprefix("cpu.shares ")
    if shares == value:
        return {} if value in (None, NOT_IN_FORCE) else {"cpu.weight": CgroupSetting(name="cpu.weight", value=value)}
    left_out["cpu.weight"] = f"cpu.shares {shares} is none of its weights; {weight_near(shares)} is the nearest"
    return {}


def _inherited(cgroup: Cgroup, setting: Setting) -> str | None:
    """Value that a new cgroup here inherits from the cgroup above; None if the kernel has a default of its own."""
    return setting.read(cgroup.above()) if setting.usual is None else None


def _value_before(before: CgroupSetting, setting: Setting, now: Files) -> str:
    value = setting.value(now)
    return before.value if value is None or _is_hidden(before.name, value) else value


def _is_hidden(name: str, value: str | None) -> bool:
    """True if the cgroup is idle, so that the kernel keeps no weight of it."""
    return name == "cpu.weight" and value == NOT_IN_FORCE


def _former_files(target: Target[CgroupSetting], name: str, now: Files) -> dict[str, str]:
    """Files of the group without scplan: as recorded by a peer of the group, or live if others have changed them since.

    Without such a peer all of them are live.
    """
    former = dict(now)
    for peer in _peers(target, name):
        if peer.former_files is not None:
            return _as_recorded(target, name, decoded(peer.former_files), now)
        if peer.former is not None:
            former = laid_over(former, {peer.name: peer.former})
    return former


def _as_recorded(target: Target[CgroupSetting], name: str, recorded: Files, now: Files) -> dict[str, str]:
    """The recorded files, with those that others have changed since scplan set the peers."""
    made = laid_over(recorded, _values_of_peers(target, name))
    is_idle = now.get(IDLE) == "1"
    return {
        # An idle cgroup's shares can't be read, so a change of them can't be seen.
        file: recorded.get(file, text)
        if (file == SHARES and is_idle) or holds_same(file, made.get(file, text), text)
        else text
        for file, text in now.items()
    }


def _peers(target: Target[CgroupSetting], name: str) -> list[CgroupSetting]:
    """The other managed settings of the group."""
    names = grouped_with(name)
    return [peer for identity, peer in target.peers.items() if identity != name and identity in names]


def _values_of_peers(target: Target[CgroupSetting], name: str) -> dict[str, str]:
    return {peer.name: peer.value for peer in _peers(target, name)}


def _goal(target: Target[CgroupSetting], after: CgroupSetting, setting: Setting, now: Files) -> dict[str, str]:
    """Files of the group with the setting in them: as captured if an undo returns to just that, else as requested."""
    if after.files is not None:
        captured = decoded(after.files)
        value = setting.value(captured)
        if captured.keys() == now.keys() and (value == after.value or _is_hidden(after.name, value)):
            return captured
    if now.get(IDLE) == "1" and after.former_files is not None:
        now = {**now, SHARES: decoded(after.former_files).get(SHARES, now.get(SHARES, ""))}
    return laid_over(now, _values_of_peers(target, after.name) | {after.name: after.value})


def _without(target: Target[CgroupSetting], before: CgroupSetting, setting: Setting, now: Files) -> dict[str, str]:
    """Files of the group without the setting: scplan's changes are reverted, later changes of others stay."""
    if before.former_files is not None:
        former = decoded(before.former_files)
    else:
        former = laid_over(now, {before.name: before.former or ""})
    peers = _values_of_peers(target, before.name)
    made = laid_over(former, peers | {before.name: before.value})
    kept = {
        file: former.get(file, text) if file in setting.own or holds_same(file, made.get(file, text), text) else text
        for file, text in now.items()
    }
    return with_room_for_memory(laid_over(kept, peers))

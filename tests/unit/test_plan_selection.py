"""Globs of a plan: a container that one of them speaks of is never left out as unchanged."""

from __future__ import annotations

import pytest

from scplan.kinds.cgroup import CgroupSetting
from scplan.kinds.device.record import Device, IoLimits
from scplan.model.address import Address, Selection
from scplan.model.resource import Resource
from scplan.planning.making import Resolution, accounts

SETTING = CgroupSetting(name="pids.max", value="10")
RESOURCES = {Address(container, "cgroup", "pids.max"): SETTING for container in ("web", "db")}


@pytest.mark.parametrize(
    ("selection", "unchanged"),
    [
        (Selection(), {"web", "db"}),
        (Selection(("web/cgroup/*",)), {"db"}),
        (Selection((), ("db",)), {"web"}),
        (Selection(("wbe/*",)), {"web", "db"}),
    ],
)
def test_containers_that_the_selection_speaks_of_are_kept(selection: Selection, unchanged: set[str]) -> None:
    resolution = Resolution(desired=RESOURCES, skipped=frozenset(), diagnostics=())
    assert accounts(resolution, ("web", "db"), selection).keys() == unchanged


def test_containers_of_which_something_is_said_are_kept() -> None:
    web, db = RESOURCES
    skipped = Resolution(desired={web: SETTING}, skipped=frozenset({db}), diagnostics=())
    assert accounts(skipped, ("web", "db"), Selection()).keys() == {"web"}
    remarked = Resolution(desired=RESOURCES, skipped=frozenset(), diagnostics=(), remarked=frozenset({db}))
    assert accounts(remarked, ("web", "db"), Selection()).keys() == {"web"}


def test_accounts_differ_where_records_say_something_else() -> None:
    def of(*resources: Resource) -> str:
        desired = {Address("web", *_place(one)): one for one in resources}
        return accounts(Resolution(desired, frozenset(), ()), ("web",), Selection())["web"]

    limited = Device(source="/dev/sda", target="/dev/sda", permissions="rw", io=IoLimits(read_bps=1))
    same = {of(SETTING, limited), of(limited, SETTING), of(SETTING.replace(former="7"), limited)}
    assert len(same) == 1
    others = [of(SETTING), of(limited), of(SETTING.replace(value="1"), limited)]
    others += [of(SETTING, limited.replace(io=None)), of(SETTING, limited.replace(io=IoLimits(write_bps=1)))]
    others.append(of(SETTING, limited.replace(permissions="r")))
    assert len({*same, *others}) == 1 + len(others)


def _place(resource: Resource) -> tuple[str, str]:
    return ("device", "/dev/sda") if isinstance(resource, Device) else ("cgroup", "pids.max")

"""Globs of a plan: a container that one of them speaks of is never left out as unchanged."""

from __future__ import annotations

import pytest

from scplan.kinds.cgroup import CgroupSetting
from scplan.model.address import Address, Selection
from scplan.model.live import ContainerFacts, HostFacts, Live, Status
from scplan.plan import Inputs, Resolution, recorded_containers

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
    facts = {
        name: ContainerFacts(name=name, runtime="runc", id=name, status=Status.RUNNING, pid=1, start_time=1)
        for name in ("web", "db")
    }
    inputs = Inputs(
        containers=facts,
        resolution=Resolution(desired=RESOURCES, skipped=frozenset(), diagnostics=()),
        owned=RESOURCES,
        live=Live(host=HostFacts(), containers=facts, resources=RESOURCES),
        foreign={},
        source_of=lambda _: None,
        selection=selection,
    )
    assert recorded_containers(inputs) == unchanged

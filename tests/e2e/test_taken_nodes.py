"""A container puts something of its own in a device node's place: access and limits of the device go all the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.containers.fingerprint import difference, fingerprint
from tests.containers.host_parts import LoopDisk
from tests.e2e.scene import of

pytestmark = pytest.mark.needs("root", "busybox", "cgroup1")

# The last one is a device that the runtime allows, with a rule of its own.
THINGS = {
    "symlink": "ln -s /etc /dev/data",
    "directory": "mkdir /dev/data",
    "file": "echo mine > /dev/data",
    "another device": "mknod /dev/data c 1 3",
    "nothing": "true",
}


@dataclass
class Taken:
    """`container` has a disk with a limit in the records, and something else of its own at the node's place."""

    container: Container
    device: dict[str, Any]
    rules: str

    def its_own(self) -> str:
        return self.container.exec(["sh", "-c", "ls -ld /dev/data; cat /dev/data 2>/dev/null"]).stdout


@pytest.fixture(params=["runc", "crun"])
def runtime(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(params=THINGS)
def taken(
    request: pytest.FixtureRequest, runtime: str, scplan: Scplan, make_container: MakeContainer, loop_disk: LoopDisk
) -> Taken:
    container = make_container(runtime)
    rules = container.cgroup_file("devices.list")
    device = {"source": loop_disk.path, "target": "/dev/data", "io": {"read_bps": 1000000}}
    scplan("apply", "--auto-approve", config=of(container, devices=[device])).ok()
    container.exec(["sh", "-c", f"rm /dev/data; {THINGS[request.param]}"], check=True)
    return Taken(container, device, rules)


def test_destroy_takes_access_and_limits(taken: Taken, scplan: Scplan) -> None:
    mine = taken.its_own()
    scplan("destroy", taken.container.name, "--auto-approve").ok()
    assert taken.container.cgroup_file("devices.list") == taken.rules
    assert taken.container.cgroup_file("blkio.throttle.read_bps_device") == ""
    assert taken.its_own() == mine
    assert scplan("state", "list", "--json").json["resources"] == []


def test_what_is_put_in_its_place_is_drift_and_not_pending(taken: Taken, scplan: Scplan) -> None:
    report = scplan("drift", "--json", config=of(taken.container, devices=[taken.device])).ok().json
    assert [one["address"].split("/", 1)[1] for one in report["drifted"]] == ["device/dev/data"]
    assert report["pending"] == []


def test_failure_after_the_removal_gives_them_back(taken: Taken, scplan: Scplan) -> None:
    before = fingerprint([taken.container])
    ran = scplan("apply", "--auto-approve", "--probe", "false", config=of(taken.container)).ok(3)
    assert "not undone" not in ran.stderr
    changed = difference(before, fingerprint([taken.container]))
    # A node that is only missing is made again.
    assert [one for one in changed if "/dev/data" not in one] == []
    assert taken.container.cgroup_file("blkio.throttle.read_bps_device").split()[1] == "1000000"
    scplan("destroy", taken.container.name, "--auto-approve").ok()
    assert taken.container.cgroup_file("devices.list") == taken.rules


def test_node_that_could_not_be_made_anew_leaves_all_as_it_was(taken: Taken, scplan: Scplan) -> None:
    """The plan is to replace it; what the container has put there is not scplan's to remove."""
    before = fingerprint([taken.container])
    ran = scplan("apply", "--auto-approve", config=of(taken.container, devices=[taken.device]))
    if ran.code:
        assert ran.code == 3
        assert "something else is there" in ran.stderr
        assert "not undone" not in ran.stderr
        assert difference(before, fingerprint([taken.container])) == []
    else:
        assert taken.its_own().startswith("b")
    scplan("destroy", taken.container.name, "--auto-approve").ok()
    assert taken.container.cgroup_file("devices.list") == taken.rules

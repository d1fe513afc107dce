"""An apply that did not end blocks the containers that it touches, and no others; and there is always a way out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.e2e.scene import Config, address, config, nothing_changed, of, refused
from tests.e2e.test_records import DAMAGES, killed_at

pytestmark = [pytest.mark.needs("cgroup1"), pytest.mark.needs("strace")]


@pytest.fixture
def other(make_container: MakeContainer) -> Container:
    return make_container("process")


@pytest.fixture
def journal(process_container: Container, scplan: Scplan) -> Path:
    """The journal of an apply that was killed after its second operation, a setting, was made."""
    asked = of(process_container, nics=[{"name": "eth1"}], cgroup={"pids.max": 100})
    assert killed_at(scplan, asked, "fdatasync", 3)
    (found,) = (scplan.state_dir / "journal").glob("*.jsonl")
    return found


def limit(container: Container, value: int) -> Config:
    return of(container, cgroup={"pids.max": value})


def test_other_containers_are_changed_while_one_needs_recovery(
    process_container: Container, other: Container, scplan: Scplan, journal: Path
) -> None:
    scplan("apply", "--auto-approve", config=limit(other, 70)).ok()
    assert other.cgroup_file("pids.max").strip() == "70"
    scplan("state", "rm", other.name).ok()
    ran = scplan("apply", "--auto-approve", config=limit(process_container, 80))
    refused(ran, process_container.name, journal.name, "scplan recover", "--accept-live", code=8)
    # An undo takes back the last apply that was committed, which is the other container's.
    scplan("undo", "--auto-approve").ok()
    assert journal.exists()
    scplan("recover").ok()
    assert [link["ifname"] for link in process_container.ip("link")] == ["lo"]


def test_the_selection_can_leave_out_the_blocked_container(
    process_container: Container, other: Container, scplan: Scplan, journal: Path
) -> None:
    both = config((process_container, {"cgroup": {"pids.max": 80}}), (other, {"cgroup": {"pids.max": 70}}))
    refused(scplan("apply", "--auto-approve", config=both), process_container.name, code=8)
    scplan("apply", "--auto-approve", "--exclude", process_container.name).ok()
    assert other.cgroup_file("pids.max").strip() == "70"
    assert journal.exists()


def test_what_only_one_container_can_have_is_blocked_with_it(
    process_container: Container, other: Container, scplan: Scplan
) -> None:
    """The NIC of the host that the apply is about to move can't go to another container meanwhile."""
    mac = "02:00:00:00:77:01"
    assert killed_at(scplan, of(process_container, nics=[{"name": "eth1", "mac": mac}]), "fdatasync", 2)
    asked = of(other, nics=[{"name": "eth1", "mac": mac}])
    with nothing_changed(other):
        refused(scplan("apply", "--auto-approve", config=asked), process_container.name, "did not end", code=8)
    scplan("apply", "--auto-approve", config=of(other, nics=[{"name": "eth1"}])).ok()
    scplan("recover").ok()
    scplan("apply", "--auto-approve", config=asked).ok()


@pytest.mark.parametrize("damage", ["garbage", "one bit", "text"])
def test_live_state_is_accepted_whatever_the_journal_is_like(
    process_container: Container, other: Container, scplan: Scplan, journal: Path, damage: str
) -> None:
    """As the last way out: nothing is changed, each difference is said, and the container can be changed again."""
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:1]) + DAMAGES[damage](b"".join(lines[1:])))
    scplan("apply", "--auto-approve", config=limit(other, 70)).ok()
    with nothing_changed(process_container):
        said = scplan("recover", "--accept-live").ok().stdout
    assert f"{process_container.name}/nic/eth1 is there, and owned as it is" in said
    assert not list((scplan.state_dir / "journal").iterdir())
    assert "Nothing to recover" in scplan("recover").ok().stdout
    asked = of(process_container, nics=[{"name": "eth1"}], cgroup={"pids.max": 100})
    scplan("apply", "--auto-approve", config=asked).ok()
    scplan("plan", "--detailed-exitcode").ok()
    scplan("destroy", process_container.name, "--auto-approve").ok()
    assert [link["ifname"] for link in process_container.ip("link")] == ["lo"]


def test_records_follow_what_is_gone_and_what_was_changed(process_container: Container, scplan: Scplan) -> None:
    """A rollback was cut off, and somebody went on by hand since."""
    first = of(process_container, nics=[{"name": "eth1", "mtu": 1400}, {"name": "eth2"}], cgroup={"pids.max": 50})
    scplan("apply", "--auto-approve", config=first).ok()
    second = of(process_container, nics=[{"name": "eth1", "mtu": 1300}], cgroup={"pids.max": 60})
    assert killed_at(scplan, second, "fdatasync", 3)
    subprocess.run(["nsenter", f"--net=/proc/{process_container.pid}/ns/net", "ip", "link", "del", "eth2"], check=True)
    (process_container.cgroups["pids"] / "pids.max").write_text("33")
    said = scplan("recover", "--accept-live").ok().stdout
    assert "mtu was recorded as 1400, is 1300" in said
    assert "value was recorded as 50, is 33" in said
    assert "nic/eth2 is gone, and forgotten" in said
    assert "not as scplan left it" not in scplan("drift", "--detailed-exitcode").stdout
    shown = scplan("show", "--json").ok().json["resources"]
    assert [one["address"] for one in shown if one["changed"] or one["problem"] or one["live"] is None] == []
    assert sorted(one["address"] for one in shown) == [
        address(process_container, rest) for rest in ("cgroup/pids.max", "nic/eth1")
    ]


def test_recovery_goes_on_past_one_that_fails(other: Container, scplan: Scplan, journal: Path) -> None:
    assert killed_at(scplan, limit(other, 70), "fdatasync", 2)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:1]) + b"damaged\n" + b"".join(lines[1:]))
    refused(scplan("recover", "--back"), journal.name)
    assert other.cgroup_file("pids.max").strip() == "max"
    assert [path.name for path in journal.parent.iterdir()] == [journal.name]
    scplan("apply", "--auto-approve", config=limit(other, 71)).ok()


@pytest.mark.parametrize(("call", "number"), [("fsync", 1), ("rename", 1), ("fdatasync", 1), ("rename", 2)])
def test_acceptance_that_is_killed_is_made_again(
    process_container: Container, scplan: Scplan, journal: Path, call: str, number: int
) -> None:
    """Before and after the record, and before and after the journal, are in place."""
    trap = ["-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}"]
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *trap, *scplan.command("recover", "--accept-live")]
    with nothing_changed(process_container):
        subprocess.run(command, capture_output=True, timeout=60, cwd=scplan.directory, env=scplan.environment)
        scplan("recover", "--accept-live").ok()
    assert not list(journal.parent.iterdir())
    assert address(process_container, "nic/eth1") in scplan("state", "list").ok().stdout
    asked = of(process_container, nics=[{"name": "eth1"}], cgroup={"pids.max": 100})
    scplan("apply", "--auto-approve", config=asked).ok()
    scplan("destroy", process_container.name, "--auto-approve").ok()
    assert [link["ifname"] for link in process_container.ip("link")] == ["lo"]

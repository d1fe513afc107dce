"""What a container has, as a configuration: a plan of it changes nothing, and only adopts."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeContainer, Ran, Scplan
from tests.containers.container import Container
from tests.containers.fingerprint import difference, fingerprint
from tests.containers.host_parts import LoopDisk, Nic
from tests.e2e.scene import everything, nothing_changed, of, planned, refused

pytestmark = pytest.mark.needs("cgroup1")

RUNTIMES = ("runc", "crun", "process", "process-userns", "runc-userns")


@pytest.fixture(params=RUNTIMES)
def web(request: pytest.FixtureRequest, make_container: MakeContainer) -> Container:
    runtime, _, userns = request.param.partition("-")
    return make_container(runtime, userns=bool(userns))


def imported(scplan: Scplan, container: Container, *options: str) -> Ran:
    named = ["--runtime", container.runtime]
    if container.runtime == "process":
        named += ["--pid", str(container.pid)]
    return scplan("import", container.name, *named, *options)


def eventually(holds: Callable[[], bool]) -> None:
    """Waits until it holds; fails the test when it does not in time."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def entries(ran: Ran, container: Container) -> dict[str, Any]:
    """The sections of `import --json`, without how the container is named."""
    sections = ran.ok().json["containers"][container.name]
    assert isinstance(sections, dict)
    # The programs of the tests' containers are the host's.
    mounts = [mount for mount in sections.pop("mounts", ()) if mount["target"] != "/bin"]
    named = {name: value for name, value in sections.items() if name not in ("runtime", "pid")}
    return named | ({"mounts": mounts} if mounts else {})


def check_adopted(scplan: Scplan, container: Container, text: str, *, expected: set[str]) -> None:
    """A plan of the text only adopts, `--adopt` takes all of it over, and nothing is left to do then."""
    scplan("validate", config=text).ok()
    before = fingerprint([container])
    actions = planned(scplan("plan", "--json").ok())
    assert set(actions.values()) <= {"adopt"}
    assert expected <= actions.keys()
    assert imported(scplan, container, "--adopt").ok().stdout == text
    assert scplan("plan", "--detailed-exitcode").ok().stdout.strip() == "No changes."
    assert difference(before, fingerprint([container])) == []


def test_container_as_its_runtime_made_it_has_nothing_to_import(web: Container, scplan: Scplan) -> None:
    with nothing_changed(web):
        ran = imported(scplan, web, "--json")
        assert entries(ran, web) == {}
        text = imported(scplan, web).ok().stdout
    assert f"# What container {web.name} ({web.runtime}) had" in text
    assert set(planned(scplan("plan", "--json", config=text).ok())) <= {"mount/bin"}


def test_what_scplan_made_is_adopted_again(
    web: Container, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path
) -> None:
    asked = everything(web, loop_disk, bridge, host_directory)
    scplan("apply", "--auto-approve", config=asked).ok()
    listed = {line.partition("/")[2] for line in scplan("state", "list").ok().stdout.split()}
    scplan("state", "rm", web.name).ok()
    text = imported(scplan, web).ok().stdout
    check_adopted(scplan, web, text, expected=listed)
    assert {line.partition("/")[2] for line in scplan("state", "list").ok().stdout.split()} >= listed


def test_entries_say_what_is_there(
    make_container: MakeContainer, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path
) -> None:
    web = make_container("process")
    scplan("apply", "--auto-approve", config=everything(web, loop_disk, bridge, host_directory)).ok()
    scplan("state", "rm", web.name).ok()
    found = entries(imported(scplan, web, "--json"), web)
    (nic,) = found["nics"]
    assert len(nic.pop("host_name")) <= 15
    assert found == {
        "devices": [
            {
                "source": loop_disk.path,
                "target": "/dev/data",
                "permissions": "r",
                "mode": "0640",
                "gid": 6,
                "io": {"read_bps": 10 << 20, "write_iops": 500},
            }
        ],
        "nics": found["nics"],
        "routes": [
            {"via": "10.97.0.1", "dev": "eth1"},
            {"to": "10.98.0.0/16", "dev": "eth1", "metric": 50},
        ],
        "mounts": [{"source": str(host_directory), "target": "/srv/data", "read_only": True}],
        "cgroup": {"memory.max": str(64 << 20), "cpu.max": "50000 100000", "pids.max": "100"},
    }
    assert nic == {
        "name": "eth1",
        "bridge": bridge,
        "addresses": ["10.97.0.5/24", "fd97::5/64"],
        "mac": "02:5c:97:00:00:05",
        "mtu": 1400,
    }


def test_what_others_plugged_in_is_imported(
    make_container: MakeContainer, scplan: Scplan, veth_pair: Nic, loop_disk: LoopDisk
) -> None:
    """By hand: a NIC of a veth pair, addresses, routes of both families, a node and its rule, limits of the cgroup."""
    web = make_container("process")
    subprocess.run(["ip", "link", "set", veth_pair.name, "netns", str(web.pid), "name", "wan0"], check=True)
    web.ip("link", "set", "wan0", "up")
    web.ip("address", "add", "10.55.0.2/24", "dev", "wan0")
    web.ip("address", "add", "fd55::2/64", "dev", "wan0", "nodad")
    web.ip("route", "add", "default", "via", "10.55.0.1", "metric", "7")
    web.ip("route", "add", "fd56::/64", "via", "fd55::1", "table", "100")
    web.ip("route", "add", "10.56.0.0/16", "nexthop", "via", "10.55.0.8", "nexthop", "via", "10.55.0.9")
    web.ip("tuntap", "add", "tap0", "mode", "tap")
    web.ip("link", "set", "tap0", "up")
    web.ip("route", "add", "10.57.0.0/16", "dev", "tap0")
    web.exec(["mknod", "-m", "640", "/dev/disk", "b", str(loop_disk.major), str(loop_disk.minor)], check=True)
    (web.cgroups["devices"] / "devices.allow").write_text(f"b {loop_disk.numbers} rw")
    (web.cgroups["pids"] / "pids.max").write_text("77")
    text = imported(scplan, web).ok().stdout
    assert "routes, left out: 10.56.0.0/16: it has several next hops" in text
    assert "routes, left out: 10.57.0.0/16: a route over tap0, a tun link" in text
    check_adopted(
        scplan,
        web,
        text,
        expected={
            "device/dev/disk",
            "nic/wan0",
            "route/default@metric=7",
            "route/fd56::/64@table=100",
            "cgroup/pids.max",
        },
    )


def test_what_can_not_be_written_is_a_comment(
    make_container: MakeContainer, scplan: Scplan, loop_disk: LoopDisk
) -> None:
    web = make_container("process")
    web.exec(["mknod", "/dev/unused", "b", str(loop_disk.major), str(loop_disk.minor)], check=True)
    web.exec(["mknod", "/dev/nobody", "b", "255", "77"], check=True)
    web.exec(["mkdir", "-p", "/mnt/own"], check=True)
    web.exec(["mount", "-t", "tmpfs", "tmpfs", "/mnt/own"], check=True)
    ran = imported(scplan, web, "--json").ok()
    assert entries(ran, web) == {}
    left_out = {one["what"]: one["why"] for one in ran.json["x-left-out"]}
    assert "may not use" in left_out["/dev/unused"]
    assert "no node of this block device 255:77" in left_out["/dev/nobody"]
    assert left_out["/mnt/own"] == "tmpfs, not from the host's files"
    assert any("/proc" in what.split(", ") and why == "the runtime's own" for what, why in left_out.items())
    text = imported(scplan, web).ok().stdout
    for what in ("/dev/unused", "/dev/nobody", "/mnt/own"):
        assert f"left out: {what}: " in text
    assert set(planned(scplan("plan", "--json", config=text).ok())) <= {"mount/bin"}


@pytest.fixture
def odd_directory(host_directory: Path) -> Path:
    """A path in which YAML would see all kinds of things."""
    path = host_directory / "a: b, {c} #d \"e\" 'f' \\g é"
    path.mkdir()
    return path


def test_names_that_yaml_could_take_for_something_else_are_quoted(
    make_container: MakeContainer, scplan: Scplan, odd_directory: Path
) -> None:
    web = make_container("process")
    asked = of(web, mounts=[{"source": str(odd_directory), "target": "/mnt/null", "propagation": "private"}])
    scplan("apply", "--auto-approve", config=asked).ok()
    scplan("state", "rm", web.name).ok()
    assert entries(imported(scplan, web, "--json"), web)["mounts"][0]["source"] == str(odd_directory)
    check_adopted(scplan, web, imported(scplan, web).ok().stdout, expected={"mount/mnt/null"})


def test_name_that_is_no_text_is_left_out(make_container: MakeContainer, scplan: Scplan, host_directory: Path) -> None:
    web = make_container("process")
    (host_directory / "a\nb").mkdir()
    asked = of(web, mounts=[{"source": str(host_directory), "target": "/mnt/x"}])
    scplan("apply", "--auto-approve", config=asked).ok()
    scplan("state", "rm", web.name).ok()
    inside = "mount --bind /mnt/x/'a\nb' /mnt/x/'a\nb'"
    web.exec(["sh", "-c", inside], check=True)
    text = imported(scplan, web).ok().stdout
    assert "\\n" in text
    check_adopted(scplan, web, text, expected={"mount/mnt/x"})


def test_what_scplan_owns_stays_as_its_record_says(
    make_container: MakeContainer, scplan: Scplan, partitioned_disk: LoopDisk
) -> None:
    web = make_container("process")
    disk = {"source": partitioned_disk.path, "target": "/dev/disk", "partitions": True}
    asked = of(web, devices=[disk], cgroup={"memory.max": "max", "pids.max": 80})
    scplan("apply", "--auto-approve", config=asked).ok()
    found = entries(imported(scplan, web, "--json"), web)
    assert found == {"devices": [disk], "cgroup": {"memory.max": "max", "pids.max": "80"}}
    assert set(planned(scplan("plan", "--json", config=imported(scplan, web).ok().stdout).ok())) == {"mount/bin"}


def test_adopting_changes_nothing_that_drifted(make_container: MakeContainer, scplan: Scplan) -> None:
    web = make_container("process")
    scplan("apply", "--auto-approve", config=of(web, cgroup={"pids.max": 80})).ok()
    (web.cgroups["pids"] / "pids.max").write_text("90")
    refused(imported(scplan, web, "--adopt"), "would change", "cgroup/pids.max", "scplan drift")
    assert web.cgroup_file("pids.max").strip() == "90"


def test_container_that_does_not_run_has_nothing_to_import(make_container: MakeContainer, scplan: Scplan) -> None:
    web = make_container("runc")
    subprocess.run(["runc", "kill", web.name, "KILL"], check=True)
    eventually(lambda: not Path(f"/proc/{web.pid}/exe").exists())
    refused(imported(scplan, web), f"container {web.name} is not running", "start it with runc")


def test_process_is_named_by_its_pid(make_container: MakeContainer, scplan: Scplan, tmp_path: Path) -> None:
    web = make_container("process")
    refused(scplan("import", web.name, "--runtime", "process"), "--pid", code=64)
    refused(scplan("import", web.name, "--pid", str(web.pid)), "--runtime process", code=64)
    pid_file = tmp_path / "web.pid"
    pid_file.write_text(f"{web.pid}\n")
    text = scplan("import", web.name, "--runtime", "process", "--pid-file", str(pid_file)).ok().stdout
    assert f"pid_file: {pid_file}" in text
    assert set(planned(scplan("plan", "--json", config=text).ok())) == {"mount/bin"}


def test_output_is_the_same_each_time(
    make_container: MakeContainer, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path
) -> None:
    web = make_container("runc")
    scplan("apply", "--auto-approve", config=everything(web, loop_disk, bridge, host_directory)).ok()
    first, second = imported(scplan, web).ok().stdout, imported(scplan, web).ok().stdout
    assert first == second
    document = imported(scplan, web, "--json").ok().stdout
    assert "No changes." in scplan("plan", config=json.loads(document)).ok().stdout

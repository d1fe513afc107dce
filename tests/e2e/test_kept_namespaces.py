"""Network namespaces that live on when their container ends: kept by a process of the host, or by the rest of a pod."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.containers.engines import Engine
from tests.containers.oci import SLEEP_FOREVER
from tests.containers.room import Room
from tests.containers.session import Session
from tests.e2e.hooked import HookedContainerd, HookedPodman, hooked
from tests.e2e.rooms import RoomScplan, container
from tests.e2e.scene import planned, refused

pytestmark = pytest.mark.needs("root", "busybox", "runc")
IMAGE = "localhost/bb:1"


@pytest.fixture(scope="module")
def podman(room: Room, tmp_path_factory: pytest.TempPathFactory) -> HookedPodman:
    made = hooked("podman", room, tmp_path_factory.mktemp("hook"))
    assert isinstance(made, HookedPodman)
    return made


@pytest.fixture
def name(podman: HookedPodman, session: Session) -> Iterator[str]:
    made = session.name()
    podman.run(made)
    yield made
    podman.remove(made)


@pytest.fixture
def pod(podman: HookedPodman, session: Session) -> Iterator[tuple[str, str]]:
    """Two containers of a pod, whose network namespace an infra container keeps."""
    made = session.name()
    infra = (f"--infra-image={IMAGE}", "--infra-command=/bin/sleep 100000")
    podman.room.run("podman", "--runtime=runc", "pod", "create", "--network=none", *infra, f"--name={made}")
    first, second = f"{made}-a", f"{made}-b"
    for one in (first, second):
        command = ("run", "--detach", f"--pod={made}", *podman.options, f"--name={one}", IMAGE, *SLEEP_FOREVER)
        podman.room.run("podman", "--runtime=runc", *command)
    yield first, second
    podman.room.run("podman", "pod", "rm", "--force", "--time=0", made)


def asked(name: str, runtime: str = "podman", **nic: Any) -> dict[str, Any]:
    nics = [{"name": "eth1", "bridge": "br0", "host_name": "port1", "addresses": ["10.97.0.5/24"], **nic}]
    return {"version": 1, "containers": {name: {"runtime": runtime, "nics": nics}}}


def index_of_nic(podman: Engine, name: str) -> int:
    """Its index in the container's network namespace; 0 where it is not there."""
    ran = podman.room.run("nsenter", f"--net=/proc/{podman.pid(name)}/ns/net", "ip", "-json", "link")
    return next((int(link["ifindex"]) for link in json.loads(ran.stdout) if link["ifname"] == "eth1"), 0)


def links(podman: HookedPodman) -> set[str]:
    return {link["ifname"] for link in json.loads(podman.room.run("ip", "-json", "link").stdout)}


def keep(podman: HookedPodman, name: str) -> None:
    podman.room.start("nsenter", f"--net=/proc/{podman.pid(name)}/ns/net", "sleep", "1000", log=f"{name}.kept")


def without_hook(podman: HookedPodman, *stages: str, name: str) -> None:
    """Stops or starts the container while the hook finds no records."""
    podman.room.sh("mv /var/lib/scplan /var/lib/elsewhere")
    for stage in stages:
        getattr(podman, stage)(name)
    podman.room.sh("rm -rf /var/lib/scplan; mv /var/lib/elsewhere /var/lib/scplan")


def test_process_that_keeps_the_namespace_stops_no_restart(podman: HookedPodman, scplan: RoomScplan, name: str) -> None:
    scplan("apply", "--auto-approve", config=asked(name)).ok()
    keep(podman, name)
    podman.stop(name)
    podman.start(name)
    assert index_of_nic(podman, name)
    assert planned(scplan("plan", "--json").ok()) == {}
    keep(podman, name)
    without_hook(podman, "stop", "start", name=name)
    assert "port1" in links(podman)
    scplan("apply", "--auto-approve").ok()
    assert index_of_nic(podman, name)
    assert planned(scplan("plan", "--json").ok()) == {}


def test_link_of_others_of_that_name_stops_the_start(podman: HookedPodman, scplan: RoomScplan, name: str) -> None:
    scplan("apply", "--auto-approve", config=asked(name)).ok()
    podman.stop(name)
    podman.room.run("ip", "link", "add", "port1", "type", "veth", "peer", "name", "port2")
    try:
        with pytest.raises((RuntimeError, AssertionError), match="port1"):
            podman.start(name)
        refused(scplan("plan"), "port1")
        assert {"port1", "port2"} <= links(podman)
    finally:
        podman.room.run("ip", "link", "delete", "port1")


def test_nic_stays_in_a_pod_when_its_container_restarts(
    podman: HookedPodman, scplan: RoomScplan, pod: tuple[str, str]
) -> None:
    first, second = pod
    scplan("apply", "--auto-approve", config=asked(first)).ok()
    index = index_of_nic(podman, second)
    assert index
    for with_hook in (True, False):
        if with_hook:
            podman.stop(first)
            assert index_of_nic(podman, second) == index
            assert planned(scplan("plan", "--json").ok()) == {}
            scplan("apply", "--auto-approve").ok()
            podman.start(first)
        else:
            without_hook(podman, "stop", "start", name=first)
            scplan("apply", "--auto-approve").ok()
        assert index_of_nic(podman, second) == index
        assert planned(scplan("plan", "--json").ok()) == {}
        assert scplan("drift", "--json", "--detailed-exitcode").ok().json["drifted"] == []


@pytest.fixture
def lan(podman: HookedPodman) -> Iterator[dict[str, Any]]:
    """The entry of a NIC of the host, which is lent to a container."""
    podman.room.run("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    podman.room.run("ip", "address", "add", "10.96.0.1/24", "dev", "lan0")
    yield {"type": "physical", "host_name": "lan0", "bridge": None}
    # By its other end: after a test that failed it may be in a container still, under another name.
    podman.room.run("ip", "link", "delete", "lan1")


def is_home(podman: HookedPodman) -> bool:
    """True if the host has its NIC as it was."""
    ran = podman.room.run("ip", "-json", "address", "show", "dev", "lan0", check=False)
    return ran.returncode == 0 and [one["local"] for one in json.loads(ran.stdout)[0]["addr_info"]] == ["10.96.0.1"]


def test_nic_of_the_host_stays_in_a_pod_until_all_of_it_has_ended(
    podman: HookedPodman, scplan: RoomScplan, pod: tuple[str, str], lan: dict[str, Any]
) -> None:
    first, second = pod
    name = first.removesuffix("-a")
    scplan("apply", "--auto-approve", config=asked(first, **lan)).ok()
    index = index_of_nic(podman, second)
    assert index
    assert not is_home(podman)
    for with_hook in (True, False):
        if with_hook:
            podman.stop(first)
            assert index_of_nic(podman, second) == index
            assert planned(scplan("plan", "--json").ok()) == {}
            assert "comes home" not in scplan("drift").ok().stderr
            entry = asked(first, **lan)
            entry["containers"][first]["cgroup"] = {"pids.max": 100}
            scplan("apply", "--auto-approve", config=entry).ok()
            assert "STOPPED" not in scplan("watch", "--once").ok().stdout.upper()
            assert index_of_nic(podman, second) == index
            podman.start(first)
        else:
            without_hook(podman, "stop", "start", name=first)
            scplan("apply", "--auto-approve").ok()
        assert index_of_nic(podman, second) == index
        assert planned(scplan("plan", "--json").ok()) == {}
        assert scplan("drift", "--json", "--detailed-exitcode").ok().json["drifted"] == []
    podman.stop(first)
    assert not is_home(podman)
    podman.room.run("podman", "--runtime=runc", "pod", "stop", "--time=0", name)
    assert is_home(podman)
    podman.room.run("podman", "--runtime=runc", "pod", "start", name)
    assert index_of_nic(podman, second)
    assert not is_home(podman)
    without_hook(podman, "stop", name=first)
    scplan("recover").ok()
    assert index_of_nic(podman, second)
    scplan("destroy", first, "--auto-approve").ok()
    assert is_home(podman)


def route_there(podman: HookedPodman, name: str) -> bool:
    command = ("nsenter", f"--net=/proc/{podman.pid(name)}/ns/net", "ip", "-json", "route", "show", "10.98.0.0/16")
    return bool(json.loads(podman.room.run(*command).stdout or "[]"))


@pytest.mark.parametrize("is_physical", [False, True])
def test_route_that_leaves_the_file_leaves_the_pod_at_once(
    podman: HookedPodman, scplan: RoomScplan, pod: tuple[str, str], lan: dict[str, Any], is_physical: bool
) -> None:
    first, second = pod
    entry = asked(first, **(lan if is_physical else {}))
    with_route = json.loads(json.dumps(entry))
    with_route["containers"][first]["routes"] = [{"to": "10.98.0.0/16", "via": "10.97.0.1"}]
    scplan("apply", "--auto-approve", config=with_route).ok()
    podman.stop(first)
    index = index_of_nic(podman, second)
    assert route_there(podman, second)
    (change,) = scplan("plan", "--json", config=entry).ok().json["changes"]
    assert (change["action"], change["at_next_start"]) == ("delete", False)
    assert "at next start" not in scplan("plan").ok().stdout
    assert "at next start" not in scplan("apply", "--auto-approve").ok().stdout
    assert not route_there(podman, second)
    assert index_of_nic(podman, second) == index
    scplan("undo", "--auto-approve").ok()
    assert planned(scplan("plan", "--json", config=with_route).ok()) == {}
    podman.start(first)
    assert route_there(podman, second)
    assert planned(scplan("plan", "--json").ok()) == {}
    scplan("destroy", first, "--auto-approve").ok()


def test_kept_namespace_with_an_adopted_nic_stops_no_restart(
    podman: HookedPodman, scplan: RoomScplan, name: str
) -> None:
    podman.room.run("ip", "link", "add", "port1", "master", "br0", "up", "type", "veth", "peer", "name", "eth1")
    podman.room.run("ip", "link", "set", "eth1", "netns", str(podman.pid(name)))
    inside = ("nsenter", f"--net=/proc/{podman.pid(name)}/ns/net", "ip")
    podman.room.run(*inside, "link", "set", "eth1", "up")
    podman.room.run(*inside, "address", "add", "10.97.0.5/24", "dev", "eth1")
    assert planned(scplan("plan", "--json", config=asked(name)).ok()) == {"nic/eth1": "adopt"}
    scplan("apply", "--auto-approve").ok()
    keep(podman, name)
    podman.stop(name)
    podman.start(name)
    assert index_of_nic(podman, name)
    assert planned(scplan("plan", "--json").ok()) == {}


@pytest.mark.parametrize("is_physical", [False, True])
@pytest.mark.parametrize("way", ["destroy", "undo", "apply"])
def test_removal_takes_the_nic_of_a_stopped_container_out_of_its_pod(
    podman: HookedPodman, scplan: RoomScplan, pod: tuple[str, str], lan: dict[str, Any], way: str, is_physical: bool
) -> None:
    first, second = pod
    scplan("apply", "--auto-approve", config=asked(first, **(lan if is_physical else {}))).ok()
    podman.stop(first)
    assert index_of_nic(podman, second)
    if way == "apply":
        scplan.write({"version": 1, "containers": {first: {"runtime": "podman"}}})
        assert "at next start" not in scplan("plan").ok().stdout
    scplan(way, "--auto-approve").ok()
    assert is_home(podman)
    assert not index_of_nic(podman, second)
    assert "port1" not in links(podman)
    assert scplan("state", "list").ok().stdout == ""
    podman.start(first)
    assert not index_of_nic(podman, second)


# engines other than podman, whose containers share a network namespace as those of their pods do


def run_beside(engine: Any, name: str, first: str) -> None:
    """A container in the network namespace of the first."""
    namespace = f"/proc/{engine.pid(first)}/ns/net"
    if isinstance(engine, HookedContainerd):
        engine.run(name, "--with-ns", f"network:{namespace}")
        return
    engine.create(name)
    path = engine.bundle(name) / "config.json"
    document = json.loads(path.read_text())
    of_network = {"type": "network", "path": namespace}
    others = [one for one in document["linux"]["namespaces"] if one["type"] != "network"]
    document["linux"]["namespaces"] = [*others, of_network]
    path.write_text(json.dumps(document))
    engine.start(name)


@pytest.mark.parametrize("runtime", ["containerd", "isulad"])
def test_nic_stays_in_a_shared_namespace_when_its_container_restarts(
    runtime: str, room: Room, scplan: RoomScplan, session: Session
) -> None:
    engine = hooked(runtime, room, scplan.directory)
    with container(engine) as pause:
        first, second = session.name(), session.name()
        run_beside(engine, first, pause)
        run_beside(engine, second, pause)
        try:
            scplan("apply", "--auto-approve", config=asked(first, runtime)).ok()
            index = index_of_nic(engine, second)
            assert index
            engine.stop(first)
            assert index_of_nic(engine, second) == index
            engine.start(first)
            assert index_of_nic(engine, first) == index
            assert planned(scplan("plan", "--json").ok()) == {}
            taken = {"version": 1, "containers": {second: {"runtime": runtime, "nics": [{"name": "eth1"}]}}}
            refused(scplan("plan", config=taken), f"belongs to {first}/nic/eth1")
            scplan("destroy", first, "--auto-approve").ok()
            assert not index_of_nic(engine, second)
        finally:
            engine.remove(second)
            engine.remove(first)

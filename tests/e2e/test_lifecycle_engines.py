"""Containers of real engines that restart, with the hook put in place by scplan as its users do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.containers.engines import Engine
from tests.containers.host_parts import LoopDisk
from tests.containers.room import Room, until
from tests.e2e.hooked import HOOKED, hooked
from tests.e2e.rooms import RoomScplan, container, limit_of
from tests.e2e.test_runtimes import config, look_inside

pytestmark = pytest.mark.needs("root", "cgroup1", "busybox", "runc", "loop")
# What a hook printed is in the engine's own error; LXC has it in its log alone, at the level of debugging.
IMAGE = "localhost/bb:1"
LOGS = {"lxc": "cat /run/$1.log", "incus": "cat /var/log/incus/$1/lxc.log"}
RESTARTS = int(os.environ.get("SCPLAN_RESTARTS", "1"))


@pytest.fixture(scope="module", params=HOOKED)
def engine(request: pytest.FixtureRequest, room: Room, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return hooked(request.param, room, tmp_path_factory.mktemp("hook"))


@pytest.fixture
def nic(room: Room) -> Iterator[str]:
    """A stand-in for a physical NIC of the room."""
    room.run("ip", "link", "add", "ens9", "type", "veth", "peer", "name", "port9")
    yield "ens9"
    room.run("ip", "link", "delete", "port9")


def test_restarted_container_has_it_all_and_the_host_its_nic_between(
    engine: Engine, scplan: RoomScplan, loop_disk: LoopDisk, host_directory: Path, nic: str
) -> None:
    (host_directory / "hello").write_text("hello\n")
    links = _links(engine.room)
    with container(engine) as name:
        asked = config(name, engine.name, loop_disk, host_directory)
        asked["containers"][name]["nics"].append({"name": "lan", "type": "physical", "host_name": nic})
        scplan("apply", "--auto-approve", config=asked).ok()
        for _ in range(RESTARTS):
            first = engine.pid(name)
            engine.stop(name)
            assert until(lambda: nic in _links(engine.room), 10), "the host has its NIC back"
            engine.start(name)
            assert engine.pid(name) != first
            assert nic not in _links(engine.room)
            assert scplan("plan", "--json").ok().json["changes"] == []
        inside = look_inside(engine, name)
        for expected in ("67108864", "hello", "10.97.0.5/24", "10.98.0.0/16 via 10.97.0.1", "readable", "read-only"):
            assert expected in inside
    assert until(lambda: _links(engine.room) == links, 10)


def test_start_that_can_not_be_as_it_should_is_aborted_and_the_engine_says_why(
    engine: Engine, scplan: RoomScplan, host_directory: Path
) -> None:
    source = host_directory / "source"
    source.mkdir()
    with container(engine) as name:
        body = {"runtime": engine.name, "mounts": [f"{source}:/srv/data"], "cgroup": {"pids.max": 100}}
        scplan("apply", "--auto-approve", config={"version": 1, "containers": {name: body}}).ok()
        engine.stop(name)
        source.rmdir()
        try:
            engine.start(name)
        except (RuntimeError, AssertionError) as error:
            said = str(error)
        else:
            pytest.fail("it started")
        if engine.name in LOGS:
            said += engine.room.sh(LOGS[engine.name], name, check=False)
        assert str(source) in said
        source.mkdir()
        engine.start(name)
        assert scplan("plan", "--json").ok().json["changes"] == []


def small(engine: Engine, name: str, limit: int) -> dict[str, Any]:
    """A configuration with a NIC and a limit."""
    nics = [{"name": "eth1", "bridge": "br0", "addresses": ["10.97.0.5/24"]}]
    body = {"runtime": engine.name, "nics": nics, "cgroup": {"pids.max": limit}}
    return {"version": 1, "containers": {name: body}}


def test_container_whose_init_was_killed_starts_with_it_all(
    engine: Engine, scplan: RoomScplan, host_directory: Path, nic: str
) -> None:
    links = _links(engine.room)
    with container(engine) as name:
        asked = small(engine, name, 100)
        asked["containers"][name]["nics"].append({"name": "lan", "type": "physical", "host_name": nic})
        asked["containers"][name]["mounts"] = [f"{host_directory}:/srv/data"]
        scplan("apply", "--auto-approve", config=asked).ok()
        first = engine.pid(name)
        engine.kill(name)
        engine.start(name)
        assert engine.pid(name) != first
        assert scplan("plan", "--json").ok().json["changes"] == []
        assert scplan("drift", "--json").ok().json["drifted"] == []
    assert until(lambda: _links(engine.room) == links, 10)


def test_container_is_planned_for_as_it_is_in_each_status(engine: Any, scplan: RoomScplan) -> None:
    name = engine.room.session.name()
    is_known_before = engine.name != "containerd"  # which shows to its clients alone what has no task yet
    if is_known_before:
        engine.create(name)
    else:
        engine.run(name)
    try:
        if is_known_before:
            recorded(scplan, small(engine, name, 100), status="stopped")
            engine.start(name)
            has_it_all(engine, name, scplan, limit=100)
        else:
            scplan("apply", "--auto-approve", config=small(engine, name, 100)).ok()
        engine.pause(name)
        has_it_all(engine, name, scplan, limit=100, status="paused")
        scplan("apply", "--auto-approve", config=small(engine, name, 101)).ok()
        engine.unpause(name)
        has_it_all(engine, name, scplan, limit=101)
        engine.stop(name)
        recorded(scplan, small(engine, name, 102), status="stopped")
        engine.start(name)
        has_it_all(engine, name, scplan, limit=102)
    finally:
        engine.remove(name)


def recorded(scplan: RoomScplan, asked: dict[str, Any], *, status: str) -> None:
    """Applies for a container that does not run."""
    plan = scplan("plan", "--json", config=asked).ok().json
    assert [one["status"] for one in plan["containers"].values()] == [status]
    assert {change["at_next_start"] for change in plan["changes"]} == {True}
    scplan("apply", "--auto-approve").ok()


def has_it_all(engine: Engine, name: str, scplan: RoomScplan, *, limit: int, status: str = "running") -> None:
    plan = scplan("plan", "--json").ok().json
    assert plan["containers"][name].items() >= {"status": status, "pid": engine.pid(name)}.items()
    assert plan["changes"] == []
    assert scplan("drift", "--json").ok().json["drifted"] == []
    assert limit_of(engine.room, engine.pid(name)) == str(limit)


@pytest.mark.parametrize("engine", ["docker", "containerd", "incus"], indirect=True)
def test_engine_that_restarts_leaves_its_containers_as_they_are(engine: Any, scplan: RoomScplan) -> None:
    with container(engine) as name:
        scplan("apply", "--auto-approve", config=small(engine, name, 100)).ok()
        first = engine.pid(name)
        engine.kill_daemon()
        engine.start_daemon()
        assert engine.pid(name) == first
        has_it_all(engine, name, scplan, limit=100)
        engine.stop(name)
        engine.start(name)
        assert engine.pid(name) != first
        has_it_all(engine, name, scplan, limit=100)


@pytest.mark.parametrize("engine", ["containerd"], indirect=True)
def test_containers_of_containerd_are_known_by_its_files_while_it_is_down(engine: Any, scplan: RoomScplan) -> None:
    with container(engine) as name:
        scplan("apply", "--auto-approve", config=small(engine, name, 90)).ok()
        pid = engine.pid(name)
        engine.kill_daemon()
        try:
            ran = scplan("plan", "--json", config=small(engine, name, 91)).ok()
            assert ran.json["containers"][name].items() >= {"status": "running", "pid": pid}.items()
            assert ran.json["diagnostics"] == []
            scplan("apply", "--auto-approve").ok()
            assert limit_of(engine.room, pid) == "91"
            assert scplan("drift", "--json").ok().json["drifted"] == []
            scplan("destroy", name, "--auto-approve").ok()
            assert limit_of(engine.room, pid) != "91"
        finally:
            engine.start_daemon()


@pytest.mark.parametrize("engine", ["docker"], indirect=True)
def test_container_that_its_engine_restarts_again_and_again_is_planned_for_as_stopped(
    engine: Any, scplan: RoomScplan
) -> None:
    """Between two starts docker calls it running, without a process."""
    name, room = engine.room.session.name(), engine.room
    script = "test -e /run/stay || exit 1; exec sleep 2000000000"
    restarts = ("--network=none", "--restart=always", *engine.options, f"--name={name}", IMAGE)
    room.run("docker", "create", *restarts, "/bin/sh", "-c", script)
    try:
        engine.start(name)
        inspect = ("docker", "inspect", "--format={{.State.Status}} {{.RestartCount}}", name)
        # The pause before a start grows twofold each time, from 0.1 s.
        assert until(lambda: room.run(*inspect).stdout.split()[0] == "restarting", 20)
        assert until(lambda: int(room.run(*inspect).stdout.split()[1]) >= 4, 20)
        assert until(lambda: room.run(*inspect).stdout.split()[0] == "restarting", 20)
        recorded(scplan, small(engine, name, 100), status="stopped")
        room.run("docker", "cp", "/dev/null", f"{name}:/run/stay")
        assert until(lambda: engine.pid(name) > 0, 20)
        assert until(lambda: room.run(*inspect).stdout.split()[0] == "running", 20)
        has_it_all(engine, name, scplan, limit=100)
    finally:
        engine.remove(name)


def _links(room: Room) -> set[str]:
    return {link["ifname"] for link in json.loads(room.run("ip", "-json", "link").stdout)}

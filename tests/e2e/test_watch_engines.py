"""`scplan watch` with real engines: starts are heard of from daemons and from state directories."""

from __future__ import annotations

import os
import time

import pytest

from tests.containers.engines import Engine
from tests.containers.room import Room
from tests.containers.session import Session
from tests.e2e.rooms import RoomScplan, engine_of
from tests.e2e.watching import watching

pytestmark = pytest.mark.needs("root", "cgroup1", "busybox", "runc", "veth")


def owned_by(engine: Engine, name: str, scplan: RoomScplan) -> None:
    """A container with a NIC and a mount."""
    engine.run(name)
    sections = {"nics": [{"name": "eth1"}], "mounts": ["/usr:/srv:ro"]}
    config = {"version": 1, "containers": {name: {"runtime": engine.name, **sections}}}
    scplan("apply", "--auto-approve", config=config).ok()


# Docker is what the other test is about.
@pytest.mark.parametrize(
    "name", ["docker", "podman", "containerd", "lxc"] if "SCPLAN_ALL_ENGINES" in os.environ else ["podman"]
)
def test_containers_of_engines_are_plugged_in_when_they_start_again(
    name: str, room: Room, scplan: RoomScplan, session: Session
) -> None:
    engine = engine_of(name, room)
    container = session.name()
    owned_by(engine, container, scplan)
    try:
        with watching(scplan) as watch:
            engine.stop(container)
            watch.until("stopped", container=container)
            time.sleep(0.5)
            engine.start(container)
            begun = time.monotonic()
            watch.until("started", container=container)
            print(f"{name}: plugged in {(time.monotonic() - begun) * 1000:.0f} ms after the engine said that it runs")
            assert scplan("drift", "--json").ok().json["drifted"] == []
    finally:
        engine.remove(container)


def test_a_daemon_that_goes_and_comes_back_is_heard_again(room: Room, scplan: RoomScplan, session: Session) -> None:
    engine = engine_of("docker", room)
    container = session.name()
    owned_by(engine, container, scplan)
    try:
        with watching(scplan) as watch:
            engine.stop(container)
            watch.until("stopped", container=container)
            room.sh("kill $(cat /run/docker.pid); while test -e /run/docker.pid; do sleep 0.05; done")
            engine.up()
            at = len(watch.told)
            engine.start(container)
            begun = time.monotonic()
            watch.until("started", container=container, after=at)
            print(f"after the daemon's return plugged in after {(time.monotonic() - begun) * 1000:.0f} ms")
            assert scplan("drift", "--json").ok().json["drifted"] == []
    finally:
        engine.remove(container)


def test_daemon_that_goes_while_its_containers_run_is_reported_once(
    room: Room, scplan: RoomScplan, session: Session
) -> None:
    engine = engine_of("docker", room)
    first, second = session.name(), session.name()
    for one in (first, second):
        engine.run(one)
    cgroup = {"pids.max": 99}
    config = {"version": 1, "containers": {one: {"runtime": "docker", "cgroup": cgroup} for one in (first, second)}}
    scplan("apply", "--auto-approve", config=config).ok()
    try:
        with watching(scplan, "--every", "1s") as watch:
            if "SCPLAN_ALL_ENGINES" in os.environ:
                # It accepts, and does not answer.
                room.sh("kill -STOP $(cat /run/docker.pid)")
                watch.until("problem", timeout_s=20)
                room.sh("kill -CONT $(cat /run/docker.pid)")
                watch.until("solved", timeout_s=20)
            room.sh("kill -9 $(cat /run/docker.pid); rm /run/docker.sock")
            at = len(watch.told)
            problem = watch.until("problem", timeout_s=20, after=at)
            assert (problem["container"], problem["runtime"]) == ("", "docker")
            assert "docker can't be reached at /run/docker.sock" in problem["diagnostics"][0]["summary"]
            time.sleep(2.5)
            assert [one["type"] for one in watch.told[at:]] == ["problem"]
            room.sh("rm -f /run/docker.pid")
            engine.up()
            solved = watch.until("solved", timeout_s=20, after=at)
            assert (solved["container"], solved["runtime"]) == ("", "docker")
    finally:
        for one in (first, second):
            engine.remove(one)

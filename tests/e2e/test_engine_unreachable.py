"""An engine that can't be reached: its containers are known by their processes, and it hides no other container."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scplan.errors import ContainerNotFound, EngineUnreachable
from scplan.linux.processes.process import start_of
from scplan.model.live import ContainerFacts, Status
from scplan.runtimes.docker import Docker as DockerRuntime
from scplan.workflow.scene import Records, Scene
from tests.containers.container import Container
from tests.containers.engines import Docker, WithDaemon
from tests.containers.room import Room, until
from tests.e2e.rooms import RoomScplan, container, engine_of, limit_of

pytestmark = pytest.mark.needs("root", "cgroup1", "busybox", "runc", "dockerd", "podman")


@contextmanager
def down(engine: WithDaemon, *, socket_stays: bool) -> Iterator[None]:
    """Its containers run on, with docker as with live-restore; with or without a socket at which nobody listens."""
    engine.kill_daemon()
    if not socket_stays:
        engine.room.run("rm", engine.socket)
    try:
        yield
    finally:
        engine.start_daemon()


def limited(limit: int, *containers: tuple[str, str]) -> dict[str, Any]:
    return {
        "version": 1,
        "containers": {name: {"runtime": runtime, "cgroup": {"pids.max": limit}} for name, runtime in containers},
    }


@pytest.mark.parametrize(("name", "socket_stays"), [("docker", True), ("docker", False), ("incus", True)])
def test_containers_of_an_engine_that_is_down_are_known_by_their_processes(
    name: str, socket_stays: bool, room: Room, scplan: RoomScplan
) -> None:
    engine, podman = engine_of(name, room), engine_of("podman", room)
    assert isinstance(engine, WithDaemon)
    with container(engine) as web, container(podman) as db:
        both = limited(90, (web, name), (db, "podman"))
        scplan("apply", "--auto-approve", config=both).ok()
        pid = engine.pid(web)
        group = "/sys/fs/cgroup/pids$(sed -n 's/^[0-9]*:pids://p' /proc/$1/cgroup)/pids.max"
        for one in (pid, podman.pid(db)):
            room.sh(f'echo 70 >"{group}"', str(one))
        with down(engine, socket_stays=socket_stays):
            metrics = scplan.directory / "scplan.prom"
            for options in ((), ("--metrics", str(metrics))):
                ran = scplan("drift", *options).ok(1)
                assert ran.stdout.count("90 → 70") == 2
                assert ran.stderr.count(f"{name} can't be reached at {engine.socket}") == 1
            assert "scplan_check_problems 1\n" in metrics.read_text()
            for command in (("show",), ("state", "list")):
                ran = scplan(*command).ok(1)
                assert f"{web}/cgroup/pids.max" in ran.stdout or web in ran.stdout
                assert f"{name} can't be reached" in ran.stderr
            ran = scplan("watch", "--once").ok(1)
            assert ran.stderr.count("90 → 70") == 2
            ran = scplan("apply", "--auto-approve").ok()
            assert f"{name} can't be reached" in ran.stderr
            assert f"known by the processes that their records name: {web}" in ran.stderr
            assert limit_of(room, pid) == limit_of(room, podman.pid(db)) == "90"
            scplan("destroy", web, "--auto-approve").ok()
            assert limit_of(room, pid) != "90"
            # Nothing is known of it now; the other one is changed all the same.
            ran = scplan("apply", "--auto-approve", config=limited(91, (web, name), (db, "podman"))).ok(1)
            assert f"left out, since it is not known whether they run: {web}" in ran.stderr
            assert limit_of(room, podman.pid(db)) == "91"


def test_records_of_a_container_that_nobody_can_ask_about_are_kept(room: Room, scplan: RoomScplan) -> None:
    docker = engine_of("docker", room)
    assert isinstance(docker, Docker)
    with container(docker) as web:
        scplan("apply", "--auto-approve", config=limited(90, (web, "docker"))).ok()
        pid = docker.pid(web)
        with down(docker, socket_stays=True):
            room.run("kill", "-9", str(pid))
            assert until(lambda: not room.sh("grep -v ') Z ' /proc/$1/stat", str(pid), check=False), 10)
            ran = scplan("destroy", web, "--auto-approve").ok(1)
            assert re.search(rf"left out, since .*: {web}\n.*`scplan state rm NAME`", ran.stderr)
            for command in (("drift",), ("drift", "--file", "scplan.yaml")):
                ran = scplan(*command).ok(1)
                assert ran.stdout.startswith("Nothing could be checked.\nNothing pending in what could be planned.\n")
            for command in (("plan",), ("apply", "--auto-approve"), ("destroy", "--auto-approve")):
                assert scplan(*command).ok(1).stdout == "Nothing could be planned.\n"
            assert '"exit_code":1' in scplan("apply", "--auto-approve", "--json").ok(1).stdout.replace(" ", "")
            (scplan.directory / "scplan.yaml").unlink()
            assert scplan("drift").ok(1).stdout.startswith("Nothing could be checked.\n")
            assert f"{web}/cgroup/pids.max" in scplan("state", "list").stdout
            scplan("state", "rm", web).ok()
            assert scplan("state", "list").ok().stdout == ""


def test_place_of_the_records_is_asked_whatever_the_environment_names(room: Room, scplan: RoomScplan) -> None:
    docker = engine_of("docker", room)
    with container(docker) as web:
        room.sh("mv /run/docker.sock /run/elsewhere.sock")
        try:
            elsewhere = {"DOCKER_HOST": "unix:///run/elsewhere.sock"}
            scplan("apply", "--auto-approve", config=limited(90, (web, "docker")), environment=elsewhere).ok()
            room.run("docker", "--host=unix:///run/elsewhere.sock", "stop", "--time=0", web)
            for command in (("plan",), ("drift",), ("apply", "--auto-approve")):
                assert "can't be reached" not in scplan(*command).ok().stderr
            scplan("destroy", "--auto-approve").ok()
            assert scplan("state", "list").ok().stdout == ""
        finally:
            room.sh("mv /run/elsewhere.sock /run/docker.sock")


def test_engine_that_hangs_costs_its_timeout_once(room: Room, scplan: RoomScplan) -> None:
    docker = engine_of("docker", room)
    with container(docker) as web, container(docker) as db, container(docker) as new:
        scplan("apply", "--auto-approve", config=limited(90, (web, "docker"), (db, "docker"))).ok()
        room.sh("kill -STOP $(cat /run/docker.pid)")
        try:
            begun = time.monotonic()
            ran = scplan("plan", config=limited(90, (web, "docker"), (db, "docker"), (new, "docker"))).ok(1)
            assert time.monotonic() - begun < 9.5
            assert ran.stderr.count("no answer within 5 s") == 1
            assert re.search(rf"left out, since .*: {new}$", ran.stderr, re.MULTILINE)
        finally:
            room.sh("kill -CONT $(cat /run/docker.pid)")


def test_process_of_another_pid_namespace_is_refused(process_container: Container) -> None:
    """Its number is what a daemon names that counts otherwise."""
    pid = process_container.pid
    facts = ContainerFacts("web", "docker", "4f" * 32, Status.RUNNING, pid, start_of(pid), place="/run/no.sock")
    with pytest.raises(EngineUnreachable, match=r"the PID that docker at /run/no\.sock names is not its PID here"):
        DockerRuntime().refuse_foreign(facts)


def test_container_that_ends_while_its_engine_is_down_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An apply had known it by its process."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with subprocess.Popen(["sleep", "1000"]) as process:
        facts = ContainerFacts("web", "docker", "4f" * 32, Status.RUNNING, process.pid, start_of(process.pid))
        process.kill()
    scene = Scene({"web": facts}, {}, lambda _: Records({}))
    with pytest.raises(ContainerNotFound, match="docker can't be reached") as raised:
        scene.located_again()
    assert "it is not known whether they run: web" in str(raised.value)

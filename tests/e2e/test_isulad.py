"""iSulad's containers in every status, found among the files that iSulad wrote, of both versions and both runtimes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.containers.engines import Isulad
from tests.containers.room import Room, until
from tests.containers.session import Session
from tests.e2e.rooms import RoomScplan
from tests.e2e.scene import planned, refused
from tests.e2e.watching import watching

pytestmark = pytest.mark.needs("root", "cgroup1", "busybox", "runc", "veth")
_LOG = "/run/hook.log"


class Lcr(Isulad):
    runtime = "lcr"


class Former(Isulad):
    """Before 2.0.8."""

    has_state_file = False


class Hooked(Isulad):
    """With `hook-spec`; what the hook prints goes to a file, since runc shows it only where the start is aborted."""

    def hooks(self) -> dict[str, Any]:
        spec: dict[str, Any] = json.loads(
            self.room.run(sys.executable, "-m", "scplan", "hook", "spec", "--runtime", "isulad").stdout
        )
        shell = ["sh", "-c", f'exec "$@" 2>>{_LOG}', "sh"]
        return {
            stage: [hook | {"path": "/bin/sh", "args": [*shell, *hook["args"]]} for hook in hooks]
            for stage, hooks in spec.items()
        }


class HookedLcr(Hooked):
    runtime = "lcr"


class Mapped(Hooked):
    """`--user-remap`."""

    userns = True


@pytest.fixture(scope="module", params=[Isulad, Lcr, Former], ids=["runc", "lcr", "before 2.0.8"])
def engine(request: pytest.FixtureRequest, session: Session) -> Iterator[Isulad]:
    with Room(session) as room:
        yield request.param(room)


@pytest.fixture(scope="module", params=[Hooked, HookedLcr, Mapped], ids=["runc", "lcr", "mapped"])
def hooked(request: pytest.FixtureRequest, session: Session) -> Iterator[Isulad]:
    with Room(session) as room:
        yield request.param(room)


@pytest.fixture
def room(session: Session) -> Iterator[Room]:
    with Room(session) as made:
        yield made


def scplan_in(engine: Isulad, directory: Path) -> RoomScplan:
    """With the usual state directory, which is the room's own."""
    return RoomScplan(directory, engine.room)


@contextmanager
def container(engine: Isulad) -> Iterator[str]:
    name = engine.room.session.name()
    engine.run(name)
    try:
        yield name
    finally:
        if name in engine._ids:
            engine.remove(name)
        engine.room.sh("rm -rf /var/lib/scplan")


def config(reference: str) -> dict[str, Any]:
    sections = {"nics": [{"name": "eth1", "mtu": 1400}], "mounts": ["/usr:/srv:ro"], "cgroup": {"pids.max": 77}}
    return {"version": 1, "containers": {reference: {"runtime": "isulad", **sections}}}


def known(scplan: RoomScplan, reference: str) -> dict[str, Any]:
    """The container as a plan has it."""
    (found,) = scplan("plan", "--json", config=config(reference)).ok().json["containers"].values()
    return dict(found)


def test_container_is_planned_for_as_it_is_in_each_status(engine: Isulad, tmp_path: Path) -> None:
    scplan = scplan_in(engine, tmp_path)
    with container(engine) as name:
        engine.stop(name)
        engine.write_state(name, "created")
        assert known(scplan, name)["status"] == "stopped"
        engine.start(name)
        container_id = engine.full_id(name)
        for reference in (name, container_id, container_id[:12]):
            found = known(scplan, reference)
            assert (found["id"], found["status"], found["pid"]) == (container_id, "running", engine.pid(name))
        scplan("apply", "--auto-approve").ok()
        engine.pause(name)
        assert known(scplan, name)["status"] == "paused"
        assert "No drift. 3 owned resources checked." in scplan("drift").ok().stdout
        engine.unpause(name)
        network = f"--net=/proc/{engine.pid(name)}/ns/net"
        engine.room.run("nsenter", network, "ip", "link", "set", "eth1", "mtu", "1300")
        assert "Drift: 1 of 3 owned resources" in scplan("drift", "--detailed-exitcode").ok(2).stdout
        scplan("apply", "--auto-approve").ok()
        engine.stop(name)
        for status in ("exited", "restarting"):
            engine.write_state(name, status)
            assert known(scplan, name)["status"] == "stopped"
            assert "3 of them at next start" in scplan("drift", "--detailed-exitcode").ok().stdout
        engine.start(name)
        assert planned(scplan("plan", "--json").ok())["nic/eth1"] == "create"
        scplan("apply", "--auto-approve").ok()
        scplan("destroy", name, "--auto-approve").ok()
        assert "eth1" not in engine.room.run("nsenter", network_of(engine, name), "ip", "link").stdout


def network_of(engine: Isulad, name: str) -> str:
    return f"--net=/proc/{engine.pid(name)}/ns/net"


def test_restarted_container_has_it_all_by_the_hook(hooked: Isulad, tmp_path: Path) -> None:
    scplan = scplan_in(hooked, tmp_path)
    with container(hooked) as name:
        scplan("apply", "--auto-approve", config=config(name)).ok()
        hooked.stop(name)
        assert "does not call scplan's hook" not in scplan("plan", "--json").ok().stderr
        hooked.start(name)
        assert scplan("plan", "--json").ok().json["changes"] == []
        assert "1400" in hooked.room.run("nsenter", network_of(hooked, name), "ip", "link", "show", "eth1").stdout


def test_container_made_again_is_said_to_be_another_one_when_it_starts(session: Session, tmp_path: Path) -> None:
    with Room(session) as room:
        engine = Hooked(room)
        scplan = scplan_in(engine, tmp_path)
        with container(engine) as name:
            scplan("apply", "--auto-approve", config=config(name)).ok()
            former = engine.full_id(name)
            engine.remove(name)
            room.sh(f"rm -f {_LOG}")
            engine.run(name)
            told = room.sh(f"cat {_LOG}")
            assert f"container {name}: scplan's records are about another one of this name" in told
            assert engine.full_id(name) != former
            assert f"`scplan state mv {name} {name}`" in told
            assert "eth1" not in room.run("nsenter", network_of(engine, name), "ip", "link").stdout
            assert "Drift: 3 of 3 owned resources" in scplan("drift").ok().stdout
            scplan("state", "mv", name, name).ok()
            room.sh(f"rm -f {_LOG}")
            engine.stop(name)
            engine.start(name)
            assert "was made again" not in room.sh(f"cat {_LOG}")
            assert scplan("plan", "--json").ok().json["changes"] == []
        room.sh(f"rm -f {_LOG}")
        with container(engine):
            assert room.sh(f"cat {_LOG}", check=False) == "", "its name has no records"


def test_damaged_files_of_another_container_are_a_warning(room: Room, tmp_path: Path) -> None:
    engine = Isulad(room)
    scplan = scplan_in(engine, tmp_path)
    with container(engine) as name, container(engine) as other:
        scplan("apply", "--auto-approve", config=config(name)).ok()
        (engine.bundle(other) / "container_state.json").write_text("")
        assert known(scplan, name)["status"] == "running"
        refused(scplan("plan", config=config(other)), "container_state.json")
        (engine.bundle(other) / "config.v2.json").write_text("")
        for runtime in ("isulad", "auto"):
            asked = config(name)
            asked["containers"][name]["runtime"] = runtime
            ran = scplan("plan", "--json", config=asked).ok()
            assert ran.json["changes"] == []
            (warning,) = ran.json["diagnostics"]
            assert warning["severity"] == "warning"
            assert f"{engine._inside(other)}/config.v2.json" in warning["summary"]
        assert "No drift. 3 owned resources checked." in scplan("drift").ok().stdout
        refused(scplan("plan", config=config(other)), "config.v2.json")
        refused(scplan("plan", config=config(engine.full_id(other))), "config.v2.json")
        scplan("destroy", name, "--auto-approve").ok()


def test_graph_that_the_daemon_was_started_with_is_looked_in(room: Room, tmp_path: Path) -> None:
    class Elsewhere(Isulad):
        graph = "/run/graph"

    engine = Elsewhere(room)
    scplan = scplan_in(engine, tmp_path)
    with container(engine) as name:
        refused(scplan("plan", config=config(name)), f"no container '{name}'", "/var/lib/isulad/engines")
        # A process with the daemon's name and arguments.
        daemon = 'echo $$ >/run/isulad.pid; exec -a isulad sh -c "while sleep 1000; do :; done" -g /run/graph -l INFO'
        room.start("bash", "-c", daemon, log="isulad.log")
        assert until(lambda: "-g" in room.sh("cat /proc/$(cat /run/isulad.pid)/cmdline", check=False), 10)
        scplan("apply", "--auto-approve", config=config(name)).ok()
        # Stopped: a record keeps where its container is.
        room.sh("kill $(cat /run/isulad.pid)")
        report = scplan("drift", "--json").ok().json
        assert (report["checked"], report["drifted"]) == (3, [])
        scplan("destroy", name, "--auto-approve").ok()


def test_watch_hears_of_a_start_by_the_state_file(room: Room, tmp_path: Path) -> None:
    engine = Isulad(room)
    scplan = scplan_in(engine, tmp_path)
    with container(engine) as name:
        scplan("apply", "--auto-approve", config=config(name)).ok()
        with watching(scplan) as watch:
            engine.stop(name)
            watch.until("stopped", container=name)
            engine.start(name)
            watch.until("started", container=name)
            assert scplan("drift", "--json").ok().json["drifted"] == []


def test_doctor_knows_an_engine_that_has_had_no_container_yet(room: Room) -> None:
    def found() -> dict[str, Any]:
        ran = room.run(sys.executable, "-m", "scplan", "doctor", "--json")
        of_isulad = [one for one in json.loads(ran.stdout)["findings"] if one["subject"] == "isulad"]
        return dict(of_isulad[0])

    assert found()["support"] == "no"
    room.sh("mkdir -p /var/lib/isulad")
    assert found()["support"] == "yes"
    assert "no container yet" in found()["detail"]
    room.sh("mkdir -p /etc/isulad; echo '{' >/etc/isulad/daemon.json")
    assert found()["support"] == "yes"

"""Containers of real engines that restart, with the hook put in place by scplan as its users do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.containers import needs
from tests.containers.engines import ENGINES, Containerd, Docker, Engine, Incus, Isulad, Lxc, Podman
from tests.containers.host_parts import LoopDisk
from tests.containers.oci import SLEEP_FOREVER
from tests.containers.room import Room, until
from tests.containers.session import Session
from tests.e2e.test_runtimes import RoomScplan, config, look_inside

pytestmark = pytest.mark.needs("root", "cgroup1", "busybox", "runc", "loop")
WRAPPER = str(Path(sys.executable).with_name("scplan-runc"))


class HookedPodman(Podman):
    def hook(self, scplan: RoomScplan) -> None:
        scplan("hook", "install", "--runtime", "podman").ok()


class HookedDocker(Docker):
    options = ("--runtime=scplan",)

    def hook(self, scplan: RoomScplan) -> None:
        self.room.sh('mkdir -p /etc/docker; echo "{\\"debug\\": false}" >/etc/docker/daemon.json')
        scplan("hook", "install", "--runtime", "docker").ok()
        self.room.sh("kill -HUP $(cat /run/docker.pid)")
        known = ("docker", "info", "--format={{json .Runtimes}}")
        assert until(lambda: "scplan-runc" in self.room.run(*known).stdout, 10)


class HookedContainerd(Containerd):
    def hook(self, scplan: RoomScplan) -> None:
        assert WRAPPER in scplan("hook", "spec", "--runtime", "containerd").ok().stdout

    def run(self, name: str) -> None:
        root = self.root(self.directory / f"default.{name}")
        command = ("run", "--detach", "--runc-binary", WRAPPER, "--rootfs", str(root), name)
        self.room.run("ctr", *command, *SLEEP_FOREVER)

    def stop(self, name: str) -> None:
        """Until its task is deleted, which is when the hook is called."""
        super().stop(name)
        self.room.run("ctr", "task", "delete", name)

    def start(self, name: str) -> None:
        self.room.run("ctr", "task", "start", "--detach", name)


class HookedLxc(Lxc):
    def hook(self, scplan: RoomScplan) -> None:
        self.install: Callable[[str], object] = lambda name: scplan(
            "hook", "install", "--runtime", "lxc", "--container", name
        ).ok()

    def start(self, name: str) -> None:
        self.install(name)
        self.room.run("lxc-start", "-P", self.path, "-n", name, "-d", "-l", "DEBUG", "-o", f"/run/{name}.log")
        self.await_process(name)


class HookedIncus(Incus):
    def hook(self, scplan: RoomScplan) -> None:
        lines = scplan("hook", "spec", "--runtime", "incus").ok().stdout
        self.room.run("incus", "profile", "set", "default", f"raw.lxc={lines}lxc.log.level = 1")

    def start(self, name: str) -> None:
        def is_told() -> bool:
            """Incus takes a while to notice that a start was aborted."""
            nonlocal ended
            ended = self.room.run("incus", "start", name, check=False)
            return "already running" not in ended.stderr

        ended = subprocess.CompletedProcess[str]((), 0, "", "")
        assert until(is_told, 10)
        if ended.returncode:
            raise RuntimeError(ended.stderr)


class HookedIsulad(Isulad):
    def hook(self, scplan: RoomScplan) -> None:
        self._hooks: dict[str, Any] = scplan("hook", "spec", "--runtime", "isulad").ok().json

    def hooks(self) -> dict[str, Any]:
        return self._hooks


HOOKED: dict[str, type[Any]] = {
    "podman": HookedPodman,
    "docker": HookedDocker,
    "containerd": HookedContainerd,
    "isulad": HookedIsulad,
    "lxc": HookedLxc,
    "incus": HookedIncus,
}
# What a hook printed is in the engine's own error; LXC has it in its log alone, at the level of debugging.
LOGS = {"lxc": "cat /run/$1.log", "incus": "cat /var/log/incus/$1/lxc.log"}
RESTARTS = int(os.environ.get("SCPLAN_RESTARTS", "1"))


@pytest.fixture(scope="module")
def room(session: Session) -> Iterator[Room]:
    with Room(session) as made:
        made.run("ip", "link", "add", "br0", "address", "02:5c:97:00:00:01", "type", "bridge")
        made.sh("cp -a /usr/share/containers /run/share; mount --bind /run/share /usr/share/containers")
        yield made


@pytest.fixture(scope="module")
def state_dir() -> Path:
    """The usual one, of the room: containerd hands no other on."""
    return Path("/var/lib/scplan")


@pytest.fixture(scope="module", params=HOOKED)
def engine(
    request: pytest.FixtureRequest, room: Room, state_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    if absent := needs.missing(ENGINES[request.param].needs):
        pytest.skip(f"this machine has no {', '.join(absent)}")
    made = HOOKED[request.param](room)
    scplan = RoomScplan(tmp_path_factory.mktemp("hook"), state_dir)
    scplan.room = room
    made.hook(scplan)
    return made


@pytest.fixture
def scplan(tmp_path: Path, state_dir: Path, room: Room) -> Iterator[RoomScplan]:
    made = RoomScplan(tmp_path, state_dir)
    made.room = room
    yield made
    room.sh('rm -rf "$1"', str(state_dir))


@contextmanager
def container(engine: Engine) -> Iterator[str]:
    name = engine.room.session.name()
    engine.run(name)
    try:
        yield name
    finally:
        engine.remove(name)


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


def _links(room: Room) -> set[str]:
    return {link["ifname"] for link in json.loads(room.run("ip", "-json", "link").stdout)}

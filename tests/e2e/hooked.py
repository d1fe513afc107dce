"""Engines with scplan's hook, put in place by scplan as its users do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.containers import needs
from tests.containers.engines import ENGINES, Containerd, Docker, Incus, Isulad, Lxc, Podman
from tests.containers.oci import SLEEP_FOREVER
from tests.containers.room import Room, until
from tests.e2e.rooms import RoomScplan

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

    def run(self, name: str, *options: str) -> None:
        root = self.root(self.directory / f"default.{name}")
        command = ("run", "--detach", "--runc-binary", WRAPPER, *options, "--rootfs", str(root), name)
        self.room.run("ctr", *command, *SLEEP_FOREVER)

    def await_end(self, name: str) -> None:
        """Until its task is deleted, which is when the hook is called."""
        super().await_end(name)
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


def hooked(name: str, room: Room, directory: Path) -> Any:
    """The engine, started, with the hook. `directory`: an empty one, to run scplan in."""
    if absent := needs.missing(ENGINES[name].needs):
        pytest.skip(f"this machine has no {', '.join(absent)}")
    made = HOOKED[name](room)
    made.hook(RoomScplan(directory, room))
    return made

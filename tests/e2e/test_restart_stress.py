"""Applies beside restarts: neither fails, and no restart waits for an apply that waits for its engine.

SCPLAN_STRESS=20 for so many restarts each of docker, podman, containerd and LXC: `make stress`.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest

from tests.containers.room import Room
from tests.e2e.hooked import hooked
from tests.e2e.rooms import RoomScplan, container

pytestmark = pytest.mark.needs("root", "cgroup1", "busybox", "runc", "dockerd", "podman")
STRESS = int(os.environ.get("SCPLAN_STRESS", "0"))
RESTARTS = STRESS or 3
DELAY_S = 4.0
"""An apply that asks an engine under its locks ends after 5 s, and so late is the restart; others differ by less."""


@pytest.mark.parametrize("name", ["docker", "podman", "containerd", "lxc"] if STRESS else ["docker", "podman"])
def test_applies_beside_restarts_never_fail_and_never_delay_them(name: str, room: Room, scplan: RoomScplan) -> None:
    engine = hooked(name, room, scplan.directory)
    with container(engine) as web:
        asked = [
            {"runtime": name, "cgroup": {"pids.max": limit}, "nics": [{"name": "eth1", "bridge": "br0"}]}
            for limit in (201, 202)
        ]
        scplan("apply", "--auto-approve", config={"version": 1, "containers": {web: asked[0]}}).ok()
        restarts = Restarts(engine, web)
        restarts.start()
        failed, applies = [], 0
        while restarts.is_alive():
            applies += 1
            config = {"version": 1, "containers": {web: asked[applies % 2]}}
            ran = scplan("apply", "--auto-approve", config=config)
            failed += [ran.stderr] if ran.code else []
        restarts.join()
        print(
            f"{name}: {applies} applies beside {len(restarts.took_s)} restarts, {len(failed)} failed;"
            f" longest restart {max(restarts.took_s, default=0.0):.2f} s"
        )
        assert restarts.failure == ""
        assert failed == []
        assert max(restarts.took_s) - min(restarts.took_s) < DELAY_S
        # It has what was applied last, and nothing of the lives before is left.
        scplan("apply", "--auto-approve").ok()
        assert scplan("drift", "--json").ok().json["drifted"] == []
        assert len(room.sh("ip -o link show master br0").splitlines()) == 1


class Restarts(threading.Thread):
    """Restarts of a container, one after the other."""

    def __init__(self, engine: Any, name: str) -> None:
        super().__init__()
        self._engine, self._name = engine, name
        self.took_s: list[float] = []
        self.failure = ""

    def run(self) -> None:
        for _ in range(RESTARTS):
            begun = time.monotonic()
            try:
                self._engine.stop(self._name)
                self._engine.start(self._name)
            except (RuntimeError, AssertionError) as error:
                self.failure = str(error)
                return
            self.took_s.append(time.monotonic() - begun)

"""Applies beside restarts: neither fails, and no restart waits for an apply that waits for its engine.

SCPLAN_STRESS=20 for so many restarts by each engine: `make stress`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers.room import Room
from tests.e2e.hooked import HOOKED, hooked
from tests.e2e.rooms import RoomScplan, container

pytestmark = pytest.mark.needs("root", "cgroup1", "busybox", "runc")
RESTARTS = int(os.environ.get("SCPLAN_STRESS", "2"))
DELAY_S = 4.0
"""An apply that asks an engine under its locks ends after 5 s, and so late is the restart; others differ by less."""


@pytest.mark.parametrize("name", HOOKED)
def test_applies_beside_restarts_never_fail_and_never_delay_them(name: str, room: Room, scplan: RoomScplan) -> None:
    engine = hooked(name, room, scplan.directory)
    with container(engine) as web:
        apply_beside(Restarts(lambda: engine.stop(web), lambda: engine.start(web)), scplan, web, name, "br0")
        assert len(room.sh("ip -o link show master br0").splitlines()) == 1


@pytest.mark.parametrize("runtime", [pytest.param(one, marks=pytest.mark.needs(one)) for one in ("runc", "crun")])
def test_applies_beside_restarts_by_an_oci_runtime(
    runtime: str, scplan: Scplan, make_container: MakeContainer, bridge: str
) -> None:
    hooks = scplan("hook", "spec", "--runtime", runtime).ok().json["hooks"]
    web = make_container(runtime, hooks=hooks)
    apply_beside(Restarts(web.stop, web.start), scplan, web.name, runtime, bridge)


def apply_beside(restarts: Restarts, scplan: Scplan, web: str, runtime: str, bridge: str) -> None:
    """Applies one configuration and the other, until the restarts are through."""
    asked = [
        {"runtime": runtime, "cgroup": {"pids.max": limit}, "nics": [{"name": "eth1", "bridge": bridge}]}
        for limit in (201, 202)
    ]
    scplan("apply", "--auto-approve", config={"version": 1, "containers": {web: asked[0]}}).ok()
    restarts.start()
    failed, applies = [], 0
    while restarts.is_alive():
        applies += 1
        config = {"version": 1, "containers": {web: asked[applies % 2]}}
        ran = scplan("apply", "--auto-approve", config=config)
        failed += [ran.stderr] if ran.code else []
    restarts.join()
    print(
        f"{runtime}: {applies} applies beside {len(restarts.took_s)} restarts, {len(failed)} failed;"
        f" longest restart {max(restarts.took_s, default=0.0):.2f} s"
    )
    assert restarts.failure == ""
    assert not failed, "\n".join(failed)
    assert max(restarts.took_s) - min(restarts.took_s) < DELAY_S
    # It has what was applied last, and nothing of the lives before is left.
    scplan("apply", "--auto-approve").ok()
    assert scplan("drift", "--json").ok().json["drifted"] == []


class Restarts(threading.Thread):
    """Restarts of a container, one after the other."""

    def __init__(self, stop: Callable[[], object], start_again: Callable[[], object]) -> None:
        super().__init__()
        self._stop_container, self._start_again = stop, start_again
        self.took_s: list[float] = []
        self.failure = ""

    def run(self) -> None:
        for _ in range(RESTARTS):
            begun = time.monotonic()
            try:
                self._stop_container()
                self._start_again()
            except (RuntimeError, AssertionError) as error:
                self.failure = str(error)
                return
            self.took_s.append(time.monotonic() - begun)

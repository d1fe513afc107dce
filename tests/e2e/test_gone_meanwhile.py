"""What an apply has changed is taken away by the container before the undo: it is made again, as it was before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Scplan
from tests.containers.container import Container
from tests.containers.fingerprint import difference, fingerprint
from tests.e2e.gate import Gate, at_step, run_with_gates
from tests.e2e.scene import of
from tests.e2e.test_undo_fails import IMPOSSIBLE

pytestmark = pytest.mark.needs("root", "busybox", "cgroup1", "veth")

TAKEN_AWAY = {
    "device": "rm /dev/deep/data",
    "device and directory": "rm -r /dev/deep",
    "nic": "ip link del eth7",
    "mount": "umount -l /srv/deep/m",
    "mount and directories": "umount -l /srv/deep/m && rm -r /srv/deep",
}


def wanted(container: Container, directory: Path, *, mode: str, mtu: int, read_only: bool, **more: str) -> Any:
    return of(
        container,
        devices=[{"source": "/dev/null", "target": "/dev/deep/data", "mode": mode}],
        nics=[{"name": "eth7", "mtu": mtu, "mac": "02:5c:97:00:00:77"}],
        mounts=[{"source": str(directory), "target": "/srv/deep/m", "read_only": read_only}],
        cgroup={"pids.max": "77", **more},
    )


@pytest.mark.parametrize("what", TAKEN_AWAY)
def test_what_was_changed_is_made_again_by_the_undo(
    process_container: Container, scplan: Scplan, host_directory: Path, what: str
) -> None:
    web = process_container
    nothing = fingerprint([web])
    first = wanted(web, host_directory, mode="0600", mtu=1400, read_only=False)
    scplan("apply", "--auto-approve", config=first).ok()

    scplan.write(wanted(web, host_directory, mode="0640", mtu=1300, read_only=True, **IMPOSSIBLE))
    gate = Gate(at_step("failed"), lambda: web.exec(["sh", "-c", TAKEN_AWAY[what]], check=True))
    ran = run_with_gates(scplan, ["apply", "--auto-approve", "--json"], [gate]).ok(3)
    steps = [event["step"] for event in ran.events if event["type"] == "step"]
    assert steps.count("failed") == 1
    assert steps.count("undone") == 4
    assert scplan("plan", "--detailed-exitcode", config=first).ok().stdout.strip() == "No changes."

    scplan("destroy", "--auto-approve", web.name).ok()
    assert difference(nothing, fingerprint([web])) == []


@pytest.mark.parametrize("what", ["device", "mount"])
def test_what_was_removed_is_made_again_where_its_directory_went(
    process_container: Container, scplan: Scplan, host_directory: Path, what: str
) -> None:
    web = process_container
    web.exec(["mkdir", "-p", "/srv/own/deep"], check=True)
    sections: dict[str, Any] = {
        "device": {"devices": ["/dev/null:/srv/own/deep/data"]},
        "mount": {"mounts": [f"{host_directory}:/srv/own/deep/m"]},
    }
    first = of(web, **sections[what])
    scplan("apply", "--auto-approve", config=first).ok()
    web.exec(["sh", "-c", "[ -e /srv/own/deep/data ] || [ -d /srv/own/deep/m ]"], check=True)

    scplan.write(of(web))
    gate = Gate(at_step("failed"), lambda: web.exec(["rm", "-r", "/srv/own"], check=True))
    run_with_gates(scplan, ["apply", "--auto-approve", "--json", "--probe", "false"], [gate]).ok(3)
    assert scplan("plan", "--detailed-exitcode", config=first).ok().stdout.strip() == "No changes."
    scplan("destroy", "--auto-approve", web.name).ok()

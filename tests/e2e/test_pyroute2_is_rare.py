"""pyroute2 takes longer to import than scplan runs: only links with objects that take it may bring it in."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.conftest import Scplan
from tests.containers.container import Container
from tests.e2e.scene import of

pytestmark = pytest.mark.needs("root", "veth", "bridge")

NIC: dict[str, Any] = {"name": "eth1", "addresses": ["10.9.0.5/24", "fd09::5/64"]}
ROUTES = [{"to": "10.20.0.0/16", "via": "10.9.0.1"}]
# scplan ends by os._exit(2), as its children do.
REPORT = """
import os, runpy, sys
leave, own = os._exit, os.getpid()
def report_and_leave(code):
    if os.getpid() == own:
        with open("scplan.imported", "w") as file:
            file.write(str("pyroute2" in sys.modules))
    leave(code)
os._exit = report_and_leave
runpy.run_module("scplan", run_name="__main__")
"""


def imports_it(scplan: Scplan, *arguments: str, stdin: str = "") -> bool:
    """Runs a command in an interpreter of its own; True if that has pyroute2 loaded at its end."""
    command = [*scplan.command()[:1], "-c", REPORT, *arguments]
    ended = subprocess.run(
        command, cwd=scplan.directory, env=scplan.environment, input=stdin, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    return (scplan.directory / "scplan.imported").read_text() == "True"


def test_nothing_imports_it_for_links_without_such_objects(
    process_container: Container, scplan: Scplan, bridge: str
) -> None:
    scplan.write(of(process_container, nics=[NIC | {"bridge": bridge}], routes=ROUTES))
    assert not imports_it(scplan, "plan")
    assert not imports_it(scplan, "apply", "--auto-approve")
    process_container.ip("route", "add", "10.30.0.0/16", "via", "10.9.0.1", "mtu", "1300")
    fewer = NIC | {"bridge": bridge, "addresses": ["10.9.0.6/24"], "mtu": 1400}
    scplan.write(of(process_container, nics=[fewer], routes=ROUTES))
    assert not imports_it(scplan, "apply", "--auto-approve")
    state = json.dumps({"id": process_container.name, "pid": process_container.pid, "status": "running"})
    assert not imports_it(scplan, "hook", stdin=state)
    assert not imports_it(scplan, "undo", "--auto-approve")
    assert not imports_it(scplan, "destroy", process_container.name, "--auto-approve")


def test_a_permanent_neighbour_brings_it_in(process_container: Container, scplan: Scplan) -> None:
    scplan("apply", "--auto-approve", config=of(process_container, nics=[NIC])).ok()
    neighbour = ["10.9.0.1", "lladdr", "02:00:00:00:00:01", "dev", "eth1", "nud", "permanent"]
    process_container.ip("neighbour", "add", *neighbour)
    scplan("destroy", process_container.name, "--auto-approve").ok()
    assert imports_it(scplan, "undo", "--auto-approve")
    (found,) = process_container.ip("neighbour", "show", "nud", "permanent")
    assert (found["dst"], found["lladdr"]) == ("10.9.0.1", "02:00:00:00:00:01")

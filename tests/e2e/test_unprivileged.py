"""Who is not root gets as far as that goes, and is told what it takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scplan.runtimes import RUNTIMES
from tests.conftest import Ran, Scplan
from tests.containers.container import Container
from tests.e2e.gate import run_with_gates
from tests.e2e.scene import nothing_changed, of, refused

pytestmark = pytest.mark.needs("root")
_NOBODY = 65534


@pytest.fixture
def ground(host_directory: Path) -> Path:
    """A directory in which nobody can read."""
    host_directory.chmod(0o755)
    return host_directory


def unprivileged(scplan: Scplan, ground: Path, command: str, config: object) -> Ran:
    path = ground / "scplan.yaml"
    path.write_text(json.dumps(config))
    path.chmod(0o644)
    arguments = ["--state-dir", str(ground / "state"), command, "-f", str(path)]
    return run_with_gates(scplan, arguments, uid=_NOBODY)


@pytest.mark.parametrize("runtime", ["auto", *(name for name in RUNTIMES if not RUNTIMES[name].needs_pid)])
@pytest.mark.parametrize("command", ["plan", "drift", "apply"])
def test_container_that_may_be_somebody_elses(scplan: Scplan, ground: Path, runtime: str, command: str) -> None:
    config = {"version": 1, "containers": {"sct-absent": {"runtime": runtime, "mounts": ["/var/log:/logs"]}}}
    ran = unprivileged(scplan, ground, command, config)
    refused(ran, "root?" if "no container" in ran.stderr else "run scplan as root")


def test_container_of_root_can_not_be_looked_into(
    runc_container: Container, process_container: Container, scplan: Scplan, ground: Path
) -> None:
    with nothing_changed(runc_container, process_container):
        for container in (runc_container, process_container):
            ran = unprivileged(scplan, ground, "plan", of(container, mounts=["/var/log:/logs"]))
            refused(ran, "root", "plan --live")


def test_files_are_checked_all_the_same(scplan: Scplan, ground: Path) -> None:
    config = {"version": 1, "containers": {"web": {"mounts": ["/var/log:/logs"]}}}
    assert "Valid: 1 container" in unprivileged(scplan, ground, "validate", config).ok().stdout

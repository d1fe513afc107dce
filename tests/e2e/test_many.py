"""Plans of many containers: several processes look at them ahead, and what they find must be what one would find."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from scplan.linux.paths.lookup import LOOKUP_TIMEOUT_S
from tests.conftest import Scplan
from tests.containers.container import Container
from tests.containers.session import Session
from tests.e2e.scene import Config, config, planned
from tests.hostile.fuse import hanging

pytestmark = pytest.mark.needs("cgroup1")
# More than are looked at by one process.
COUNT = 53


class Many(NamedTuple):
    """Containers that have what `config` says."""

    containers: list[Container]
    config: Config
    directory: Path

    def replace(self, container: Container, **sections: Any) -> Config:
        """The configuration with other sections for one of them."""
        changed = {**self.config["containers"][container.name], **sections}
        return {**self.config, "containers": {**self.config["containers"], container.name: changed}}


@pytest.fixture
def many(session: Session, scplan: Scplan, host_directory: Path) -> Iterator[Many]:
    containers = [session.start(session.name()) for _ in range(COUNT)]
    sections = {"mounts": [f"{host_directory}:/srv/data"], "cgroup": {"pids.max": 100}}
    wanted = config(*((one, sections) for one in containers))
    scplan("apply", "--auto-approve", config=wanted).ok()
    yield Many(containers, wanted, host_directory)
    for one in containers:
        session.stop(one.name)


def test_only_what_is_not_as_recorded_is_told(many: Many, scplan: Scplan) -> None:
    assert scplan("plan", config=many.config).ok().stdout.strip() == "No changes."
    assert "No drift" in scplan("drift", config=many.config).ok().stdout

    tampered, changed = many.containers[2], many.containers[50]
    limit = tampered.cgroups["pids"] / "pids.max"
    limit.write_text("7\n")
    ran = scplan("plan", config=many.replace(changed, cgroup={"pids.max": 50})).ok()
    assert ran.stdout.count("cgroup pids.max") == 2
    assert "7 → 100" in ran.stdout
    assert "100 → 50" in ran.stdout
    with_files = scplan("drift", "--json", config=many.config).ok()
    (scplan.directory / "scplan.yaml").unlink()
    for ran in (with_files, scplan("drift", "--json").ok()):
        assert [one["address"] for one in ran.json["drifted"]] == [f"{tampered.name}/cgroup/pids.max"]

    scplan("apply", "--auto-approve", config=many.config).ok()
    assert limit.read_text() == "100\n"
    assert scplan("plan", config=many.config).ok().stdout.strip() == "No changes."


def test_few_of_many_and_new_ones_beside_them(many: Many, scplan: Scplan, session: Session) -> None:
    """Containers that the files do not name are no part of the plan, those without records all the more."""
    few = dict(list(many.config["containers"].items())[:3])
    assert scplan("plan", config={"version": 1, "containers": few}).ok().stdout.strip() == "No changes."
    new = session.start(session.name())
    try:
        wanted = config((new, {"cgroup": {"pids.max": 9}}))
        ran = scplan("plan", "--json", config={**many.config, "containers": {**few, **wanted["containers"]}}).ok()
        assert planned(ran) == {"cgroup/pids.max": "create"}
        everything = {**many.config["containers"], **wanted["containers"]}
        ran = scplan("plan", "--json", config={"version": 1, "containers": everything}).ok()
        assert [change["address"].partition("/")[0] for change in ran.json["changes"]] == [new.name]
    finally:
        session.stop(new.name)


def test_a_change_to_all_of_them(many: Many, scplan: Scplan) -> None:
    sections = {"mounts": [f"{many.directory}:/srv/data:ro"], "cgroup": {"pids.max": 100}}
    wanted = config(*((one, sections) for one in many.containers))
    ran = scplan("plan", "--json", config=wanted).ok()
    assert len(ran.json["changes"]) == COUNT
    assert set(planned(ran).values()) == {"update"}


def test_one_that_ended_is_named(many: Many, scplan: Scplan) -> None:
    gone = many.containers[20]
    os.kill(gone.pid, signal.SIGKILL)
    ran = scplan("plan", config=many.config).ok(1)
    assert gone.name in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_damaged_record_is_named(many: Many, scplan: Scplan) -> None:
    damaged = many.containers[30]
    record = Path(scplan.environment["SCPLAN_STATE_DIR"]) / "containers" / "process" / f"{damaged.name}.json"
    record.write_text("{}")
    ran = scplan("plan", config=many.config).ok(1)
    assert str(record) in ran.stderr


def test_a_container_that_makes_readers_wait_holds_up_no_other_plan(many: Many, scplan: Scplan) -> None:
    """Whoever looks at it is given up: a plan that is not about it does not wait for it."""
    hung = many.containers[40]
    rest = {name: one for name, one in many.config["containers"].items() if name != hung.name}
    with hanging(hung, "/srv", reads=True):
        began = time.monotonic()
        ran = scplan("plan", config={"version": 1, "containers": rest}).ok()
        assert ran.stdout.strip() == "No changes."
        assert [line for line in ran.stderr.splitlines() if line.startswith("notice: ")] == [
            f"notice: not in these files: {hung.name} (2 resources)"
        ]
        assert time.monotonic() - began < LOOKUP_TIMEOUT_S
        assert hung.name in scplan("plan", config=many.config).ok(1).stderr

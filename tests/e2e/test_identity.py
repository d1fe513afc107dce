"""One container is not taken for another: of a longer name, in another place, or with another process."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.e2e.scene import naming, nothing_changed, of, refused

OCI = pytest.mark.parametrize("runtime", [pytest.param(one, marks=pytest.mark.needs(one)) for one in ("runc", "crun")])
SHORTER = -3


def shortened(container: Container, *, runtime: str | None) -> dict[str, object]:
    """A configuration of a container whose name is the beginning of that of another one."""
    body = {**({"runtime": runtime} if runtime else {}), "cgroup": {"pids.max": 100}}
    return {"version": 1, "containers": {container.name[:SHORTER]: body}}


@OCI
def test_name_is_no_short_form_of_a_longer_one(runtime: str, scplan: Scplan, make_container: MakeContainer) -> None:
    canary = make_container(runtime)
    name = canary.name[:SHORTER]
    with nothing_changed(canary):
        for chosen in (runtime, None):
            asked = shortened(canary, runtime=chosen)
            refused(scplan("apply", "--auto-approve", config=asked), f"no container '{name}'")
    scplan("apply", "--auto-approve", config=of(canary, cgroup={"pids.max": 100})).ok()
    with nothing_changed(canary):
        refused(scplan("destroy", name, "--auto-approve"), "owns nothing")
        refused(scplan("state", "mv", name, canary.name), "owns nothing")
        refused(scplan("import", name), f"no container '{name}'")
    (scplan.directory / "live.json").write_text(scplan("snapshot").ok().stdout)
    asked = shortened(canary, runtime=runtime)
    refused(scplan("plan", "--live", "live.json", config=asked), name)


@OCI
def test_records_of_a_container_that_is_gone_are_not_about_another(
    runtime: str, scplan: Scplan, make_container: MakeContainer, host_directory: Path
) -> None:
    """While `web` is gone, `web-canary` is there."""
    web, canary = make_container(runtime), make_container(runtime)
    assert canary.bundle
    longer = f"{web.name}-canary"
    asked = of(web, cgroup={"pids.max": 100}, mounts=[f"{host_directory}:/srv/data"])
    scplan("apply", "--auto-approve", config=asked).ok()
    web.stop()
    canary.stop()
    named, canary.name = canary.name, longer
    canary.start()
    try:
        with nothing_changed(canary):
            assert scplan("apply", "--auto-approve").ok()
            assert f"container {web.name} is gone" in scplan("plan").ok().stderr
        assert longer not in scplan("state", "list").ok().stdout
        assert naming(canary)["runtime"] == runtime
    finally:
        canary.stop()
        canary.name = named
        canary.start()


@pytest.mark.needs("cgroup1")
@OCI
def test_paused_container_is_shown_as_paused(runtime: str, scplan: Scplan, make_container: MakeContainer) -> None:
    web = make_container(runtime)
    asked = of(web, cgroup={"pids.max": 100})
    (group,) = re.findall(r":freezer:(/.+)\n", Path(f"/proc/{web.pid}/cgroup").read_text())
    freezer = Path(f"/sys/fs/cgroup/freezer{group}/freezer.state")
    freezer.write_text("FROZEN")
    try:
        while freezer.read_text() != "FROZEN\n":
            freezer.write_text("FROZEN")
        found = scplan("plan", "--json", config=asked).ok().json["containers"][web.name]
        assert (found["status"], found["pid"]) == ("paused", web.pid)
        scplan("apply", "--auto-approve").ok()
        assert web.cgroup_file("pids.max").strip() == "100"
    finally:
        freezer.write_text("THAWED")
    assert scplan("plan", "--json").ok().json["containers"][web.name]["status"] == "running"

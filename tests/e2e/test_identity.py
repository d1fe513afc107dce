"""One container is not taken for another: of a longer name, in another place, or with another process."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.containers.oci import RUNTIMES
from tests.containers.session import Session
from tests.e2e.scene import naming, nothing_changed, of, planned, refused

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


def started(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@pytest.mark.needs("cgroup1")
@OCI
def test_state_that_outlived_a_boot_names_no_process_of_the_host(
    runtime: str, scplan: Scplan, make_container: MakeContainer
) -> None:
    """Early processes have the same PIDs after each boot, and begin at the same ticks."""
    web = make_container(runtime)
    keys = ("init_process_pid", "init_process_start") if runtime == "runc" else ("pid", "process-start-time")
    state = next((RUNTIMES[runtime].state_directory / web.name).glob("stat*"))
    kept = state.read_text()
    with subprocess.Popen(["unshare", "--mount", "--net", "sleep", "1000"]) as other:
        try:
            state.write_text(
                json.dumps(json.loads(kept) | dict(zip(keys, (other.pid, started(other.pid)), strict=True)))
            )
            with nothing_changed(web):
                refused(
                    scplan("apply", "--auto-approve", config=of(web, mounts=["/usr:/srv/x"])),
                    f"{other.pid}, is not the container's",
                    "cgroup",
                )
                refused(scplan("import", web.name), "is not the container's")
            assert "/srv/x" not in Path(f"/proc/{other.pid}/mountinfo").read_text()
        finally:
            state.write_text(kept)
            other.kill()
    scplan("apply", "--auto-approve").ok()


@contextmanager
def in_cgroup_of_others(web: Container, name: str) -> Iterator[None]:
    """The container's process is in no cgroup of it meanwhile."""
    other = Path("/sys/fs/cgroup/pids") / name
    other.mkdir()
    lines = [line.split(":", 2) for line in Path(f"/proc/{web.pid}/cgroup").read_text().splitlines()]
    left = {names.removeprefix("name=") or "unified": path for _, names, path in lines if path != "/"}
    try:
        for hierarchy in left:
            target = other if hierarchy == "pids" else Path("/sys/fs/cgroup") / hierarchy
            (target / "cgroup.procs").write_text(str(web.pid))
        yield
    finally:
        for hierarchy, path in left.items():
            Path(f"/sys/fs/cgroup/{hierarchy}{path}/cgroup.procs").write_text(str(web.pid))
        other.rmdir()


@pytest.mark.needs("cgroup1", "runc", "veth")
def test_process_with_the_recorded_pid_and_start_in_another_cgroup_is_not_taken_for_the_recorded_one(
    scplan: Scplan, make_container: MakeContainer, session: Session
) -> None:
    web = make_container("runc")
    asked = of(web, nics=[{"name": "eth1"}], cgroup={"pids.max": 100})
    scplan("apply", "--auto-approve", config=asked).ok()
    recorded = scplan.state_dir / "containers/runc" / f"{web.name}.json"
    before = recorded.read_bytes()
    with nothing_changed(web), in_cgroup_of_others(web, session.name()):
        for command in (("apply", "--auto-approve"), ("destroy", web.name, "--auto-approve"), ("drift",)):
            refused(scplan(*command), str(web.pid), "cgroup")
        watched = scplan("watch", "--once")
        assert watched.code, watched
        assert "cgroup" in watched.stdout + watched.stderr
        scplan("recover")
        assert recorded.read_bytes() == before
    assert planned(scplan("plan", "--json").ok()) == {}
    scplan("destroy", web.name, "--auto-approve").ok()


@pytest.mark.needs("runc", "veth")
def test_records_of_the_host_are_not_compared_with_processes_of_another_pid_namespace(
    scplan: Scplan, make_container: MakeContainer
) -> None:
    """As in a container with the host's state directory: there every recorded process seems to have ended."""
    web = make_container("runc")
    scplan("apply", "--auto-approve", config=of(web, nics=[{"name": "eth1"}])).ok()
    (recorded,) = (scplan.state_dir / "containers/runc").iterdir()
    before = recorded.read_bytes()
    if b"pid_namespace" not in before:
        pytest.skip("this is not the first PID namespace of the host")

    class Apart(Scplan):
        def command(self, *arguments: str) -> list[str]:
            return ["unshare", "--pid", "--fork", "--mount-proc", *super().command(*arguments)]

    apart = Apart(scplan.directory, scplan.state_dir)
    with nothing_changed(web):
        for command in (("apply", "--auto-approve"), ("plan",), ("destroy", web.name, "--auto-approve"), ("drift",)):
            refused(apart(*command), "PID namespace", "--pid=host")
        assert apart("watch", "--once").code
        apart("recover")
    assert recorded.read_bytes() == before
    assert planned(scplan("plan", "--json").ok()) == {}

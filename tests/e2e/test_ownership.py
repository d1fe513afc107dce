"""What a runtime puts into its containers stays its own: at their starts, in plans and in imports."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.containers.host_parts import LoopDisk
from tests.e2e.scene import of

pytestmark = pytest.mark.needs("cgroup1")

HOST_END = "scteng0"


@pytest.fixture
def web(scplan: Scplan, make_container: MakeContainer) -> Container:
    return make_container("runc", hooks=scplan("hook", "spec", "--runtime", "runc").ok().json["hooks"])


@pytest.fixture
def engine_nic(tmp_path: Path) -> Iterator[str]:
    """A program for a hook that makes eth1, as an engine's network plugin does."""
    program = tmp_path / "network-plugin"
    program.write_text(
        "#!/bin/sh\n"
        """pid=$(sed 's/.*"pid": *\\([0-9]*\\).*/\\1/')\n"""
        f"exec ip link add {HOST_END} address 02:5c:97:00:00:77 type veth peer name eth1 netns $pid\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    yield str(program)
    subprocess.run(["ip", "link", "delete", HOST_END], capture_output=True, check=False)


def edit_bundle(web: Container, edit: Any) -> None:
    assert web.bundle
    path = web.bundle / "config.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def plugs_in_first(program: str) -> Any:
    def edit(document: dict[str, Any]) -> None:
        document["hooks"].setdefault("createRuntime", []).insert(0, {"path": program})

    return edit


def start_fails(web: Container) -> str:
    """What the runtime says about it."""
    ended = web.start(check=False)
    assert ended.returncode != 0, "it started"
    return str(ended.stdout) + str(ended.stderr)


def host_end_is_untouched() -> bool:
    shown = json.loads(subprocess.run(["ip", "-j", "link", "show", HOST_END], capture_output=True, check=True).stdout)
    return "master" not in shown[0] and shown[0]["address"] == "02:5c:97:00:00:77"


def test_nic_of_the_runtime_at_a_recorded_name_aborts_the_start(
    web: Container, scplan: Scplan, bridge: str, engine_nic: str
) -> None:
    config = of(web, nics=[{"name": "eth1", "bridge": bridge, "addresses": ["10.97.0.5/24"]}])
    scplan("apply", "--auto-approve", config=config).ok()
    web.stop()
    edit_bundle(web, plugs_in_first(engine_nic))
    assert "nic eth1 is there already, made by others" in start_fails(web)
    edit_bundle(web, lambda document: document["hooks"]["createRuntime"].pop(0))
    web.start()
    assert scplan("plan", "--json").ok().json["changes"] == []


def test_nic_of_the_runtime_stays_as_it_is_beside_an_optional_entry(
    web: Container, scplan: Scplan, bridge: str, engine_nic: str
) -> None:
    nic = {"name": "eth1", "bridge": bridge, "addresses": ["10.97.0.5/24"], "required": False}
    scplan("apply", "--auto-approve", config=of(web, nics=[nic], cgroup={"pids.max": 100})).ok()
    web.stop()
    edit_bundle(web, plugs_in_first(engine_nic))
    web.start()
    assert host_end_is_untouched()
    (there,) = web.ip("address", "show", "dev", "eth1")
    assert "10.97.0.5" not in [address["local"] for address in there["addr_info"]]
    # Neither an apply nor a removal takes it for scplan's.
    planned = scplan("plan", "--json")
    assert "made by others" in planned.stdout + planned.stderr
    scplan("destroy", web.name, "--auto-approve").ok()
    assert HOST_END in (name for _, name in socket.if_nameindex())
    assert host_end_is_untouched()


def test_mount_of_the_runtime_at_a_recorded_target_aborts_the_start(
    web: Container, scplan: Scplan, host_directory: Path, tmp_path: Path
) -> None:
    scplan("apply", "--auto-approve", config=of(web, mounts=[f"{host_directory}:/srv/data"])).ok()
    web.stop()
    volume = {"destination": "/srv/data", "type": "bind", "source": str(tmp_path), "options": ["bind"]}
    edit_bundle(web, lambda document: document["mounts"].append(volume))
    assert "mount srv/data is there already, made by others" in start_fails(web)


def test_limit_of_the_runtime_that_was_lowered_does_not_abort_a_start(web: Container, scplan: Scplan) -> None:
    """memory.max above the runtime's memory+swap: the kernel refuses it, and the runtime's limit is the lower one."""
    scplan("apply", "--auto-approve", config=of(web, cgroup={"memory.max": "128MiB", "pids.max": 100})).ok()
    web.stop()
    limits = {"limit": 32 << 20, "swap": 64 << 20}
    edit_bundle(web, lambda document: document["linux"].setdefault("resources", {}).update(memory=limits))
    web.start()
    ran = scplan("plan", "--json")
    assert "above the limit of memory+swap" in ran.stdout + ran.stderr
    optional = {"memory.max": {"value": "128MiB", "required": False}, "pids.max": 100}
    ran = scplan("apply", "--auto-approve", config=of(web, cgroup=optional)).ok()
    assert "above the limit of memory+swap" in ran.stderr


def test_import_leaves_out_the_bundle_and_a_plan_refuses_its_mounts(
    make_container: MakeContainer, scplan: Scplan, loop_disk: LoopDisk, host_directory: Path
) -> None:
    web = make_container("runc")
    web.stop()
    major, minor = (int(number) for number in loop_disk.numbers.split(":"))

    def edit(document: dict[str, Any]) -> None:
        mount = {"destination": "/srv/volume", "type": "bind", "source": str(host_directory), "options": ["bind"]}
        document["mounts"].append(mount)
        linux = document["linux"]
        linux.setdefault("devices", []).append({"path": "/dev/xx", "type": "b", "major": major, "minor": minor})
        # Not a multiple of the page size: the kernel rounds it down.
        linux.setdefault("resources", {}).update(memory={"limit": 100_000_000}, pids={"limit": 77})

    edit_bundle(web, edit)
    web.start()
    document = scplan("import", web.name, "--runtime", "runc", "--json").ok().json
    sections = document["containers"][web.name]
    mounts = [mount["target"] for mount in sections.pop("mounts", ())]
    assert (sections, set(mounts) - {"/bin"}) == ({"runtime": "runc"}, set())
    text = scplan("import", web.name, "--runtime", "runc").ok().stdout
    for left_out in ("srv/volume: a mount of runc's", "dev/xx: ", "memory.max: a limit of the"):
        assert left_out in text
    ran = scplan("plan", config=of(web, mounts=[f"{host_directory}:/srv/volume"]))
    assert ran.code == 1
    assert "mount srv/volume belongs to the container's runtime: a mount of runc's" in ran.stderr

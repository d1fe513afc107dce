"""Device nodes that a runtime made: an entry changes them in place, and whatever ends that leaves them as they were."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.containers.fingerprint import Fingerprint, difference, fingerprint, times_of_nodes
from tests.containers.host_parts import LoopDisk
from tests.e2e.scene import Config, of, planned, refused

pytestmark = pytest.mark.needs("root", "busybox", "cgroup1")

NODE = "/dev/theirs"
LIMIT = "blkio.throttle.read_bps_device"


@dataclass
class Theirs:
    """A container with a node of a disk, and a rule for it, that are not scplan's."""

    container: Container
    disk: LoopDisk

    def entry(self, **values: Any) -> dict[str, Any]:
        return {"source": self.disk.path, "target": NODE, **values}

    def config(self, **values: Any) -> Config:
        return of(self.container, devices=[self.entry(**values)])

    @property
    def path(self) -> str:
        return f"/proc/{self.container.pid}/root{NODE}"

    def picture(self) -> tuple[Fingerprint, dict[str, tuple[int, int]], int]:
        return fingerprint([self.container]), times_of_nodes(self.container, NODE), os.lstat(self.path).st_ino

    def is_as(self, before: tuple[Fingerprint, dict[str, tuple[int, int]], int]) -> None:
        after = self.picture()
        assert difference(before[0], after[0]) == []
        assert after[1:] == before[1:]


@pytest.fixture(params=["process", "runc"])
def theirs(request: pytest.FixtureRequest, make_container: MakeContainer, loop_disk: LoopDisk) -> Theirs:
    container = make_container(request.param)
    found = Theirs(container, loop_disk)
    major, minor = loop_disk.numbers.split(":")
    os.mknod(found.path, 0o60660, os.makedev(int(major), int(minor)))
    os.chmod(found.path, 0o660)
    os.chown(found.path, 0, 6)
    subprocess.run(["setfattr", "-n", "trusted.label", "-v", "theirs", found.path], check=False)
    os.utime(found.path, ns=(10**18, 10**18 + 7))
    (container.cgroups["devices"] / "devices.allow").write_text(f"b {loop_disk.numbers} r")
    (container.cgroups["blkio"] / "blkio.throttle.write_iops_device").write_text(f"{loop_disk.numbers} 77")
    return found


ENTRIES: dict[str, dict[str, Any]] = {
    "limits": {"io": {"read_bps": "10m"}},
    "mode and owner": {"mode": "0600", "uid": 3, "gid": 4},
    "a rule": {"permissions": "rw"},
    "all of it": {"mode": "0604", "gid": 8, "io": {"read_bps": "1m", "write_iops": 5}, "permissions": "r"},
}


@pytest.fixture(params=ENTRIES)
def entry(request: pytest.FixtureRequest) -> dict[str, Any]:
    return ENTRIES[request.param]


def test_plan_says_what_changes_in_place(theirs: Theirs, scplan: Scplan) -> None:
    ran = scplan("plan", config=theirs.config(io={"read_bps": "10m"})).ok()
    assert f"~ device {NODE}" in ran.stdout
    assert "0 to add, 1 to change" in ran.stdout
    assert "0600" not in ran.stdout


def test_equal_node_is_adopted(theirs: Theirs, scplan: Scplan) -> None:
    ran = scplan("plan", "--json", config=theirs.config(permissions="r")).ok()
    assert planned(ran) == {f"device{NODE}": "adopt"}


def test_what_is_not_written_stays(theirs: Theirs, scplan: Scplan) -> None:
    nodes = fingerprint([theirs.container])[theirs.container.name]["devices"]
    scplan("apply", "--auto-approve", config=theirs.config(io={"read_bps": "10m"})).ok()
    assert fingerprint([theirs.container])[theirs.container.name]["devices"] == nodes
    assert scplan("plan", config=theirs.config(io={"read_bps": "10m"})).ok().stdout.strip() == "No changes."
    os.chmod(theirs.path, 0o600)
    assert scplan("drift", config=theirs.config(io={"read_bps": "10m"})).ok().stdout.startswith("No drift")


def _failing(_: Theirs, scplan: Scplan, config: Config) -> None:
    scplan("apply", "--auto-approve", "--probe", "false", config=config).ok(3)


def _undone(_: Theirs, scplan: Scplan, config: Config) -> None:
    scplan("apply", "--auto-approve", config=config).ok()
    scplan("undo", "--auto-approve").ok()


def _destroyed(theirs: Theirs, scplan: Scplan, config: Config) -> None:
    scplan("apply", "--auto-approve", config=config).ok()
    scplan("destroy", theirs.container.name, "--auto-approve").ok()


def _taken_out(theirs: Theirs, scplan: Scplan, config: Config) -> None:
    scplan("apply", "--auto-approve", config=config).ok()
    scplan("apply", "--auto-approve", config=of(theirs.container)).ok()


def _removal_failed(theirs: Theirs, scplan: Scplan, config: Config) -> None:
    scplan("apply", "--auto-approve", config=config).ok()
    before = theirs.picture()
    scplan("apply", "--auto-approve", "--probe", "false", config=of(theirs.container)).ok(3)
    theirs.is_as(before)
    scplan("destroy", theirs.container.name, "--auto-approve").ok()


def _changed_and_destroyed(theirs: Theirs, scplan: Scplan, config: Config) -> None:
    scplan("apply", "--auto-approve", config=config).ok()
    scplan("apply", "--auto-approve", config=theirs.config(mode="0111", io={"write_bps": "3m"})).ok()
    scplan("apply", "--auto-approve", config=theirs.config(io={"write_bps": "3m"})).ok()
    scplan("destroy", theirs.container.name, "--auto-approve").ok()


@pytest.mark.parametrize("end", [_failing, _undone, _destroyed, _taken_out, _removal_failed, _changed_and_destroyed])
def test_node_is_as_before(
    theirs: Theirs, scplan: Scplan, entry: dict[str, Any], end: Callable[[Theirs, Scplan, Config], None]
) -> None:
    before = theirs.picture()
    end(theirs, scplan, theirs.config(**entry))
    theirs.is_as(before)
    assert scplan("state", "list", "--json").json["resources"] == []


def test_removed_node_comes_back_with_all_that_it_had(theirs: Theirs, scplan: Scplan) -> None:
    """One that was adopted is scplan's to remove: a rollback makes it again."""
    scplan("apply", "--auto-approve", config=theirs.config(permissions="r")).ok()
    before = theirs.picture()
    scplan("apply", "--auto-approve", "--probe", "false", config=of(theirs.container)).ok(3)
    after = theirs.picture()
    assert difference(before[0], after[0]) == []
    assert after[1] == before[1]
    scplan("apply", "--auto-approve", config=of(theirs.container)).ok()
    assert not os.path.lexists(theirs.path)
    scplan("undo", "--auto-approve").ok()
    again = theirs.picture()
    assert difference(before[0], again[0]) == []
    assert again[1] == before[1]


@pytest.mark.parametrize("change", ["chmod 0000 {0}", "chown 5:5 {0}"])
def test_mode_and_owner_of_a_node_that_scplan_made_are_compared(
    process_container: Container, scplan: Scplan, loop_disk: LoopDisk, change: str
) -> None:
    web = process_container
    config = of(web, devices=[f"{loop_disk.path}:/dev/data"])
    scplan("apply", "--auto-approve", config=config).ok()
    made = fingerprint([web])
    web.exec(["sh", "-c", change.format("/dev/data")], check=True)
    drifted = fingerprint([web])
    scplan("drift", "--detailed-exitcode", config=config).ok(2)
    scplan("apply", "--auto-approve", "--probe", "false", config=config).ok(3)
    assert difference(drifted, fingerprint([web])) == []
    scplan("apply", "--auto-approve", config=config).ok()
    assert difference(made, fingerprint([web])) == []
    config["containers"][web.name]["devices"] = [{"source": loop_disk.path, "target": "/dev/data", "mode": "0640"}]
    scplan("apply", "--auto-approve", config=config).ok()
    assert scplan("plan", config=config).ok().stdout.strip() == "No changes."
    config["containers"][web.name]["devices"] = [{"source": loop_disk.path, "target": "/dev/data"}]
    scplan("apply", "--auto-approve", config=config).ok()
    assert difference(made, fingerprint([web])) == []
    assert scplan("plan", config=config).ok().stdout.strip() == "No changes."


def _limits(container: Container) -> str:
    return container.cgroup_file(LIMIT).strip()


def test_limits_that_are_added_go_with_an_undo(
    process_container: Container, scplan: Scplan, loop_disk: LoopDisk
) -> None:
    web = process_container
    (web.cgroups["blkio"] / LIMIT).write_text(f"{loop_disk.numbers} 4194304")
    plain = of(web, devices=[f"{loop_disk.path}:/dev/data"])
    limited = of(web, devices=[{"source": loop_disk.path, "target": "/dev/data", "io": {"read_bps": "1m"}}])
    scplan("apply", "--auto-approve", config=plain).ok()
    scplan("apply", "--auto-approve", "--probe", "false", config=limited).ok(3)
    assert _limits(web).endswith(" 4194304")
    scplan("apply", "--auto-approve", config=limited).ok()
    assert _limits(web).endswith(" 1048576")
    undone = scplan("undo", "--auto-approve").ok()
    assert "read_bps 1 MiB/s → 4 MiB/s" in undone.stdout
    assert _limits(web).endswith(" 4194304")


def test_nodes_of_one_disk_have_the_same_limits(
    process_container: Container, scplan: Scplan, loop_disk: LoopDisk, host_directory: Path
) -> None:
    web = process_container
    other = host_directory / "disk"
    other.symlink_to(loop_disk.path)

    def nodes(**limits: str) -> Config:
        entries = [
            {"source": str(source), "target": f"/dev/{name}", "io": {"read_bps": limits[name]}}
            for name, source in (("one", loop_disk.path), ("two", other))
            if name in limits
        ]
        return of(web, devices=entries)

    scplan("apply", "--auto-approve", config=nodes(one="3m")).ok()
    refused = scplan("plan", config=nodes(one="3m", two="1m")).ok(1)
    assert "read_bps is 1 MiB/s here and 3 MiB/s for /dev/one" in refused.stderr
    assert "scplan.yaml:" in refused.stderr
    for config in (nodes(two="1m"), nodes(one="1m", two="1m"), of(web), nodes(one="3m", two="3m")):
        scplan("apply", "--auto-approve", "--probe", "false", config=config).ok(3)
        assert _limits(web).endswith(" 3145728")
    scplan("apply", "--auto-approve", config=nodes(one="3m", two="3m")).ok()
    scplan("apply", "--auto-approve", config=nodes(two="3m")).ok()
    assert _limits(web).endswith(" 3145728")
    scplan("undo", "--auto-approve").ok()
    assert _limits(web).endswith(" 3145728")
    scplan("destroy", web.name, "--auto-approve").ok()
    assert _limits(web) == ""


def test_contradicting_limits_are_found_in_the_files_alone(
    process_container: Container, scplan: Scplan, loop_disk: LoopDisk
) -> None:
    entries = [
        {"source": loop_disk.path, "target": f"/dev/{name}", "io": {"read_bps": limit}}
        for name, limit in (("one", "3m"), ("two", "1m"))
    ]
    ran = scplan("validate", config=of(process_container, devices=entries)).ok(1)
    assert "a node of the same disk" in ran.stderr


@pytest.mark.parametrize("rule", ["a *:* rwm", "b *:* rw"])
def test_a_wider_rule_shows(process_container: Container, scplan: Scplan, loop_disk: LoopDisk, rule: str) -> None:
    web = process_container
    (web.cgroups["devices"] / "devices.allow").write_text("a" if rule.startswith("a") else rule)
    config = of(web, devices=[{"source": loop_disk.path, "target": "/dev/data", "permissions": "r"}])
    ran = scplan("plan", config=config).ok()
    assert "the container may do rw" in ran.stderr
    scplan("apply", "--auto-approve", config=config).ok()
    assert scplan("plan", config=config).ok().stdout.strip() == "No changes."
    assert "by a wider rule" in scplan("show").ok().stdout
    (web.cgroups["devices"] / "devices.deny").write_text("a")


@pytest.mark.parametrize("asked", [{"two": "rwm"}, {"one": "rw", "two": "w"}, {"one": "w", "two": "w"}, {}])
def test_access_that_others_allow_outlives_a_failure_that_changed_several_nodes_of_a_disk(
    process_container: Container, scplan: Scplan, loop_disk: LoopDisk, asked: dict[str, str]
) -> None:
    web, disk = process_container, loop_disk.path
    scplan(
        "apply", "--auto-approve", config=of(web, devices=[f"{disk}:/dev/{name}:w" for name in ("one", "three")])
    ).ok()
    (web.cgroups["devices"] / "devices.allow").write_text(f"b {loop_disk.numbers} r")
    before = fingerprint([web])
    nodes = [f"{disk}:/dev/{name}:{permissions}" for name, permissions in asked.items()]
    config = of(web, devices=[*nodes, "/dev/zero:/dev/three"])
    scplan("apply", "--auto-approve", "--probe", "false", config=config).ok(3)
    assert difference(before, fingerprint([web])) == []
    scplan("apply", "--auto-approve", config=config).ok()
    assert scplan("plan", config=config).ok().stdout.strip() == "No changes."


PLACES = {
    "nodev": ("mkdir /srv/t; mount -t tmpfs -o nodev t /srv/t", "/srv/t/data", "mounted nodev"),
    "read-only": ("mkdir /srv/t; mount -t tmpfs -o ro t /srv/t", "/srv/t/data", "read-only"),
    "below a file": ("mkdir /srv; touch /srv/file", "/srv/file/data", "no directory"),
    "below a dangling symlink": ("mkdir /srv; ln -s nothing /srv/link", "/srv/link/data", "no directory"),
    "below a symlink": ("mkdir -p /srv/real; ln -s real /srv/link", "/srv/link/data", ""),
    "a mount point": ("mkdir -p /srv/t; mount -t tmpfs t /srv/t", "/srv/t", "something is mounted on"),
}


@pytest.mark.parametrize("place", PLACES)
def test_plan_refuses_places_where_no_node_can_be(
    process_container: Container, scplan: Scplan, loop_disk: LoopDisk, place: str
) -> None:
    web = process_container
    prepare, target, words = PLACES[place]
    enter = ["nsenter", "-t", str(web.pid), "-m", "/bin/busybox", "sh", "-c"]
    subprocess.run([*enter, f"{prepare} 2>/dev/null; true"], check=True)
    config = of(web, devices=[{"source": loop_disk.path, "target": target, "replace_existing": True}])
    ran = scplan("plan", config=config)
    if words:
        ran.ok(1)
        assert words in ran.stderr
        assert "scplan.yaml:" in ran.stderr
    else:
        scplan("apply", "--auto-approve", config=config).ok()
        scplan("destroy", web.name, "--auto-approve").ok()


def test_who_has_a_device_open_that_goes_is_named(
    process_container: Container, scplan: Scplan, loop_disk: LoopDisk
) -> None:
    web = process_container
    scplan("apply", "--auto-approve", config=of(web, devices=[f"{loop_disk.path}:/dev/data:r"])).ok()
    command = web.exec_command(["sh", "-c", "exec 3< /dev/data; echo open; exec sleep 1000"])
    with subprocess.Popen(["setsid", *command], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"open\n"
        ran = scplan("plan", config=of(web)).ok()
        assert "in use: /dev/data is open in process" in ran.stderr
        assert "(sleep)" in ran.stderr or "(busybox)" in ran.stderr
        reader.kill()
        web.exec(["pkill", "-f", "sleep 1000$"])


def test_file_that_gave_way_is_under_a_name_that_nobody_can_know(
    process_container: Container, scplan: Scplan, loop_disk: LoopDisk
) -> None:
    web = process_container
    web.exec(["sh", "-c", "echo mine > /dev/data"], check=True)
    config = of(web, devices=[{"source": loop_disk.path, "target": "/dev/data", "replace_existing": True}])
    before = fingerprint([web])
    names = []
    for _ in range(2):
        scplan("apply", "--auto-approve", config=config).ok()
        names.append(web.exec(["sh", "-c", "ls -A /dev | grep scplan-saved"]).stdout)
        scplan("destroy", web.name, "--auto-approve").ok()
        assert difference(before, fingerprint([web])) == []
        assert web.exec(["cat", "/dev/data"]).stdout == "mine\n"
    assert names[0] != names[1]


def test_what_is_planted_in_its_place_is_not_put_back(
    process_container: Container, scplan: Scplan, loop_disk: LoopDisk
) -> None:
    web = process_container
    web.exec(["sh", "-c", "echo mine > /dev/data"], check=True)
    config = of(web, devices=[{"source": loop_disk.path, "target": "/dev/data", "replace_existing": True}])
    scplan("apply", "--auto-approve", config=config).ok()
    web.exec(["sh", "-c", "cd /dev; f=$(ls -A | grep scplan-saved); mv $f kept; echo planted > $f"], check=True)
    scplan("destroy", web.name, "--auto-approve").ok()
    assert web.stat("/dev/data") is None
    scplan("recover").ok()
    assert scplan("state", "list", "--json").json["resources"] == []


def test_node_of_a_runtime_is_taken_over_at_each_start(
    make_container: MakeContainer, scplan: Scplan, loop_disk: LoopDisk
) -> None:
    spec = scplan("hook", "spec", "--runtime", "runc").ok().json["hooks"]
    web = make_container("runc", hooks=spec)
    assert web.bundle is not None
    web.stop()
    file = web.bundle / "config.json"
    bundle = json.loads(file.read_text())
    node = {"path": NODE, "type": "b", "major": loop_disk.major, "minor": loop_disk.minor, "fileMode": 0o660, "gid": 6}
    bundle["linux"]["devices"] = [*bundle["linux"].get("devices", ()), node]
    file.write_text(json.dumps(bundle))
    web.start()
    before = _plugged_in(web)
    theirs = Theirs(web, loop_disk)
    config = theirs.config(mode="0600", io={"read_bps": "1m"})
    scplan("apply", "--auto-approve", config=config).ok()
    applied = _plugged_in(web)
    for _ in range(2):
        web.stop()
        web.start()
        assert difference(applied, _plugged_in(web)) == []
        assert scplan("plan", config=config).ok().stdout.strip() == "No changes."
    scplan("destroy", web.name, "--auto-approve").ok()
    assert difference(before, _plugged_in(web)) == []


def _plugged_in(container: Container) -> Fingerprint:
    """Of the picture, what is the same in each life of a container: mounts have numbers that the kernel hands out."""
    picture = fingerprint([container])[container.name]
    return {key: picture[key] for key in ("devices", "cgroup")}


def test_another_device_can_not_have_the_place_that_the_node_of_others_comes_back_to(
    theirs: Theirs, scplan: Scplan
) -> None:
    scplan("apply", "--auto-approve", config=theirs.config(mode="0600")).ok()
    other = {"source": "/dev/null", "target": NODE}
    ran = scplan("plan", config=of(theirs.container, devices=[other]))
    refused(ran, "scplan.yaml:", f"what was at {NODE} before scplan comes back", "write `replace_existing: true`")
    scplan("apply", "--auto-approve", config=of(theirs.container, devices=[{**other, "replace_existing": True}])).ok()
    assert os.stat(theirs.path).st_rdev == os.makedev(1, 3)


@pytest.mark.parametrize("userns", [False, True])
def test_what_a_source_has_at_the_target_is_known_before(
    make_container: MakeContainer, scplan: Scplan, host_directory: Path, userns: bool
) -> None:
    """The target lies in a mount that is still to be made."""
    container = make_container("process", userns=userns)
    (host_directory / "node").mkdir()
    (host_directory / "file").write_text("full")
    os.mknod(host_directory / "zero", 0o20666, os.makedev(1, 5))
    for name in ("node", "file", "zero"):
        device = {"source": "/dev/null", "target": f"/srv/a/{name}"}
        asked = of(container, mounts=[f"{host_directory}:/srv/a"], devices=[device])
        refused(scplan("plan", config=asked), f"{host_directory}/{name} on the host, which will be at /srv/a/{name}")
    for path in host_directory.iterdir():
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.needs("userns")
def test_plan_refuses_directories_in_which_the_containers_root_may_make_nothing(
    make_container: MakeContainer, scplan: Scplan, host_directory: Path
) -> None:
    """A node is mounted on a file: one that is there will do."""
    container = make_container("process", userns=True)
    bare, full = host_directory / "bare", host_directory / "full"
    for directory in (bare, full):
        directory.mkdir()
    (full / "node").touch()
    (full / "text").write_text("full")

    def wanted(directory: Path, *devices: dict[str, Any]) -> Config:
        return of(container, mounts=[f"{directory}:/srv/a"], devices=list(devices))

    node = {"source": "/dev/null", "target": "/srv/a/node", "replace_existing": True}
    in_place_of_text = {"source": "/dev/null", "target": "/srv/a/text", "replace_existing": True}
    words = ("scplan.yaml:", "may make nothing")
    for there in (bare, full):
        scplan("apply", "--auto-approve", config=wanted(there)).ok()
        refused(scplan("plan", config=wanted(bare, node)), *words)
        refused(scplan("plan", config=wanted(full, in_place_of_text)), *words)
    made = {"source": str(host_directory / "made"), "target": "/srv/b", "create_source": True}
    below_made = of(container, mounts=[made, f"{bare}:/srv/b/deep"], devices=["/dev/null:/srv/b/node"])
    refused(scplan("plan", config=below_made), *words, "mount/srv/b/deep", "device/srv/b/node")
    optional = {**node, "required": False}
    scplan("apply", "--auto-approve", config=wanted(bare, optional)).ok()
    assert scplan("plan", config=wanted(bare, optional)).ok().stdout.strip() == "No changes."
    scplan("apply", "--auto-approve", config=wanted(full, node)).ok()
    assert scplan("plan", config=wanted(full, node)).ok().stdout.strip() == "No changes."
    scplan("destroy", container.name, "--auto-approve").ok()


def test_nodes_in_a_mount_that_changes_are_planned_for_what_it_will_be(
    process_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    web = process_container

    def wanted(options: dict[str, Any], *devices: str) -> Config:
        return of(web, mounts=[{"source": str(host_directory), "target": "/srv/a", **options}], devices=list(devices))

    scplan("apply", "--auto-approve", config=wanted({})).ok()
    read_only = wanted({"read_only": True}, "/dev/null:/srv/a/node")
    refused(scplan("plan", config=read_only), "scplan.yaml:", "which is read-only")
    scplan("apply", "--auto-approve", config=wanted({"read_only": True})).ok()
    for options, source in (({}, "null"), ({"recursive": False}, "zero")):
        scplan("apply", "--auto-approve", config=wanted(options, f"/dev/{source}:/srv/a/node")).ok()
        assert scplan("plan", config=wanted(options, f"/dev/{source}:/srv/a/node")).ok().stdout.strip() == "No changes."
    scplan("destroy", web.name, "--auto-approve").ok()
    assert list(host_directory.iterdir()) == []

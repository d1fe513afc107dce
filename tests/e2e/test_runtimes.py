"""Containers of real engines: found by name and ID, planned, applied, restarted and removed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from scplan.runtimes import RUNTIMES
from tests.containers import cgroups, naming, needs, oci, sweep
from tests.containers.engines import ENGINES, Containerd, Docker, Engine, Lxc, Nspawn, Podman
from tests.containers.fingerprint import difference
from tests.containers.host_parts import LoopDisk
from tests.containers.room import Room, until
from tests.containers.session import CHECKOUT, Session
from tests.e2e.rooms import RoomScplan, container, container_named, engine_of, limit_of
from tests.e2e.scene import planned, refused

pytestmark = pytest.mark.needs("root", "cgroup1", "busybox", "runc", "loop")
_FINGERPRINT = """
import json, sys
from tests.containers.container import Container
from tests.containers.fingerprint import fingerprint
name, pid, userns = sys.argv[1:]
web = Container(name=name, runtime="engine", pid=int(pid), userns=userns == "True")
print(json.dumps(fingerprint([web])))
"""


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, room: Room) -> Engine:
    return engine_of(request.param, room)


def fingerprint(engine: Engine, name: str) -> dict[str, Any]:
    text = engine.room.python(_FINGERPRINT, name, str(engine.pid(name)), str(engine.userns))
    found: dict[str, Any] = json.loads(text)
    return found


def ask(engine: Engine, name: str, expression: str, *, found: str = "") -> str:
    """What an expression over `runtime` and `found`, the container, comes to inside the room.

    `found` is the ID of one that only records can still find.
    """
    code = """
import sys
from scplan.model.live import ContainerFacts, Status
from scplan.runtimes import RUNTIMES
name, runtime_name, recorded, expression = sys.argv[1:]
runtime = RUNTIMES[runtime_name]
gone = ContainerFacts(name, runtime_name, recorded, Status.STOPPED)
(found,) = [gone] if recorded else runtime.find(name, None, None)
print(*eval(f"({expression},)"))
"""
    runtime = "lxc" if isinstance(engine, Lxc) else engine.name
    return engine.room.python(code, name, runtime, found, expression).strip()


def config(reference: str, runtime: str | None, disk: LoopDisk, directory: Path) -> dict[str, Any]:
    body = {
        **({"runtime": runtime} if runtime else {}),
        "devices": [{"source": disk.path, "target": "/dev/data", "permissions": "r"}],
        "nics": [{"name": "eth1", "bridge": "br0", "addresses": ["10.97.0.5/24"]}],
        "routes": [{"to": "10.98.0.0/16", "via": "10.97.0.1"}],
        "mounts": [f"{directory}:/srv/data:ro"],
        "cgroup": {"memory.max": "64MiB"},
    }
    return {"version": 1, "containers": {reference: body}}


def look_inside(engine: Engine, name: str) -> str:
    """What the container has of it all, as busybox inside sees it."""
    script = """
    group=$(sed -n 's/^[0-9]*:devices://p' /proc/$1/cgroup); echo $$ >/sys/fs/cgroup/devices$group/cgroup.procs
    cat /sys/fs/cgroup/memory$(sed -n 's/^[0-9]*:memory://p' /proc/$1/cgroup)/memory.limit_in_bytes
    exec nsenter --target "$1" --mount --net /bin/busybox sh -c '
      b=/bin/busybox; $b cat /srv/data/hello; $b ip -o addr show dev eth1; $b ip route
      $b dd if=/dev/data of=/dev/null count=1 2>&1 && echo readable; $b touch /srv/data/x || echo read-only'
    """
    return engine.room.sh(script, str(engine.pid(name)), check=False)


def test_container_is_imported_as_it_is(engine: Engine, scplan: RoomScplan, host_directory: Path) -> None:
    runtime = "lxc" if isinstance(engine, Lxc) else engine.name
    with container(engine) as name:
        asked = {"runtime": runtime, "mounts": [f"{host_directory}:/srv/data:ro"], "cgroup": {"pids.max": 77}}
        scplan("apply", "--auto-approve", config={"version": 1, "containers": {name: asked}}).ok()
        scplan("state", "rm", name).ok()
        text = scplan("import", name, "--runtime", runtime, "--adopt").ok().stdout
        assert f"source: {host_directory}, target: /srv/data" in text
        # The busybox template of LXC, and nspawn, mount more of the host.
        assert isinstance(engine, Lxc) or engine.name == "nspawn" or text.count("source: ") == 1
        scplan("plan", "--detailed-exitcode", config=text).ok()


def test_untouched_container_has_nothing_to_import(engine: Engine, scplan: RoomScplan) -> None:
    with container(engine) as name:
        entry = scplan("import", name, "--runtime", engine.name, "--json").ok().json["containers"][name]
        assert entry == {"runtime": engine.name}


def test_container_has_what_was_planned_until_it_is_destroyed(
    engine: Engine, scplan: RoomScplan, loop_disk: LoopDisk, host_directory: Path
) -> None:
    (host_directory / "hello").write_text("hello\n")
    with container(engine) as name:
        before = fingerprint(engine, name)
        asked = config(name, None, loop_disk, host_directory)
        plan = scplan("plan", "--json", config=asked).ok()
        facts = {"runtime": engine.name, "id": engine.full_id(name), "status": "running", "pid": engine.pid(name)}
        assert plan.json["containers"][name].items() >= facts.items()
        assert set(planned(plan).values()) == {"create"}

        scplan("apply", "--auto-approve").ok()
        assert scplan("plan", "--detailed-exitcode", "--json").ok().json["changes"] == []
        inside = look_inside(engine, name)
        for expected in ("67108864", "hello", "10.97.0.5/24", "10.98.0.0/16 via 10.97.0.1", "readable", "read-only"):
            assert expected in inside

        engine.room.run("nsenter", f"--net=/proc/{engine.pid(name)}/ns/net", "ip", "link", "set", "eth1", "mtu", "1300")
        engine.room.run("nsenter", f"--net=/proc/{engine.pid(name)}/ns/net", "ip", "route", "del", "10.98.0.0/16")
        assert scplan("drift", "--detailed-exitcode").ok(2).stdout.count("is gone") == 1

        # Named by the beginning of its ID now, where the engine has generated one: it is the same container.
        container_id = engine.full_id(name)
        reference = container_id[:20] if len(container_id) == 64 else name
        asked = config(reference, engine.name, loop_disk, host_directory)
        assert planned(scplan("plan", "--json", config=asked).ok()) == {"route/10.98.0.0/16": "create"}
        scplan("destroy", name, "--auto-approve").ok()
        assert difference(before, fingerprint(engine, name)) == []


def test_beginning_of_a_name_is_not_another_container(engine: Engine, scplan: RoomScplan) -> None:
    name = engine.room.session.name()
    longer = f"{name}-canary"

    engine.run(longer)
    try:
        before = limit_of(engine.room, engine.pid(longer))
        for runtime in (engine.name, "auto"):
            refused(scplan("apply", "--auto-approve", config=of_limit(name, runtime)), f"no container '{name}'")
            refused(scplan("import", name, "--runtime", runtime), f"no container '{name}'")
        with container_named(engine, name):
            scplan("apply", "--auto-approve", config=of_limit(name, engine.name)).ok()
            assert limit_of(engine.room, engine.pid(name)) == "100"
            assert limit_of(engine.room, engine.pid(longer)) == before
            refused(scplan("destroy", longer, "--auto-approve"), "owns nothing")
        # Its records are not about the other one, now that it is gone.
        ran = scplan("plan")
        assert f"container {name} is gone" in ran.stderr
        assert ran.code == (1 if RUNTIMES[engine.name].has_own_ids else 0), "another one of the name is the same"
        for command in (("apply",), ("destroy", name)):
            scplan(*command, "--auto-approve").ok(ran.code if command == ("apply",) else 0)
            assert limit_of(engine.room, engine.pid(longer)) == before
        assert scplan("state", "list").ok().stdout == ""
    finally:
        engine.remove(longer)


def test_restarted_container_gets_it_again_and_a_removed_one_is_gone(
    engine: Engine, scplan: RoomScplan, loop_disk: LoopDisk, host_directory: Path
) -> None:
    with container(engine) as name:
        asked = config(name, engine.name, loop_disk, host_directory)
        scplan("apply", "--auto-approve", config=asked).ok()
        first = engine.pid(name)
        engine.stop(name)
        assert ask(engine, name, "found.status, found.pid") == "stopped 0"
        engine.start(name)
        assert engine.pid(name) != first
        plan = scplan("plan", "--json").ok()
        assert plan.json["containers"][name]["pid"] == engine.pid(name)
        assert planned(plan)["nic/eth1"] == "create"
        scplan("apply", "--auto-approve").ok()
        assert "hello" in look_inside(engine, name) or not (host_directory / "hello").exists()
        assert scplan("plan", "--json").ok().json["changes"] == []
    assert f"container {name} is gone from {engine.name}" in scplan("plan").stderr
    engine.run(name)
    try:
        again = scplan("plan", "--json")
        if again.code:
            # It has another ID, so that what is recorded could be another one's.
            refused(again, f"container {name} is not the one", "was made again")
            scplan("state", "mv", name, name).ok()
        scplan("apply", "--auto-approve").ok()
        assert scplan("plan", "--json").ok().json["changes"] == []
    finally:
        engine.remove(name)


# which container is meant


def test_name_that_two_runtimes_have_is_refused_until_one_is_chosen(room: Room, scplan: RoomScplan) -> None:
    podman, docker = engine_of("podman", room), engine_of("docker", room)
    with container(docker) as name:
        podman.run(name)
        try:
            asked = {"version": 1, "containers": {name: {"cgroup": {"pids.max": 100}}}}
            refused(scplan("plan", config=asked), "can mean 2 containers", f"{name} (docker,", f"{name} (podman,")
            asked["containers"][name]["runtime"] = "podman"  # type: ignore[index]
            plan = scplan("plan", "--json", config=asked).ok().json
            assert plan["containers"][name]["id"] == podman.full_id(name)
        finally:
            podman.remove(name)


@pytest.mark.needs("crun")
@pytest.mark.parametrize("inner", ["runc", "crun"])
def test_container_of_an_engine_counts_once(inner: str, room: Room, scplan: RoomScplan) -> None:
    """By ID, the runtime that the engine runs it with knows it as well."""
    podman = engine_of("podman", room)
    assert isinstance(podman, Podman)
    name = room.session.name()
    podman.run_by(inner, name)
    try:
        for reference in (name, podman.full_id(name), podman.full_id(name)[:10]):
            asked = {"version": 1, "containers": {reference: {"cgroup": {"pids.max": 100}}}}
            (found,) = scplan("plan", "--json", config=asked).ok().json["containers"].items()
            assert (found[0], found[1]["runtime"]) == (name, "podman")
        twice = {one: {"cgroup": {"pids.max": 100}} for one in (name, podman.full_id(name)[:10])}
        refused(scplan("plan", config={"version": 1, "containers": twice}), "the same container")
    finally:
        podman.remove(name)


def test_container_of_docker_is_not_containerds_too(room: Room, scplan: RoomScplan) -> None:
    docker, containerd = engine_of("docker", room), engine_of("containerd", room)
    with container(docker) as name:
        container_id = docker.full_id(name)
        assert container_id in room.run("ctr", "--namespace=moby", "task", "ls").stdout
        for runtime, called in (("auto", name), ("containerd", container_id)):
            body = {"runtime": runtime, "cgroup": {"pids.max": 100}}
            plan = scplan("plan", "--json", config={"version": 1, "containers": {container_id[:12]: body}}).ok().json
            assert plan["containers"].keys() == {called}
    assert containerd.name == "containerd"


def test_namespace_of_containerd_is_chosen_by_the_environment(room: Room, scplan: RoomScplan) -> None:
    containerd = engine_of("containerd", room)
    assert isinstance(containerd, Containerd)
    with container(containerd) as name:
        containerd.run_in("other", name)
        try:
            asked = {"version": 1, "containers": {name: {"runtime": "containerd", "cgroup": {"pids.max": 100}}}}
            refused(scplan("plan", config=asked), "can mean 2 containers")
            here, there = {"CONTAINERD_NAMESPACE": "default"}, {"CONTAINERD_NAMESPACE": "other"}
            plan = scplan("plan", "--json", environment=here).ok().json
            assert plan["containers"][name]["pid"] == containerd.pid(name)
            scplan("apply", "--auto-approve", environment=here).ok()
            # From now on the records say which one is meant, and no other one takes its place.
            assert scplan("plan", "--json").ok().json["changes"] == []
            for command in (("plan",), ("apply", "--auto-approve"), ("destroy", name, "--auto-approve")):
                ran = scplan(*command, environment=there)
                refused(ran, "that is in another place", "v2.task/other", "v2.task/default", "scplan state rm")
            ran = scplan("drift", "--json", environment=there)
            assert ran.code == 1
            assert ran.json["drifted"] == []
            for environment in (here, {}):
                scplan("drift", "--detailed-exitcode", environment=environment).ok()
            scplan("destroy", name, "--auto-approve").ok()
            assert scplan("state", "list").ok().stdout == ""
        finally:
            room.run("ctr", "--namespace=other", "task", "kill", "--signal=KILL", name)
            room.sh("until ctr -n other task delete $1; do sleep 0.05; done; ctr -n other container rm $1", name)


class OtherDocker(Docker):
    """Another daemon on the same containerd."""

    name, command = "other-docker", "/run/other-docker"
    environment: ClassVar[dict[str, str]] = {"DOCKER_HOST": "unix:///run/other.sock"}

    def start_daemon(self) -> None:
        write_command(self.room, self.command, "docker", self.environment)
        places = ("--pidfile=/run/other.pid", "--data-root=/var/lib/other-docker", "--exec-root=/run/other-exec")
        spaces = ("--containerd-namespace=other", "--containerd-plugins-namespace=other-plugins")
        isolated = ("--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none")
        containerd = "--containerd=/run/containerd/containerd.sock"
        host = f"--host={self.environment['DOCKER_HOST']}"
        self.room.start("dockerd", containerd, host, *places, *spaces, *isolated, log="other-dockerd.log")
        self.room.until_works(self.command, "version", log="other-dockerd.log")


class OtherPodman(Podman):
    """Another storage."""

    name, command = "other-podman", "/run/other-podman"
    environment: ClassVar[dict[str, str]] = {"CONTAINERS_STORAGE_CONF": "/run/other-storage.conf"}

    def up(self) -> None:
        text = '[storage]\ndriver = "vfs"\ngraphroot = "/var/lib/other-storage"\nrunroot = "/run/other-storage"\n'
        self.room.sh('printf %s "$1" >"$2"', text, self.environment["CONTAINERS_STORAGE_CONF"])
        write_command(self.room, self.command, "podman", self.environment)
        super().up()


def write_command(room: Room, path: str, command: str, environment: dict[str, str]) -> None:
    words = " ".join(f"{key}={value}" for key, value in environment.items())
    room.sh('echo "#!/bin/sh\n$1 exec $2 \\"\\$@\\"" >"$3"; chmod +x "$3"', words, command, path)


@pytest.mark.parametrize("other_engine", [OtherDocker, OtherPodman])
def test_container_of_another_daemon_or_storage_is_another_one(
    other_engine: type[OtherDocker | OtherPodman], room: Room, scplan: RoomScplan
) -> None:
    runtime = other_engine.name.removeprefix("other-")
    engine, other = engine_of(runtime, room), other_engine(room)
    there = other.environment
    with container(engine) as name, container_named(other, name):
        before = limit_of(room, engine.pid(name))
        scplan("apply", "--auto-approve", config=of_limit(name, runtime), environment=there).ok()
        assert limit_of(room, other.pid(name)) == "100"
        for command in (("plan",), ("apply", "--auto-approve"), ("destroy", name, "--auto-approve")):
            refused(scplan(*command), f"container {name} is not the one", "that is in another place")
        assert (limit_of(room, other.pid(name)), limit_of(room, engine.pid(name))) == ("100", before)
        assert scplan("drift", "--json", environment=there).ok().json["drifted"] == []
        scplan("destroy", name, "--auto-approve", environment=there).ok()
        assert limit_of(room, other.pid(name)) != "100"
        assert limit_of(room, engine.pid(name)) == before


def test_project_of_incus_is_part_of_who_a_container_is(room: Room, scplan: RoomScplan) -> None:
    """The hook is told PROJECT_NAME; records of a container of the same name in another project are about that one."""
    incus = engine_of("incus", room)
    here, there = {"INCUS_PROJECT": "default"}, {"INCUS_PROJECT": "pr"}
    room.run("incus", "project", "create", "pr", "-c", "features.images=false", "-c", "features.profiles=false")
    room.run("incus", "profile", "set", "default", f"raw.lxc={scplan('hook', 'spec', '--runtime', 'incus').stdout}")
    try:
        with container(incus) as name:
            room.run("incus", "launch", "--quiet", "--project=pr", "bb", name)
            asked = {"version": 1, "containers": {name: {"runtime": "incus", "cgroup": {"pids.max": 100}}}}
            scplan("apply", "--auto-approve", config=asked, environment=there).ok()
            room.run("incus", "restart", "--force", name)
            room.run("incus", "restart", "--force", "--project=pr", name)
            assert planned(scplan("plan", "--json", environment=there).ok()) == {}
            assert limit_of(room, incus.pid(name)) != "100"
            for command in (("plan",), ("destroy", name, "--auto-approve")):
                refused(scplan(*command, environment=here), "in another place", "project=default", "project=pr")
            scplan("drift", "--detailed-exitcode", environment=there).ok()
            # In pr alone by now: the record knows where that is.
            room.run("incus", "delete", "--force", "--project=pr", name)
            refused(scplan("destroy", name, "--auto-approve", environment=here), "in another place")
            scplan("destroy", name, "--auto-approve", environment=there).ok()
            assert scplan("state", "list").ok().stdout == ""
    finally:
        room.sh("incus list --project=pr -c n -f csv | xargs -r incus delete --force --project=pr", check=False)
        room.run("incus", "profile", "unset", "default", "raw.lxc")
        room.run("incus", "project", "delete", "pr")


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_root_of_an_oci_runtime_is_chosen_by_the_environment(
    runtime: str, room: Room, scplan: RoomScplan, tmp_path: Path
) -> None:
    """Two containers of the same ID below two roots."""
    if absent := needs.missing((runtime,)):
        pytest.skip(f"this machine has no {', '.join(absent)}")
    name, other = room.session.name(), f"/run/other-{runtime}"
    run = f'{runtime} --root "$1" run --detach --bundle "$2" --pid-file "$2/pid" "$3" >"$2/log" 2>&1 </dev/null'
    hooks = json.loads(scplan("hook", "spec", "--runtime", runtime).ok().stdout)["hooks"]
    roots = {f"/run/{runtime}": tmp_path / "first", other: tmp_path / "second"}
    there = {f"SCPLAN_{runtime.upper()}_ROOT": other}
    pids: dict[str, int] = {}

    def start(root: str) -> None:
        room.sh(f'{run} || {{ cat "$2/log"; exit 1; }}', root, str(roots[root]), name)
        pids[root] = int((roots[root] / "pid").read_text())

    def has_it(root: str) -> bool:
        return "/srv/there" in room.run("cat", f"/proc/{pids[root]}/mountinfo").stdout

    try:
        for root, bundle in roots.items():
            oci.make_bundle(bundle, f"{name}-{bundle.name}", hooks=hooks)
            start(root)
        asked = {"version": 1, "containers": {name: {"runtime": runtime, "mounts": ["/usr:/srv/there:ro"]}}}
        found = scplan("plan", "--json", config=asked, environment=there).ok().json["containers"][name]
        assert (found["pid"], found["place"]) == (pids[other], other)
        scplan("apply", "--auto-approve", environment=there).ok()
        assert (has_it(f"/run/{runtime}"), has_it(other)) == (False, True)
        for command in (("plan",), ("apply", "--auto-approve"), ("destroy", name, "--auto-approve")):
            refused(scplan(*command), "in another place", other)
        for environment in (there, {}):
            assert scplan("drift", "--json", environment=environment).json["drifted"] == []
        for root in roots:
            room.run(runtime, "--root", root, "delete", "--force", name)
            start(root)
        assert (has_it(f"/run/{runtime}"), has_it(other)) == (False, True)
        scplan("apply", "--auto-approve", environment={"SCPLAN_STATE_DIR": str(tmp_path / "state")}).ok()
        assert has_it(f"/run/{runtime}")
        scplan("destroy", name, "--auto-approve", environment=there).ok()
        assert (has_it(f"/run/{runtime}"), has_it(other)) == (True, False)
    finally:
        for root in roots:
            room.run(runtime, "--root", root, "delete", "--force", name, check=False)


@pytest.mark.parametrize("path", ["/var/lib/elsewhere", "/var/lib/" + "long/" * 20 + "path"], ids=["short", "hashed"])
def test_container_of_lxc_below_another_path_is_found_while_it_runs(path: str, room: Room, scplan: RoomScplan) -> None:
    engine_of("lxc", room)

    class Elsewhere(Lxc):
        name = f"lxc-{len(path)}"

    Elsewhere.path = path
    lxc = Elsewhere(room)
    with container(lxc) as name:
        asked = {"version": 1, "containers": {name: {"runtime": "lxc", "cgroup": {"pids.max": 100}}}}
        # The socket of a long path has a hash for its name: the title of the monitor has the path.
        room.start("sh", "-c", 'exec -a "[lxc monitor] $1 impostor" sleep 60', "sh", path, log="impostor.log")
        scplan("apply", "--auto-approve", config=asked).ok()
        found = scplan("plan", "--json").ok().json["containers"][name]
        assert (found["pid"], found["status"], found["place"]) == (lxc.pid(name), "running", path)
        assert "impostor" not in ask(lxc, name, "[one.name for one in runtime.all()]")
        room.run("lxc-freeze", "-P", path, "-n", name)
        assert scplan("plan", "--json").ok().json["containers"][name]["status"] == "paused"
        room.run("lxc-unfreeze", "-P", path, "-n", name)
        lxc.stop(name)
        assert scplan("state", "list").ok().stdout.count("cgroup/pids.max") == 1
        recorded = "runtime.find_recorded(found.name, found.id)[0].status"
        assert ask(lxc, name, recorded, found=f"{path}/{name}") == "stopped"


def test_ephemeral_machines_of_one_directory_are_known_by_their_own_names(room: Room, scplan: RoomScplan) -> None:
    """nspawn adds a random suffix to their name, which is not in its arguments."""
    nspawn = engine_of("nspawn", room)
    base = room.session.name()
    root = nspawn.root(nspawn.directory / base)
    options = ("--quiet", "--register=no", "--keep-unit", "--private-network", "--console=pipe")
    for number in range(2):
        room.start("systemd-nspawn", *options, "-xD", str(root), *oci.SLEEP_FOREVER, log=f"{base}.{number}.log")
    asked = (
        "[(one.pid, one.name) for name in (n.name for n in runtime.all()) for one in runtime.find(name, None, None)]"
    )

    def running() -> dict[int, str]:
        known = eval(ask(nspawn, base, asked, found=base))
        return {pid: name for pid, name in known if pid and name.startswith(f"{base}-")}

    def mounted(pid: int) -> str:
        return room.sh(
            "sed -n 's|^.*/nspawn/propagate/\\([^ ]*\\) .*|\\1|p' /proc/$1/mountinfo | uniq", str(pid)
        ).strip()

    assert until(lambda: len(running()) == 2, 20), running()
    found = running()
    try:
        assert {pid: mounted(pid) for pid in found} == found
        assert len(set(found.values())) == 2
        refused(scplan("plan", config={"version": 1, "containers": {base: {"cgroup": {}}}}), f"no container '{base}'")
    finally:
        room.run("kill", "-KILL", *map(str, found))
    assert until(lambda: not running(), 20)


def test_machine_without_a_cgroup_of_its_own_gets_no_limits(
    room: Room, scplan: RoomScplan, loop_disk: LoopDisk, host_directory: Path
) -> None:
    nspawn = engine_of("nspawn", room)
    assert isinstance(nspawn, Nspawn)
    with container(nspawn) as name:
        nspawn.stop(name)
        nspawn.start(name, in_own_cgroup=False)
        asked = config(name, "nspawn", loop_disk, host_directory)
        body = asked["containers"][name]
        limits = {"cgroup": body.pop("cgroup"), "devices": [{**body["devices"][0], "io": {"read_bps": "1m"}}]}
        for section, entries in limits.items():
            of_limits = {"version": 1, "containers": {name: {"runtime": "nspawn", section: entries}}}
            ran = scplan("apply", "--auto-approve", config=of_limits)
            assert ran.code in (1, 3)
            assert "cgroup of its own" in ran.stderr
        scplan("apply", "--auto-approve", config=asked).ok()
        assert "10.97.0.5/24" in look_inside(nspawn, name)


# what is left


_VICTIM = """
import time
from tests.containers.engines import Docker, Lxc, Podman
from tests.containers.room import Room, until
from tests.containers.session import Session
session = Session()
room = Room(session)
for kind in (Docker, Podman, Lxc):
    kind(room).run(session.name())
print(room.pid, room.name, flush=True)
time.sleep(60)
"""


@pytest.mark.needs("dockerd", "podman", "lxc-start")
def test_nothing_is_left_of_a_killed_session_with_engines() -> None:
    with subprocess.Popen([sys.executable, "-c", _VICTIM], stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as victim:
        assert victim.stdout
        try:
            pid, name = victim.stdout.readline().split()
            inside = os.stat(f"/proc/{pid}/ns/pid").st_ino
            assert processes_in(inside)
        finally:
            victim.kill()
    directory = naming.directory_of(victim.pid)
    assert until(lambda: not directory.exists(), 30)
    assert until(lambda: processes_in(inside) == [], 20)
    assert sweep.traces(victim.pid) == []
    assert [path for path in cgroups.all_hierarchies() if (path / name).exists()] == []


def processes_in(pid_namespace: int) -> list[int]:
    """The processes of a PID namespace; when its first one ends, the kernel ends them and what is in those below."""
    found = []
    for path in Path("/proc").glob("[0-9]*/ns/pid"):
        with suppress(OSError):
            if path.stat().st_ino == pid_namespace:
                found.append(int(path.parts[2]))
    return found


# the hook


@pytest.mark.parametrize("name", ["podman", "docker", "lxc", "incus"])
def test_hook_that_is_configured_is_seen(name: str, room: Room) -> None:
    """What scplan needs to know of a container that is not running: whether its start will be told."""
    engine = engine_of(name, room)
    with container(engine) as web:
        assert ask(engine, web, "runtime.has_hook(found)") == "False"
        with configured_hook(engine, web) as hooked:
            assert ask(engine, hooked, "runtime.has_hook(found)") == "True"


@contextmanager
def configured_hook(engine: Engine, name: str) -> Iterator[str]:
    """Configures the hook as each engine has it; the name of the container that it is for."""
    room = engine.room
    if engine.name == "podman":
        hook = {"path": "/usr/bin/scplan", "args": ["scplan", "hook"]}
        document = {"version": "1.0.0", "hook": hook, "when": {"always": True}, "stages": ["createRuntime"]}
        room.sh("mkdir -p /usr/share/containers; mount -t tmpfs hooks /usr/share/containers")
        room.sh(
            'mkdir -p $1; printf %s "$2" >$1/scplan.json', "/usr/share/containers/oci/hooks.d", json.dumps(document)
        )
        yield name
        room.sh("umount /usr/share/containers")
    elif engine.name == "docker":
        other = room.session.name()
        runtimes = json.dumps({"runtimes": {"scplan": {"path": "/run/scplan-runc"}}})
        room.sh('mkdir -p /etc/docker; printf %s "$1" >/etc/docker/daemon.json', runtimes)
        room.sh("ln -s $(command -v runc) /run/scplan-runc; pkill -HUP dockerd")
        create = ("docker", "create", "--runtime=scplan", "--network=none", f"--name={other}", "localhost/bb:1", "true")
        room.until_works(*create, log="dockerd.log")
        yield other
        room.run("docker", "rm", other)
    elif engine.name == "lxc":
        room.sh('echo "lxc.hook.start-host = /usr/bin/scplan hook" >>$1', f"{engine.full_id(name)}/config")
        yield name
    else:
        room.run("incus", "config", "set", name, "raw.lxc=lxc.hook.start-host = /bin/true scplan hook")
        yield name


@pytest.mark.parametrize("name", ["docker", "podman", "isulad"])
def test_renamed_container_is_found_again_by_its_id(name: str, room: Room, scplan: RoomScplan) -> None:
    """Nothing is taken for gone: the commands say which name it has, and how the records follow."""
    engine: Any = engine_of(name, room)
    old = room.session.name()
    new = f"{old}-renamed"
    asked = of_limit(old, name)
    renamed = of_limit(new, name)
    with container_named(engine, old):
        scplan("apply", "--auto-approve", config=asked).ok()
        engine.rename(old, new)
        mv = f"scplan state mv {old} {new}"
        ran = scplan("plan", "--json").ok()
        assert planned(ran) == {}
        assert ran.json["containers"][old]["pid"] == engine.pid(new)
        assert mv in scplan("plan").ok().stderr
        refused(scplan("apply", "--auto-approve", config=renamed), "was renamed", mv)
        (scplan.directory / "scplan.yaml").rename(scplan.directory / "kept")
        ran = scplan("drift", "--detailed-exitcode").ok()
        assert mv in ran.stderr + ran.stdout
        assert mv in scplan("show").ok().stderr
        (scplan.directory / "kept").rename(scplan.directory / "scplan.yaml")
        scplan("state", "mv", old, new).ok()
        assert planned(scplan("plan", "--json", config=renamed).ok()) == {}
        engine.rename(new, old)
        scplan("destroy", old, "--auto-approve").ok()
        assert scplan("state", "list").ok().stdout == ""


def of_limit(name: str, runtime: str) -> dict[str, Any]:
    return {"version": 1, "containers": {name: {"runtime": runtime, "cgroup": {"pids.max": 100}}}}


@pytest.mark.parametrize("name", ["incus", "lxc", "nspawn"])
def test_records_are_carried_over_to_a_new_name_of_the_same_container(
    name: str, room: Room, scplan: RoomScplan
) -> None:
    """Renamed while it does not run, by an engine to which the name is the container."""
    engine: Any = engine_of(name, room)
    old = room.session.name()
    new = f"{old}-renamed"
    engine.run(old)
    scplan("apply", "--auto-approve", config=of_limit(old, name)).ok()
    engine.stop(old)
    engine.rename(old, new)
    try:
        assert f"container {old} is gone from {name}" in scplan("plan").ok().stderr
        scplan("state", "mv", old, new).ok()
        asked = of_limit(new, name)
        plan = scplan("plan", "--json", config=asked).ok()
        assert (planned(plan), plan.json["containers"][new]["status"]) == ({}, "stopped")
        engine.start(new)
        scplan("apply", "--auto-approve").ok()
        assert limit_of(room, engine.pid(new)) == "100"
        scplan("destroy", new, "--auto-approve").ok()
        assert scplan("state", "list").ok().stdout == ""
    finally:
        engine.remove(new)


def test_machine_is_planned_for_before_its_first_start_and_after_its_end(room: Room, scplan: RoomScplan) -> None:
    """nspawn calls no hooks: an apply after the start makes what was recorded. It can't pause a machine."""
    nspawn = engine_of("nspawn", room)
    assert isinstance(nspawn, Nspawn)
    name = room.session.name()
    nspawn.create(name)
    try:
        for _ in range(2):
            plan = scplan("plan", "--json", config=of_limit(name, "nspawn")).ok().json
            assert plan["containers"][name]["status"] == "stopped"
            assert {change["at_next_start"] for change in plan["changes"]} <= {True}
            scplan("apply", "--auto-approve").ok()
            nspawn.start(name)
            plan = scplan("plan", "--json").ok().json
            assert plan["containers"][name].items() >= {"status": "running", "pid": nspawn.pid(name)}.items()
            scplan("apply", "--auto-approve").ok()
            assert limit_of(room, nspawn.pid(name)) == "100"
            nspawn.stop(name)
    finally:
        nspawn.remove(name)


@pytest.mark.parametrize(
    "network",
    [
        pytest.param("netavark", marks=pytest.mark.needs("netavark")),
        pytest.param("cni"),
        pytest.param("slirp4netns", marks=pytest.mark.needs("slirp4netns")),
    ],
)
def test_network_of_podman_is_not_imported(network: str, room: Room, scplan: RoomScplan, session: Session) -> None:
    """Whatever made its NIC, and the routes over it."""
    engine_of("podman", room)
    name, own = session.name(), "podman" if network != "slirp4netns" else network
    settings = scplan.directory / "containers.conf"
    settings.write_text(f'[network]\nnetwork_backend = "{network if own == "podman" else "cni"}"\n')
    podman = ("env", f"CONTAINERS_CONF={settings}", "podman")
    options = (f"--network={own}", *Podman.options, f"--name={name}")
    room.run(*podman, "run", "--detach", *options, "localhost/bb:1", *oci.SLEEP_FOREVER)
    try:
        pid = room.run(*podman, "inspect", "--format={{.State.Pid}}", name).stdout.strip()
        enter = ("nsenter", f"--net=/proc/{pid}/ns/net")
        assert until(lambda: "default" in room.run(*enter, "ip", "route").stdout, 10), "it has no network"
        found = scplan("import", name, "--json").ok().json
        assert set(found["containers"][name]) == {"runtime"}
        left_out = {one["what"].partition("@")[0] for one in found["x-left-out"]}
        assert {"tap0" if own == network else "eth0", "default"} <= left_out
    finally:
        room.run(*podman, "rm", "--force", "--time=0", name)


@pytest.mark.parametrize("name", ["docker", "podman", "lxc", "incus"])
def test_plan_for_a_stopped_container_knows_its_engines_limits(name: str, room: Room, scplan: RoomScplan) -> None:
    """It is refused for what it is refused for once the container runs."""
    engine = engine_of(name, room)
    with container(engine) as web:
        limit_memory(engine, web)
        higher = {"memory.max": "128MiB"}
        for cgroup, is_refused in ((higher, True), ({**higher, "memory.swap.max": 0}, False), ({"pids.max": 9}, False)):
            document = {"version": 1, "containers": {web: {"runtime": name, "cgroup": cgroup}}}
            engine.stop(web)
            waiting = scplan("plan", config=document).ok(is_refused)
            engine.start(web)
            assert scplan("plan").code == is_refused
            assert not is_refused or re.search(r"yaml:\d+:\d+: memory.max 128 MiB is above the limit", waiting.stderr)


def limit_memory(engine: Engine, name: str) -> None:
    """Has the engine give the container 32 MiB of memory and no swap, from its next start on."""
    room = engine.room
    match engine.name:
        case "docker":
            room.run("docker", "update", "--memory=32m", "--memory-swap=32m", name)
        case "podman":
            engine.remove(name)
            options = (*Podman.options, "--memory=32m", "--memory-swap=32m", "--network=none", f"--name={name}")
            room.run("podman", "run", "--detach", *options, "localhost/bb:1", *oci.SLEEP_FOREVER)
        case "lxc":
            limits = "lxc.cgroup.memory.limit_in_bytes = 32M\nlxc.cgroup.memory.memsw.limit_in_bytes = 32M\n"
            room.sh('printf %s "$1" >>"$2/$3/config"', limits, Lxc.path, name)
        case "incus":
            room.run("incus", "config", "set", name, "limits.memory=32MiB", "limits.memory.swap=false")

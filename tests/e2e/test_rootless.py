"""Containers of a user who is not root: changed by the root of the user's namespaces, or by the host's root."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from scplan.kinds import KINDS
from scplan.kinds.kind import Target
from scplan.kinds.mount.record import BindMount
from scplan.linux.container import Container as Opened
from scplan.linux.host import Host
from scplan.linux.processes.namespaces import Child
from scplan.linux.processes.process import user_namespace_owner
from scplan.model.live import Status
from scplan.runtimes.podman import Podman
from tests.conftest import Ran, Scplan
from tests.containers import oci, rootfs
from tests.containers.container import Container
from tests.e2e.gate import run_with_gates
from tests.e2e.scene import nothing_changed, of, refused

pytestmark = pytest.mark.needs("root", "userns", "busybox", "veth")
_UID = 65533
_INSIDE = """
mount --bind "$1" "$1"
exec chroot "$1" /bin/busybox sleep 1000
"""


class User:
    """A user with namespaces of his own (`pause` is in them), in which a container runs."""

    def __init__(self, directory: Path, pause: int, container: Container) -> None:
        self.directory = directory
        self.pause = pause
        self.container = container

    def run(
        self, scplan: Scplan, *arguments: str, config: object = None, unshared: bool = True, netns: bool = True
    ) -> Ran:
        """A command as the root of the user's namespaces, or else as the user; `netns` False: in the host's network."""
        path = self.directory / "scplan.yaml"
        if config is not None:
            path.write_text(json.dumps(config))
            os.chown(path, _UID, _UID)
        scplan.environment |= {"_CONTAINERS_ROOTLESS_UID": str(_UID)} if unshared else {}
        scplan.environment |= {"XDG_RUNTIME_DIR": str(self.directory), "HOME": str(self.directory)}
        scplan.directory = self.directory
        words = ["--state-dir", str(self.directory / "state"), *arguments]
        if unshared:
            namespaces = ("user", "mnt", "net") if netns else ("user", "mnt")
            return run_with_gates(scplan, words, unshared_with=self.pause, namespaces=namespaces)
        return run_with_gates(scplan, words, uid=_UID)


@pytest.fixture
def user(host_directory: Path) -> Iterator[User]:
    host_directory.chmod(0o755)
    directory = host_directory / "home"
    directory.mkdir()
    os.chown(directory, _UID, _UID)
    root = host_directory / "root"
    rootfs.build(root, owner=_UID)
    with ExitStack() as stack:
        become = ["setpriv", f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups"]
        unshare = ["unshare", "--user", "--map-root-user", "--mount", "--net", "--propagation=private"]
        pause = stack.enter_context(_started([*become, *unshare, "sleep", "1000"], "sleep"))
        enter = ["nsenter", f"--target={pause}", "--user", "--mount", "--net"]
        inside = ["unshare", "--mount", "--net", "--pid", "--fork", "sh", "-c", _INSIDE, "sh", str(root)]
        parent = stack.enter_context(_started([*enter, *inside], "unshare"))
        yield User(directory, pause, Container("sct-rootless", "process", _child_of(parent)))


@contextmanager
def _started(command: list[str], comm: str) -> Iterator[int]:
    """A process that has become a program of that name, ended with all its children."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        _wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text().strip() == comm)
        yield process.pid
    finally:
        for child in _children(process.pid):
            os.kill(child, 9)
        process.kill()
        process.wait(10)


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def _child_of(parent: int) -> int:
    _wait_for(lambda: any(Path(f"/proc/{pid}/comm").read_text() == "busybox\n" for pid in _children(parent)))
    return _children(parent)[0]


def _wait_for(is_so: Any) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _all_of(user: User) -> dict[str, Any]:
    source = user.directory / "data"
    source.mkdir(exist_ok=True)
    os.chown(source, _UID, _UID)
    return of(
        user.container,
        mounts=[f"{source}:/srv/data:ro", "/dev/zero:/dev/zero"],
        nics=[{"name": "eth1", "addresses": ["10.97.0.5/24"]}],
        routes=[{"to": "10.98.0.0/16", "via": "10.97.0.1"}],
    )


def test_root_of_the_users_namespaces_changes_mounts_nics_and_routes(user: User, scplan: Scplan) -> None:
    user.run(scplan, "apply", "--auto-approve", config=_all_of(user)).ok()
    assert {"/srv/data", "/dev/zero"} <= {point[-len("/srv/data") :] for point in user.container.mount_points()}
    assert {"eth1"} <= {link["ifname"] for link in user.container.ip("link")}
    assert "10.98.0.0/16" in {route["dst"] for route in user.container.ip("route")}
    assert "No drift" in user.run(scplan, "drift").ok().stdout
    user.run(scplan, "undo", "--auto-approve").ok()
    assert not any(point.endswith("/srv/data") for point in user.container.mount_points())
    user.run(scplan, "apply", "--auto-approve").ok()
    user.run(scplan, "destroy", "--auto-approve", user.container.name).ok()
    assert {link["ifname"] for link in user.container.ip("link")} == {"lo"}


@pytest.mark.parametrize(
    "sections",
    [{"mounts": ["/var/log:/srv/logs"]}, {"nics": [{"name": "eth1"}]}, {"devices": ["/dev/zero:/dev/other"]}],
    ids=lambda sections: next(iter(sections)),
)
def test_user_is_refused_before_anything_is_made(user: User, scplan: Scplan, sections: dict[str, Any]) -> None:
    with nothing_changed(user.container):
        for command in (["plan"], ["apply", "--auto-approve"]):
            ran = user.run(scplan, *command, config=of(user.container, **sections), unshared=False)
            refused(ran, "run scplan as root")
        user.run(scplan, "recover", unshared=False).ok()
    assert not (user.directory / "state/journal").exists() or not os.listdir(user.directory / "state/journal")


def test_device_nodes_are_refused_in_user_namespaces(user: User, scplan: Scplan) -> None:
    asked = of(user.container, devices=["/dev/zero:/dev/other"])
    refused(user.run(scplan, "apply", "--auto-approve", config=asked), "in a user namespace", "mounts: [/dev/zero:")


@pytest.mark.parametrize("required", [True, False])
def test_nic_that_needs_another_network_is_refused_or_left_out_where_it_is_reattached(
    required: bool, user: User, scplan: Scplan
) -> None:
    """A user's engine calls hooks in the host's network, over which the user has no authority."""
    asked = _all_of(user)
    del asked["containers"][user.container.name]["routes"]
    asked["containers"][user.container.name]["nics"][0]["required"] = required
    user.run(scplan, "apply", "--auto-approve", config=asked).ok()
    user.container.ip("link", "delete", "eth1")
    ran = user.run(scplan, "watch", "--once", "--heal", netns=False)
    assert "another user namespace than scplan's owns the network that scplan runs in" in ran.stderr
    assert "RTM_NEWLINK" not in ran.stderr
    assert ran.code == required
    assert {link["ifname"] for link in user.container.ip("link")} == {"lo"}
    user.run(scplan, "watch", "--once", "--heal").ok()
    assert {link["ifname"] for link in user.container.ip("link")} == {"lo", "eth1"}


def test_root_of_the_host_changes_everything(user: User, scplan: Scplan) -> None:
    asked = _all_of(user)
    asked["containers"][user.container.name]["devices"] = ["/dev/zero:/dev/other"]
    scplan("apply", "--auto-approve", config=asked).ok()
    assert "No drift" in scplan("drift").ok().stdout
    scplan("destroy", "--auto-approve", user.container.name).ok()


def test_undo_of_what_was_never_made_takes_no_privileges(user: User, tmp_path: Path) -> None:
    """An apply that failed at its first step, without privileges."""
    mount = BindMount(source="/var/log", target="/srv/logs", made=("/srv/logs",))

    def delete() -> None:
        os.setgroups([])
        os.setresgid(_UID, _UID, _UID)
        os.setresuid(_UID, _UID, _UID)
        with Host() as host, Opened(user.container.name, user.container.pid, 0, host) as opened:
            KINDS["mount"].delete(Target(opened, host, {}, list, str(tmp_path), ""), mount)

    Child(delete, what="delete").result()


# containers of runtimes that the user runs


@contextmanager
def _run_by(runtime: str, user: User) -> Iterator[int]:
    """The first process of the container `web`, whose state is below $XDG_RUNTIME_DIR."""
    bundle = user.directory / "bundle"
    oci.make_bundle(bundle, "web")
    spec = json.loads((bundle / "config.json").read_text())
    del spec["linux"]["cgroupsPath"], spec["linux"]["resources"]  # a user has no cgroups
    (bundle / "config.json").write_text(json.dumps(spec))
    for path in (bundle, *bundle.rglob("*")):
        os.chown(path, _UID, _UID, follow_symlinks=False)
    options = {"runc": ["--rootless=true"], "crun": ["--cgroup-manager=disabled"]}[runtime]
    enter = ["nsenter", f"--target={user.pause}", "--user", "--mount", "--net"]
    # crun takes a hybrid hierarchy for version 2, and works without the mount of that.
    hide = "if mountpoint -q /sys/fs/cgroup/unified; then mount -t tmpfs none /sys/fs/cgroup/unified; fi"
    inside = ["sh", "-c", f'cd "$1"; {hide}; shift; exec "$@"', "sh", str(bundle)]
    command = [*enter, *inside, runtime, f"--root={user.directory}/{runtime}", *options]
    with (user.directory / "log").open("w+") as log:
        run = [*command, "run", "--detach", "--pid-file=pid", "web"]
        ended = subprocess.run(run, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=30)
        log.seek(0)
        assert ended.returncode == 0, log.read()
    try:
        yield int((bundle / "pid").read_text())
    finally:
        subprocess.run([*command, "delete", "--force", "web"], check=True, capture_output=True, timeout=30)


@pytest.mark.parametrize("runtime", [pytest.param(one, marks=pytest.mark.needs(one)) for one in ("runc", "crun")])
def test_container_that_the_user_runs_is_found_and_changed(runtime: str, user: User, scplan: Scplan) -> None:
    (body,) = _all_of(user)["containers"].values()
    body = {key: value for key, value in body.items() if key != "pid"} | {"runtime": runtime}
    with _run_by(runtime, user) as pid:
        user.run(scplan, "apply", "--auto-approve", config={"version": 1, "containers": {"web": body}}).ok()
        plan = user.run(scplan, "plan", "--json").ok().json
        assert plan["changes"] == []
        assert plan["containers"]["web"].items() >= {"status": "running", "pid": pid}.items()
        assert user_namespace_owner(pid) == _UID
        os.kill(pid, 9)
        subprocess.run(["tail", "--pid", str(pid), "-f", "/dev/null"], timeout=10, check=True)
        assert user.run(scplan, "plan", "--json").ok().json["containers"]["web"]["status"] == "stopped"
        user.run(scplan, "destroy", "web", "--auto-approve").ok()


# podman's files of another user


@pytest.fixture
def storage(user: User) -> Iterator[Path]:
    """A storage with the container `web`, of the user, whose runtime directory only the container's monitor names."""
    storage, run = user.directory / "storage", user.directory / "run"
    (storage / "vfs-containers").mkdir(parents=True)
    (run / "runc" / _ID).mkdir(parents=True)
    (storage / "vfs-containers/containers.json").write_text(json.dumps([{"id": _ID, "names": ["web"]}]))
    (user.directory / "storage.conf").write_text(f'[storage]\ngraphroot = "{storage}"\n')
    os.chown(storage, _UID, _UID)
    become = ["setpriv", f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups"]
    pid_file = f"{run}/containers/vfs-containers/{_ID}/userdata/pidfile"
    monitor = ["bash", "-c", 'exec -a conmon bash -c "sleep 1000; :" "$@"', "bash", "-c", _ID, "-p", pid_file]
    with _started([*become, *monitor], "bash") as pid:
        _wait_for(lambda: Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"conmon"))
        yield storage


_ID = "5c9" + "0" * 61


def _state(storage: Path, pid: int) -> None:
    path = storage.parent / "run/runc" / _ID / "state.json"
    path.write_text(json.dumps({"id": _ID, "init_process_pid": pid}))


def test_root_finds_the_container_of_a_user(user: User, storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _state(storage, user.container.pid)
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(user.directory / "storage.conf"))
    (found,) = Podman().find("web", None, None)
    assert (found.name, found.pid, found.place) == ("web", user.container.pid, str(storage))
    monkeypatch.delenv("CONTAINERS_STORAGE_CONF")
    assert Podman().find_recorded("web", _ID, str(storage)) == [found]


def test_process_that_is_not_the_users_is_not_believed(storage: Path) -> None:
    """The user could name any process of the host, and root would plug things into it."""
    _state(storage, os.getpid())
    (found,) = Podman().find_recorded("web", _ID, str(storage))
    assert (found.status, found.pid) == (Status.STOPPED, 0)

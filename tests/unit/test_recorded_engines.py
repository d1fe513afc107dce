"""Containers of engines by files and answers that the engines themselves wrote: tests/fixtures, one directory each."""

from __future__ import annotations

import json
import re
import shutil
import socketserver
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from scplan.errors import RecordDamaged
from scplan.hooks.state import call_of_lxc
from scplan.linux.host import boot_id
from scplan.linux.processes.process import start_of
from scplan.model.live import ContainerFacts, Naming, Status
from scplan.runtimes import containerd, isulad, lxc, lxc_monitor, nspawn
from scplan.runtimes.containerd import Containerd
from scplan.runtimes.crun import Crun
from scplan.runtimes.docker import Docker
from scplan.runtimes.incus import Incus
from scplan.runtimes.isulad import Isulad
from scplan.runtimes.lxc import Lxc
from scplan.runtimes.nspawn import Nspawn
from scplan.runtimes.podman import Podman
from scplan.runtimes.runc import Runc
from scplan.runtimes.runtime import Runtime, locate
from scplan.store.state import Record
from scplan.workflow.recorded import is_about, locate_recorded, why_not_followed
from tests.containers import cgroups
from tests.containers.session import Session

FIXTURES = Path(__file__).parent.parent / "fixtures"


@contextmanager
def process(*argv: str, executable: str = "/bin/sleep") -> Iterator[int]:
    """The PID of a process with these arguments."""
    with subprocess.Popen(argv or ["sleep", "1000"], executable=executable) as running:
        try:
            while not Path(f"/proc/{running.pid}/cmdline").read_bytes():
                time.sleep(0.005)  # its arguments show a moment after its start
            yield running.pid
        finally:
            running.kill()


# iSulad

ISULAD = {
    "web": ("runc", "301c992edea5d7c1ba0a021b5c2034ff258546b880d7aa262f24fca511c5f215", Status.RUNNING),
    "db": ("lcr", "d9293d572aa9bca3c5ad71e92dd26d75f514b2159a9d8be6e920899ac9ff9d62", Status.RUNNING),
    "fresh": ("runc", "528c9a04eadbcb7c254c006dcff01cbb67ef52f0b4b6b5032e42731a5804ad5e", Status.STOPPED),
    "gone": ("runc", "ebff837af68d37fd731cd2d00229ef73b9ba9787aec63abcf8f85366d13b926d", Status.STOPPED),
    "held": ("runc", "80def51c20c0876b3c38a9c900efc1c0a8960c86150f8781fb8346406c3ee523", Status.PAUSED),
    "mapped": ("runc", "b38b89cbe36dce78dc74c13f3800a6c501ca47279660ca4d64a04543fa333989", Status.RUNNING),
}


class Graph:
    """A copy of the recorded directories; processes that ran then are `pid` now."""

    def __init__(self, directory: Path, pid: int) -> None:
        self.engines = directory / "engines"
        shutil.copytree(FIXTURES / "isulad-2.1.6/engines", self.engines)
        self.pid = pid
        for name in ISULAD:
            state = self.state(name)
            if "Pid" in state:
                self.write_state(name, state | {"Pid": pid, "StartTime": start_of(pid)})

    def directory(self, name: str) -> Path:
        return self.engines / ISULAD[name][0] / ISULAD[name][1]

    def state(self, name: str) -> dict[str, object]:
        return dict(json.loads((self.directory(name) / "container_state.json").read_text()))

    def write_state(self, name: str, state: dict[str, object]) -> None:
        (self.directory(name) / "container_state.json").write_text(json.dumps(state, indent=4))

    def write_former_state(self, name: str, state: dict[str, object]) -> None:
        """As versions before 2.0.8."""
        path = self.directory(name) / "config.v2.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"State": state}, indent=4))


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Graph]:
    configuration = tmp_path / "daemon.json"
    configuration.write_text(json.dumps({"graph": str(tmp_path)}))
    monkeypatch.setattr(isulad, "_CONFIGURATION", str(configuration))
    monkeypatch.setattr(isulad, "_PID_FILE", str(tmp_path / "isulad.pid"))
    with process() as pid:
        yield Graph(tmp_path, pid)


def find_isulad(reference: str) -> tuple[str, str, Status, int, str]:
    (found,) = Isulad().find(reference, None, None)
    return found.name, found.id, found.status, found.pid, found.place


@pytest.mark.parametrize("name", ISULAD)
@pytest.mark.parametrize("is_former", [False, True], ids=["2.1.6", "before 2.0.8"])
def test_isulad_has_them_by_name_and_id_in_their_status(name: str, is_former: bool, graph: Graph) -> None:
    runtime, container_id, status = ISULAD[name]
    if is_former:
        for one in ISULAD:
            graph.write_former_state(one, graph.state(one))
            (graph.directory(one) / "container_state.json").unlink()
    pid = 0 if status is Status.STOPPED else graph.pid
    expected = (name, container_id, status, pid, f"{graph.engines}/{runtime}")
    for reference in (name, container_id, container_id[:12]):
        assert find_isulad(reference) == expected
    (again,) = Isulad().find_recorded(name, container_id, expected[-1])
    assert (again.id, again.status) == (container_id, status)


def test_state_file_of_isulad_counts_before_its_configuration(graph: Graph) -> None:
    graph.write_former_state("gone", {"Running": True, "Pid": graph.pid, "StartTime": start_of(graph.pid)})
    assert find_isulad("gone")[2] is Status.STOPPED


def test_container_of_isulad_that_restarts_has_no_process(graph: Graph) -> None:
    graph.write_state("gone", graph.state("gone") | {"Running": True, "Restarting": True})
    assert find_isulad("gone")[2:4] == (Status.STOPPED, 0)


def test_process_of_isulad_is_believed_with_its_start_or_its_cgroup_alone(graph: Graph) -> None:
    state = graph.state("web")
    graph.write_state("web", state | {"StartTime": start_of(graph.pid) + 1})
    assert find_isulad("web")[2] is Status.STOPPED
    del state["StartTime"]
    graph.write_state("web", state)
    assert find_isulad("web")[2] is Status.STOPPED, "its cgroup is not named for the container"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"Running": true, "Pid": "1"}'])
def test_damaged_state_of_isulad_is_of_its_container_alone(damage: str, graph: Graph) -> None:
    (graph.directory("web") / "container_state.json").write_text(damage)
    assert find_isulad("db")[2] is Status.RUNNING
    with pytest.raises(RecordDamaged, match=r"container_state\.json"):
        Isulad().find("web", None, None)
    with pytest.raises(RecordDamaged, match=r"container_state\.json"):
        Isulad().find_recorded("web", ISULAD["web"][1], f"{graph.engines}/runc")


def test_recorded_container_of_isulad_that_was_removed_is_gone_beside_a_damaged_one(graph: Graph) -> None:
    (graph.directory("db") / "config.v2.json").write_text("")
    shutil.rmtree(graph.directory("web"))
    assert Isulad().find_recorded("web", ISULAD["web"][1], f"{graph.engines}/runc") == []


def test_container_of_isulad_is_found_again_by_its_id_or_its_name_in_another_runtime(graph: Graph) -> None:
    (renamed,) = Isulad().find_recorded("former", ISULAD["web"][1], f"{graph.engines}/runc")
    assert renamed.name == "web"
    (again,) = Isulad().find_recorded("db", "f" * 64, f"{graph.engines}/runc")
    assert again.id == ISULAD["db"][1]


@pytest.mark.parametrize("option", ["-g {}", "--graph {}", "--graph={}", "-g{}"])
def test_graph_of_the_running_daemon_of_isulad_counts(option: str, graph: Graph, tmp_path: Path) -> None:
    (tmp_path / "daemon.json").write_text(json.dumps({"graph": "/configured"}))
    argv = ["isulad", "-c", "kill -STOP $$; :", "-l", "INFO", *option.format(tmp_path).split()]
    with process(*argv, executable="/bin/sh") as pid:
        (tmp_path / "isulad.pid").write_text(f"{pid}\n")
        assert find_isulad("web")[3] == graph.pid
    with process("other", *argv[1:], executable="/bin/sh") as pid:
        (tmp_path / "isulad.pid").write_text(str(pid))
        assert Isulad().places() == ["/configured/engines"], "another process has its PID"


@pytest.mark.parametrize("text", ["", "x", "9" * 30, "-1", "0"])
def test_odd_pid_file_of_isulad_is_that_of_no_daemon(text: str, graph: Graph, tmp_path: Path) -> None:
    (tmp_path / "isulad.pid").write_text(text)
    assert find_isulad("web")[3] == graph.pid


def test_damaged_configuration_of_isulad_hides_what_is_elsewhere(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isulad, "_GRAPH", str(tmp_path))
    (tmp_path / "daemon.json").write_text("")
    assert find_isulad("web")[3] == graph.pid
    with pytest.raises(RecordDamaged, match=r"daemon\.json"):
        Isulad().find("other", None, None)


def test_hook_of_lcr_is_in_a_file_of_its_own(graph: Graph) -> None:
    hooks = {"prestart": [{"path": "/usr/bin/scplan", "args": ["scplan", "hook", "prestart"]}]}
    for name, file, content in (
        ("web", "config.json", {"hooks": hooks}),
        ("db", "ocihooks.json", hooks),
    ):
        (found,) = Isulad().find(name, None, None)
        assert not Isulad().has_hook(found)
        (graph.directory(name) / file).write_text(json.dumps(content))
        assert Isulad().has_hook(found)


def test_isulad_knows_a_name_by_files_alone(graph: Graph) -> None:
    found = Isulad().in_bundle("", ISULAD["db"][1])
    assert found is not None
    assert found.name == "db"
    assert Isulad().in_bundle("", "f" * 64) is None
    assert f"{graph.directory('web')}/container_state.json" in Isulad().signs("web", ISULAD["web"][1]).files


# engines that answer at a socket, and others by their files


@pytest.fixture
def live(session: Session) -> Iterator[Callable[[str], int]]:
    """Starts a process in a cgroup with this last part, as a container's is; its PID."""
    name = session.name()
    cgroups.create_open(name)
    running: list[subprocess.Popen[bytes]] = []

    def start(last: str) -> int:
        running.append(subprocess.Popen(["sleep", "1000"]))
        for hierarchy in cgroups.all_hierarchies():
            if (hierarchy / name).is_dir() and hierarchy.name in ("pids", "freezer", "devices", "memory"):
                (hierarchy / name / last).mkdir(exist_ok=True)
                (hierarchy / name / last / "cgroup.procs").write_text(str(running[-1].pid))
        return running[-1].pid

    try:
        yield start
    finally:
        for one in running:
            one.kill()
            one.wait()
        cgroups.remove(name)


needs_cgroups = pytest.mark.needs("root", "cgroup1")


class Answers(BaseHTTPRequestHandler):
    """Answers of `server.answers` by path, with the status; others with the one of `server.absent`."""

    server: AnswerServer

    def do_GET(self) -> None:
        status, body = self.server.answers.get(self.path.partition("?")[0], self.server.absent)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return

    def address_string(self) -> str:
        return "local"


class AnswerServer(socketserver.ThreadingUnixStreamServer):
    answers: dict[str, tuple[int, bytes]]
    absent: tuple[int, bytes]


@contextmanager
def answering(path: Path, recorded: Path, targets: dict[str, str], pids: dict[int, int]) -> Iterator[None]:
    """A daemon that answers with the files of `recorded`, by target; PIDs of the record stand for others now."""

    def body(name: str) -> tuple[int, bytes]:
        (file,) = recorded.glob(f"{name}.[0-9]*.json")
        text = file.read_text()
        for old, new in pids.items():
            text = re.sub(rf'("[Pp]id": ){old}\b', rf"\g<1>{new}", text)
        return int(file.name.split(".")[-2]), text.encode()

    with AnswerServer(str(path), Answers) as server:
        server.answers, server.absent = {target: body(name) for target, name in targets.items()}, body("none")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def recorded_of(engine: str) -> Path:
    (found,) = FIXTURES.glob(f"{engine}-*")
    return found


def is_as(found: list[ContainerFacts], name: str, container_id: str, status: Status, pid: int) -> None:
    assert [(one.name, one.id, one.status, one.pid) for one in found] == [(name, container_id, status, pid)]


def number(document: Any, *keys: str) -> int:
    for key in keys:
        document = document[key]
    assert isinstance(document, int)
    return document


@needs_cgroups
def test_docker_answers_of_containers_in_each_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: Callable[[str], int]
) -> None:
    recorded = recorded_of("docker")
    documents = {name: json.loads((recorded / f"{name}.200.json").read_text()) for name in ("web", "held", "gone")}
    ids = {name: str(document["Id"]) for name, document in documents.items()}
    now = {name: live(ids[name]) for name in ("web", "held")}
    pids = {number(documents[name], "State", "Pid"): pid for name, pid in now.items()}
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    targets = {
        f"/containers/{reference}/json": name
        for name, container_id in ids.items()
        for reference in (name, container_id, container_id[:12])
    }
    with answering(tmp_path / "docker.sock", recorded, targets | {"/containers/json": "all"}, pids):
        for name, status in (("web", Status.RUNNING), ("held", Status.PAUSED), ("gone", Status.STOPPED)):
            for reference in (name, ids[name], ids[name][:12]):
                is_as(Docker().find(reference, None, None), name, ids[name], status, now.get(name, 0))
        assert {(one.name, one.id) for one in Docker().all()} == set(ids.items())
        assert Docker().find("none", None, None) == []


def test_docker_name_is_read_from_the_files_that_its_bundle_leads_to(tmp_path: Path) -> None:
    recorded = recorded_of("docker")
    (bundle,) = (recorded / "run/containerd/io.containerd.runtime.v2.task/moby").iterdir()
    root = tmp_path / "docker"
    shutil.copytree(recorded / "var/lib/docker/containers", root / "containers")
    text = (bundle / "config.json").read_text()
    assert "/var/lib/docker/containers/" in text
    (tmp_path / "config.json").write_text(text.replace("/var/lib/docker", str(root)))
    found = Docker().in_bundle(str(tmp_path), bundle.name)
    assert found is not None
    assert (found.name, found.id) == ("web", bundle.name)
    assert found.image
    assert Docker().in_bundle(str(tmp_path), "f" * 64) is None


@needs_cgroups
def test_incus_answers_of_containers_in_each_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: Callable[[str], int]
) -> None:
    recorded = recorded_of("incus")
    now = {name: live(f"lxc.payload.{name}") for name in ("web", "held")}
    states = {name: json.loads((recorded / f"{name}.state.200.json").read_text()) for name in now}
    pids = {number(states[name], "metadata", "pid"): pid for name, pid in now.items()}
    monkeypatch.setenv("INCUS_DIR", str(tmp_path))
    monkeypatch.delenv("LXD_DIR", raising=False)
    monkeypatch.delenv("INCUS_PROJECT", raising=False)
    targets = {"/1.0/instances": "all"}
    for name in ("web", "held", "gone"):
        targets |= {f"/1.0/instances/{name}": name, f"/1.0/instances/{name}/state": f"{name}.state"}
    with answering(tmp_path / "unix.socket", recorded, targets, pids):
        for name, status in (("web", Status.RUNNING), ("held", Status.PAUSED), ("gone", Status.STOPPED)):
            is_as(Incus().find(name, None, None), name, name, status, now.get(name, 0))
        assert {one.name for one in Incus().all()} == {"web", "held", "gone"}
        assert Incus().find("none", None, None) == []


def rewrite(path: Path, changes: dict[str, object]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def lives(state: Path, pid: int) -> None:
    """Has a state of runc or crun speak of a process that runs now."""
    keys = ("init_process_pid", "init_process_start") if state.name == "state.json" else ("pid", "process-start-time")
    rewrite(state, dict(zip(keys, (pid, start_of(pid)), strict=True)))


@needs_cgroups
def test_podman_storage_and_states_of_its_runtimes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: Callable[[str], int]
) -> None:
    shutil.copytree(recorded_of("podman"), tmp_path, dirs_exist_ok=True)
    storage = tmp_path / "var/lib/containers/storage"
    (tmp_path / "storage.conf").write_text(f'[storage]\ngraphroot = "{storage}"\n')
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(tmp_path / "storage.conf"))
    for runtime in (Runc, Crun):
        monkeypatch.setattr(runtime, "default_root", lambda self: f"{tmp_path}/run/{self.name}")
    listed = json.loads((storage / "overlay-containers/containers.json").read_text())
    ids = {row["names"][0]: str(row["id"]) for row in listed}
    now: dict[str, int] = {}
    for name, state in (("web", "runc/{}/state.json"), ("held", "runc/{}/state.json"), ("by-crun", "crun/{}/status")):
        now[name] = live(f"libpod-{ids[name]}")
        lives(tmp_path / "run" / state.format(ids[name]), now[name])
    for name in ("web", "by-crun", "gone"):
        status = Status.RUNNING if name in now else Status.STOPPED
        for reference in (name, ids[name], ids[name][:12]):
            is_as(Podman().find(reference, None, None), name, ids[name], status, now.get(name, 0))
    for bundle in ("", f"{storage}/overlay-containers/{ids['held']}/userdata"):
        found = Podman().in_bundle(bundle, ids["held"])
        assert found is not None
        assert (found.name, found.place) == ("held", str(storage))
        assert found.image
    assert Podman().find("none", None, None) == []


@needs_cgroups
def test_containers_of_one_name_in_two_storages_of_podman_are_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: Callable[[str], int]
) -> None:
    """Also where the records follow the name."""
    found = {}
    for place, container_id in (("one", "1a" * 32), ("two", "2b" * 32)):
        listed = tmp_path / place / "graph/overlay-containers/containers.json"
        listed.parent.mkdir(parents=True)
        note = json.dumps({"image-name": "localhost/bb:1"})
        listed.write_text(json.dumps([{"id": container_id, "names": ["web"], "metadata": note}]))
        text = f'[storage]\ngraphroot = "{tmp_path}/{place}/graph"\nrunroot = "{tmp_path}/run"\n'
        (tmp_path / place / "storage.conf").write_text(text)
        pid_file = tmp_path / f"run/overlay-containers/{container_id}/userdata/pidfile"
        pid_file.parent.mkdir(parents=True)
        pid_file.write_text(str(live(f"libpod-{container_id}")))
        monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(tmp_path / place / "storage.conf"))
        (found[place],) = Podman().find("web", None, None)
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(tmp_path / "one/storage.conf"))
    by_name = Naming(by="name")
    for place, other in (("one", "two"), ("two", "one")):
        facts, wrong = found[place], found[other]
        assert facts.place == f"{tmp_path}/{place}/graph"
        record = Record.of(facts._replace(naming=by_name), boot_id(), {})
        assert locate_recorded(record)[:6] == facts[:6]
        assert not is_about(record.id, record.place, wrong)
        assert "it is in" in why_not_followed(record, wrong)
        bundle = f"{wrong.place}/overlay-containers/{wrong.id}/userdata"
        made = Podman().in_bundle(bundle, wrong.id)
        assert made is not None
        assert "it is in" in why_not_followed(record, made)


@needs_cgroups
def test_run_directory_of_podman_is_the_configured_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: Callable[[str], int]
) -> None:
    """Where another OCI runtime runs the container, whose PID file is all that is left."""
    container_id = "c5" * 32
    listed = tmp_path / "graph/overlay-containers/containers.json"
    listed.parent.mkdir(parents=True)
    listed.write_text(json.dumps([{"id": container_id, "names": ["web"]}]))
    text = f'[storage]\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n'
    (tmp_path / "storage.conf").write_text(text)
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(tmp_path / "storage.conf"))
    pid_file = tmp_path / f"run/overlay-containers/{container_id}/userdata/pidfile"
    pid_file.parent.mkdir(parents=True)
    pid = live(f"libpod-{container_id}")
    pid_file.write_text(str(pid))
    is_as(Podman().find("web", None, None), "web", container_id, Status.RUNNING, pid)
    assert str(pid_file) in Podman().signs("web", container_id).files


@needs_cgroups
def test_containerd_tasks_and_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: Callable[[str], int]
) -> None:
    shutil.copytree(recorded_of("containerd"), tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("CONTAINERD_ADDRESS", f"{tmp_path}/run/containerd/containerd.sock")
    monkeypatch.delenv("CONTAINERD_NAMESPACE", raising=False)
    monkeypatch.setattr(containerd, "_OCI_STATES", f"{tmp_path}/run/containerd/runc")
    pid = live("web")
    lives(tmp_path / "run/containerd/runc/default/web/state.json", pid)
    is_as(Containerd().find("web", None, None), "web", "web", Status.RUNNING, pid)
    is_as(Containerd().find("gone", None, None), "gone", "gone", Status.STOPPED, 0)
    assert {one.name for one in Containerd().all()} == {"web", "held", "gone"}
    assert Containerd().find("none", None, None) == []


@needs_cgroups
def test_lxc_configurations_and_answers_of_monitors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: Callable[[str], int]
) -> None:
    recorded = recorded_of("lxc")
    shutil.copytree(recorded / "var/lib/lxc", tmp_path / "lxc")
    monkeypatch.setattr(lxc, "default_path", lambda: f"{tmp_path}/lxc")
    pid = live("lxc.payload.web")
    with monitor(f"{tmp_path}/lxc/web", recorded / "web.monitor", pid):
        is_as(Lxc().find("web", None, None), "web", f"{tmp_path}/lxc/web", Status.RUNNING, pid)
        is_as(Lxc().find("gone", None, None), "gone", f"{tmp_path}/lxc/gone", Status.STOPPED, 0)
    assert {one.name for one in Lxc().all() if one.place == f"{tmp_path}/lxc"} == {"web", "held", "gone"}


@needs_cgroups
def test_containers_of_one_name_below_two_lxcpaths_are_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: Callable[[str], int]
) -> None:
    recorded = recorded_of("lxc")
    one, other = f"{tmp_path}/lxc", f"{tmp_path}/other"
    for path in (one, other):
        shutil.copytree(recorded / "var/lib/lxc", path)
    monkeypatch.setattr(lxc, "default_path", lambda: one)
    here, there = live("lxc.payload.web"), live("lxc.payload.web-1")
    with (
        monitor(f"{one}/web", recorded / "web.monitor", here),
        monitor(f"{other}/web", recorded / "web.monitor", there),
    ):
        (mine,) = Lxc().find("web", None, None)
        (theirs,) = Lxc().find_recorded("web", f"{other}/web", other)
        assert [(facts.pid, facts.place) for facts in (mine, theirs)] == [(here, one), (there, other)]
        for facts, wrong in ((mine, theirs), (theirs, mine)):
            record = Record.of(facts, boot_id(), {})
            assert locate_recorded(record)[:6] == facts[:6]
            assert is_about(record.id, record.place, facts)
            assert not is_about(record.id, record.place, wrong)
            environment = {"LXC_NAME": "web", "LXC_PID": str(wrong.pid), "LXC_CONFIG_FILE": f"{wrong.id}/config"}
            assert call_of_lxc(environment, "start-host", "lxc").id != record.id


@contextmanager
def monitor(directory: str, recorded: Path, pid: int) -> Iterator[None]:
    """A monitor of LXC that gives the recorded answers: of command 3, and of 4 with this process."""
    state, process_id = (bytes.fromhex(line) for line in recorded.read_text().split())
    result, size, _ = struct.unpack("@iiP", process_id)
    answers = {3: state, 4: struct.pack("@iiP", result, size, pid)}

    class Monitor(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            (command,) = struct.unpack_from("@i", self.request.recv(64))
            self.request.sendall(answers[command])

    address = f"\0{lxc_monitor.socket_name(directory)}"
    with socketserver.ThreadingUnixStreamServer(address, Monitor) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_nspawn_arguments_name_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = recorded_of("nspawn")
    assert nspawn.started_machine((recorded / "web.cmdline").read_text().splitlines()[1:]) == ("web", False)
    for place in ("run", "images"):
        for name in (recorded / place).read_text().split():
            (tmp_path / place / name).mkdir(parents=True)
    monkeypatch.setattr(nspawn, "_RUNNING", f"{tmp_path}/run")
    monkeypatch.setattr(nspawn, "_IMAGES", (f"{tmp_path}/images",))
    # No supervisor runs.
    is_as(Nspawn().find("gone", None, None), "gone", "gone", Status.STOPPED, 0)
    assert {one.name for one in Nspawn().all()} == {"web", "held", "gone"}


# one damaged file of many


@pytest.mark.parametrize("damage", ["", "{"])
def test_damaged_list_of_podman_hides_what_may_be_in_it(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(recorded_of("podman"), tmp_path, dirs_exist_ok=True)
    storage = tmp_path / "var/lib/containers/storage"
    (tmp_path / "storage.conf").write_text(f'[storage]\ngraphroot = "{storage}"\n')
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(tmp_path / "storage.conf"))
    damaged = storage / "overlay-containers/volatile-containers.json"
    damaged.write_text(damage)
    podman = Podman()
    assert [one.name for one in podman.find("gone", None, None)] == ["gone"]
    assert list(podman.unreadable) == [str(damaged)]
    for reference in ("other", "go"):
        with pytest.raises(RecordDamaged, match="volatile"):
            podman.find(reference, None, None)
    with pytest.raises(RecordDamaged, match="volatile"):
        podman.find_recorded("other", "f" * 64, str(storage))


@needs_cgroups
def test_damaged_state_is_a_warning_where_another_runtime_has_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: Graph, live: Callable[[str], int]
) -> None:
    """And an error where it is that of a container of the same name."""
    pid = live(ISULAD["web"][1])
    graph.write_state("web", graph.state("web") | {"Pid": pid, "StartTime": start_of(pid)})
    for runtime in (Runc, Crun):
        monkeypatch.setattr(runtime, "default_root", lambda self: f"{tmp_path}/run/{self.name}")
    (tmp_path / "storage.conf").write_text(f'[storage]\ngraphroot = "{tmp_path}/storage"\n')
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(tmp_path / "storage.conf"))
    listed = tmp_path / "storage/overlay-containers/containers.json"
    listed.parent.mkdir(parents=True)
    listed.write_text("")
    runtimes: dict[str, Runtime] = {"podman": Podman(), "isulad": Isulad(), "runc": Runc(), "crun": Crun()}
    assert locate("web", "auto", runtimes).pid == pid
    assert list(runtimes["podman"].unreadable) == [str(listed)]
    state = {"pid": graph.pid, "process-start-time": start_of(graph.pid), "bundle": "/x"}
    for runtime, name, content in (("crun", "one", json.dumps(state)), ("runc", "one", ""), ("runc", "two", "")):
        path = tmp_path / "run" / runtime / name / ("status" if runtime == "crun" else "state.json")
        path.parent.mkdir(parents=True)
        path.write_text(content)
    with pytest.raises(RecordDamaged, match="runc/one"):
        locate("one", "auto", {"runc": Runc(), "crun": Crun()})
    assert locate("one", "crun", runtimes).runtime == "crun"
    shutil.rmtree(tmp_path / "run/runc/one")
    assert locate("one", "auto", {"runc": Runc(), "crun": Crun()}).runtime == "crun"


def test_cgroup_that_runc_could_not_make_for_a_user_is_not_the_containers(tmp_path: Path) -> None:
    """It names directories of hierarchies in which a user may make none, and runs the container without."""
    paths = {"name=systemd": f"{tmp_path}/systemd/one", "": f"{tmp_path}/unified/one"}
    state = {"cgroup_paths": paths, "config": {"rootless_cgroups": True}}
    assert Runc().cgroup_in(state) == ""
    assert Runc().cgroup_in({**state, "config": {"rootless_cgroups": False}}) == "one"
    (tmp_path / "systemd/one").mkdir(parents=True)
    assert Runc().cgroup_in(state) == "one"

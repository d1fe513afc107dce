"""Containers of engines by files and answers that the engines themselves wrote: tests/fixtures, one directory each."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scplan.errors import RecordDamaged
from scplan.linux.process import start_of
from scplan.model.live import Status
from scplan.runtimes import isulad
from scplan.runtimes.isulad import Isulad

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
    assert Isulad().name_of(ISULAD["db"][1], "") == "db"
    assert Isulad().name_of("f" * 64, "") == ""
    assert f"{graph.directory('web')}/container_state.json" in Isulad().signs("web", ISULAD["web"][1]).files

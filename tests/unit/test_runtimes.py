"""Runtimes are believed only as far as they make sense: odd files, odd answers, daemons that hang or are impostors."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from scplan.errors import (
    ContainerElsewhere,
    ContainerNotFound,
    EngineUnreachable,
    KernelError,
    RecordDamaged,
    ScplanError,
)
from scplan.hooks.identity import is_elsewhere, why_another
from scplan.hooks.state import HookCall, call_of_lxc
from scplan.linux import local_socket
from scplan.linux.local_socket import ask, http_get
from scplan.model.live import ContainerFacts, Status
from scplan.runtimes import RUNTIMES, lxc_monitor
from scplan.runtimes.configured_hooks import is_in_bundle, is_in_lxc_configuration
from scplan.runtimes.containerd import Containerd
from scplan.runtimes.docker import Docker
from scplan.runtimes.incus import Incus, is_same_project
from scplan.runtimes.isulad import Isulad
from scplan.runtimes.nspawn import started_machine
from scplan.runtimes.podman import Podman
from scplan.runtimes.runtime import ContainerName, Runtime, by_name_or_id, by_reference, locate
from scplan.store.state import Record
from scplan.workflow.recorded import is_about, replaced

ID = "c52632d63942ae80b1a7dc8e14aa92e96cc099a905849f255091a80f705b3946"


@contextmanager
def daemon(address: str | bytes, *answers: bytes, linger_s: float = 0) -> Iterator[list[bytes]]:
    """Somebody who gives these answers, one for each connection, and what was asked."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    asked.append(connection.recv(1 << 16))
                    try:
                        connection.sendall(answer)
                        time.sleep(linger_s)
                    except BrokenPipeError:
                        pass  # it has heard enough

        thread = Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            thread.join()


def http(document: object, status: str = "200 OK") -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return f"HTTP/1.0 {status}\r\nContent-Type: application/json\r\n\r\n".encode() + body


@pytest.fixture
def docker_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = f"{tmp_path}/docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    return path


@pytest.fixture
def incus_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("INCUS_DIR", str(tmp_path))
    monkeypatch.delenv("LXD_DIR", raising=False)
    return f"{tmp_path}/unix.socket"


# sockets


def test_answer_is_what_was_said_until_the_end(tmp_path: Path) -> None:
    path = f"{tmp_path}/s"
    with daemon(path, http({"a": 1}), http(b"", "404 Not Found")) as asked:
        assert http_get(path, "/x") == (200, b'{"a": 1}')
        assert http_get(path, "/y")[0] == 404
    assert asked[0].startswith(b"GET /x HTTP/1.0\r\n")


@pytest.mark.parametrize("answer", [b"", b"nonsense", b"HTTP/1.0\r\n\r\n", b"HTTP/1.0 abc\r\n\r\n", b"HTTP/1.0 200 OK"])
def test_answer_that_is_no_http_is_refused(answer: bytes, tmp_path: Path) -> None:
    with daemon(f"{tmp_path}/s", answer), pytest.raises(ScplanError, match="is not HTTP"):
        http_get(f"{tmp_path}/s", "/x")


def test_daemon_that_hangs_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_socket, "TIMEOUT_S", 0.2)
    began = time.monotonic()
    with daemon(f"{tmp_path}/s", b"HTTP/1.0 200 OK\r\n", linger_s=0.5), pytest.raises(KernelError) as raised:
        http_get(f"{tmp_path}/s", "/x")
    assert time.monotonic() - began < 2
    assert f"{tmp_path}/s" in str(raised.value)
    assert "no answer within 0.2 s" in str(raised.value)


@contextmanager
def hanging(path: str, *, about: bytes) -> Iterator[list[bytes]]:
    """Somebody listens at `path`, and answers all requests but those with `about` in their target: what was asked."""
    asked: list[bytes] = []
    kept: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                target = connection.recv(1 << 16).split()[1]
                asked.append(target)
                if about in target:
                    kept.append(connection)
                else:
                    connection.sendall(http({"message": "no such container"}, "404 Not Found"))
                    connection.close()

        thread = Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in kept:
                connection.close()


def test_engine_that_hangs_is_asked_once(docker_socket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_socket, "TIMEOUT_S", 0.2)
    docker = Docker()
    with hanging(docker_socket, about=b"/") as asked:
        for name in ("web", "db", "web"):
            with pytest.raises(EngineUnreachable, match=r"docker can't be reached at .*: no answer within 0.2 s"):
                docker.find(name, None, None)
        with pytest.raises(EngineUnreachable):
            docker.check_reachable("")
    assert asked == [b"/containers/web/json", b"/_ping"]


def test_engine_that_hangs_about_one_container_is_asked_about_others(
    docker_socket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker does not answer about a container that is being started."""
    monkeypatch.setattr(local_socket, "TIMEOUT_S", 0.2)
    docker = Docker()
    with hanging(docker_socket, about=b"web"):
        with pytest.raises(EngineUnreachable):
            docker.find("web", None, None)
        assert docker.find("db", None, None) == []
        docker.check_reachable("")


def test_daemon_that_trickles_is_given_up_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_socket, "TIMEOUT_S", 0.2)
    path = f"{tmp_path}/s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                for _ in range(10):
                    try:
                        connection.sendall(b"x")
                    except BrokenPipeError:
                        return
                    time.sleep(0.05)

        thread = Thread(target=serve)
        thread.start()
        with pytest.raises(KernelError, match="ETIMEDOUT"):
            http_get(path, "/x")
        thread.join()


def test_endless_answer_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_socket, "MAX_ANSWER_BYTES", 1 << 20)
    with daemon(f"{tmp_path}/s", bytes(4 << 20)), pytest.raises(ScplanError, match="more than 1 MiB"):
        ask(f"{tmp_path}/s", b"x")


@pytest.mark.needs("root")
def test_socket_of_another_user_is_not_believed() -> None:
    """An abstract name can be taken by anyone: the one of a container that is stopped, say."""
    directory = f"/scplan-test/{os.getpid()}"
    go_read, go_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setresuid(65534, 65534, 65534)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"\0{directory}/command".encode())
            listener.listen()
            os.write(go_write, b"!")
            connection, _ = listener.accept()
            connection.close()
        os._exit(0)
    os.read(go_read, 1)
    try:
        with pytest.raises(KernelError, match="user 65534 listens there"):
            lxc_monitor.init_pid(directory)
    finally:
        os.waitpid(child, 0)
        os.close(go_read)
        os.close(go_write)


def test_monitor_that_is_late_to_ask_who_asks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts, and only then wants credentials with each message: what came in between would be nobody's."""
    directory = f"/scplan-test/{os.getpid()}/late"
    accepted_read, accepted_write = os.pipe()
    # The last thing before the request is sent.
    monkeypatch.setattr(local_socket, "_check_owner", lambda *_: os.read(accepted_read, 1))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"\0{directory}/command")
        listening.listen()
        child = os.fork()
        if child == 0:
            connection, _ = listening.accept()
            os.write(accepted_write, b"!")
            connection.recv(1, socket.MSG_PEEK)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            _, ((_, _, told),), _, _ = connection.recvmsg(100, 100)
            _, uid, gid = struct.unpack("3i", told)
            known = (uid, gid) == (os.geteuid(), os.getegid())
            connection.sendall(struct.pack("@iiP", 0 if known else -errno.EPERM, 0, 4242))
            os._exit(0)
        try:
            assert lxc_monitor.init_pid(directory) == 4242
        finally:
            os.waitpid(child, 0)
            os.close(accepted_read)
            os.close(accepted_write)


@pytest.mark.parametrize(
    ("answer", "pid"),
    [
        (struct.pack("@iiP", 0, 0, 4242), 4242),
        (b"", 0),
        (b"\0" * 7, 0),
        (struct.pack("@iiq", 0, 0, -errno.ESRCH), 0),
        (struct.pack("@iiP", -3, 0, 4242), None),
        (struct.pack("@iiP", 0, 0, 1 << 40), None),
    ],
    ids=["a process", "nothing", "a part", "not yet", "an error", "no process"],
)
def test_monitor_of_lxc_names_a_process_or_none(answer: bytes, pid: int | None) -> None:
    directory = f"/scplan-test/{os.getpid()}/{'long/' * 30}web"
    with daemon(b"\0" + lxc_monitor.socket_name(directory).encode(), answer) as asked:
        if pid is None:
            with pytest.raises(RecordDamaged, match="names no process"):
                lxc_monitor.init_pid(directory)
        else:
            assert lxc_monitor.init_pid(directory) == pid
    assert asked == [struct.pack("@iiP", 4, 0, 0)]


def test_monitor_of_lxc_that_ends_with_the_question_unread_has_no_process() -> None:
    """The kernel answers ECONNRESET for it. unix(7)"""
    directory = f"/scplan-test/{os.getpid()}/ending"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(b"\0" + lxc_monitor.socket_name(directory).encode())
        listener.listen()

        def end() -> None:
            connection, _ = listener.accept()
            connection.recv(1, socket.MSG_PEEK)  # it is there, and stays unread
            connection.close()

        thread = Thread(target=end)
        thread.start()
        try:
            assert lxc_monitor.init_pid(directory) == 0
        finally:
            thread.join()


# answers of engines


def container(**changes: object) -> dict[str, object]:
    return {"Id": ID, "Name": "/web", "State": {"Running": True, "Pid": os.getpid(), "Paused": False}, **changes}


def test_docker_tells_name_id_and_process(docker_socket: str) -> None:
    with daemon(docker_socket, http(container())) as asked:
        (found,) = Docker().find("web", None, None)
    assert (found.name, found.id, found.status, found.pid) == ("web", ID, Status.RUNNING, os.getpid())
    assert asked[0].startswith(b"GET /containers/web/json ")


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ({"Running": False, "Pid": 0}, Status.STOPPED),
        ({"Running": True, "Pid": os.getpid(), "Paused": True}, Status.PAUSED),
        ({"Running": True, "Pid": 1 << 22}, Status.STOPPED),
    ],
    ids=["exited", "paused", "its process just ended"],
)
def test_docker_tells_the_status(state: dict[str, object], status: Status, docker_socket: str) -> None:
    with daemon(docker_socket, http(container(State=state))):
        (found,) = Docker().find("web", None, None)
    assert (found.status, bool(found.pid)) == (status, status is not Status.STOPPED)


ODD = {
    "no JSON": b"<html>",
    "deep": b"[" * 100_000,
    "a list": [container()],
    "a number": 7,
    "no ID": {"Name": "/web", "State": {}},
    "an ID of a number": container(Id=7),
    "no state": container(State=None),
    "a PID of a text": container(State={"Running": True, "Pid": "1"}),
    "a PID of a truth": container(State={"Running": True, "Pid": True}),
    "a name with a path": container(Name="/../../etc/passwd"),
    "a name with an escape": container(Name="/\x1b[2J"),
    "an empty name": container(Name="/"),
    "a state of a text": container(State={"Running": "yes", "Pid": 1}),
}


@pytest.mark.parametrize("document", ODD.values(), ids=ODD)
def test_odd_answers_of_docker_are_refused_by_name(document: object, docker_socket: str) -> None:
    with daemon(docker_socket, http(document)), pytest.raises(RecordDamaged) as raised:
        Docker().find("web", None, None)
    assert docker_socket in str(raised.value)


def test_docker_is_asked_for_all_when_it_finds_a_prefix_ambiguous(docker_socket: str) -> None:
    rows = [{"Id": f"ab{number}".ljust(64, "0"), "Names": ["/other/link", f"/web{number}"]} for number in range(3)]
    answers = [container(Id=row["Id"], Name=f"/web{number}") for number, row in enumerate(rows)]
    with daemon(docker_socket, http({"message": "multiple"}, "400 Bad Request"), http(rows), *map(http, answers)):
        found = Docker().find("ab", None, None)
    assert [facts.name for facts in found] == ["web0", "web1", "web2"]


def test_refusal_of_docker_says_what_it_says(docker_socket: str) -> None:
    refusal = http({"message": "the disk is full"}, "500 Internal Server Error")
    with daemon(docker_socket, refusal, http([])), pytest.raises(ScplanError, match="the disk is full"):
        Docker().find("web", None, None)


def test_name_that_no_engine_can_have_is_not_asked_for(docker_socket: str, incus_socket: str) -> None:
    Path(docker_socket).touch()
    Path(incus_socket).touch()
    for name in ("../images", "a?b", "a b", "a%2f", "ü"):
        assert Docker().find(name, None, None) == Incus().find(name, None, None) == []


def test_context_of_docker_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text('{"currentContext": "mine"}')
    meta = tmp_path / "contexts/meta/abc"
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text('{"Name": "mine", "Endpoints": {"docker": {"Host": "unix:///run/mine.sock"}}}')
    damaged = tmp_path / "contexts/meta/aaa/meta.json"
    damaged.parent.mkdir()
    damaged.write_text("")
    assert Docker().places() == ["/run/mine.sock"], "another context's file is damaged"
    damaged.unlink()
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere:2375")
    assert Docker().places() == []
    monkeypatch.delenv("DOCKER_HOST")
    monkeypatch.setenv("DOCKER_CONTEXT", "gone")
    with pytest.raises(ScplanError, match="'gone'"):
        Docker().places()


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"metadata": 7},
        {"metadata": {"type": "container"}},
        {"metadata": {"type": 1, "status": "Running"}},
        b"{",
    ],
)
def test_odd_answers_of_incus_are_refused_by_name(document: object, incus_socket: str) -> None:
    with daemon(incus_socket, http(document)), pytest.raises(RecordDamaged) as raised:
        Incus().find("web", None, None)
    assert incus_socket in str(raised.value)


def test_virtual_machine_of_incus_is_no_container(incus_socket: str) -> None:
    machine = {"metadata": {"type": "virtual-machine", "name": "web", "status": "Running"}}
    with daemon(incus_socket, http(machine), http({"metadata": ["/1.0/instances/web"]}), http(machine)):
        assert Incus().find("web", None, None) == []


@pytest.mark.parametrize(
    ("said", "is_starting"), [("Invalid PID '\ufffd'", True), ("Failed getting root disk: no such device", False)]
)
def test_instance_of_incus_without_a_process_yet_is_stopped(said: str, is_starting: bool, incus_socket: str) -> None:
    """Its daemon calls it running as soon as it has a monitor."""
    instance = {"metadata": {"type": "container", "name": "web", "status": "Running", "location": "none"}}
    refusal = http({"error": said}, "500 Internal Server Error")
    with daemon(incus_socket, http(instance), refusal):
        if is_starting:
            (found,) = Incus().find("web", None, None)
            assert (found.status, found.pid) == (Status.STOPPED, 0)
        else:
            with pytest.raises(EngineUnreachable, match="status 500"):
                Incus().find("web", None, None)


# state files


@pytest.mark.parametrize("text", [b"{", b"{}", b"[7]", b'[{"id": 7}]', b"[" * 100_000, b"\xff"])
def test_odd_storage_of_podman_is_refused_by_name(text: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage_of(tmp_path, monkeypatch).write_bytes(text)
    with pytest.raises(RecordDamaged, match=str(tmp_path)):
        Podman().find("web", None, None)


def storage_of(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The list of podman's containers in a storage of its own."""
    (directory / "storage.conf").write_text(f'[storage]\ngraphroot = "{directory}/graph"\n')
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", f"{directory}/storage.conf")
    (directory / "graph/overlay-containers").mkdir(parents=True)
    return directory / "graph/overlay-containers/containers.json"


@pytest.mark.needs("root")
def test_podman_sees_a_list_that_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = storage_of(tmp_path, monkeypatch)
    listed.write_text(json.dumps([{"id": ID, "names": ["web"]}]))
    assert [(one.name, one.id) for one in Podman().all()] == [("web", ID)]
    (found,) = Podman().find(ID[:6], None, None)
    assert (found.name, found.runtime, found.status) == ("web", "podman", Status.STOPPED)
    listed.write_text(json.dumps([{"id": ID, "names": ["renamed"]}, {"id": "ab", "names": None}]))
    assert [one.name for one in Podman().all()] == ["renamed", "ab"]


@pytest.mark.needs("root")
def test_pid_file_is_believed_only_with_the_cgroup_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage_of(tmp_path, monkeypatch).write_text(json.dumps([{"id": ID, "names": ["web"]}]))
    monkeypatch.setattr("scplan.runtimes.podman.user_directory", lambda: str(tmp_path))
    pid_file = tmp_path / f"containers/overlay-containers/{ID}/userdata/pidfile"
    pid_file.parent.mkdir(parents=True)
    for text in (str(os.getpid()), "", "x", "9" * 30):
        pid_file.write_text(text)
        (found,) = Podman().find("web", None, None)
        assert found.status is Status.STOPPED


def test_directory_that_isulad_is_just_making_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Isulad, "places", lambda _: [f"{tmp_path}/engines"])
    (tmp_path / f"engines/runc/{ID}").mkdir(parents=True)
    assert Isulad().find(ID, None, None) == []
    file = tmp_path / f"engines/runc/{ID}/config.v2.json"
    state = {"Running": True, "Pid": os.getpid(), "StartTime": 1}
    file.write_text(json.dumps({"CommonConfig": {"Name": "web", "id": ID}, "State": state}))
    (found,) = Isulad().find("web", None, None)
    assert (found.id, found.status) == (ID, Status.STOPPED), "another process has its PID"
    file.write_text(json.dumps({"CommonConfig": {"Name": 7}, "State": state}))
    with pytest.raises(RecordDamaged, match="Name is not a text"):
        Isulad().find("web", None, None)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]"])
def test_damaged_file_of_one_container_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    monkeypatch.setattr(Isulad, "places", lambda _: [f"{tmp_path}/engines"])
    for container_id, content in {ID: None, "d" * 64: damage}.items():
        file = tmp_path / f"engines/runc/{container_id}/config.v2.json"
        file.parent.mkdir(parents=True)
        good = {"CommonConfig": {"Name": "web", "id": container_id}, "State": {"Running": False}}
        file.write_bytes(json.dumps(good).encode() if content is None else content)
    runtime = Isulad()
    assert [one.id for one in runtime.find("web", None, None)] == [ID]
    assert [one.id for one in runtime.find(ID[:8], None, None)] == [ID]
    assert list(runtime.unreadable) == [f"{tmp_path}/engines/runc/{'d' * 64}/config.v2.json"]
    for reference in ("dddd", "other"):
        with pytest.raises(RecordDamaged, match=r"config\.v2\.json"):
            runtime.find(reference, None, None)
    runtimes = {"isulad": runtime}
    with pytest.raises(RecordDamaged, match=r"config\.v2\.json"):
        locate("other", "auto", runtimes)
    assert locate("web", "auto", runtimes).id == ID


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("-D /srv/web /bin/sh -M x", "web"),
        ("--directory=/srv/web/ -b", "web"),
        ("-qbD /srv/web", "web"),
        ("-bqMweb -D /srv/x", "web"),
        ("--quiet --machine web --bind /x -D /srv/x", "web"),
        ("--bind /x --machine=web", "web"),
        ("-i /srv/web.raw", "web"),
        ("--private-users -M web", "web"),
        ("-a -- -M web", ""),
        ("-b", ""),
        ("-M", ""),
        ("-xD /srv/web", "web-*"),
        ("--ephemeral -D /srv/web", "web-*"),
        ("-bx -i /srv/web.raw", "web-*"),
        ("-x -M web -D /srv/x", "web"),
        ("-D /srv/web -- -x", "web"),
    ],
)
def test_machine_is_named_by_the_arguments_of_nspawn(arguments: str, name: str) -> None:
    """An ephemeral one without a name of its own has a suffix that nobody can tell beforehand."""
    found = started_machine(arguments.split())
    assert (found.name, found.is_suffixed) == (name.removesuffix("-*"), name.endswith("-*"))


# which container is meant


def test_exact_id_comes_before_a_name_and_that_before_the_beginning_of_a_generated_id() -> None:
    names = [ContainerName("web", ID), ContainerName(ID[:12], "d" * 64), ContainerName("db", ID[:10] + "e" * 54)]
    assert by_name_or_id(ID, names) == [names[0]]
    assert by_name_or_id("web", names) == [names[0]]
    assert by_name_or_id(ID[:12], names) == [names[1]]
    assert by_name_or_id(ID[:10], names) == [names[2], names[0]]
    assert by_name_or_id("we", names) == []


@pytest.mark.parametrize("canary", ["web-canary", "web" + "f" * 61, "WEB".ljust(64, "0")])
def test_id_that_people_chose_has_no_short_form(canary: str) -> None:
    assert by_reference("web", [canary]) == []
    assert by_name_or_id("web", [ContainerName(canary, canary)]) == []
    assert by_reference(ID[:6], [canary, ID]) == [ID]


# in which place it is


def recorded(facts: ContainerFacts, **changes: Any) -> Record:
    return Record.of(facts, "", {})._replace(**changes)


@pytest.mark.parametrize(
    ("runtime", "container_id", "here", "there", "is_one"),
    [
        ("runc", "web", "/run/runc", "/run/other", False),
        ("runc", ID, "/run/runc", "/run/other", False),
        ("containerd", "web", "/run/containerd/tasks/a", "/run/containerd/tasks/b", False),
        ("incus", "web", "/run/i/unix.socket?project=default", "/run/i/unix.socket?project=pr", False),
        ("podman", ID, "/var/lib/containers/storage", "/srv/copy", False),
        ("docker", ID, "/run/docker.sock", "/run/second.sock", True),
        ("runc", "web", "/run/runc", "", True),
        ("runc", "web", "/run/runc", "/run/../run/runc", True),
    ],
)
def test_container_of_the_same_id_in_another_place_is_another_one(
    runtime: str, container_id: str, here: str, there: str, is_one: bool
) -> None:
    """But a daemon can have several sockets, and of records of former versions the place is not known."""
    one = facts("web", runtime, container_id)._replace(place=here)
    record = recorded(one, place=there)
    assert is_about(record.id, record.place, one) == is_one
    if not is_one:
        assert isinstance(replaced(record, one), ContainerElsewhere)


def test_record_is_searched_in_its_own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CONTAINERD_NAMESPACE names another one by now."""
    for space in ("a", "b"):
        (tmp_path / "io.containerd.runtime.v2.task" / space / "web").mkdir(parents=True)
    monkeypatch.setenv("CONTAINERD_ADDRESS", str(tmp_path / "s.sock"))
    monkeypatch.setenv("CONTAINERD_NAMESPACE", "a")
    (found,) = Containerd().find("web", None, None)
    assert found.place.endswith("/a")
    monkeypatch.setenv("CONTAINERD_NAMESPACE", "b")
    (again,) = Containerd().find_recorded(found.name, found.id, found.place)
    assert again.place == found.place
    (other,) = Containerd().find("web", None, None)
    assert other.place.endswith("/b")


def call_of_incus(environment: dict[str, str]) -> HookCall:
    return call_of_lxc(environment, "start-host", "incus")


TASKS = "/run/containerd/io.containerd.runtime.v2.task"


@pytest.mark.parametrize(
    ("runtime", "place", "told", "is_it"),
    [
        ("containerd", f"{TASKS}/a", HookCall("web", "createRuntime", 1, bundle=f"{TASKS}/a/web"), True),
        ("containerd", f"{TASKS}/a", HookCall("web", "createRuntime", 1, bundle=f"{TASKS}/b/web"), False),
        ("containerd", "", HookCall("web", "createRuntime", 1, bundle=f"{TASKS}/b/web"), True),
        ("incus", "/run/i/unix.socket?project=pr", call_of_incus({"LXC_NAME": "pr_web", "LXC_PID": "1"}), True),
        ("incus", "/run/i/unix.socket?project=a_b", call_of_incus({"LXC_NAME": "a_b_web", "LXC_PID": "1"}), True),
        ("incus", "/run/i/unix.socket?project=pr", call_of_incus({"LXC_NAME": "web", "LXC_PID": "1"}), False),
        ("incus", "/run/i/unix.socket?project=default", call_of_incus({"LXC_NAME": "pr_web", "LXC_PID": "1"}), False),
        ("incus", "/run/i/unix.socket?project=default", call_of_incus({"LXC_NAME": "web", "LXC_PID": "1"}), True),
    ],
)
def test_hook_compares_the_place(runtime: str, place: str, told: HookCall, is_it: bool) -> None:
    record = Record("web", runtime, "web", {}, place=place)
    assert told.id == "web"
    assert (why_another(told, record, "") == "") == is_it
    assert is_elsewhere(told, record) == (not is_it)


@pytest.mark.parametrize("is_here", [True, False])
def test_hook_distinguishes_daemons_of_incus_by_where_the_root_is(is_here: bool, tmp_path: Path) -> None:
    """Two daemons with an instance of the same name in the same project."""
    for directory in ("one", "two"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "unix.socket").touch()
    record = Record("web", "incus", "web", {}, place=f"{tmp_path}/one/unix.socket?project=default")
    root = f"{tmp_path}/{'one' if is_here else 'two'}/storage-pools/default/containers/web/rootfs"
    told = call_of_incus({"LXC_NAME": "web", "LXC_PID": "1", "LXC_ROOTFS_PATH": root})
    assert (why_another(told, record, "") == "") == is_here
    assert is_elsewhere(told, record) == (not is_here)


def test_sockets_of_one_daemon_of_incus_are_one_place() -> None:
    one, other = (f"/{directory}/unix.socket?project=a" for directory in ("var/lib/incus", "run/incus"))
    assert is_same_project(one, other)
    assert not is_same_project(one, other.replace("=a", "=b"))
    assert not is_same_project(one, "/srv/incus/unix.socket?project=a")


TOLD = """
import json, os, sys
from scplan.hooks.state import call_of_lxc
print(json.dumps(call_of_lxc(os.environ, "start-host", None)[::5]))
"""


@pytest.mark.parametrize(
    "title",
    [
        ("[lxc monitor] /srv/other web",),
        ("lxc-start", "-P", "/srv/other", "-n", "web"),
        ("lxc-start", "--lxcpath=/srv/other", "web"),
    ],
)
def test_configuration_named_by_hand_is_of_the_path_of_its_monitor(title: tuple[str, ...]) -> None:
    """`lxc-start -P /srv/other -f FILE`: a container of the default path may have the name, too."""
    environment = {"LXC_NAME": "web", "LXC_PID": "1", "LXC_CONFIG_FILE": "/etc/special.conf"}
    call = f"{shlex.quote(sys.executable)} -c {shlex.quote(TOLD)}; true"
    words = [title[0], "-c", call, *title[1:]]
    ended = subprocess.run(
        words, executable="/bin/sh", env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert json.loads(ended.stdout) == ["/srv/other/web", "/srv/other"]


class Fixed(Runtime):
    """A runtime with these answers."""

    def __init__(self, name: str, answer: Callable[[], list[ContainerFacts]]) -> None:
        self.name, self._answer = name, answer  # type: ignore[misc]

    def places(self) -> list[str]:
        return [f"/run/{self.name}"]

    def find(self, reference: str, pid: int | None, pid_file: str | None) -> list[ContainerFacts]:
        return self._answer()

    def all(self) -> list[ContainerName]:
        return []


def facts(name: str, runtime: str, id: str, pid: int = 0) -> ContainerFacts:
    return ContainerFacts(name, runtime, id, Status.RUNNING if pid else Status.STOPPED, pid)


def answering(*found: ContainerFacts) -> dict[str, Runtime]:
    return {one.runtime: Fixed(one.runtime, lambda one=one: [one]) for one in found}  # type: ignore[misc]


def test_container_that_two_runtimes_know_is_the_outermost_ones() -> None:
    for pids in ((4, 4), (0, 0), (4, 0)):
        known = answering(facts("web", "docker", ID, pids[0]), facts(ID, "containerd", ID, pids[1]))
        assert locate(ID[:8], "auto", known).runtime == "docker"


def test_beginning_of_two_ids_is_ambiguous() -> None:
    one, other = facts("web", "docker", ID), facts("db", "podman", ID[:10] + "e" * 54)
    with pytest.raises(ContainerNotFound, match=rf"can mean 2 containers: web \(docker, {ID[:12]}\), db \(podman, "):
        locate(ID[:10], "auto", answering(one, other))


def test_stopped_containers_of_the_same_name_are_two() -> None:
    with pytest.raises(ContainerNotFound, match=r"can mean 2 containers: web \(crun\), web \(runc\)"):
        locate("web", "auto", answering(facts("web", "crun", "web"), facts("web", "runc", "web")))


def test_exact_name_in_one_runtime_comes_before_the_beginning_of_an_id_in_another() -> None:
    known = answering(facts("db", "podman", "db" + ID[2:], 4), facts("ab", "docker", "dbab", 5))
    assert locate("db", "auto", known).runtime == "podman"


def test_runtime_that_nobody_runs_is_no_trouble_unless_it_is_meant() -> None:
    def refused() -> list[ContainerFacts]:
        raise KernelError("connect(/run/docker.sock)", 111)

    known = {"docker": Fixed("docker", refused), **answering(facts("web", "runc", "web", 4))}
    assert locate("web", "auto", known).runtime == "runc"
    with pytest.raises(KernelError):
        locate("web", "docker", known)
    with pytest.raises(ContainerNotFound, match=r"docker could not be asked: connect\(/run/docker.sock\)"):
        locate("web", "auto", {"docker": Fixed("docker", refused)})


def test_runtime_that_hangs_is_an_error_also_when_others_answer() -> None:
    def late() -> list[ContainerFacts]:
        raise KernelError("recv(/run/docker.sock)", 110)

    with pytest.raises(KernelError, match=r"/run/docker\.sock"):
        locate("web", "auto", {"docker": Fixed("docker", late), **answering(facts("web", "runc", "web", 4))})


def test_every_runtime_of_the_registry_can_be_made_and_asked() -> None:
    for name, runtime in RUNTIMES.items():
        assert runtime.name == name
        assert all(place.startswith("/") for place in runtime.places())
        assert name in RUNTIMES


# hooks


@pytest.mark.parametrize(
    ("hooks", "expected"),
    [
        ({"createRuntime": [{"path": "/usr/bin/scplan", "args": ["scplan", "hook"]}]}, True),
        (
            {
                "prestart": [
                    {"path": "/bin/x"},
                    {"path": "/usr/bin/python3", "args": ["python3", "-m", "scplan", "hook"]},
                ]
            },
            True,
        ),
        ({"poststop": [{"path": "/usr/bin/scplan", "args": ["scplan", "hook"]}]}, False),
        ({"createRuntime": [{"path": "/usr/bin/scplan", "args": ["scplan", "drift"]}, 7, {"args": 7}]}, False),
        ({"createRuntime": {"path": "/usr/bin/scplan"}}, False),
        (None, False),
    ],
)
def test_hook_is_found_in_a_bundle(hooks: object, expected: bool, tmp_path: Path) -> None:
    assert not is_in_bundle(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"hooks": hooks}))
    assert is_in_bundle(str(tmp_path)) is expected


def test_hook_is_found_in_a_configuration_of_lxc() -> None:
    assert is_in_lxc_configuration("lxc.uts.name = web\nlxc.hook.start-host = /usr/bin/scplan hook lxc\n")
    assert not is_in_lxc_configuration(
        "# lxc.hook.start-host = /usr/bin/scplan hook\nlxc.hook.post-stop = scplan hook\n"
    )


# clusters of Incus


def instance_on(location: str) -> bytes:
    about = {"name": "web", "type": "container", "status": "Stopped", "location": location}
    return http({"metadata": about})


def test_instance_on_another_member_of_the_cluster_is_out_of_reach(incus_socket: str) -> None:
    server = http({"metadata": {"environment": {"server_name": "one"}}})
    with (
        daemon(incus_socket, instance_on("two"), server),
        pytest.raises(EngineUnreachable, match="instance web is on cluster member two, and this is one") as raised,
    ):
        Incus().find("web", None, None)
    assert "run scplan on two" in raised.value.diagnostics[0].hint
    os.unlink(incus_socket)
    with daemon(incus_socket, instance_on("one"), server):
        assert [one.name for one in Incus().find("web", None, None)] == ["web"]
    os.unlink(incus_socket)
    with daemon(incus_socket, instance_on("none")):
        assert [one.name for one in Incus().find("web", None, None)] == ["web"]


def test_incus_without_its_socket_is_out_of_reach(incus_socket: str) -> None:
    for ask_it in (
        lambda: Incus().find("web", None, None),
        lambda: Incus().find_recorded("web", "web", f"{incus_socket}?project=default"),
        lambda: Incus().check_reachable(f"{incus_socket}?project=default"),
    ):
        with pytest.raises(EngineUnreachable, match=re.escape(f"incus can't be reached at {incus_socket}")) as raised:
            ask_it()
        assert raised.value.errno == errno.ENOENT

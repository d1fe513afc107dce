"""What `scplan watch` is made of, without containers: pacing, files that are waited for, streams, what is told."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from scplan.errors import Diagnostic, Severity
from scplan.kinds.route import Route
from scplan.model.address import Address
from scplan.model.report import Drifted, Notice, Occasion, Tally
from scplan.render.machine import to_line
from scplan.render.metrics import watch_metrics
from scplan.render.notices import notice_lines, notice_to_json, priority
from scplan.runtimes import RUNTIMES
from scplan.runtimes.runtime import Signs, Stream
from scplan.watch.attend import Seen
from scplan.watch.pace import Gaps, Schedule
from scplan.watch.paths import Paths
from scplan.watch.streams import DaemonEvents
from scplan.watch.watched import Inventory

GAPS = Gaps(shortest_s=1.0, longest_s=8.0, settle_s=0.1)
KEY = ("runc", "web")


# pacing


def test_a_hint_after_quiet_is_answered_at_once() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.hint("web", 10.0, GAPS)
    assert schedule.next_s() == pytest.approx(10.1)
    assert schedule.take(10.0, 5) == []
    assert schedule.take(10.1, 5) == ["web"]
    assert schedule.next_s() is None


def test_a_flood_of_hints_is_answered_ever_less_often() -> None:
    schedule: Schedule[str] = Schedule()
    looks = []
    for tick in range(10_000):
        now = tick / 100
        schedule.hint("web", now, GAPS)
        looks += [now for _ in schedule.take(now, 5)]
    gaps = [after - before for before, after in pairwise(looks)]
    assert gaps[0] == pytest.approx(1.0, abs=0.02)
    assert gaps[-1] == pytest.approx(8.0, abs=0.02)
    assert len(looks) < 20
    assert len(schedule) < 100


def test_rest_makes_it_quick_again() -> None:
    schedule: Schedule[str] = Schedule()
    for now in (0.0, 1.0, 2.0, 4.0, 8.0):
        schedule.hint("web", now, GAPS)
        schedule.take(now + 0.1, 5)
    schedule.hint("web", 100.0, GAPS)
    assert schedule.take(100.1, 5) == ["web"]
    schedule.hint("web", 100.2, GAPS)
    assert schedule.next_s() == pytest.approx(101.1)


def test_hints_of_one_sort_do_not_slow_those_of_another() -> None:
    urgent = Gaps(shortest_s=0.1, longest_s=0.5)
    schedule: Schedule[str] = Schedule()
    for now in range(100):
        schedule.hint("web", float(now), GAPS)
        schedule.take(float(now) + 0.1, 5)
    schedule.hint("web", 100.0, urgent)
    assert schedule.take(100.0, 5) == ["web"]


def test_time_alone_brings_a_turn_and_slows_nothing() -> None:
    schedule: Schedule[str] = Schedule()
    for now in range(100):
        schedule.at("web", float(now))
        assert schedule.take(float(now), 5) == ["web"]
    schedule.hint("web", 99.0, GAPS)
    assert schedule.next_s() == pytest.approx(100.0)


def test_what_is_postponed_waits_and_what_is_forgotten_never_comes() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.at("web", 1.0)
    schedule.at("db", 1.0)
    schedule.postpone("web", 5.0)
    schedule.forget("db")
    assert schedule.take(2.0, 5) == []
    assert schedule.take(5.0, 5) == ["web"]


# files that are waited for


def heard(paths: Paths[str]) -> set[str]:
    return paths.heard()


def test_a_file_is_heard_of_however_much_of_its_way_is_missing(tmp_path: Path) -> None:
    with Paths[str]() as paths:
        paths.add(f"{tmp_path}/run/runc/web/state.json", "web")
        assert heard(paths) == set()
        for directory in ("run", "run/runc", "run/runc/web"):
            (tmp_path / directory).mkdir()
            assert heard(paths) == {"web"}
        (tmp_path / "run/runc/web/other").touch()
        assert heard(paths) == set()
        (tmp_path / "run/runc/web/new").write_text("{}")
        heard(paths)
        (tmp_path / "run/runc/web/new").rename(tmp_path / "run/runc/web/state.json")
        assert heard(paths) == {"web"}


def test_a_file_is_heard_of_after_its_directories_went_and_came_back(tmp_path: Path) -> None:
    file = tmp_path / "runc/web/state.json"
    with Paths[str]() as paths:
        for _ in range(3):
            file.parent.mkdir(parents=True)
            file.touch()
            paths.add(str(file), "web")
            heard(paths)
            file.unlink()
            file.parent.rmdir()
            file.parent.parent.rmdir()
            assert heard(paths) == {"web"}
            assert heard(paths) <= {"web"}


def test_several_wait_for_one_file_and_none_is_left_when_they_stop(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with Paths[str]() as paths:
        paths.add(str(file), "web")
        paths.add(str(file), "db")
        file.touch()
        assert heard(paths) == {"web", "db"}
        paths.remove(str(file), "web")
        file.write_text("1")
        assert heard(paths) == {"db"}
        paths.remove(str(file), "db")
        file.write_text("2")
        assert heard(paths) == set()


# daemons that tell


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        yield listener


def test_a_stream_is_read_line_by_line_until_it_ends(daemon: socket.socket, tmp_path: Path) -> None:
    with DaemonEvents(Stream(str(tmp_path / "sock"), "/events")) as told:
        assert told.connect()
        server, _ = daemon.accept()
        assert server.recv(1000).startswith(b"GET /events HTTP/1.0\r\n")
        assert told.lines() == []
        server.send(b'HTTP/1.0 200 OK\r\n\r\n{"id":"ab')
        assert told.lines() == [b"HTTP/1.0 200 OK\r", b"\r"]
        server.send(b'c"}\n')
        assert told.lines() == [b'{"id":"abc"}']
        server.close()
        assert told.lines() is None
        assert told.connect()


def test_a_daemon_that_floods_is_let_go(daemon: socket.socket, tmp_path: Path) -> None:
    with DaemonEvents(Stream(str(tmp_path / "sock"), "/events")) as told:
        assert told.connect()
        server, _ = daemon.accept()
        flood = threading.Thread(target=lambda: server.sendall(bytes(200_000)))
        flood.start()
        results = [told.lines() for _ in range(10_000)]
        assert None in results
        told.close()
        server.close()
        flood.join(5)


def test_nobody_listens(tmp_path: Path) -> None:
    with DaemonEvents(Stream(str(tmp_path / "sock"), "/events")) as told:
        assert not told.connect()
        assert told.fd is None


# where starts show


@pytest.mark.parametrize("runtime", sorted(RUNTIMES))
def test_every_runtime_has_a_sign_of_a_start(runtime: str) -> None:
    container_id = "pid_file:/run/web.pid" if runtime == "process" else "a" * 64
    signs = RUNTIMES[runtime].signs("web", container_id)
    assert signs.files or signs.streams or signs.is_polled
    assert all(path.startswith("/") for path in signs.files)


def test_a_process_that_is_named_by_its_number_has_none() -> None:
    assert RUNTIMES["process"].signs("web", "pid:42") == Signs()


# what is told


def seen(*drifted: Drifted, problems: tuple[Diagnostic, ...] = ()) -> Seen:
    return Seen(KEY, owned=3, drifted=drifted, problems=problems)


GONE = Drifted(Address("web", "route", "default"), (), Route(to="default", via="10.0.0.1"), None)
BROKEN = Diagnostic(summary="no bridge br0", detail="web/nic/eth1", hint="make it")


def test_drift_is_told_once_and_again_when_it_is_gone() -> None:
    told: list[Notice] = []
    inventory = Inventory(told.append, is_patient=True)
    for one in (seen(), seen(GONE), seen(GONE), seen(), seen()):
        inventory.take(one, 0.0)
    assert [notice.occasion for notice in told] == [Occasion.DRIFTED, Occasion.RESTORED]
    assert inventory.tally().drifted == {KEY: 0}


def test_a_problem_is_told_when_it_stays() -> None:
    told: list[Notice] = []
    inventory = Inventory(told.append, is_patient=True)
    for problems in ((BROKEN,), (), (BROKEN,), (BROKEN,), (BROKEN,), ()):
        inventory.take(seen(problems=problems), 0.0)
    assert [notice.occasion for notice in told] == [Occasion.PROBLEM, Occasion.SOLVED]


def test_lines_can_not_be_forged_and_have_their_priority() -> None:
    notice = Notice(Occasion.PROBLEM, "we\nb", "runc", diagnostics=(BROKEN,))
    assert notice_lines(notice) == [r"container we\nb: no bridge br0; web/nic/eth1; make it"]
    assert priority(notice) == 3
    assert notice_lines(Notice(Occasion.DRIFTED, "web", "runc", drifted=(GONE,))) == [
        "container web: drift: route default is gone"
    ]
    started = Notice(Occasion.STARTED, "web", "runc", resources=1, seconds=0.1234)
    assert notice_lines(started) == ["container web: started: 1 resource plugged in after 0.12 s"]
    assert [priority(Notice(one)) for one in (Occasion.STARTED, Occasion.DRIFTED, Occasion.WATCHING)] == [5, 4, 6]


@pytest.mark.parametrize("occasion", Occasion)
def test_every_notice_has_words_and_a_document(occasion: Occasion) -> None:
    warning = BROKEN._replace(severity=Severity.WARNING)
    notice = Notice(occasion, "web", "runc", 2, 0.5, (GONE,), (warning,), ("more",))
    assert all(notice_lines(notice))
    document = json.loads(to_line(notice_to_json(notice, 1.5)))
    assert (document["type"], document["time"], document["container"]) == (str(occasion), 1.5, "web")
    assert document["drifted"][0]["live"] is None


def test_metrics_name_runtime_and_container() -> None:
    tally = Tally({KEY: 2, ("docker", 'a"b'): 0}, {KEY: 1, ("docker", 'a"b'): 0}, owned=7, starts=3, heals=1)
    text = watch_metrics(tally, 12.5)
    assert 'scplan_watch_drift_resources{runtime="runc",container="web"} 2\n' in text
    assert 'scplan_watch_problems{runtime="docker",container="a\\"b"} 0\n' in text
    assert "# TYPE scplan_watch_starts_total counter\nscplan_watch_starts_total 3\n" in text
    assert text.endswith("scplan_watch_timestamp_seconds 12.500\n")

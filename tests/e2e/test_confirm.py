"""`apply --confirm-within`: everything is undone unless it is confirmed, whatever becomes of terminal and processes."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scplan.store.durable import decode_line, encode_line
from scplan.store.journal import FORMAT_VERSION
from tests.conftest import MakeContainer, Ran, Scplan
from tests.containers.container import Container
from tests.e2e.scene import Config, nothing_changed, of, refused
from tests.e2e.test_undo import Moment

pytestmark = pytest.mark.needs("cgroup1")

SOON = "1s"
LATE = "10m"


@pytest.fixture(autouse=True)
def no_watchdog_is_left(scplan: Scplan) -> Iterator[None]:
    yield
    # What is still pending is given up, and its watchdog then goes by itself.
    if list((scplan.state_dir / "journal").glob("*.jsonl")):
        scplan("undo", "--auto-approve")
    wait_until(lambda: watchdog(scplan) is None, "the watchdog goes")


def wait_until(is_so: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.05)


def watchdog(scplan: Scplan) -> int | None:
    """The PID of the watchdog of this state directory."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--wait" in words and os.fsencode(scplan.state_dir) in words:
            return int(entry.name)
    return None


def limit(container: Container, value: int) -> Config:
    return of(container, cgroup={"pids.max": value}, nics=[{"name": "eth1", "mtu": 1300 + value}])


@pytest.fixture
def before(process_container: Container, scplan: Scplan) -> Moment:
    """Something is applied, and is what everything goes back to."""
    scplan("apply", "--auto-approve", config=limit(process_container, 50)).ok()
    return Moment(scplan, process_container)


@pytest.fixture
def confirmable(process_container: Container, scplan: Scplan, before: Moment) -> Ran:  # noqa: ARG001 - comes first
    """An apply that awaits confirmation for a long time."""
    ran = scplan("apply", "--auto-approve", "--confirm-within", LATE, config=limit(process_container, 60)).ok()
    assert process_container.cgroup_file("pids.max").strip() == "60"
    return ran


def outcome(scplan: Scplan) -> str:
    """What became of the last apply."""
    (past,) = scplan("state", "history", "--json", "--limit", "1").ok().json["applies"]
    return str(past["outcome"])


def is_undone(scplan: Scplan) -> bool:
    return not list((scplan.state_dir / "journal").glob("*.jsonl"))


@pytest.mark.usefixtures("before")
def test_what_is_confirmed_stays(process_container: Container, scplan: Scplan) -> None:
    asked = limit(process_container, 60)
    ran = scplan("apply", "--auto-approve", "--confirm-within", "2s", config=asked).ok()
    assert "undone in 2 s, unless you confirm it" in ran.stderr
    assert "scplan confirm" in ran.stderr
    after = Moment(scplan, process_container)
    assert "Confirmed" in scplan("confirm").ok().stdout
    wait_until(lambda: watchdog(scplan) is None, "the watchdog goes")
    time.sleep(2)
    after.is_now()
    assert outcome(scplan) == "committed"
    scplan("plan", "--detailed-exitcode").ok()
    refused(scplan("confirm"), "nothing awaits confirmation")


def test_what_is_not_confirmed_is_undone(process_container: Container, scplan: Scplan, before: Moment) -> None:
    scplan("apply", "--auto-approve", "--confirm-within", SOON, config=limit(process_container, 60)).ok()
    wait_until(lambda: is_undone(scplan), "it is undone")
    before.is_now()
    (past, _) = scplan("state", "history", "--json").ok().json["applies"]
    assert (past["outcome"], past["reason"]) == ("rolled_back", "not confirmed in time")
    refused(scplan("confirm"), "nothing awaits confirmation")
    scplan("apply", "--auto-approve").ok()


def test_first_apply_goes_back_to_nothing(process_container: Container, scplan: Scplan) -> None:
    before = Moment(scplan, process_container)
    scplan("apply", "--auto-approve", "--confirm-within", SOON, config=limit(process_container, 60)).ok()
    wait_until(lambda: is_undone(scplan), "it is undone")
    before.is_now()
    assert scplan("state", "list").ok().stdout == ""


def test_destroying_apply_comes_back(process_container: Container, scplan: Scplan, before: Moment) -> None:
    scplan("apply", "--auto-approve", "--confirm-within", SOON, config=of(process_container)).ok()
    assert [link["ifname"] for link in process_container.ip("link")] == ["lo"]
    wait_until(lambda: is_undone(scplan), "it is undone")
    before.is_now()


@pytest.mark.usefixtures("confirmable")
def test_the_container_is_not_changed_meanwhile(process_container: Container, scplan: Scplan) -> None:
    after = Moment(scplan, process_container)
    for command in (
        ("apply", "--auto-approve", "-f", str(scplan.write(limit(process_container, 70), "other.yaml"))),
        ("apply", "--auto-approve", "--confirm-within", "5s", "-f", "other.yaml"),
        ("destroy", process_container.name, "--auto-approve"),
        ("state", "rm", process_container.name),
    ):
        ran = scplan(*command)
        refused(ran, "awaits confirmation", process_container.name, "scplan confirm", "scplan undo", code=8)
    after.is_now()
    assert "awaits confirmation" in scplan("recover").ok().stdout
    assert "awaits confirmation" in scplan("recover", "--back").ok().stdout
    assert "awaits confirmation" in scplan("recover", "--accept-live").ok().stdout
    after.is_now()
    scplan("confirm").ok()
    after.is_now()


@pytest.mark.usefixtures("confirmable")
def test_other_containers_are_changed_meanwhile_and_undone_by_themselves(
    make_container: MakeContainer, process_container: Container, scplan: Scplan
) -> None:
    other = make_container("process")
    after, untouched = Moment(scplan, process_container), Moment(scplan, other)
    asked = scplan.write(limit(other, 70), "other.yaml")
    scplan("apply", "--auto-approve", "-f", str(asked)).ok()
    assert other.cgroup_file("pids.max").strip() == "70"
    # The last apply is the other container's now: it is what an undo takes back.
    scplan("undo", "--auto-approve").ok()
    untouched.is_now()
    scplan("apply", "--auto-approve", "-f", str(asked)).ok()
    scplan("destroy", other.name, "--auto-approve").ok()
    after.is_now()
    scplan("confirm").ok()
    after.is_now()


def test_two_applies_await_confirmation_at_once(make_container: MakeContainer, scplan: Scplan) -> None:
    containers = [make_container("process"), make_container("process")]
    running = []
    for number, container in enumerate(containers):
        path = scplan.write(limit(container, 60), f"{number}.yaml")
        running.append(scplan.start("apply", "--auto-approve", "--confirm-within", LATE, "-f", str(path)))
    said = [one.communicate(timeout=60)[1] for one in running]
    assert [one.returncode for one in running] == [0, 0], said
    refused(scplan("confirm"), "2 applies await confirmation", *(container.name for container in containers))
    refused(scplan("confirm", "nobody"), "no apply 'nobody' awaits confirmation")
    scplan("confirm", containers[0].name).ok()
    assert containers[0].cgroup_file("pids.max").strip() == "60"
    kept = Moment(scplan, containers[0])
    refused(scplan("apply", "--auto-approve", "-f", "1.yaml"), "awaits confirmation", containers[1].name, code=8)
    scplan("confirm").ok()
    kept.is_now()
    assert containers[1].cgroup_file("pids.max").strip() == "60"


def test_confirmation_that_was_written_and_not_put_away_counts(
    process_container: Container, scplan: Scplan, confirmable: Ran
) -> None:
    """As if `confirm` had been killed between its two steps."""
    assert confirmable.code == 0
    after = Moment(scplan, process_container)
    (journal,) = (scplan.state_dir / "journal").glob("*.jsonl")
    with journal.open("ab") as file:
        file.write(encode_line({"entry": "committed", "time": time.time()}))
    scplan("recover").ok()
    wait_until(lambda: is_undone(scplan), "it is put away")
    after.is_now()
    assert outcome(scplan) == "committed"


@pytest.mark.usefixtures("confirmable")
def test_every_command_says_that_a_confirmation_is_awaited(process_container: Container, scplan: Scplan) -> None:
    for command in (
        ("plan",),
        ("drift",),
        ("show",),
        ("snapshot",),
        ("state", "list"),
        ("state", "show", f"{process_container.name}/cgroup/pids.max"),
        ("state", "history"),
    ):
        assert "awaits confirmation for" in scplan(*command).ok().stderr, command
        if command != ("snapshot",):
            (said,) = scplan(*command, "--json").ok().json["diagnostics"]
            assert (said["severity"], "awaits confirmation" in said["summary"]) == ("warning", True)
    (past, *_) = scplan("state", "history", "--json").ok().json["applies"]
    assert past["outcome"] == "awaiting_confirmation"
    assert 500 < past["seconds_left"] <= 600


def test_undo_gives_up_at_once(scplan: Scplan, before: Moment, confirmable: Ran) -> None:
    assert confirmable.code == 0
    refused(scplan("undo"), "awaits confirmation", "needs approval", code=7)
    ran = scplan("undo", "--auto-approve").ok()
    assert "2 operations undone" in ran.stdout
    before.is_now()
    assert outcome(scplan) == "rolled_back"


@pytest.mark.usefixtures("confirmable")
def test_undo_gives_up_for_machines_too(scplan: Scplan, before: Moment) -> None:
    assert scplan("undo", "--json").ok(7).events[-1]["result"] == "declined"
    events = scplan("undo", "--json", "--auto-approve").ok().events
    assert [one["step"] for one in events[:-1]] == ["undoing", "undone"] * 2
    assert events[-1]["result"] == "given_up"
    before.is_now()


def test_json_says_how_to_confirm(process_container: Container, scplan: Scplan) -> None:
    asked = limit(process_container, 60)
    events = scplan("apply", "--auto-approve", "--json", "--confirm-within", LATE, config=asked).ok().events
    awaiting, summary = events[-2:]
    assert (awaiting["type"], awaiting["confirm_within_s"]) == ("awaiting_confirmation", 600)
    assert summary["result"] == "applied"
    assert awaiting["apply_id"] == summary["apply_id"]
    assert scplan("confirm", "--json").ok().json["confirmed"] == summary["apply_id"]


def test_nothing_to_change_needs_no_confirmation(scplan: Scplan, before: Moment) -> None:
    scplan("apply", "--auto-approve", "--confirm-within", SOON).ok()
    assert watchdog(scplan) is None
    before.is_now()


@pytest.mark.parametrize("text", ["0s", "500ms", "60", "-1s", "8000h", "soon"])
def test_time_that_makes_no_sense_is_wrong_usage(scplan: Scplan, text: str) -> None:
    refused(scplan("apply", "--confirm-within", text), "--confirm-within", code=64)


# whatever becomes of processes and terminals


def test_watchdog_has_nothing_of_the_terminal(scplan: Scplan, confirmable: Ran) -> None:
    assert confirmable.code == 0
    pid = watchdog(scplan)
    assert pid is not None
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert (int(stat[3]), int(stat[4])) == (pid, 0)  # its own session, no terminal
    fds = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.name in "012"}
    assert fds == {"/dev/null"}
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    os.kill(pid, signal.SIGHUP)
    time.sleep(0.3)
    assert watchdog(scplan) == pid


def test_lost_terminal_after_the_apply(process_container: Container, scplan: Scplan, before: Moment) -> None:
    scplan.write(limit(process_container, 60))
    master, slave = pty.openpty()
    command = ["setsid", "--ctty", *scplan.command("apply", "--auto-approve", "--confirm-within", "2s")]
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, cwd=scplan.directory, env=scplan.environment
    )
    os.close(slave)
    wait_until(lambda: process_container.cgroup_file("pids.max").strip() == "60", "the change")
    os.close(master)  # hangs up
    process.wait(timeout=20)
    wait_until(lambda: is_undone(scplan), "it is undone")
    before.is_now()


@pytest.mark.needs("strace")
@pytest.mark.parametrize("number", [3, 5, 6])
def test_apply_that_is_killed_is_undone_without_anybody(
    process_container: Container, scplan: Scplan, before: Moment, number: int
) -> None:
    scplan.write(limit(process_container, 60))
    # Followed by nobody but the kernel: the watchdog is not traced, or it would be killed by the same count.
    trap = ["-e", "trace=fdatasync", "-e", f"inject=fdatasync:signal=SIGKILL:when={number}"]
    command = [
        "strace",
        "-qq",
        "-o",
        "/dev/null",
        *trap,
        *scplan.command("apply", "--auto-approve", "--confirm-within", SOON),
    ]
    ended = subprocess.run(command, capture_output=True, timeout=60, cwd=scplan.directory, env=scplan.environment)
    assert ended.returncode in (0, -signal.SIGKILL, 128 + signal.SIGKILL)
    wait_until(lambda: is_undone(scplan), "it is undone")
    before.is_now()


@pytest.mark.usefixtures("confirmable")
def test_killed_watchdog_is_replaced_by_the_next_command(scplan: Scplan) -> None:
    first = watchdog(scplan)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: watchdog(scplan) is None, "it is gone")
    scplan("plan").ok()
    wait_until(lambda: watchdog(scplan) not in (None, first), "there is another one")


@pytest.mark.parametrize("command", [("plan",), ("recover",), ("apply", "--auto-approve")], ids=lambda words: words[0])
def test_next_command_undoes_what_the_killed_watchdog_did_not(
    process_container: Container, scplan: Scplan, before: Moment, command: tuple[str, ...]
) -> None:
    scplan("apply", "--auto-approve", "--confirm-within", SOON, config=limit(process_container, 60)).ok()
    pid = watchdog(scplan)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    time.sleep(1.2)
    assert process_container.cgroup_file("pids.max").strip() == "60"
    scplan.write(limit(process_container, 50))
    scplan(*command).ok()
    wait_until(lambda: is_undone(scplan), "it is undone")
    before.is_now()


def test_confirmation_that_comes_too_late(process_container: Container, scplan: Scplan, before: Moment) -> None:
    scplan("apply", "--auto-approve", "--confirm-within", SOON, config=limit(process_container, 60)).ok()
    pid = watchdog(scplan)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    time.sleep(1.2)
    ran = scplan("confirm").ok(1)
    assert "too late" in ran.stderr or "nothing awaits confirmation" in ran.stderr
    wait_until(lambda: is_undone(scplan), "it is undone")
    before.is_now()


@pytest.mark.needs("strace")
@pytest.mark.parametrize("call", ["rename", "sendto"])
def test_watchdog_that_is_killed_in_the_middle_of_the_undo(
    process_container: Container, scplan: Scplan, before: Moment, call: str
) -> None:
    scplan("apply", "--auto-approve", "--confirm-within", SOON, config=limit(process_container, 60)).ok()
    pid = watchdog(scplan)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: watchdog(scplan) is None, "it is gone")
    time.sleep(1.2)
    trap = ["-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when=1"]
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *trap, *scplan.command("recover", "--wait")]
    ended = subprocess.run(command, capture_output=True, timeout=60, cwd=scplan.directory, env=scplan.environment)
    assert ended.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    assert scplan("confirm").code == 1
    scplan("recover").ok()
    wait_until(lambda: is_undone(scplan), "it is undone")
    before.is_now()


def test_boot_undoes_what_was_not_confirmed(
    process_container: Container, scplan: Scplan, before: Moment, confirmable: Ran
) -> None:
    """The journal says another boot; what was plugged in would be gone, so the records alone go back."""
    assert confirmable.code == 0
    pid = watchdog(scplan)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    (journal,) = (scplan.state_dir / "journal").glob("*.jsonl")
    first, *rest = journal.read_bytes().splitlines(keepends=True)
    document = decode_line(first, "journal")
    assert document["format_version"] == FORMAT_VERSION
    journal.write_bytes(encode_line({**document, "boot_id": "another"}) + b"".join(rest))
    refused(scplan("confirm"), "too late")
    scplan("recover").ok()
    wait_until(lambda: is_undone(scplan), "it is undone")
    assert Moment(scplan, process_container).records == before.records


def test_container_that_ends_meanwhile(make_container: MakeContainer, scplan: Scplan) -> None:
    web = make_container("process")
    scplan("apply", "--auto-approve", "--confirm-within", SOON, config=limit(web, 60)).ok()
    os.kill(web.pid, signal.SIGKILL)
    wait_until(lambda: is_undone(scplan), "it is undone")
    assert scplan("state", "list").ok().stdout == ""
    assert outcome(scplan) == "rolled_back"


def test_apply_that_fails_is_rolled_back_and_needs_no_confirmation(
    process_container: Container, scplan: Scplan
) -> None:
    asked = {**of(process_container, cgroup={"pids.max": 60}), "probes": ["false"]}
    with nothing_changed(process_container):
        scplan("apply", "--auto-approve", "--confirm-within", LATE, config=asked).ok(3)
    refused(scplan("confirm"), "nothing awaits confirmation")

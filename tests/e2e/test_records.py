"""Damaged records are never taken for empty: nothing changes, and the message says what is damaged and a way out."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Scplan
from tests.containers.container import Container
from tests.e2e.scene import address, nothing_changed, of, refused
from tests.e2e.test_predecessor import killed_at

pytestmark = pytest.mark.needs("cgroup1")

Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, Damage] = {
    "emptied": lambda _: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "garbage": lambda _: os.urandom(300),
    "one bit": lambda content: content[:50] + bytes([content[50] ^ 1]) + content[51:],
    "text": lambda _: b"{}\n",
}


@pytest.fixture
def record(process_container: Container, scplan: Scplan) -> Path:
    """The file with the record of `process_container`, in which scplan owns a setting."""
    scplan("apply", "--auto-approve", config=of(process_container, cgroup={"pids.max": 100})).ok()
    scplan("apply", "--auto-approve", config=of(process_container, cgroup={"pids.max": 101})).ok()
    (found,) = scplan.state_dir.glob("containers/process/*.json")
    return found


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_record_stops_everything_that_needs_it(
    process_container: Container, scplan: Scplan, record: Path, damage: str
) -> None:
    good = record.read_bytes()
    record.write_bytes(DAMAGES[damage](good))
    with nothing_changed(process_container):
        for command in (
            ("plan",),
            ("apply", "--auto-approve"),
            ("destroy", process_container.name, "--auto-approve"),
            ("drift",),
            ("show",),
            ("state", "list"),
            ("state", "rm", address(process_container, "cgroup/pids.max")),
        ):
            refused(scplan(*command), str(record), ".previous")
    record.write_bytes(good)
    scplan("plan", "--detailed-exitcode").ok()


def test_copy_before_the_damaged_record_is_good(scplan: Scplan, record: Path) -> None:
    previous = record.with_name(f"{record.name}.previous")
    record.write_bytes(previous.read_bytes())
    assert "100 → 101" in scplan("plan", "--detailed-exitcode").ok(2).stdout
    scplan("apply", "--auto-approve").ok()
    scplan("plan", "--detailed-exitcode").ok()


def test_record_of_a_newer_version_is_refused(process_container: Container, scplan: Scplan, record: Path) -> None:
    from scplan.store.durable import decode_line, encode_line

    document = decode_line(record.read_bytes(), "record") | {"format_version": "2.0"}
    record.write_bytes(encode_line(document))
    with nothing_changed(process_container):
        refused(scplan("apply", "--auto-approve"), "format version 2.0")


def test_records_are_their_owners_alone(scplan: Scplan, record: Path) -> None:
    assert [oct(path.stat().st_mode & 0o777) for path in (scplan.state_dir, record.parent)] == ["0o700", "0o700"]
    files = [path for path in scplan.state_dir.rglob("*") if path.is_file()]
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o600"}


@pytest.fixture
def journal(process_container: Container, scplan: Scplan) -> Path:
    """The journal of an apply that was killed when it had made a NIC and a setting."""
    asked = of(process_container, nics=[{"name": "eth1"}], cgroup={"pids.max": 100})
    assert killed_at(scplan, asked, "fdatasync", 3)
    (found,) = (scplan.state_dir / "journal").glob("*.jsonl")
    return found


@pytest.mark.needs("strace")
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_journal_is_told_and_never_guessed_at(
    process_container: Container, scplan: Scplan, journal: Path, damage: str
) -> None:
    good = journal.read_bytes()
    lines = good.splitlines(keepends=True)
    journal.write_bytes(DAMAGES[damage](lines[0]) + b"".join(lines[1:] if damage == "one bit" else ()))
    with nothing_changed(process_container):
        refused(scplan("recover"), str(journal), "restore it from a backup")
        refused(scplan("apply", "--auto-approve"), "scplan recover", code=8)
    journal.write_bytes(good)
    scplan("recover").ok()
    assert [link["ifname"] for link in process_container.ip("link")] == ["lo"]


@pytest.mark.needs("strace")
def test_last_line_of_a_journal_may_be_torn(process_container: Container, scplan: Scplan, journal: Path) -> None:
    journal.write_bytes(journal.read_bytes() + b'0badc0de {"entry":')
    scplan("recover").ok()
    assert [link["ifname"] for link in process_container.ip("link")] == ["lo"]
    assert scplan("state", "list").ok().stdout == ""


@pytest.mark.needs("strace")
def test_kill_before_the_journal_is_begun_needs_no_recovery(process_container: Container, scplan: Scplan) -> None:
    with nothing_changed(process_container):
        assert killed_at(scplan, of(process_container, cgroup={"pids.max": 100}), "fdatasync", 1)
    scplan("apply", "--auto-approve").ok()


def test_state_directory_that_is_a_file_or_can_not_be_made(process_container: Container, scplan: Scplan) -> None:
    scplan.environment["SCPLAN_STATE_DIR"] = str(scplan.write("", "file"))
    with nothing_changed(process_container):
        ran = scplan("apply", "--auto-approve", config=of(process_container, cgroup={"pids.max": 100}))
        refused(ran, str(scplan.directory / "file"))
        scplan.environment["SCPLAN_STATE_DIR"] = "/proc/absent"
        refused(scplan("apply", "--auto-approve"), "/proc")


def test_state_directory_on_a_read_only_disk(process_container: Container, scplan: Scplan, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    scplan.environment["SCPLAN_STATE_DIR"] = str(small_disk / "state")
    with nothing_changed(process_container):
        ran = scplan("apply", "--auto-approve", config=of(process_container, cgroup={"pids.max": 100}))
        refused(ran, "EROFS", "--state-dir")


def test_fifo_in_place_of_a_record_does_not_hang(process_container: Container, scplan: Scplan, record: Path) -> None:
    record.unlink()
    os.mkfifo(record)
    with nothing_changed(process_container):
        refused(scplan("apply", "--auto-approve", timeout_s=10), str(record))


def test_foreign_files_in_the_state_directory_are_left_alone(scplan: Scplan, record: Path) -> None:
    (record.parent / "notes.txt").write_text("mine")
    (record.parent.parent / "README").write_text("mine")
    scplan("plan", "--detailed-exitcode").ok()
    scplan("state", "list").ok()
    assert (record.parent / "notes.txt").read_text() == "mine"

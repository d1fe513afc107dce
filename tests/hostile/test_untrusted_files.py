"""Files that others had in their hands: plans, snapshots, records; and places where files are written."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Scplan
from tests.containers.container import Container
from tests.e2e.scene import nothing_changed, of, refused

pytestmark = pytest.mark.timeout(60)

NOBODY = 65534


@pytest.fixture
def plan_file(process_container: Container, scplan: Scplan) -> Path:
    """A saved plan with one change."""
    scplan("plan", "--out", "saved.plan", config=of(process_container, cgroup={"pids.max": 50})).ok()
    return scplan.directory / "saved.plan"


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_plan_of_another_host_is_refused(process_container: Container, scplan: Scplan, plan_file: Path) -> None:
    _edit(plan_file, lambda plan: plan["host"].update(machine="0" * 32))
    with nothing_changed(process_container):
        refused(scplan("apply", "--auto-approve", "saved.plan"), "another host's", code=5)


def test_plan_from_before_a_restart_is_refused(scplan: Scplan, plan_file: Path) -> None:
    _edit(plan_file, lambda plan: plan["host"].update(boot_id="another"))
    refused(scplan("apply", "--auto-approve", "saved.plan"), "not made for this host as it runs now", code=5)


def test_plan_of_another_container_of_that_name_is_refused(
    process_container: Container, scplan: Scplan, plan_file: Path
) -> None:
    name = process_container.name
    _edit(plan_file, lambda plan: plan["containers"][name].update(id="pid:1"))
    refused(scplan("apply", "--auto-approve", "saved.plan"), "another container of that name", code=5)


def test_plan_without_a_host_is_compared_as_before(
    process_container: Container, scplan: Scplan, plan_file: Path
) -> None:
    """As files of before that was saved are."""

    def strip(plan: dict[str, Any]) -> None:
        del plan["host"], plan["digest"]
        for facts in plan["containers"].values():
            del facts["start_time"]

    _edit(plan_file, strip)
    scplan("apply", "--auto-approve", "saved.plan").ok()
    assert process_container.cgroup_file("pids.max") == "50\n"


@pytest.mark.usefixtures("plan_file")
def test_plan_that_was_made_against_a_snapshot_is_of_its_host(scplan: Scplan) -> None:
    scplan("snapshot", "--out", "snapshot").ok()
    _edit(scplan.directory / "snapshot", lambda snapshot: snapshot["host"].update(machine="0" * 32))
    scplan("plan", "--live", "snapshot", "--out", "other.plan").ok()
    refused(scplan("apply", "--auto-approve", "other.plan"), "another host's", code=5)


@pytest.mark.parametrize("change", ["after", "added", "origin"])
def test_plan_that_was_edited_does_nothing_that_it_did_not_show(
    process_container: Container, scplan: Scplan, plan_file: Path, change: str
) -> None:
    def tamper(plan: dict[str, Any]) -> None:
        if change == "after":
            plan["changes"][0]["after"]["value"] = "max"
        elif change == "added":
            plan["changes"].append({**plan["changes"][0], "address": f"{process_container.name}/cgroup/memory.max"})
        else:
            text = json.dumps(plan["origin"]).replace('"50"', '"51"')
            plan["origin"] = json.loads(text)

    _edit(plan_file, tamper)
    with nothing_changed(process_container):
        refused(scplan("apply", "--auto-approve", "saved.plan"), "stale", code=5)


def test_plan_that_everybody_can_write_is_not_applied(
    process_container: Container, scplan: Scplan, plan_file: Path
) -> None:
    plan_file.chmod(0o666)
    with nothing_changed(process_container):
        refused(scplan("apply", "--auto-approve", "saved.plan"), "can be written by everybody", "chmod o-w")
    scplan("show", "saved.plan").ok()
    plan_file.chmod(0o644)
    scplan("apply", "--auto-approve", "saved.plan").ok()


HUGE: dict[str, Callable[[], bytes]] = {
    "deep": lambda: b'{"changes":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "long number": lambda: b'{"changes":[' + b"9" * 100_000 + b"]}",
    "not text": lambda: b"\xff\xfe\x00" * 1000,
    "wide": lambda: b'{"format_version":"1.0","changes":[' + b",".join([b"{}"] * 100_000) + b'],"origin":{}}',
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("reader", [("show", "FILE"), ("apply", "--auto-approve", "FILE"), ("plan", "--live", "FILE")])
@pytest.mark.parametrize("content", HUGE)
def test_what_is_deep_or_wide_is_refused_quickly(scplan: Scplan, content: str, reader: tuple[str, ...]) -> None:
    scplan.write({"version": 1, "containers": {}})
    path = scplan.directory / "file"
    path.write_bytes(HUGE[content]())
    begun = time.monotonic()
    ran = scplan(*(str(path) if word == "FILE" else word for word in reader))
    assert time.monotonic() - begun < 10
    assert ran.code == 1, ran
    assert "Traceback" not in ran.stderr
    assert "bug in scplan" not in ran.stderr


def test_too_large_a_file_is_not_even_read(scplan: Scplan) -> None:
    path = scplan.directory / "file"
    path.touch()
    os.truncate(path, 1 << 40)
    refused(scplan("show", str(path)), "too large")


@pytest.mark.parametrize("kind", ["fifo", "device", "directory"])
def test_what_is_no_file_is_refused_as_a_plan(scplan: Scplan, kind: str) -> None:
    path = scplan.directory / "file"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        os.mknod(path, 0o600 | 0x2000, os.makedev(1, 5))
    else:
        path.mkdir()
    for command in (("show",), ("apply", "--auto-approve")):
        ran = scplan(*command, str(path), timeout_s=20)
        assert ran.code == 1, ran
        assert "regular file" in ran.stderr or "EISDIR" in ran.stderr


# writing


def _outputs(path: Path) -> list[tuple[str, ...]]:
    return [("plan", "--out", str(path)), ("snapshot", "--out", str(path)), ("drift", "--metrics", str(path))]


@pytest.mark.parametrize("planted", ["symlink", "dangling", "fifo", "device"])
def test_nothing_is_written_through_what_was_planted(
    process_container: Container, scplan: Scplan, tmp_path: Path, planted: str
) -> None:
    scplan.write(of(process_container, cgroup={"pids.max": 50}))
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    place = tmp_path / "sticky"
    place.mkdir()
    place.chmod(0o1777)
    path = place / "out"
    if planted == "symlink":
        path.symlink_to(victim)
    elif planted == "dangling":
        path.symlink_to(tmp_path / "new")
    elif planted == "fifo":
        os.mkfifo(path)
    else:
        os.mknod(path, 0o666 | 0x2000, os.makedev(1, 3))
    before = path.lstat()
    for command in _outputs(path):
        refused(scplan(*command, timeout_s=20), "name a file that may be replaced")
    assert victim.read_text() == "as it was"
    assert not (tmp_path / "new").exists()
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert os.listdir(place) == ["out"]


def test_temporary_file_that_was_planted_is_not_written_to(tmp_path: Path) -> None:
    """Its name can be guessed; whoever made it could go on writing to it."""
    from scplan.store.durable import write_document

    victim = tmp_path / "victim"
    victim.write_text("as it was")
    planted = tmp_path / f"out.{os.getpid()}.tmp"
    for plant in (os.link, os.symlink):
        plant(victim, planted)
        write_document(str(tmp_path / "out"), b"new")
        assert (tmp_path / "out").read_bytes() == b"new"
        assert victim.read_text() == "as it was"
        assert not os.path.lexists(planted)


# the state directory


@pytest.mark.parametrize("flaw", ["foreign", "group", "all", "link"])
def test_state_directory_of_others_is_refused(
    process_container: Container, scplan: Scplan, tmp_path: Path, flaw: str
) -> None:
    config = of(process_container, cgroup={"pids.max": 50})
    scplan.state_dir.mkdir(mode=0o700)
    match flaw:
        case "foreign":
            os.chown(scplan.state_dir, NOBODY, NOBODY)
        case "group":
            scplan.state_dir.chmod(0o770)
        case "all":
            scplan.state_dir.chmod(0o1777)
        case "link":
            scplan.state_dir.rmdir()
            (tmp_path / "mine").mkdir()
            scplan.state_dir.symlink_to(tmp_path / "mine")
            os.chown(scplan.state_dir, NOBODY, NOBODY, follow_symlinks=False)
    said = "belongs to somebody else" if flaw in ("foreign", "link") else "can be written by others"
    with nothing_changed(process_container):
        for command in (("apply", "--auto-approve"), ("plan",), ("recover",), ("state", "list")):
            refused(scplan(*command, config=config), said)


# default files


def test_configuration_that_somebody_left_lying_around_is_not_taken(
    process_container: Container, scplan: Scplan
) -> None:
    path = scplan.write(of(process_container, cgroup={"pids.max": 50}))
    os.chown(path, NOBODY, NOBODY)
    scplan.directory.chmod(0o1777)
    for command in (("plan",), ("apply", "--auto-approve"), ("validate",)):
        refused(scplan(*command), "everybody can write to", "-f scplan.yaml")
    scplan("plan", "-f", "scplan.yaml").ok()
    scplan.directory.chmod(0o755)
    scplan("plan").ok()

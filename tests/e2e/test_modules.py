"""Kernel modules that containers need: loaded first, by the host's modprobe as it is, and kept for the next start.

The kernel of the tests may have no modules to load. Those that are built in are real; where one is missing, a program
of the test is mounted in the place of modprobe, and writes down how it was called: what is executed is all that is
shown.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.containers.session import Session
from tests.e2e.scene import nothing_changed, of, refused

pytestmark = pytest.mark.needs("cgroup1", "modprobe")

MODPROBE = "/usr/sbin/modprobe"
ABSENT = "scplan_has_no_such_module"


def built_in() -> str:
    """A module that this kernel has loaded, or built in."""
    return sorted(os.listdir("/sys/module"))[0]


@pytest.fixture
def web(make_container: MakeContainer) -> Container:
    return make_container("process")


@pytest.fixture
def called(session: Session) -> Iterator[Path]:
    """Where a program in the place of modprobe writes how it was called; it fails for what is named `broken`."""
    log, program = session.directory / session.name(), session.directory / session.name()
    program.write_text(f'#!/bin/sh\necho "$*|$(env | sort | tr "\\n" " ")" >> {log}\n[ "$2" != broken ] || exit 7\n')
    program.chmod(0o755)
    subprocess.run(["mount", "--bind", str(program), os.path.realpath(MODPROBE)], check=True)
    try:
        yield log
    finally:
        subprocess.run(["umount", os.path.realpath(MODPROBE)], check=True)
        program.unlink()
        log.unlink(missing_ok=True)


def asked_for(web: Container, *modules: str, **sections: Any) -> dict[str, Any]:
    return of(web, modules=list(modules), **(sections or {"cgroup": {"pids.max": 100}}))


def recorded(web: Container, scplan: Scplan) -> list[str]:
    text = (scplan.state_dir / "containers" / web.runtime / f"{web.name}.json").read_text()
    modules = json.loads(text.partition(" ")[2])["modules"]
    assert isinstance(modules, list)
    return modules


def test_module_that_is_there_is_not_loaded_again(web: Container, scplan: Scplan, called: Path) -> None:
    planned = scplan("plan", config=asked_for(web, built_in())).ok()
    assert "kernel module" not in planned.stderr
    scplan("apply", "--auto-approve").ok()
    assert not called.exists()
    assert recorded(web, scplan) == [built_in()]


def test_module_is_loaded_before_anything_is_made(web: Container, scplan: Scplan, called: Path) -> None:
    planned = scplan("plan", config=asked_for(web, "nbd-x", built_in(), "-odd")).ok()
    assert "notice: loads kernel module nbd-x first" in planned.stderr
    assert not called.exists(), "a plan changes nothing"
    environment = {"MODPROBE_OPTIONS": "--evil", "LD_PRELOAD": "", "HOME": "/root"}
    scplan("apply", "--auto-approve", environment=environment).ok()
    calls = [line.split("|") for line in called.read_text().splitlines()]
    assert [words for words, _ in calls] == ["-- nbd-x", "-- -odd"]
    assert not any(name in environment for _, environment in calls for name in ("MODPROBE_OPTIONS", "HOME="))
    assert recorded(web, scplan) == ["nbd-x", built_in(), "-odd"]
    called.unlink()
    scplan("plan", "--detailed-exitcode").ok()
    scplan("destroy", web.name, "--auto-approve").ok()
    assert not called.exists(), "nothing is loaded to take something away"


@pytest.mark.usefixtures("called")
def test_module_that_can_not_be_loaded_stops_everything(web: Container, scplan: Scplan) -> None:
    with nothing_changed(web):
        ran = scplan("apply", "--auto-approve", config=asked_for(web, "broken"))
        refused(ran, "kernel module broken can't be loaded", "exit code 7", "nothing was changed")
    assert scplan("state", "list").ok().stdout == ""
    assert scplan("state", "history", "--json").ok().json["applies"] == []


def test_modprobe_itself_says_what_is_wrong(web: Container, scplan: Scplan) -> None:
    with nothing_changed(web):
        ran = scplan("apply", "--auto-approve", config=asked_for(web, ABSENT))
        refused(ran, f"kernel module {ABSENT} can't be loaded", f"Module {ABSENT} not found")


def test_list_is_kept_when_nothing_else_changes(web: Container, scplan: Scplan, called: Path) -> None:
    scplan("apply", "--auto-approve", config=asked_for(web)).ok()
    assert recorded(web, scplan) == []
    scplan("apply", "--auto-approve", config=asked_for(web, "one")).ok()
    assert recorded(web, scplan) == ["one"]
    assert called.read_text().startswith("-- one|")
    scplan("apply", "--auto-approve", config=asked_for(web, "one", cgroup={"pids.max": 90})).ok()
    assert recorded(web, scplan) == ["one"]
    scplan("undo", "--auto-approve").ok()
    assert recorded(web, scplan) == ["one"], "an undo does not know better"


@pytest.mark.usefixtures("called")
def test_what_is_absent_may_come_with_a_module(web: Container, scplan: Scplan) -> None:
    asked = asked_for(web, "nbd-x", devices=["/dev/nbd-x0"])
    refused(scplan("plan", config=asked), "the host has no /dev/nbd-x0", "not loaded yet: nbd-x", "modprobe -a nbd-x")


@pytest.mark.needs("runc")
def test_modules_are_loaded_when_the_container_starts(
    make_container: MakeContainer, scplan: Scplan, called: Path
) -> None:
    command = ["/usr/bin/env", f"PYTHONPATH={scplan.environment['PYTHONPATH']}", *scplan.command()]
    hook = [*command, "--state-dir", str(scplan.state_dir), "hook", "createRuntime"]
    web = make_container("runc", hooks={"createRuntime": [{"path": hook[0], "args": hook}]})
    scplan("apply", "--auto-approve", config=asked_for(web, "one", "two")).ok()
    web.stop()
    called.unlink()
    web.start()
    assert [line.partition("|")[0] for line in called.read_text().splitlines()] == ["-- one", "-- two"]
    assert recorded(web, scplan) == ["one", "two"]

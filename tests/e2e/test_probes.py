"""Probes: commands that are run when everything is changed, and undo it all when one fails."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ran, Scplan
from tests.containers.container import Container
from tests.e2e.scene import Config, nothing_changed, of, refused

pytestmark = pytest.mark.needs("cgroup1")


def limited(container: Container, value: int = 60, **rest: Any) -> Config:
    return {**of(container, cgroup={"pids.max": value}), **rest}


def script(scplan: Scplan, text: str, name: str = "probe") -> str:
    path = scplan.directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def apply(scplan: Scplan, *arguments: str, config: Config | None = None) -> Ran:
    return scplan("apply", "--auto-approve", *arguments, config=config)


def test_probe_sees_the_changes_and_lets_them_stay(process_container: Container, scplan: Scplan) -> None:
    path = process_container.cgroups["pids"] / "pids.max"
    ran = apply(scplan, "--probe", f"grep -qx 60 {path}", config=limited(process_container)).ok()
    assert "1/1 ? grep" in ran.stderr
    assert "passed in" in ran.stderr
    scplan("plan", "--detailed-exitcode").ok()


def test_failing_probe_undoes_everything_and_is_quoted(process_container: Container, scplan: Scplan) -> None:
    probe = script(scplan, "echo 'no \033[31manswer'; echo from web >&2; exit 3")
    with nothing_changed(process_container):
        ran = apply(scplan, "--probe", "true", "--probe", probe, "--probe", "false", config=limited(process_container))
        refused(ran, "exit status 3", "no \\x1b[31manswer", "from web", "1 operation undone", code=3)
    assert "\033" not in ran.stderr
    assert "2/3 ?" in ran.stderr
    assert "3/3 ?" not in ran.stderr
    assert scplan("state", "list").ok().stdout == ""


def test_events_have_the_probes(process_container: Container, scplan: Scplan) -> None:
    ran = apply(
        scplan,
        "--json",
        "--probe",
        "echo one",
        "--probe",
        "sh -c 'echo two; exit 1'",
        config=limited(process_container),
    )
    probes = [one for one in ran.ok(3).events if one["type"] == "probe"]
    assert [(one["step"], one["number"], one["output"]) for one in probes] == [
        ("started", 1, ""),
        ("done", 1, "one"),
        ("started", 2, ""),
        ("failed", 2, "two"),
    ]
    assert ran.events[-1]["result"] == "rolled_back"


def test_probes_of_the_files_come_first(process_container: Container, scplan: Scplan) -> None:
    log = scplan.directory / "log"
    (scplan.directory / "probe").unlink(missing_ok=True)
    one = script(scplan, f'echo "$0 $*" >> {log}')
    asked = limited(process_container, probes=[f"{one} 'a b'", {"command": f"{one} c", "timeout": "2s"}])
    apply(scplan, "--probe", f"{one} d", config=asked).ok()
    assert log.read_text() == f"{one} a b\n{one} c\n{one} d\n"


def test_environment_is_scplans_own(process_container: Container, scplan: Scplan) -> None:
    found = scplan.directory / "found"
    scplan.environment["SECRET"] = "x"
    apply(scplan, "--probe", script(scplan, f"env > {found}; pwd >> {found}"), config=limited(process_container)).ok()
    lines = dict(line.partition("=")[::2] for line in found.read_text().splitlines())
    assert set(lines) - {"_", "SHLVL", "OLDPWD"} == {
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "SCPLAN_APPLY_ID",
        "PWD",
        str(scplan.directory),
    }


def processes_of(marker: str) -> list[int]:
    return [
        int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and marker in _arguments(entry)
    ]


def _arguments(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_text()
    except OSError:
        return ""


def assert_none_is_left(marker: str) -> None:
    """What was killed is gone a moment later, when nobody waits for it."""
    deadline = time.monotonic() + 5
    while processes_of(marker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes_of(marker) == []


def test_probe_that_takes_too_long_is_killed_with_its_children(process_container: Container, scplan: Scplan) -> None:
    marker = f"97.{os.getpid()}"
    probe = {"command": script(scplan, f"echo waiting; sleep {marker} & sleep {marker}"), "timeout": "300ms"}
    with nothing_changed(process_container):
        begun = time.monotonic()
        ran = apply(scplan, config=limited(process_container, probes=[probe]))
        refused(ran, "did not end within 0.3 s", "waiting", code=3)
    assert time.monotonic() - begun < 20
    assert_none_is_left(marker)


def test_what_a_probe_leaves_running_is_killed(process_container: Container, scplan: Scplan) -> None:
    marker = f"98.{os.getpid()}"
    apply(scplan, "--probe", script(scplan, f"sleep {marker} &"), config=limited(process_container)).ok()
    assert_none_is_left(marker)


def test_output_is_bounded(process_container: Container, scplan: Scplan) -> None:
    probe = script(scplan, "head -c 30000000 /dev/zero | tr '\\0' 'y'; echo; echo the end; exit 1")
    ran = apply(scplan, "--json", "--probe", probe, config=limited(process_container)).ok(3)
    failed = next(one for one in ran.events if one["type"] == "probe" and one["step"] == "failed")
    assert failed["output"].endswith("the end")
    assert len(failed["output"]) <= 4096


def test_no_shell_takes_part(process_container: Container, scplan: Scplan) -> None:
    planted = scplan.directory / "planted"
    apply(scplan, "--probe", f"echo $HOME ; touch {planted} > /dev/null", config=limited(process_container)).ok()
    assert not planted.exists()


def test_probe_that_can_not_be_started(process_container: Container, scplan: Scplan) -> None:
    with nothing_changed(process_container):
        refused(apply(scplan, "--probe", "/absent/probe", config=limited(process_container)), "ENOENT", code=3)


def test_interrupt_during_a_probe_undoes_everything(process_container: Container, scplan: Scplan) -> None:
    marker = f"96.{os.getpid()}"
    scplan.write(limited(process_container))
    with nothing_changed(process_container):
        running = scplan.start("apply", "--auto-approve", "--probe", f"sleep {marker}")
        deadline = time.monotonic() + 20
        while not [pid for pid in processes_of(marker) if _arguments(Path(f"/proc/{pid}")).startswith("sleep")]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=20)
        assert running.returncode == 3, said
    assert processes_of(marker) == []


def test_nothing_to_change_runs_no_probe(process_container: Container, scplan: Scplan) -> None:
    apply(scplan, config=limited(process_container)).ok()
    apply(scplan, "--probe", "false").ok()


@pytest.mark.parametrize(
    ("probes", "said"),
    [
        ("ping", "list"),
        (["'unclosed"], "quotation"),
        ([""], "empty"),
        ([{"timeout": "1s"}], "has a command"),
        ([{"command": "true", "timeout": "1"}], "duration"),
        ([{"command": "true", "user": "root"}], "has a command"),
    ],
)
def test_wrong_probe_is_named_with_its_place(scplan: Scplan, probes: object, said: str) -> None:
    ran = scplan("validate", config={"version": 1, "containers": {"web": None}, "probes": probes})
    refused(ran, said, "scplan.yaml:")


def test_saved_plan_brings_no_command(process_container: Container, scplan: Scplan) -> None:
    planted = scplan.directory / "planted"
    command = f"touch {planted}"
    scplan("plan", "--out", "web.plan", config=limited(process_container, probes=[command])).ok()
    with nothing_changed(process_container):
        refused(scplan("apply", "web.plan"), f"--probe '{command}'", code=64)
    assert not planted.exists()
    scplan("apply", "web.plan", "--probe", command).ok()
    assert planted.exists()


def test_plan_file_that_was_tampered_with_runs_nothing(process_container: Container, scplan: Scplan) -> None:
    planted = scplan.directory / "planted"
    scplan("plan", "--out", "web.plan", config=limited(process_container)).ok()
    path = scplan.directory / "web.plan"
    document = json.loads(path.read_text())
    document["origin"]["configuration"]["probes"] = [f"touch {planted}"]
    document["origin"]["probes"] = [f"touch {planted}"]
    path.write_text(json.dumps(document))
    with nothing_changed(process_container):
        refused(scplan("apply", "web.plan"), "a plan file can't bring commands", code=64)
    assert not planted.exists()

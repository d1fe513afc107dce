"""scplan-runc becomes the real runtime, with the arguments and exit codes of that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.containers.session import CHECKOUT

ENTRY = "import sys; sys.argv[0] = sys.argv.pop(1); from scplan.hooks.wrapper import run; run()"


def wrapper(*arguments: str, name: str = "scplan-runc", **environment: str) -> subprocess.CompletedProcess[str]:
    """The console script under a name, without one having to be installed."""
    return subprocess.run(
        [sys.executable, "-c", ENTRY, name, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT), **environment},
    )


def program(directory: Path, name: str, script: str) -> str:
    """A program that stands for a runtime."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("command", ["state web", "kill web KILL", "--root /x delete --force web", "--version", ""])
def test_other_commands_are_passed_through_with_their_exit_codes(command: str, tmp_path: Path) -> None:
    runtime = program(tmp_path, "real", 'printf "%s|" "$@"; exit 42')
    ended = wrapper(*command.split(), SCPLAN_RUNTIME=runtime)
    assert ended.returncode == 42
    assert ended.stdout == "".join(f"{word}|" for word in command.split() or [""])


def test_environment_and_odd_arguments_reach_the_runtime_unchanged(tmp_path: Path) -> None:
    runtime = program(tmp_path, "real", 'printf "%s|" "$MINE" "$@"')
    ended = wrapper("exec", "web", "a b", "", "--scplan-state-dir=/x", "é\n", SCPLAN_RUNTIME=runtime, MINE="kept")
    assert ended.stdout == "kept|exec|web|a b||--scplan-state-dir=/x|é\n|"


def test_name_tells_which_runtime_and_it_never_finds_itself(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    program(other, "crun", "echo the real crun")
    itself = tmp_path / "crun"
    itself.symlink_to(sys.executable)
    path = f"{tmp_path}:{other}"
    assert wrapper("list", name="/usr/bin/scplan-crun", PATH=str(other)).stdout == "the real crun\n"
    assert wrapper("list", name=str(itself), PATH=path).stdout == "the real crun\n"


def test_create_adds_the_hook_before_the_runtime_starts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"root": {"path": "rootfs"}}')
    runtime = program(tmp_path, "real", f"cat {tmp_path}/config.json")
    arguments = ("--scplan-state-dir=/srv/records", "--root", "/run/docker/runtime-scplan/moby", "create")
    ended = wrapper(*arguments, "--bundle", str(tmp_path), "web", SCPLAN_RUNTIME=runtime)
    hooks = json.loads(ended.stdout)["hooks"]
    assert hooks.keys() == {"createRuntime", "poststop"}
    args = hooks["createRuntime"][0]["args"]
    assert args[args.index("--state-dir") + 1] == "/srv/records"
    assert args[args.index("--runtime") + 1] == "docker"


def test_bundle_that_can_not_be_changed_keeps_the_container_from_starting(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    log = tmp_path / "log.json"
    runtime = program(tmp_path, "real", f"touch {tmp_path}/started")
    ended = wrapper("--log", str(log), "create", f"--bundle={tmp_path}", "web", SCPLAN_RUNTIME=runtime)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"scplan: {tmp_path}/config.json is not the configuration of a container")
    line = json.loads(log.read_text())
    assert (line["level"], line["msg"] + "\n") == ("error", ended.stderr)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("wanted", ["absent-runtime", "/nonexistent/runc"])
def test_runtime_that_is_not_there_is_named(wanted: str) -> None:
    ended = wrapper("state", "web", SCPLAN_RUNTIME=wanted)
    assert ended.returncode == 1
    assert wanted in ended.stderr
    assert "Traceback" not in ended.stderr

"""scplan-runc: runs in place of runc (or crun), and adds scplan's hook to each new container.

Docker and containerd have no hooks of their own, but their OCI runtime can be chosen. All commands except `create` and
`run` execute the real runtime at once. An error while a bundle is changed aborts the start: otherwise the container
would run without its resources, and nothing would attach them later.
"""

from __future__ import annotations

import os
import sys

from scplan.hooks import DEFAULT_STATE_DIR, STATE_DIR_OPTION

if False:
    from typing import NoReturn  # for type checkers: importing typing takes longer than all of this module

_PREFIX = "scplan-"
_CREATING = ("create", "run")
_COMMANDS = frozenset(
    (
        *("checkpoint", "create", "delete", "events", "exec", "features", "help", "init", "kill", "list", "mounts"),
        *("pause", "ps", "restore", "resume", "run", "spec", "start", "state", "update"),
    )
)
_PLACES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def run() -> NoReturn:
    """The console script: replaces itself by the real runtime, with the same arguments and environment. execve(2)"""
    arguments = sys.argv[1:]
    state_dir = os.environ.get("SCPLAN_STATE_DIR") or DEFAULT_STATE_DIR
    # The option comes first: docker puts runtimeArgs before its own arguments.
    while arguments and arguments[0].startswith(STATE_DIR_OPTION):
        state_dir = arguments.pop(0).removeprefix(STATE_DIR_OPTION)
    at = _command_at(arguments)
    if at is not None and arguments[at] in _CREATING:
        from scplan.hooks import bundle

        problem = bundle.add_hooks(_option(arguments[at + 1 :], "--bundle", "-b") or ".", state_dir, _engine(arguments))
        if problem is not None:
            _give_up(f"scplan: {problem}", arguments)
    path = _real_runtime()
    if path is None:
        _give_up(f"scplan: there is no {_wanted()}; SCPLAN_RUNTIME can name another OCI runtime", arguments)
    try:
        # The PID stays the same: the engine waits for it. execve(2)
        os.execv(path, [path, *arguments])
    except OSError as error:
        _give_up(f"scplan: execve({path}): {error.strerror}", arguments)


def _command_at(arguments: list[str]) -> int | None:
    """Index of the command, after global options and their values; None without a command."""
    for index, word in enumerate(arguments):
        if word in _COMMANDS and not (index and arguments[index - 1] in _WITH_VALUE):
            return index
    return None


_WITH_VALUE = frozenset(("--root", "--log", "--log-format", "--criu", "--rootless", "--cgroup-manager"))


def _option(arguments: list[str], *names: str) -> str | None:
    for index, word in enumerate(arguments):
        for name in names:
            if word == name and index + 1 < len(arguments):
                return arguments[index + 1]
            if word.startswith(f"{name}="):
                return word[len(name) + 1 :]
    return None


def _engine(arguments: list[str]) -> str | None:
    """The calling engine, from the --root of its runtime, such as /run/docker/runtime-runc/moby; None if unknown."""
    root = _option(arguments, "--root") or ""
    if os.path.basename(root) == "moby":
        return "docker"
    return "containerd" if root.startswith("/run/containerd/") else None


def _wanted() -> str:
    return os.environ.get("SCPLAN_RUNTIME") or os.path.basename(sys.argv[0]).removeprefix(_PREFIX)


def _real_runtime() -> str | None:
    """Path of the runtime that SCPLAN_RUNTIME or this program's name selects: crun for scplan-crun; None if absent."""
    wanted = _wanted()
    if "/" in wanted:
        return wanted
    # Skip this program: PATH may have it under the runtime's name, and it would execute itself for ever.
    own = os.path.realpath(sys.argv[0])
    for place in [*filter(None, os.environ.get("PATH", "").split(":")), *_PLACES]:
        path = f"{place}/{wanted}"
        if os.access(path, os.X_OK) and os.path.realpath(path) != own:
            return path
    return None


def _give_up(message: str, arguments: list[str]) -> NoReturn:
    """Exits with the message where engines look for it: in the last line of their --log file, and standard error."""
    log = _option(arguments, "--log")
    if log is not None:
        import json
        import time

        line = {"level": "error", "msg": message, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        try:
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            message += f" ({log}: {error.strerror})"
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
    os._exit(1)

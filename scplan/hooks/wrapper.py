"""scplan-runc: stands in for runc (or crun) and adds scplan's hook to each container that is created.

Docker and containerd have no hooks of their own, but call an OCI runtime of one's choice. All commands but `create` and
`run` become the real runtime at once. What goes wrong while a bundle is changed ends the start: the container would
run without what it should have, and nothing would ever plug that in.
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
    """The console script: becomes the real runtime, with the arguments and the environment that it was given."""
    arguments = sys.argv[1:]
    state_dir = os.environ.get("SCPLAN_STATE_DIR") or DEFAULT_STATE_DIR
    # It stands first: docker puts its runtimeArgs before all that it says itself.
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
        os.execv(path, [path, *arguments])
    except OSError as error:
        _give_up(f"scplan: execve({path}): {error.strerror}", arguments)


def _command_at(arguments: list[str]) -> int | None:
    """Where the command stands. What stands before it are options, and their values, which are no commands."""
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
    """Which engine calls, by where it has its runtimes keep their states: /run/docker/runtime-runc/moby."""
    root = _option(arguments, "--root") or ""
    if os.path.basename(root) == "moby":
        return "docker"
    return "containerd" if root.startswith("/run/containerd/") else None


def _wanted() -> str:
    return os.environ.get("SCPLAN_RUNTIME") or os.path.basename(sys.argv[0]).removeprefix(_PREFIX)


def _real_runtime() -> str | None:
    """The runtime that SCPLAN_RUNTIME or this program's own name means: scplan-crun is for crun."""
    wanted = _wanted()
    if "/" in wanted:
        return wanted
    own = os.path.realpath(sys.argv[0])
    for place in [*filter(None, os.environ.get("PATH", "").split(":")), *_PLACES]:
        path = f"{place}/{wanted}"
        if os.access(path, os.X_OK) and os.path.realpath(path) != own:
            return path
    return None


def _give_up(message: str, arguments: list[str]) -> NoReturn:
    """Ends with the message where engines look for it: the last line of the log that they named, and standard error."""
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

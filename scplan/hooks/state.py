"""Parses the description of a container that a runtime passes to its hooks.

OCI runtime specification, "State" and "POSIX-platform Hooks"; lxc.container.conf(5), "Container hooks".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from scplan.errors import ScplanError
from scplan.startup import strict_json
from scplan.startup.named_tuple import NamedTuple

MAX_STATE_BYTES = 1 << 20
_MAX_ID = 1024
# PID_MAX_LIMIT, include/linux/threads.h; PATH_MAX, include/uapi/linux/limits.h.
_MAX_PID = 1 << 22
_MAX_PATH = 4096
STAGES = {
    "createRuntime": "start",
    "prestart": "start",
    "poststart": "started",
    "poststop": "stop",
    "start-host": "start",
    "post-stop": "stop",
}
"""Stage of each of the runtimes' words: start, started or stop."""
OF_LXC = ("start-host", "post-stop")
"""The words of LXC, which tells its hooks about the container in their environment."""
_MONITOR = "[lxc monitor] "
OF_UDEV = "udev"
"""Word of calls by the rules of linux/devices/udev.py, which name the container instead of passing its state."""
_BY_STATUS = {"creating": "createRuntime", "created": "createRuntime", "running": "poststart", "stopped": "poststop"}


class HookCall(NamedTuple):
    """A container as its runtime described it. `pid` is 0 once the container has ended.

    `about` is the whole description if the container is starting and has not entered its root yet, else None. `bundle`
    is the directory of its configuration; "" if the runtime has none, or does not name it. `place` is as in
    ContainerFacts, and set for LXC and Incus only; for Incus it omits the socket if that is unknown.
    """

    id: str
    stage: str
    pid: int = 0
    about: dict[str, Any] | None = None
    bundle: str = ""
    place: str = ""

    @property
    def root(self) -> str:
        """The container's future root directory, as a path in its mount namespace; "" if it is already in its root.

        Computed on access, since only containers with records need it, and most have none. Raises BadState.
        """
        return "" if self.about is None else _root(self.about)


class BadState(ScplanError):
    """The runtime passed no valid state of a container."""


def read_state(fd: int) -> bytes:
    """The runtime's text, read from `fd`. Raises BadState if it is empty, or longer than any state can be."""
    chunks: list[bytes] = []
    size = 0
    while chunk := _read(fd):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_STATE_BYTES:
            raise _bad(f"it has more than {MAX_STATE_BYTES} bytes")
    if not chunks:
        raise _bad("standard input is empty")
    return b"".join(chunks)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 16)
    except OSError as error:
        raise _bad(f"standard input: {error.strerror}") from None


def parse_state(text: bytes, stage: str | None) -> HookCall:
    """The container of a state. `stage` is the runtime's name for the call; None: from the status. Raises BadState."""
    state = _object(text, "it")
    container_id, pid, status = state.get("id"), state.get("pid", 0), state.get("status")
    if not isinstance(container_id, str) or not 0 < len(container_id) <= _MAX_ID or "/" in container_id:
        raise _bad("it has no usable id")
    if stage is None:
        if not isinstance(status, str) or status not in _BY_STATUS:
            raise _bad(f"status {str(status)[:80]!r} is none of {', '.join(_BY_STATUS)}")
        stage = _BY_STATUS[status]
    if STAGES[stage] == "stop":
        return HookCall(container_id, stage, bundle=_bundle(state))
    if type(pid) is not int or not 0 < pid <= _MAX_PID:
        raise _bad("it has no pid, but the container is to start")
    return HookCall(container_id, stage, pid, state if STAGES[stage] == "start" else None, _bundle(state))


def _bundle(state: dict[str, Any]) -> str:
    bundle = state.get("bundle")
    if isinstance(bundle, str) and os.path.isabs(bundle) and "\0" not in bundle and len(bundle) <= _MAX_PATH:
        return bundle
    return ""


def call_of_lxc(environment: Mapping[str, str], stage: str, runtime: str | None) -> HookCall:
    """The container of a call by LXC, which is in its own root already; `runtime` is incus for Incus and LXD.

    Does not query LXC: the query would never return, since LXC waits for the hook.
    """
    name, pid = environment.get("LXC_NAME", ""), environment.get("LXC_PID", "")
    if not 0 < len(name) <= _MAX_ID or "/" in name:
        raise _not_of_lxc("there is no usable LXC_NAME")
    if runtime == "incus":
        container_id, place = _of_incus(name, environment.get("LXC_ROOTFS_PATH", ""))
    else:
        container_id = _lxc_id(name, environment.get("LXC_CONFIG_FILE", ""))
        place = container_id.rpartition("/")[0]
    if STAGES[stage] == "stop":
        return HookCall(container_id, stage, place=place)
    if not pid.isascii() or not pid.isdigit() or not 0 < int(pid[:20]) <= _MAX_PID:
        raise _not_of_lxc("there is no usable LXC_PID")
    return HookCall(container_id, stage, int(pid), place=place)


def _of_incus(name: str, root: str) -> tuple[str, str]:
    """(name of the instance, its place). LXC_NAME is PROJECT_NAME outside of the default project.

    Names of instances are host names, without underscores; names of projects may have underscores. The daemon's socket
    is beside its directory of storage pools, which has the instance's root; without a socket there, the place omits it.
    """
    project, _, instance = name.rpartition("_")
    directory, is_in_pool, _ = root.removeprefix("dir:").partition("/storage-pools/")
    socket = f"{directory}/unix.socket" if is_in_pool else ""
    if not os.path.isabs(socket) or not os.path.exists(socket):
        socket = ""
    return instance, f"{socket}?project={project or 'default'}"


def _lxc_id(name: str, configuration: str) -> str:
    """LXCPATH/NAME. A configuration outside of the container's directory was named by hand (`lxc-start -f`)."""
    directory, _, file = configuration.rpartition("/")
    if file == "config" and directory.rpartition("/")[2] == name:
        return directory
    from scplan.runtimes.lxc import default_path

    return f"{_path_of_monitor(os.getppid(), name) or default_path()}/{name}"


def _path_of_monitor(pid: int, name: str) -> str:
    """The lxcpath of a container's monitor, from its title or from the arguments of lxc-start; "" if they have none.

    In the background, the title is "[lxc monitor] LXCPATH NAME". lxc-start(1), --lxcpath.
    """
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = os.fsdecode(file.read(1 << 16)).split("\0")
    except OSError:
        return ""
    # A monitor in the background replaces its arguments by a title, in one word. proc_pid_cmdline(5)
    title = words[0].strip()
    if title.startswith(_MONITOR):
        path, _, named = title.removeprefix(_MONITOR).rpartition(" ")
        return path if named == name and os.path.isabs(path) else ""
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if word in ("-P", "--lxcpath"):
            return os.path.abspath(value)
        if word.startswith(("-P", "--lxcpath=")):
            return os.path.abspath(word.removeprefix("--lxcpath=").removeprefix("-P"))
    return ""


def _root(state: dict[str, Any]) -> str:
    """The root directory in a state. Raises BadState if it has none, or the host's.

    Without the path everything would be attached to the host: the process is still in the host's root, since runtimes
    call createRuntime and prestart hooks before pivot_root(2).
    """
    root = state.get("root")
    if isinstance(root, str) and not os.path.isabs(root):
        # crun copies the path from the bundle's configuration, where it may be relative to the bundle.
        root = os.path.join(_absolute(state.get("bundle"), "bundle"), root)
    if root is None:
        from scplan.runtimes.state_files import read_file

        bundle = _absolute(state.get("bundle"), "bundle")
        path = os.path.join(bundle, "config.json")
        text = read_file(path)
        if text is None:
            raise _bad(f"there is no {path}")
        section = _object(text, path).get("root")
        root = section.get("path") if isinstance(section, dict) else None
        if isinstance(root, str) and not os.path.isabs(root):
            root = os.path.join(bundle, root)
    root = os.path.realpath(_absolute(root, "root"))
    if root == "/":
        raise _bad("the container's root is that of the host")
    return root


def _absolute(value: object, what: str) -> str:
    if isinstance(value, str) and os.path.isabs(value) and "\0" not in value and len(value) <= _MAX_PATH:
        return os.path.normpath(value)
    raise _bad(f"{what} is not an absolute path")


def _object(text: bytes, what: str) -> dict[str, Any]:
    try:
        document = strict_json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise _bad(f"{what} is not a JSON object")
    return document


def _bad(why: str) -> BadState:
    return BadState(
        f"not the state of a container: {why}",
        hint="a hook gets the state on standard input from its runtime; `scplan hook spec` prints how to configure it",
    )


def _not_of_lxc(why: str) -> BadState:
    return BadState(
        f"not the environment of a hook of LXC: {why}",
        hint="`scplan hook spec --runtime lxc` prints the lines of the container's configuration",
    )

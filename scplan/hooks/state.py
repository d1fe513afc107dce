"""What a runtime tells its hooks of a container. OCI runtime specification, "State" and "POSIX-platform Hooks"."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from scplan.errors import ScplanError

MAX_STATE_BYTES = 1 << 20
MAX_BUNDLE_BYTES = 8 << 20
_MAX_ID = 1024
_MAX_PID = 1 << 22
_MAX_PATH = 4096
STAGES = {
    "createRuntime": "start",
    "prestart": "start",
    "poststart": "started",
    "poststop": "stop",
}
OF_UDEV = "udev"
"""What the rules of linux/udev.py call: no runtime, and about a container by its name."""
_BY_STATUS = {"creating": "createRuntime", "created": "createRuntime", "running": "poststart", "stopped": "poststop"}


class Told(NamedTuple):
    """A container as its runtime described it. `pid` is 0 once it has ended; `root` is "" where it is in its root."""

    id: str
    stage: str
    pid: int = 0
    root: str = ""


class BadState(ScplanError):
    """What came on standard input is not the state of a container."""


def read_state(fd: int) -> bytes:
    """The runtime's text; raises BadState when it is longer than any state can be."""
    chunks: list[bytes] = []
    size = 0
    while chunk := os.read(fd, 1 << 16):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_STATE_BYTES:
            raise _bad(f"it has more than {MAX_STATE_BYTES} bytes")
    return b"".join(chunks)


def parse_state(text: bytes, stage: str | None) -> Told:
    """The container that a state is about. `stage` is the runtime's word for when it calls; None: by the status."""
    state = _object(text, "it")
    container_id, pid, status = state.get("id"), state.get("pid", 0), state.get("status")
    if not isinstance(container_id, str) or not 0 < len(container_id) <= _MAX_ID or "/" in container_id:
        raise _bad("it has no usable id")
    if stage is None:
        if not isinstance(status, str) or status not in _BY_STATUS:
            raise _bad(f"status {str(status)[:80]!r} is none of {', '.join(_BY_STATUS)}")
        stage = _BY_STATUS[status]
    if STAGES[stage] == "stop":
        return Told(container_id, stage)
    if type(pid) is not int or not 0 < pid <= _MAX_PID:
        raise _bad("it has no pid, but the container is to start")
    return Told(container_id, stage, pid, _root(state) if STAGES[stage] == "start" else "")


def _root(state: dict[str, Any]) -> str:
    """The root directory that the container will have, as its mount namespace knows it.

    Without it everything would be made on the host: its process is still in the host's root.
    """
    root = state.get("root")
    if root is None:
        bundle = _absolute(state.get("bundle"), "bundle")
        path = os.path.join(bundle, "config.json")
        try:
            with open(path, "rb") as file:
                text = file.read(MAX_BUNDLE_BYTES + 1)
        except OSError as error:
            raise _bad(f"{path}: {error.strerror}") from None
        if len(text) > MAX_BUNDLE_BYTES:
            raise _bad(f"{path} has more than {MAX_BUNDLE_BYTES} bytes")
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
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise _bad(f"{what} is not a JSON object")
    return document


def _bad(why: str) -> BadState:
    return BadState(
        f"not the state of a container: {why}",
        hint="a hook gets the state on standard input from its runtime; `scplan hook spec` prints how to configure it",
    )

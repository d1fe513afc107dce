"""Finds records of a container by its ID alone. Most containers have no record; then no other module is imported."""

from __future__ import annotations

import os

from scplan.hooks.state import HookCall
from scplan.linux.processes.process import PINS
from scplan.startup.named_tuple import NamedTuple
from scplan.startup.strict_json import DECODER

_HEAD_BYTES = 8192


_GENERATED_ID_LENGTH = 64
_NAMING = ("docker", "podman", "isulad")
"""Engines whose containers have a name besides a generated ID."""


class Found(NamedTuple):
    """The container of a record: its runtime, and its name there."""

    runtime: str
    name: str


def find_records(state_dir: str, container_id: str, runtime: str | None) -> list[Found]:
    """Records of containers with this ID, only of `runtime` if it is given. Raises OSError."""
    top = os.path.join(state_dir, "containers")
    runtimes = [runtime] if runtime is not None else _listed(top)
    return [
        Found(one, file.removesuffix(".json"))
        for one in runtimes
        for file in _listed(os.path.join(top, one))
        if file.endswith(".json") and _is_about(os.path.join(top, one, file), container_id)
    ]


def find_by_name(state_dir: str, call: HookCall, runtime: str | None, problems: list[str]) -> list[Found]:
    """Records with the name of a starting container, whose ID differs from the recorded ID.

    The engine's files are only read if the engine has records, and its containers have a name and a generated ID.
    Raises no ScplanError, since most records are of other containers: a name that cannot be found out is added to
    `problems`, with the reason.
    """
    top = os.path.join(state_dir, "containers")
    found = []
    for one in _NAMING if runtime is None else (runtime,):
        if len(call.id) == _GENERATED_ID_LENGTH and one in _NAMING and _listed(os.path.join(top, one)):
            from scplan.errors import ScplanError
            from scplan.runtimes import RUNTIMES

            try:
                facts = RUNTIMES[one].in_bundle(call.bundle, call.id)
            except ScplanError as error:
                why = error.diagnostics[0].line
                problems.append(f"container {call.id}: not known whether {one} has records for its name: {why}")
                continue
            if facts is not None and os.path.exists(os.path.join(top, one, f"{facts.name}.json")):
                found.append(Found(one, facts.name))
    return found


def has_pins() -> bool:
    """True if scplan keeps the network namespace of any container alive, because it has a NIC of the host."""
    return bool(_listed(PINS))


def _is_about(path: str, container_id: str) -> bool:
    """True if the record has the container's ID, by the beginning of the file alone.

    A damaged record counts for the container that its file is named for, so that the damage is reported.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(_HEAD_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return False
    key = '"container":'
    try:
        container, _ = DECODER.raw_decode(head, head.index(key) + len(key))
        return bool(container["id"] == container_id)
    except (ValueError, KeyError, TypeError, RecursionError):
        return os.path.basename(path) == f"{container_id}.json"


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []

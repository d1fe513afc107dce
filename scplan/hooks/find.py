"""Which record a container has, by its ID alone; most have none, and then nothing else is imported."""

from __future__ import annotations

import os

from scplan.named_tuple import NamedTuple
from scplan.strict_json import DECODER

_HEAD_BYTES = 8192
_GENERATING = ("docker", "podman", "isulad")
_GENERATED_ID_LENGTH = 64


class Found(NamedTuple):
    """A record's container: its runtime and its name there."""

    runtime: str
    name: str


def find_records(state_dir: str, container_id: str, runtime: str | None) -> list[Found]:
    """The records of containers with this ID; `runtime` limits them to one. Raises OSError."""
    top = os.path.join(state_dir, "containers")
    runtimes = [runtime] if runtime is not None else _listed(top)
    return [
        Found(one, file.removesuffix(".json"))
        for one in runtimes
        for file in _listed(os.path.join(top, one))
        if file.endswith(".json") and _is_about(os.path.join(top, one, file), container_id)
    ]


def names_with_records(state_dir: str, container_id: str, runtime: str | None) -> dict[str, list[str]]:
    """By runtime, the names that have records, where a container that is made again has a new, generated ID."""
    if len(container_id) != _GENERATED_ID_LENGTH:
        return {}
    top = os.path.join(state_dir, "containers")
    listed = {one: _listed(os.path.join(top, one)) for one in _GENERATING if runtime in (None, one)}
    named = {
        one: [file.removesuffix(".json") for file in files if file.endswith(".json")] for one, files in listed.items()
    }
    return {one: names for one, names in named.items() if names}


def _is_about(path: str, container_id: str) -> bool:
    """By the beginning of the file alone. One that can't be read is taken for the container of its name: it is said."""
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

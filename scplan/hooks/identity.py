"""Distinguishes the container of a record from containers with the same ID, by its place, bundle and process.

Runtimes distinguish containers by more than the ID: runc(8) and crun(1) by `--root`, containerd by its namespace, Incus
by the project, LXC by the lxcpath.
"""

from __future__ import annotations

import os
import select

from scplan.errors import KernelError, ScplanError
from scplan.hooks.state import HookCall
from scplan.linux.processes.process import start_of
from scplan.runtimes import RUNTIMES
from scplan.runtimes.oci_state import StateDirectoryRuntime
from scplan.runtimes.runtime import is_same_place
from scplan.store.state import Record
from scplan.workflow.recorded import is_plugged_in

_ENDING_S = 2
_BY_ROOT = ("runc", "crun")
"""Runtimes that keep containers below the root that they are given."""
_BY_BUNDLE = ("containerd", "isulad")
"""Runtimes whose bundle of a container is PLACE/ID."""
_PROGRAMS = ("runc", "crun")


def why_another(call: HookCall, record: Record, boot_id: str) -> str:
    """Reason why the starting container is not the record's container; "" if it is.

    Raises ScplanError if that cannot be determined.
    """
    place = _place_of(call, record.runtime)
    if place is not None and record.runtime in _BY_ROOT:
        return _why_elsewhere(place, record)
    why = _why_elsewhere(place, record) if place else ""
    if why:
        return why
    if is_plugged_in(record, boot_id) and record.pid != call.pid and not ends_soon(record):
        return f"the recorded one runs, as process {record.pid}"
    if not call.bundle or not record.bundle or _is_same(call.bundle, record.bundle):
        return ""
    if record.runtime in _BY_ROOT:
        raise ScplanError(
            f"container {call.id} may be another one than the one that scplan's records are about",
            detail=f"its bundle is {call.bundle}, the recorded one's was {record.bundle}, and who calls is not known",
            hint=f"`scplan state rm {record.name}` forgets the records; or start it by {record.runtime} itself",
        )
    return f"its bundle is {call.bundle}, the recorded one's is {record.bundle}"


def is_elsewhere(call: HookCall, record: Record) -> bool:
    """True if the place of the container in this call differs from the record's place."""
    place = _place_of(call, record.runtime)
    return bool(place and _why_elsewhere(place, record))


def _why_elsewhere(place: str, record: Record) -> str:
    expected = record.place or _default_root(record.runtime)
    if record.runtime == "incus" and expected:
        from scplan.runtimes.incus import is_same_project

        is_same = is_same_project(place, expected)
    else:
        is_same = is_same_place(place, expected)
    return "" if is_same else f"{record.runtime} keeps it in {place}, the recorded one in {expected}"


def _place_of(call: HookCall, runtime: str) -> str | None:
    """Place of the container in this call, as in ContainerFacts; None if it is unknown."""
    if runtime in _BY_ROOT:
        root = _root_of_caller()
        return root if root else _default_root(runtime) if root is not None else None
    if runtime in _BY_BUNDLE:
        return os.path.dirname(call.bundle) if os.path.basename(call.bundle) == call.id else None
    return call.place or None


def _default_root(runtime: str) -> str:
    """Root directory of runc or crun without --root, whatever this hook's environment names; else ""."""
    known = RUNTIMES[runtime]
    return known.default_root() if isinstance(known, StateDirectoryRuntime) else ""


def _is_same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _root_of_caller() -> str | None:
    """The --root of the runtime that calls this hook, "" for its default; None if the parent is no OCI runtime.

    Source: proc_pid_cmdline(5); runc(8) and crun(1): global options precede the command.
    """
    try:
        with open(f"/proc/{os.getppid()}/cmdline", "rb") as file:
            words = [os.fsdecode(word) for word in file.read(1 << 16).split(b"\0")]
    except OSError:
        return None
    if not words or os.path.basename(words[0]) not in _PROGRAMS:
        return None
    for index, word in enumerate(words[1:], 1):
        if word == "--root":
            return words[index + 1] if index + 1 < len(words) else None
        if word.startswith("--root="):
            return word.removeprefix("--root=")
        if word in ("create", "run", "start", "delete", "restore", "kill"):
            return ""
    return None


def ends_soon(record: Record) -> bool:
    """True if the recorded process ends within _ENDING_S seconds.

    crun only sends a signal to the process before it reports the stop. Source: pidfd_open(2).
    """
    try:
        pidfd = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return True
    try:
        if start_of(record.pid) != record.start_time:
            return True
        # A pidfd becomes readable when its process ends, even if the process stays a zombie.
        waiting = select.poll()
        waiting.register(pidfd, select.POLLIN)
        return bool(waiting.poll(_ENDING_S * 1000))
    except OSError as error:
        raise KernelError.from_os(f"poll(pidfd of {record.pid})", error) from None
    finally:
        os.close(pidfd)

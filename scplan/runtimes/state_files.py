"""Reads state of runtimes from disk and /proc: foreign data, with bounded size and checked types."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, TypeVar

from scplan.errors import KernelError, RecordDamaged
from scplan.linux.processes.process import acts_for_user, is_frozen, pid_namespace_of, start_of
from scplan.model.live import ContainerFacts, Status
from scplan.startup import strict_json

if TYPE_CHECKING:
    from scplan.runtimes.runtime import ContainerName

MAX_STATE_BYTES = 16 << 20
_CHUNK_BYTES = 64 << 10
T = TypeVar("T")


def read_state(path: str) -> dict[str, Any] | None:
    """JSON object in a runtime's file; None if the file is absent. Raises RecordDamaged for any other content."""
    text = read_file(path)
    return None if text is None else parse_object(text, path)


def read_file(path: str) -> bytes | None:
    """Content of a runtime's file; None if it is absent. Raises RecordDamaged if it is too long, KernelError."""
    try:
        # O_NONBLOCK: a user of the host may have put a FIFO there, whose open(2) waits for a writer. fifo(7)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            content = _read_bounded(fd)
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise KernelError.from_os(f"read({path})", error, hint=takes_root(error)) from None
    if len(content) > MAX_STATE_BYTES:
        raise damaged(path, f"it has more than {MAX_STATE_BYTES >> 20} MiB")
    return content


def takes_root(error: OSError) -> str:
    """Hint for a user who may not read a runtime's files; "" for other errors."""
    if error.errno not in (errno.EACCES, errno.EPERM):
        return ""
    return "its runtime keeps that for root: run scplan as root, or plan against a snapshot (`plan --live`)"


def _read_bounded(fd: int) -> bytes:
    # In chunks: a read(2) of the limit would allocate a buffer of that size.
    parts, received = [os.read(fd, _CHUNK_BYTES)], 0
    while parts[-1] and received <= MAX_STATE_BYTES:
        received += len(parts[-1])
        parts.append(os.read(fd, _CHUNK_BYTES))
    return b"".join(parts)


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `text`. Raises RecordDamaged, which names the source `where`, for any other text."""
    document = parse(text, where)
    if not isinstance(document, dict):
        raise damaged(where, "it is not a JSON object")
    return document


def parse(text: bytes, where: str) -> Any:
    """The JSON value in `text`. Raises RecordDamaged, which names the source `where`, if it is not JSON."""
    try:
        return strict_json.loads(text)
    except ValueError:
        raise damaged(where, "it is not JSON") from None


def field(document: dict[str, Any], key: str, kind: type[T], where: str) -> T:
    """The value of a required key, of exactly that type. Raises RecordDamaged for any other."""
    value = document.get(key)
    if type(value) is not kind:
        raise damaged(where, f"{key} is not {_TYPES.get(kind, kind.__name__)}")
    return value


def plain(text: str, where: str) -> str:
    """A name or ID that can be part of a path. Raises RecordDamaged for a text that no runtime uses as a name."""
    if not text or text[0] in "-." or "/" in text or not text.isprintable() or " " in text:
        raise damaged(where, f"{text!r} is no name of a container")
    return text


_TYPES: dict[type, str] = {str: "a text", int: "a number", bool: "true or false", dict: "an object", list: "a list"}


def damaged(where: str, problem: str) -> RecordDamaged:
    return RecordDamaged(f"{where} is not the state of a container", detail=problem, hint="ask its runtime about it")


def facts_of(
    name: str, runtime: str, pid: int, recorded_start: int, *, id: str | None = None, paused: bool | None = None
) -> ContainerFacts:
    """Facts of a container whose runtime recorded `pid`; stopped if that process has ended, or the PID was reused.

    `paused`: None if the runtime does not report it, so that the kernel's freezer is read.

    `recorded_start` is in clock ticks after boot; 0 if the runtime was queried just now and vouches for the process.
    """
    started = start_of(pid)
    # The kernel reuses PIDs: only PID and start time together identify a process.
    running = bool(started) and recorded_start in (0, started)
    status = Status.STOPPED
    if running:
        status = Status.PAUSED if (is_frozen(pid) if paused is None else paused) else Status.RUNNING
    return ContainerFacts(
        name=name,
        runtime=runtime,
        id=name if id is None else id,
        status=status,
        pid=pid if running else 0,
        start_time=started if running else 0,
        pid_namespace=pid_namespace_of(pid) if running else 0,
    )


def stopped(one: ContainerName, runtime: str, place: str) -> ContainerFacts:
    """Facts of a container, with status stopped."""
    facts = ContainerFacts(one.name, runtime, one.id, Status.STOPPED, place=place)
    return facts._replace(image=one.image, is_temporary=one.is_temporary)


def labels_of(value: object) -> tuple[str, ...]:
    """Labels as KEY=VALUE, from an engine's JSON object of texts."""
    if not isinstance(value, dict):
        return ()
    return tuple(f"{key}={text}" for key, text in value.items() if isinstance(text, str))


def pid_in_file(path: str, container_id: str) -> int:
    """PID in a PID file; 0 if the process's cgroup does not have the container's ID, since the PID may be reused."""
    text = read_file(path)
    if not text or not text.strip().isdigit():
        return 0
    pid = int(text[:20])
    return pid if has_cgroup_of(pid, container_id) else 0


def has_cgroup_of(pid: int, container_id: str) -> bool:
    """True if the process exists, in a cgroup whose path has the container's ID."""
    cgroups = read_file(f"/proc/{pid}/cgroup") if start_of(pid) else None
    return cgroups is not None and container_id in os.fsdecode(cgroups)


def list_directories(path: str) -> list[str]:
    """Names of the directories in `path`; empty if `path` is absent or cannot be read."""
    return [entry.name for entry in _entries(path) if entry.is_dir(follow_symlinks=False)]


def list_suffixed(path: str, suffix: str) -> list[str]:
    """Names in `path` that end with `suffix`, which is not removed; empty if `path` is absent or cannot be read."""
    return [entry.name for entry in _entries(path) if entry.name.endswith(suffix)]


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def user_directory() -> str | None:
    """$XDG_RUNTIME_DIR, in which runtimes of this user keep their state; None for root."""
    return (os.environ.get("XDG_RUNTIME_DIR") or None) if acts_for_user() else None


def toml_value(path: str, *keys: str) -> str | None:
    """A text in a TOML file: `toml_value(path, "storage", "graphroot")`; None if the file or the key is absent."""
    value = _in_toml(path, keys)
    return value if isinstance(value, str) and value else None


def toml_list(path: str, *keys: str) -> list[str]:
    """The texts of a list in a TOML file; empty if the file or the key is absent."""
    value = _in_toml(path, keys)
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _in_toml(path: str, keys: tuple[str, ...]) -> Any:
    text = read_file(path)
    if text is None:
        return None
    import tomllib

    try:
        value: Any = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise RecordDamaged(f"{path} is not TOML", detail=str(error)) from None
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value

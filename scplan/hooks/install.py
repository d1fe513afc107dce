"""Installs the hook in a runtime's configuration, and removes exactly the hook again; other content stays unchanged."""

from __future__ import annotations

import json
import os
import shlex
import stat
from typing import Any

from scplan.errors import KernelError, ScplanError
from scplan.hooks.json_text import with_member, without_member
from scplan.hooks.spec import DOCKER_RUNTIME, WRAPPER, docker_runtime, lxc_lines, podman_hook
from scplan.model.edit import Edit
from scplan.runtimes.configured_hooks import runs_scplan
from scplan.runtimes.lxc import default_path
from scplan.runtimes.podman import hook_directories
from scplan.startup import strict_json
from scplan.store.durable import write_document

INSTALLABLE = ("podman", "docker", "lxc")
_PODMAN_FILE = "scplan.json"
_DOCKER_FILE = "/etc/docker/daemon.json"
_LXC_FILE = "/etc/lxc/default.conf"
_LXC_STAGES = ("lxc.hook.start-host", "lxc.hook.post-stop")
_MAX_BYTES = 8 << 20


def install(runtime: str, state_dir: str, *, path: str | None = None, container: str | None = None) -> Edit:
    """The edit that installs the hook; without changes if the hook is installed already.

    `path` replaces the usual file; `container` is for lxc, which has a file per container. Raises ScplanError for
    runtimes that no single file configures, and if something else uses the hook's name.
    """
    path, before = _file(runtime, path, container)
    match runtime:
        case "podman":
            return Edit(path, before, _podman(path, before, state_dir), "it counts for containers started from now on")
        case "docker":
            return Edit(path, before, _docker(path, before, state_dir), _then_docker("have the hook"))
        case _:
            return Edit(path, before, _lxc(before or "", lxc_lines(state_dir, "lxc")), _then_lxc(path))


def uninstall(runtime: str, *, path: str | None = None, container: str | None = None) -> Edit:
    """The edit that removes the hook; without changes if the hook is not installed."""
    path, before = _file(runtime, path, container)
    if before is None:
        return Edit(path, None, None)
    match runtime:
        case "podman":
            return Edit(path, before, None if _is_podman_hook(before) else before)
        case "docker":
            return Edit(path, before, _without_docker(path, before), _then_docker("start no more"))
        case _:
            return Edit(path, before, _lxc(before, []))


def carry_out(edit: Edit) -> None:
    """Replaces the file by its new version atomically and with the same mode, or removes it. Raises KernelError."""
    if not edit.changes:
        return
    if edit.after is None:
        try:
            os.unlink(edit.path)
        except OSError as error:
            raise KernelError.from_os(f"unlink({edit.path})", error) from None
        return
    mode = 0o644 if edit.before is None else stat.S_IMODE(os.stat(edit.path).st_mode)
    try:
        os.makedirs(os.path.dirname(edit.path), mode=0o755, exist_ok=True)
    except OSError as error:
        raise KernelError.from_os(f"mkdir({os.path.dirname(edit.path)})", error) from None
    write_document(edit.path, edit.after.encode(), mode=mode)


def _file(runtime: str, path: str | None, container: str | None) -> tuple[str, str | None]:
    """(path of the runtime's file, its content); the content is None if the file is absent."""
    if runtime not in INSTALLABLE:
        raise ScplanError(
            f"scplan can't put a hook in place for {runtime}",
            detail=f"it can for {', '.join(INSTALLABLE)}",
            hint=f"`scplan hook spec --runtime {runtime}` prints what it takes, and where it belongs",
        )
    if container is not None and runtime != "lxc":
        raise ScplanError(f"{runtime} has one configuration for all containers", hint="leave --container out")
    if path is None:
        path = _usual_file(runtime, container)
    # Edit the target of a symlink: a rename(2) over the path would replace the link itself.
    path = os.path.realpath(path)
    if container is not None and not os.path.exists(path):
        raise ScplanError(f"lxc has no container {container!r}: there is no {path}")
    return path, _read(path)


def _usual_file(runtime: str, container: str | None) -> str:
    match runtime:
        case "podman":
            return f"{hook_directories()[-1]}/{_PODMAN_FILE}"
        case "docker":
            return _DOCKER_FILE
        case _:
            return f"{default_path()}/{container}/config" if container is not None else _LXC_FILE


def _read(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
        text = content.decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise ScplanError(f"{path} is not text in UTF-8") from None
    except OSError as error:
        raise KernelError.from_os(f"read({path})", error) from None
    if len(content) > _MAX_BYTES:
        raise ScplanError(f"{path} has more than {_MAX_BYTES} bytes")
    return text


# podman


def _podman(path: str, before: str | None, state_dir: str) -> str:
    if before is not None and not _is_podman_hook(before):
        raise ScplanError(f"{path} is there, and not a hook of scplan", hint="--config chooses another file")
    return podman_hook(state_dir)


def _is_podman_hook(text: str) -> bool:
    document = _object(text)
    return document is not None and isinstance(hook := document.get("hook"), dict) and runs_scplan(hook)


def _object(text: str) -> dict[str, Any] | None:
    try:
        document = strict_json.loads(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


# docker


def _docker(path: str, before: str | None, state_dir: str) -> str:
    wanted = docker_runtime(state_dir)
    entry = _docker_entry(path, before)
    if entry == wanted and before is not None:
        return before
    if entry is not None and not _is_wrapper(entry):
        raise ScplanError(
            f"{path} has another runtime {DOCKER_RUNTIME!r} already: {json.dumps(entry)}", hint="rename or remove it"
        )
    return with_member(before if before and before.strip() else "{}\n", ("runtimes", DOCKER_RUNTIME), wanted)


def _without_docker(path: str, before: str) -> str | None:
    """The file's text without scplan's runtime; None if nothing else is in it, so that the file is removed."""
    entry = _docker_entry(path, before)
    if entry is None or not _is_wrapper(entry):
        return before
    document = _object(before) or {}
    if document.get("default-runtime") == DOCKER_RUNTIME:
        raise ScplanError(
            f"{path}: the default runtime is {DOCKER_RUNTIME!r}, without which dockerd would not start",
            hint='take "default-runtime" out first, or choose another one',
        )
    if len(document["runtimes"]) > 1:
        return without_member(before, ("runtimes", DOCKER_RUNTIME))
    return without_member(before, ("runtimes",)) if len(document) > 1 else None


def _docker_entry(path: str, text: str | None) -> object | None:
    if text is None or not text.strip():
        return None
    document = _object(text)
    runtimes = {} if document is None else document.get("runtimes", {})
    if document is None or not isinstance(runtimes, dict):
        what = "not a JSON object" if document is None else "wrong: its runtimes are not an object"
        raise ScplanError(f"{path} is {what}", hint="mend it first; dockerd would not start with it either")
    return runtimes.get(DOCKER_RUNTIME)


def _is_wrapper(entry: object) -> bool:
    path = entry.get("path") if isinstance(entry, dict) else None
    return isinstance(path, str) and os.path.basename(path) == WRAPPER


def _then_docker(what: str) -> str:
    return (
        f"reload dockerd (systemctl reload docker); containers of `docker run --runtime {DOCKER_RUNTIME}` {what} then"
    )


# lxc


def _lxc(before: str, wanted: list[str]) -> str:
    """The configuration with `wanted` in place of scplan's lines; unchanged if both are equal."""
    lines = before.splitlines(keepends=True)
    if [line.strip() for line in lines if _is_hook_line(line)] == wanted:
        return before
    kept = "".join(line for line in lines if not _is_hook_line(line))
    separator = "\n" if wanted and kept and not kept.endswith("\n") else ""
    return kept + separator + "".join(f"{line}\n" for line in wanted)


def _is_hook_line(line: str) -> bool:
    key, _, value = line.partition("=")
    if key.strip() not in _LXC_STAGES:
        return False
    try:
        words = shlex.split(value)
    except ValueError:  # not scplan's, and no valid shell command
        return False
    return runs_scplan({"args": words})


def _then_lxc(path: str) -> str:
    if path == os.path.realpath(_LXC_FILE):
        return "containers that are created from now on have it; --container NAME is for one that is there"
    return "it counts from the container's next start"

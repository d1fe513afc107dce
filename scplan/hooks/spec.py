"""Configuration with which each runtime calls scplan's hook when containers start and stop."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from typing import Any

from scplan.errors import ScplanError
from scplan.hooks import DEFAULT_STATE_DIR, STATE_DIR_OPTION
from scplan.linux.processes.programs import hook_command
from scplan.startup.named_tuple import NamedTuple

WRAPPER = "scplan-runc"
"""The console script that adds the hook to bundles; for engines whose OCI runtime can be chosen, but not its hooks."""
DOCKER_RUNTIME = "scplan"
"""Name of the wrapper among docker's and containerd's runtimes."""
TIMEOUT_S = 120
"""More than a hook waits for locks (30 s): one that is killed leaves a journal that the next start has to undo."""
_STAGES = {"isulad": ("prestart", "poststop"), "lxc": ("start-host", "post-stop"), "incus": ("start-host", "post-stop")}
_OCI_STAGES = ("createRuntime", "poststop")


class Spec(NamedTuple):
    """`text` is configuration for the runtime; `where` describes the place for it."""

    text: str
    where: str


def spec(runtime: str, state_dir: str) -> Spec:
    """Configuration of the hook for a runtime. Raises ScplanError if the runtime has no hooks."""
    match runtime:
        case "runc" | "crun":
            hooks = {"hooks": oci_hooks(state_dir, runtime)}
            return Spec(_json(hooks), "put this into config.json of the container's bundle, beside what is there")
        case "podman":
            where = "/usr/share/containers/oci/hooks.d/scplan.json, or the last of hooks_dir in containers.conf(5)"
            return Spec(podman_hook(state_dir), f"a file of its own: {where}")
        case "isulad":
            return Spec(
                _json(oci_hooks(state_dir, runtime)),
                "a file of its own: for `isula create --hook-spec FILE`, or hook-spec in /etc/isulad/daemon.json",
            )
        case "docker":
            return Spec(_json({"runtimes": {DOCKER_RUNTIME: docker_runtime(state_dir)}}), _WHERE_DOCKER)
        case "containerd":
            return Spec(_containerd(state_dir), "/etc/containerd/config.toml, then restart containerd")
        case "lxc":
            return Spec(_lines(lxc_lines(state_dir, "lxc")), "the container's config, below lxc.lxcpath")
        case "incus":
            where = "raw.lxc of a profile or an instance: `… | incus profile set default raw.lxc -`"
            return Spec(_lines(lxc_lines(state_dir, "incus")), where)
        case _:
            raise ScplanError(
                f"{runtime} calls no hooks",
                hint="`scplan apply` from a timer plugs in again what its containers should have",
            )


_WHERE_DOCKER = (
    "/etc/docker/daemon.json, then reload dockerd; containers of `docker run --runtime scplan` have the hook, "
    'all new ones with "default-runtime": "scplan"'
)


def oci_hooks(state_dir: str, runtime: str | None) -> dict[str, list[dict[str, Any]]]:
    """The `hooks` of an OCI config.json; `runtime` is the runtime that knows the container by its name, if known."""
    return {stage: [oci_hook(state_dir, stage, runtime)] for stage in _STAGES.get(runtime or "", _OCI_STAGES)}


def oci_hook(state_dir: str, stage: str | None, runtime: str | None) -> dict[str, Any]:
    """One hook; without `stage`, scplan derives the stage from the container's status."""
    chosen = ["--runtime", runtime] if runtime else []
    command = hook_command(state_dir, [*chosen, *([stage] if stage else [])])
    return {"path": command[0], "args": command, "timeout": TIMEOUT_S}


def podman_hook(state_dir: str) -> str:
    """A file for podman's hooks.d, oci-hooks(5), with one hook for all stages."""
    hook = oci_hook(state_dir, None, "podman")
    return _json({"version": "1.0.0", "hook": hook, "when": {"always": True}, "stages": list(_OCI_STAGES)})


def docker_runtime(state_dir: str) -> dict[str, Any]:
    """The entry for `runtimes` in docker's daemon.json."""
    entry: dict[str, Any] = {"path": wrapper_path()}
    state_dir = os.path.abspath(state_dir)
    # Docker writes a wrapper script for a runtime with arguments: none are given for the default directory.
    return entry if state_dir == DEFAULT_STATE_DIR else entry | {"runtimeArgs": [f"{STATE_DIR_OPTION}{state_dir}"]}


def _containerd(state_dir: str) -> str:
    plugin = 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes'
    state_dir = os.path.abspath(state_dir)
    elsewhere = f"# containerd's own environment must have SCPLAN_STATE_DIR={shlex.quote(state_dir)}\n"
    return f"""\
{"" if state_dir == DEFAULT_STATE_DIR else elsewhere}\
# Without the CRI: ctr run --runc-binary {shlex.quote(wrapper_path())} …
[{plugin}.{DOCKER_RUNTIME}]
  runtime_type = "io.containerd.runc.v2"
  [{plugin}.{DOCKER_RUNTIME}.options]
    BinaryName = {json.dumps(wrapper_path())}
"""


def lxc_lines(state_dir: str, runtime: str) -> list[str]:
    """Lines for lxc.container.conf(5). LXC runs them in a shell, and writes their output to its log only."""
    return [
        f"lxc.hook.{stage} = {shlex.join(hook_command(state_dir, ['--runtime', runtime, stage]))} 2>&1"
        for stage in _STAGES[runtime]
    ]


def wrapper_path() -> str:
    """Absolute path of the wrapper that belongs to this scplan. Raises ScplanError if there is none."""
    beside = os.path.join(os.path.dirname(os.path.abspath(sys.executable)), WRAPPER)
    found = beside if os.access(beside, os.X_OK) else shutil.which(WRAPPER)
    if found is None:
        raise ScplanError(
            f"there is no {WRAPPER} beside {sys.executable}, nor in PATH",
            hint="`pip install` puts it there, together with scplan",
        )
    return os.path.abspath(found)


def _lines(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _json(document: object) -> str:
    return json.dumps(document, indent=2) + "\n"

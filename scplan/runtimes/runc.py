"""runc: /run/runc/ID/state.json, the state format of libcontainer."""

from __future__ import annotations

import os
from typing import Any

from scplan.linux.processes.process import common_end
from scplan.runtimes.oci_state import StateDirectoryRuntime


class Runc(StateDirectoryRuntime):
    name = "runc"
    programs = ("runc",)
    runs_for_engines = True
    file = "state.json"
    pid_key = "init_process_pid"
    start_key = "init_process_start"

    def cgroup_in(self, state: dict[str, Any]) -> str:
        """The common end of the cgroup directories, one per controller, such as /sys/fs/cgroup/pids/web."""
        paths = state.get("cgroup_paths")
        known = [path for path in paths.values() if isinstance(path, str)] if isinstance(paths, dict) else []
        config = state.get("config")
        is_rootless = isinstance(config, dict) and config.get("rootless_cgroups") is True
        if is_rootless and not any(map(os.path.isdir, known)):
            return ""  # rootless runc records cgroups that it could not create: libcontainer/cgroups/fs, Apply()
        return common_end(known) if len(known) > 1 else ""

    def bundle_in(self, state: dict[str, Any]) -> str | None:
        config = state.get("config")
        labels = config.get("labels") if isinstance(config, dict) else None
        for label in labels if isinstance(labels, list) else ():
            if isinstance(label, str) and label.startswith("bundle="):
                return label.removeprefix("bundle=")
        return None

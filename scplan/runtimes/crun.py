"""crun: /run/crun/ID/status."""

from __future__ import annotations

from typing import Any

from scplan.runtimes.oci_state import StateDirectoryRuntime


class Crun(StateDirectoryRuntime):
    name = "crun"
    programs = ("crun",)
    runs_for_engines = True
    file = "status"
    pid_key = "pid"
    start_key = "process-start-time"

    def cgroup_in(self, state: dict[str, Any]) -> str:
        path = state.get("cgroup-path")
        return path.strip("/") if isinstance(path, str) else ""

    def bundle_in(self, state: dict[str, Any]) -> str | None:
        bundle = state.get("bundle")
        return bundle if isinstance(bundle, str) else None

"""runc: /run/runc/ID/state.json, the state format of libcontainer."""

from __future__ import annotations

from typing import Any

from scplan.runtimes.oci_state import StateDirectoryRuntime


class Runc(StateDirectoryRuntime):
    name = "runc"
    file = "state.json"
    pid_key = "init_process_pid"
    start_key = "init_process_start"

    def bundle_in(self, state: dict[str, Any]) -> str | None:
        config = state.get("config")
        labels = config.get("labels") if isinstance(config, dict) else None
        for label in labels if isinstance(labels, list) else ():
            if isinstance(label, str) and label.startswith("bundle="):
                return label.removeprefix("bundle=")
        return None

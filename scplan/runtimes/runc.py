"""runc: /run/runc/ID/state.json, the state format of libcontainer."""

from __future__ import annotations

from scplan.runtimes.oci_state import StateDirectoryRuntime


class Runc(StateDirectoryRuntime):
    name = "runc"
    file = "state.json"
    pid_key = "init_process_pid"
    start_key = "init_process_start"

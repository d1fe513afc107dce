"""crun: /run/crun/ID/status."""

from __future__ import annotations

from scplan.runtimes.oci_state import StateDirectoryRuntime


class Crun(StateDirectoryRuntime):
    name = "crun"
    file = "status"
    pid_key = "pid"
    start_key = "process-start-time"

"""The hook that runtimes call when a container starts and stops. To start fast, entry.py imports the rest on demand."""

from __future__ import annotations

DEFAULT_STATE_DIR = "/var/lib/scplan"
"""What a hook is for whose runtime was call of no other one: containers of the system's engines are root's."""
STATE_DIR_OPTION = "--scplan-state-dir="
"""How an engine tells the wrapper of another one."""

"""The hook that runtimes call when a container starts and stops. To start fast, entry.py imports the rest on demand."""

from __future__ import annotations

DEFAULT_STATE_DIR = "/var/lib/scplan"
"""State directory of a hook that was installed without naming another: engines of the system run as root."""
STATE_DIR_OPTION = "--scplan-state-dir="
"""Option with which an engine passes another state directory to the wrapper."""

"""Mount and network namespaces of their own for this process: the tests see nothing of what others do on the host.

As isolated-python does it, which starts the processes of `make test`; this is for a pytest that runs the tests itself.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from scplan.linux.syscalls import CLONE_NEWNS, unshare

MARK = "SCPLAN_TESTS_ISOLATED"
_CLONE_NEWNET = 0x40000000


def isolate() -> None:
    """Enters new namespaces, once, as root; without root the tests that need them are skipped anyway."""
    if os.geteuid() != 0 or os.environ.get(MARK):
        return
    unshare(CLONE_NEWNS | _CLONE_NEWNET, name="mount and network namespaces for tests")
    os.environ[MARK] = "1"
    Path("/run/scplan").mkdir(exist_ok=True)
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "scplan-tests", "/run/scplan"],
        ["ip", "link", "set", "lo", "up"],
    ):
        subprocess.run(command, check=True)

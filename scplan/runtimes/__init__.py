"""The registry of container runtimes."""

from __future__ import annotations

from scplan.runtimes.crun import Crun
from scplan.runtimes.process import Process
from scplan.runtimes.runc import Runc
from scplan.runtimes.runtime import Runtimes

RUNTIMES: Runtimes = {runtime.name: runtime for runtime in (Runc(), Crun(), Process())}

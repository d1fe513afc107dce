"""scplan at work in this process, over and over, while a container's root works against it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scplan.errors import ExitCode, ScplanError
from scplan.workflow import applying, planning, reporting, scene
from tests.containers.container import Container
from tests.e2e.scene import naming

RACE_S = float(os.environ.get("SCPLAN_RACE_SECONDS", "0.6"))
"""How long one race is run; `make hostile` takes longer than `make test`."""


class Ground:
    """A container with a configuration of its own. `codes` counts how the runs ended, by exit code."""

    def __init__(self, container: Container, directory: Path) -> None:
        self.container = container
        self.file = directory / "scplan.yaml"
        self.request = scene.Request(state_dir=str(directory / "state"), files=(str(self.file),), lock_timeout_s=5)
        self.codes: Counter[int] = Counter()
        self.said: set[str] = set()
        self.slowest_s = 0.0
        self.last = ""

    def write(self, **sections: Any) -> None:
        import json

        entry = {**naming(self.container), **sections}
        self.file.write_text(json.dumps({"version": 1, "containers": {self.container.name: entry}}))

    def apply(self, *, destroy: bool = False) -> int:
        """One run; its exit code. Whatever is not an error for users passes through, and fails the test."""
        begun = time.monotonic()
        try:
            with applying.open_apply(self.request._replace(destroy=destroy)) as run:
                run.execute(lambda _: None)
            code = 0
        except ScplanError as error:
            code = int(error.exit_code)
            self.said.add(str(error))
            self.last = str(error)
            if code in (ExitCode.ROLLBACK_INCOMPLETE, ExitCode.RECOVERY_NEEDED):
                self.recover()
        self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
        self.codes[code] += 1
        return code

    def plan(self) -> int:
        """A plan, drift and show; the exit code of the first that fails."""
        try:
            planning.make_plan(self.request)
            reporting.drift(self.request)
            reporting.show_owned(self.request)
        except ScplanError as error:
            self.said.add(str(error))
            return int(error.exit_code)
        return 0

    def race(self, seconds: float = RACE_S) -> int:
        """Applies, looks and destroys until the time is up; how many runs that were."""
        end = time.monotonic() + seconds
        runs = 0
        while time.monotonic() < end or runs < 4:
            self.apply()
            self.plan()
            self.apply(destroy=True)
            runs += 2
        return runs

    def recover(self) -> int:
        """What an undo could not take back while it was worked against, once more; the exit code."""
        try:
            applying.recover(self.request, "auto", lambda _: None, lambda _: None)
        except ScplanError as error:
            self.said.add(str(error))
            self.last = str(error)
            return int(error.exit_code)
        return 0

    def settle(self, tidy: Callable[[], None] = lambda: None) -> None:
        """With the attacker gone: what may be there goes, and then all can be made again.

        `tidy` takes away what the attacker had kept out of scplan's reach.
        """
        tidy()
        assert self.recover() == 0, self.last
        assert self.apply(destroy=True) == 0, self.last
        tidy()
        assert self.apply() == 0, self.last
        assert planning.make_plan(self.request).changes == ()
        assert self.apply(destroy=True) == 0, self.last

    def verdict(self, what: str, rounds: int, runs: int) -> None:
        """Prints how often it was tried, and holds the runs to the exit codes of the contract."""
        print(f"{what}: {rounds} swaps, {runs} runs, exit codes {dict(self.codes)}, slowest {self.slowest_s:.2f} s")
        # 4 and 8: somebody who swaps directories all the time can make the undo fail, too. It says so, and `settle`
        # shows that nothing is lost by it.
        assert set(self.codes) <= {0, 1, 3, 4, 8}, self.said
        assert not [text for text in self.said if "bug in scplan" in text], self.said

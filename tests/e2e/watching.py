"""A supervisor at work, as tests see it: what it tells, and how much it costs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import Scplan

_READY_S = 20.0
_ENDED_S = 10.0
_TICKS = os.sysconf("SC_CLK_TCK")

Told = dict[str, Any]


class Watch:
    """`scplan watch --json`, started; `told` has all that it has told so far."""

    def __init__(
        self, scplan: Scplan, *arguments: str, environment: dict[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> None:
        self.process = subprocess.Popen(
            [*prefix, *scplan.command("watch", "--json", *arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=scplan.directory,
            env={**scplan.environment, **(environment or {})},
        )
        self.told: list[Told] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def until(self, what: str, *, container: str = "", timeout_s: float = 10.0, after: int = 0) -> Told:
        """The first thing of that type that it told, since the `after`th; fails the test when it does not come."""
        found = self.maybe(what, container=container, timeout_s=timeout_s, after=after)
        assert found is not None, f"no {what} {container} in {timeout_s} s; told: {self.told[after:]}"
        return found

    def maybe(self, what: str, *, container: str = "", timeout_s: float, after: int = 0) -> Told | None:
        """The same; None when it does not come."""

        def look() -> Told | None:
            for one in self.told[after:]:
                if one["type"] == what and container in ("", one["container"]):
                    return one
            return None

        wait_until(lambda: look() is not None or self._has_ended, timeout_s)
        return look()

    @property
    def _has_ended(self) -> bool:
        return self.process.poll() is not None and not self._reader.is_alive()

    @property
    def pid(self) -> int:
        """Its process: not the one that has entered a room for it, and waits."""
        if Path(f"/proc/{self.process.pid}/comm").read_text() != "nsenter\n":
            return self.process.pid
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text())

    def cpu_s(self) -> float:
        """Processor time of it and of its children that have ended."""
        with open(f"/proc/{self.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / _TICKS

    def memory_kib(self) -> int:
        """Resident memory of its own, without files; what a child has not copied yet counts, too."""
        with open(f"/proc/{self.pid}/smaps_rollup") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith("Anonymous:"))

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Ends it by a signal; returns how many seconds it took."""
        begun = time.monotonic()
        self.send(number)
        self.process.wait(_ENDED_S)
        self._reader.join(_ENDED_S)
        return time.monotonic() - begun

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.told.append(json.loads(line))


@contextmanager
def watching(
    scplan: Scplan, *arguments: str, environment: dict[str, str] | None = None, prefix: Sequence[str] = ()
) -> Iterator[Watch]:
    """A supervisor that has begun; it has to end cleanly at the end of the block, unless the block has ended it.

    `prefix` is a command that runs it.
    """
    watch = Watch(scplan, *arguments, environment=environment, prefix=prefix)
    try:
        watch.until("watching", timeout_s=_READY_S)
        yield watch
        if watch.process.poll() is None:
            watch.end()
            assert watch.process.returncode == 0, watch.process.stderr and watch.process.stderr.read()
    finally:
        if watch.process.poll() is None:
            watch.process.kill()
            watch.process.wait()
        assert watch.process.stderr
        errors = watch.process.stderr.read()
        assert "Traceback" not in errors, errors


def wait_until(is_so: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Whether it became so in time."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True

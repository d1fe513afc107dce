"""A session: everything that one test run, demo or benchmark makes, and its removal whatever happens.

    with Session() as session, session.container("runc") as web:
        web.exec(["ls", "/dev"])

Nothing survives: leaving the session removes what it made; when its process is killed, its keeper does; and when that
is killed too, the next session does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.containers import naming, oci, rootfs, sweep
from tests.containers.container import Container

CHECKOUT = Path(__file__).parents[2]


class Session:
    """Makes containers, disks, bridges and links under names of its own."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.prefix = naming.owner_prefix(self.pid)
        self.directory = naming.directory_of(self.pid)
        self.leftovers = sweep.sweep_dead_sessions()
        if self.directory.exists():
            # Of an earlier session of this very process, or of an owner that had the same PID.
            self.leftovers += sweep.sweep(self.pid)
        try:
            self._keeper = self._begin()
        except BaseException:
            # Interrupted before there is a keeper to clean up.
            sweep.sweep(self.pid)
            raise

    def _begin(self) -> subprocess.Popen[str]:
        naming.claim(self.directory)
        (self.directory / "bin").mkdir()
        (self.directory / "mnt").mkdir()
        rootfs.fill_bin(self.directory / "bin")
        return subprocess.Popen(
            [sys.executable, "-m", "tests.containers.keeper", str(self.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
            start_new_session=True,  # Ctrl-C is for the owner; the keeper is told by the end of its input
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes everything. Raises RuntimeError when something could not be removed; stderr tells what."""
        assert self._keeper.stdin
        assert self._keeper.stdout
        self._keeper.stdin.close()
        status = self._keeper.wait(timeout=120)
        self._keeper.stdout.close()
        if status:
            raise RuntimeError(f"the keeper of containers ended with status {status}")

    def name(self) -> str:
        """A name that nothing has yet, of at most 15 bytes: for containers, files and network interfaces alike."""
        return naming.new_name(self.pid)

    def start(self, name: str, *, userns: bool = False, with_cgroups: bool = True) -> Container:
        """A container of bare namespaces, to be stopped by `stop` or with the session."""
        answer = self._ask({"do": "start", "name": name, "userns": userns, "cgroups": with_cgroups})
        return Container(name=name, runtime="process", pid=int(str(answer["pid"])), userns=userns)

    def stop(self, name: str) -> None:
        self._ask({"do": "stop", "name": name})

    @contextmanager
    def container(
        self,
        runtime: str,
        *,
        name: str | None = None,
        userns: bool = False,
        with_cgroups: bool = True,
        hooks: dict[str, object] | None = None,
        annotations: dict[str, str] | None = None,
        read_only: bool = False,
    ) -> Iterator[Container]:
        """A running container of any runtime; gone when the context is left, even if it stopped before.

        `hooks`, `annotations` and `read_only` go into the bundle of an OCI runtime.
        """
        name = name or self.name()
        if runtime == "process":
            started = Container(name=name, runtime=runtime, pid=0)
            try:
                started = self.start(name, userns=userns, with_cgroups=with_cgroups)
                yield started
            finally:
                with started.leaving_no_host_ends():
                    self.stop(name)
            return
        bundle = self.directory / name
        oci.make_bundle(bundle, name, userns=userns, hooks=hooks, annotations=annotations, read_only=read_only)
        container = Container(name=name, runtime=runtime, pid=0, userns=userns, bundle=bundle)
        try:
            container.start()
            yield container
        finally:
            container.remove()

    def _ask(self, request: dict[str, object]) -> dict[str, object]:
        assert self._keeper.stdin
        assert self._keeper.stdout
        self._keeper.stdin.write(json.dumps(request) + "\n")
        self._keeper.stdin.flush()
        line = self._keeper.stdout.readline()
        if not line:
            raise RuntimeError(f"the keeper of containers ended with status {self._keeper.wait(timeout=10)}")
        answer: dict[str, object] = json.loads(line)
        if "error" in answer:
            raise OSError(str(answer["error"]))
        return answer

"""Records golden files of the current format version: `unshare --net python -m state.record_golden`, as root.

It runs scplan on a throwaway container and keeps the bytes that scplan wrote in the newest format version, which is the
journal's. It is run once for each new format version, and never writes over one that is there.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from string import Template

from scplan.journal import FORMAT_VERSION

from tests.containers import host_parts
from tests.containers.container import Container
from tests.containers.session import CHECKOUT, Session

GOLDEN = CHECKOUT / "state/golden" / FORMAT_VERSION
FIRST = Template("""\
version: 1
runtime: process
containers:
  web:
    pid: $pid
    devices:
      - source: $disk
        target: /dev/data
        permissions: rw
        io: {read_bps: 10m, write_iops: 500}
    nics:
      - name: eth1
        host_name: $port
        bridge: $bridge
        addresses: [10.20.30.5/24, "fd00:20::5/64"]
        mtu: 1400
    routes:
      - {to: default, via: 10.20.30.1}
    mounts:
      - $directory:/srv/data:ro
    cgroup:
      memory.max: 64MiB
""")
# An address changes, and takes the route with it; the mount moves; the limit goes; one route can't be made.
SECOND = FIRST.template.replace("10.20.30.5", "10.20.30.6").replace("/srv/data:ro", "/srv/www").split("    cgroup:")[0]
FAILING = SECOND.replace("via: 10.20.30.1", "via: 10.99.0.1")


def main() -> None:
    """Makes the container, and copies what scplan wrote about it."""
    if GOLDEN.exists():
        sys.exit(f"{GOLDEN.relative_to(CHECKOUT)} is there already: golden files are never written again")
    if len(socket.if_nameindex()) > 1:
        sys.exit(
            "the snapshot would hold this host's links: run it in a network namespace of its own, by unshare --net"
        )
    subprocess.run(["ip", "link", "add", "br0", "type", "bridge"], check=True)
    with Session() as session, ExitStack() as stack:
        container = stack.enter_context(session.container("process"))
        values = {
            "pid": str(container.pid),
            "disk": stack.enter_context(host_parts.loop_disk(session)).path,
            "bridge": "br0",
            "port": "web-eth1",
            "directory": str(stack.enter_context(host_parts.scratch_directory(session))),
        }
        directory = stack.enter_context(host_parts.scratch_directory(session))
        Recorder(directory, values).record(container)


class Recorder:
    """Runs scplan in a directory of its own."""

    def __init__(self, directory: Path, values: dict[str, str]) -> None:
        self.directory = directory
        self.values = values
        self.state = directory / "state"

    def record(self, container: Container) -> None:
        GOLDEN.mkdir(parents=True)
        self.write(FIRST.template)
        self.scplan("apply", "--auto-approve")
        self.keep(self.newest_journal(), "journal-first-apply.jsonl")
        self.write(FAILING)
        self.scplan("apply", "--auto-approve", expected=3)
        self.keep(self.newest_journal(), "journal-rolled-back.jsonl")
        self.write(SECOND)
        self.scplan("plan", "--out", "web.plan", "--quiet")
        self.keep(self.directory / "web.plan", "plan.json")
        self.scplan("snapshot", "--out", "host.snapshot")
        self.keep(self.directory / "host.snapshot", "snapshot.json")
        self.keep(self.state / "containers/process/web.json", "record.json")
        self.keep(self.killed_half_way(), "journal-crashed.jsonl")
        self.scplan("recover")
        self.scplan("apply", "--auto-approve")
        self.keep(self.newest_journal(), "journal-committed.jsonl")
        self.scplan("undo", "--auto-approve")
        self.keep(self.newest_journal(), "journal-undo.jsonl")
        self.scplan("apply", "--auto-approve", "--confirm-within", "10m")
        (waiting,) = (self.state / "journal").glob("*.jsonl")
        self.keep(waiting, "journal-awaiting.jsonl")
        self.scplan("undo", "--auto-approve")
        self.keep(self.newest_journal(), "journal-given-up.jsonl")
        self.scplan("destroy", "web", "--auto-approve")

    def write(self, template: str) -> None:
        (self.directory / "scplan.yaml").write_text(Template(template).substitute(self.values))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "scplan", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SCPLAN_STATE_DIR": str(self.state), "PYTHONPATH": str(CHECKOUT), "SUDO_USER": "operator"}

    def scplan(self, *arguments: str, expected: int = 0) -> None:
        ended = subprocess.run(
            self.command(*arguments), cwd=self.directory, env=self.environment, capture_output=True, text=True
        )
        if ended.returncode != expected:
            sys.exit(f"scplan {' '.join(arguments)}: exit code {ended.returncode}\n{ended.stdout}{ended.stderr}")

    def killed_half_way(self) -> Path:
        """The journal of an apply that was killed after it had begun an operation."""
        process = subprocess.Popen(
            self.command("apply", "--auto-approve"),
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and process.poll() is None:
            for journal in (self.state / "journal").glob("*.jsonl"):
                if b'"done"' in journal.read_bytes():
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    return journal
        process.wait()
        sys.exit("the apply ended before it could be killed; remove what was recorded, and try again")

    def newest_journal(self) -> Path:
        return max((self.state / "history").glob("*.jsonl"))

    def keep(self, path: Path, name: str) -> None:
        if not re.search(rf'"format_version": ?"{FORMAT_VERSION}"', path.read_text()):
            return  # of a format that this version has not changed
        shutil.copyfile(path, GOLDEN / name)
        print(f"recorded: {(GOLDEN / name).relative_to(CHECKOUT)}")


if __name__ == "__main__":
    main()

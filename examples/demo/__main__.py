"""`make demo`: scplan on a throwaway container, step by step, with real commands on the real kernel.

Starts a container of bare namespaces with a disk, a bridge and a directory to plug in, and leaves nothing behind,
whether it ends well, fails or is interrupted. Without root it uses a user namespace and leaves out what needs root.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from string import Template
from typing import NoReturn

from tests.containers import cgroups, host_parts
from tests.containers.container import Container
from tests.containers.fingerprint import container_fingerprint, difference
from tests.containers.session import CHECKOUT, Session
from tests.containers.sweep import traces

HERE = Path(__file__).parent
RECORDS = CHECKOUT / "state/run/demo"
CONFIG = RECORDS / "scplan.yaml"
STATE = RECORDS / "state"
IN_USER_NAMESPACE = "SCPLAN_DEMO_IN_USER_NAMESPACE"
COLUMNS = min(shutil.get_terminal_size().columns, 100)


class Failed(Exception):
    """A command or a check of the demo did not come out as it should."""


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if os.geteuid() != 0:
        _enter_user_namespace()
    try:
        with Session() as session:
            Demo(session, rootless=IN_USER_NAMESPACE in os.environ).run()
        if left := traces(session.pid):
            raise Failed("something was left behind on the host:\n  " + "\n  ".join(left))
    except Failed as failure:
        sys.exit(f"\nThe demo failed: {failure}")
    except KeyboardInterrupt:
        print("\nInterrupted; everything that the demo made has been removed.", file=sys.stderr)
        sys.exit(130)
    print("\nDone: the container is gone, and no link, mount, cgroup, disk or file of it is left on the host.")


def _enter_user_namespace() -> NoReturn:
    """Starts over as root of a user namespace with its own network and mounts."""
    print(
        "Not root, so this runs in a user namespace: NICs, routes and mounts, but no devices and no cgroup limits.",
        flush=True,
    )
    command = ["unshare", "--user", "--map-root-user", "--net", "--mount", sys.executable, "-m", "examples.demo"]
    if subprocess.run([*command[:5], "true"], capture_output=True).returncode:
        sys.exit("This kernel lets only root make user namespaces (sysctl user.max_user_namespaces): run it as root.")
    os.environ[IN_USER_NAMESPACE] = "1"
    os.execvp(command[0], command)


class Demo:
    """The steps of the demo on one container."""

    def __init__(self, session: Session, *, rootless: bool) -> None:
        self.session = session
        self.rootless = rootless
        self.step = 0

    def run(self) -> None:
        shutil.rmtree(RECORDS, ignore_errors=True)
        RECORDS.mkdir(parents=True, mode=0o700)
        with ExitStack() as stack:
            container = self.set_up(stack)
            before = container_fingerprint(container)
            self.first_apply(container)
            self.tamper(container)
            self.heal()
            self.destroy(container)
            if left := difference(before, container_fingerprint(container)):
                raise Failed("destroy left something behind:\n  " + "\n  ".join(left))
            print("Compared with before: links, addresses, routes, mounts, device nodes and cgroup files are the same.")

    def set_up(self, stack: ExitStack) -> Container:
        self.heading("A container, and things of this host to plug into it")
        container = stack.enter_context(self.session.container("process", with_cgroups=not self.rootless))
        bridge = stack.enter_context(host_parts.bridge(self.session))
        directory = stack.enter_context(host_parts.scratch_directory(self.session))
        (directory / "hello.txt").write_text("hello from the host\n")
        disk = "" if self.rootless else stack.enter_context(host_parts.loop_disk(self.session)).path
        values = {
            "pid": str(container.pid),
            "disk": disk,
            "bridge": bridge,
            "port": self.session.name(),
            "directory": str(directory),
        }
        text = Template(_without_root_parts() if self.rootless else _template()).substitute(values)
        CONFIG.write_text(text)
        print(f"container web: PID {container.pid}, namespaces of its own, busybox")
        print(f"disk {disk or '(none without root)'}, bridge {bridge}, directory {directory}\n")
        self.show(["cat", str(CONFIG.relative_to(CHECKOUT))], CONFIG.read_text())
        return container

    def first_apply(self, container: Container) -> None:
        self.heading("What would change?")
        self.show(["export", f"SCPLAN_STATE_DIR={STATE.relative_to(CHECKOUT)}"])
        self.scplan("plan")
        self.heading("Apply it")
        self.scplan("apply", "--auto-approve")
        self.heading("A look inside the container")
        if not self.rootless:
            self.inside(container, "ls -l /dev/data")
            self.inside(container, "dd if=/dev/data of=/dev/null bs=4k count=256")
        self.inside(container, "ip address show dev eth1")
        self.inside(container, "ip route")
        self.inside(container, "grep /srv/data /proc/mounts; cat /srv/data/hello.txt")
        if not self.rootless:
            self.cgroup_files(container)
        self.heading("Everything is as declared")
        self.scplan("plan", "--detailed-exitcode")

    def cgroup_files(self, container: Container) -> None:
        names = ("io.max", "memory.max", "pids.max")
        if not cgroups.is_v2():
            names = ("blkio.throttle.read_bps_device", "memory.limit_in_bytes", "pids.max")
        paths = container.cgroups
        for name in names:
            directory = paths.get("") or paths[name.partition(".")[0]]
            self.command(["cat", str(directory / name)])

    def tamper(self, container: Container) -> None:
        self.heading("Somebody breaks things inside")
        if not self.rootless:
            self.inside(container, "rm /dev/data")
        self.inside(container, "ip address del 10.20.30.5/24 dev eth1")
        self.inside(container, "umount /srv/data")

    def heal(self) -> None:
        self.heading("Drift: what differs from what was applied")
        self.scplan("drift", "--detailed-exitcode", expected=2)
        self.heading("Apply heals it")
        self.scplan("apply", "--auto-approve")
        self.scplan("plan", "--detailed-exitcode")

    def destroy(self, container: Container) -> None:
        self.heading("Take everything out again")
        self.scplan("destroy", "web", "--auto-approve", config=False)
        self.scplan("state", "list", config=False)
        self.inside(container, "ls /dev; ip -o link; grep -c /srv/data /proc/mounts || true")

    # how the steps are shown

    def heading(self, text: str) -> None:
        self.step += 1
        print(f"\n── {self.step}. {text} ".ljust(COLUMNS, "─") + "\n", flush=True)

    def scplan(self, *arguments: str, expected: int = 0, config: bool = True) -> None:
        argv = list(arguments) + (["-f", str(CONFIG.relative_to(CHECKOUT))] if config else [])
        shown = ["scplan", *argv]
        environment = {**os.environ, "SCPLAN_STATE_DIR": str(STATE)}
        self.show(shown)
        ended = subprocess.run([sys.executable, "-m", *shown], cwd=CHECKOUT, env=environment, timeout=60)
        print(flush=True)
        if ended.returncode != expected:
            raise Failed(f"`{shlex.join(shown)}` ended with exit code {ended.returncode} instead of {expected}")

    def inside(self, container: Container, script: str) -> None:
        self.command(container.exec_command(["sh", "-c", f"exec 2>&1; {script}"]), shown=f"web# {script}")

    def command(self, argv: list[str], *, shown: str = "") -> None:
        print(shown or f"$ {shlex.join(argv)}", flush=True)
        ended = subprocess.run(argv, timeout=30)
        print(flush=True)
        if ended.returncode:
            raise Failed(f"`{shown or shlex.join(argv)}` ended with exit code {ended.returncode}")

    def show(self, argv: list[str], output: str = "") -> None:
        print(f"$ {shlex.join(argv)}", flush=True)
        if output:
            print(output, flush=True)


def _template() -> str:
    return (HERE / "demo.yaml").read_text().split("\n", 2)[2]


def _without_root_parts() -> str:
    """The template without the sections that need root of the host."""
    kept, skipping = [], False
    for line in _template().splitlines(keepends=True):
        if line.startswith("    ") and line[4] != " ":
            skipping = line.strip() in ("devices:", "cgroup:")
        if not skipping:
            kept.append(line)
    return "".join(kept)


if __name__ == "__main__":
    main()

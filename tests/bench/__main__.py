"""`make bench`: what scplan costs, beside the floor that a C program sets on the same machine in the same minutes.

BENCH_CONTAINERS is how many containers the large plan has (1000), BENCH_TIMES how often each is measured (5).
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.bench import measure
from tests.bench.measure import Cost
from tests.containers import host_parts
from tests.containers.container import Container
from tests.containers.session import Session

CONTAINERS = int(os.environ.get("BENCH_CONTAINERS", "1000"))
TIMES = int(os.environ.get("BENCH_TIMES", "5"))
# A Linux bridge has at most 1023 ports, and a container has two NICs.
CONTAINERS_PER_BRIDGE = 500
# Of what `resources` plugs in, what has a file in the container.
PATHS = "/dev/disk /dev/full0 /mnt/data /srv/config"
PYTHON_WHERE_PUBLISHED_MS = 8
PREDECESSOR_SET_MS = 103
PREDECESSOR_HOOK_MS = 72
HOOK_GOAL_MS = 20


def main() -> None:
    if os.geteuid() != 0:
        sys.exit("The benchmark needs root: it starts containers and plugs devices into them.")
    print(
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} CPUs; ", end=""
    )
    print(f"medians of {TIMES}\n")
    with Session() as session, ExitStack() as stack:
        Bench(session, stack).run()


class Bench:
    """The parts of the host that containers get, and the measurements one after the other."""

    def __init__(self, session: Session, stack: ExitStack) -> None:
        self.session = session
        self.stack = stack
        self.disk = stack.enter_context(host_parts.loop_disk(session)).path
        self.directories = [str(stack.enter_context(host_parts.scratch_directory(session))) for _ in range(3)]

    def run(self) -> None:
        (python,) = measure.medians(TIMES, measure.python)
        row("python -I -c pass", python)
        self.version(python)
        self.one_container(python)
        self.set_on_runc()
        self.hooks()
        self.many_containers()

    def version(self, python: Cost) -> None:
        (cost,) = measure.medians(TIMES, lambda: measure.scplan("--version", state_dir=self.directory()))
        row("scplan --version", cost, f"CPU without Python: {(cost.cpu_s - python.cpu_s) * 1000:.0f} ms")

    def one_container(self, python: Cost) -> None:
        """A plan of one container with 10 resources that are as they should be."""
        container = self.session.start(self.session.name())
        bridge = self.stack.enter_context(host_parts.bridge(self.session))
        config, state_dir = self.write({"one": self.resources(container, 0, bridge)}), self.directory()
        measure.scplan("apply", "--auto-approve", "-f", config, state_dir=state_dir)
        (cost,) = measure.medians(TIMES, lambda: _unchanged(config, state_dir))
        measure.scplan("destroy", "one", "--auto-approve", state_dir=state_dir)
        self.session.stop(container.name)
        row("plan, 1 container, unchanged", cost, f"CPU without Python: {(cost.cpu_s - python.cpu_s) * 1000:.0f} ms")

    def set_on_runc(self) -> None:
        """2 devices, 2 veths, 2 routes and 3 mounts plugged into a runc container, and taken out again."""
        bridge = self.stack.enter_context(host_parts.bridge(self.session))
        with self.session.container("runc") as container:
            resources = self.resources(container, 0, bridge)
            del resources["cgroup"], resources["pid"]
            resources["mounts"] = [f"{path}:/mnt/{number}" for number, path in enumerate(self.directories)]
            config = self.write({container.name: resources | {"runtime": "runc"}})
            state_dir = self.directory()
            into, out, python = measure.medians(
                TIMES,
                lambda: measure.scplan("apply", "--auto-approve", "-f", config, state_dir=state_dir),
                lambda: measure.scplan("destroy", container.name, "--auto-approve", state_dir=state_dir),
                measure.python,
            )
        scale = python.wall_s * 1000 / PYTHON_WHERE_PUBLISHED_MS
        row(
            "apply 2 devices, 2 NICs, 2 routes, 3 mounts",
            into,
            f"the predecessor: {PREDECESSOR_SET_MS} ms where Python starts in {PYTHON_WHERE_PUBLISHED_MS} ms; "
            f"here it starts in {python.wall_s * 1000:.0f} ms, so about {PREDECESSOR_SET_MS * scale:.0f} ms",
        )
        row("destroy of that set", out)

    def hooks(self) -> None:
        """What the hook adds to the start of a container without records, and of one that gets the set."""
        bridge = self.stack.enter_context(host_parts.bridge(self.session))
        with self.session.container("runc") as container:
            state, state_dir = self.directory() / "state", self.directory()
            self.tell(state, container)
            nobody, python = measure.medians(
                4 * TIMES, lambda: measure.hook("createRuntime", state, state_dir), measure.python
            )
            row("hook, container without records", nobody, _in_starts(nobody, python, HOOK_GOAL_MS))
            resources = self.resources(container, 0, bridge)
            del resources["cgroup"], resources["pid"]
            resources["mounts"] = [f"{path}:/mnt/{number}" for number, path in enumerate(self.directories)]
            config = self.write({container.name: resources | {"runtime": "runc"}})
            measure.scplan("apply", "--auto-approve", "-f", config, state_dir=state_dir)

            def started_again() -> Cost:
                container.stop()
                container.start()
                self.tell(state, container)
                return measure.hook("poststart", state, state_dir)

            into, python = measure.medians(TIMES, started_again, measure.python)
            _unchanged(config, state_dir)
        row("hook, 2 devices, 2 NICs, 2 routes, 3 mounts", into, _in_starts(into, python, PREDECESSOR_HOOK_MS))

    def tell(self, path: Path, container: Container) -> None:
        """Writes what a runtime would say of the container on the hook's standard input."""
        state = {"ociVersion": "1.0.2", "id": container.name, "pid": container.pid, "status": "running"}
        path.write_text(json.dumps(state | {"bundle": str(container.bundle)}))

    def many_containers(self) -> None:
        """A plan of many containers that are as they should be, and the C program that only reads."""
        floor = self.compile_floor()
        start = time.perf_counter()
        containers = [self.session.start(self.session.name()) for _ in range(CONTAINERS)]
        print(f"\nstarted {CONTAINERS} containers in {time.perf_counter() - start:.1f} s", flush=True)
        count = -(-CONTAINERS // CONTAINERS_PER_BRIDGE)
        bridges = [self.stack.enter_context(host_parts.bridge(self.session)) for _ in range(count)]
        config = self.write(
            {
                container.name: self.resources(container, number, bridges[number // CONTAINERS_PER_BRIDGE])
                for number, container in enumerate(containers)
            }
        )
        listed = self.session.directory / "containers"
        listed.write_text("".join(f"{container.pid} {PATHS}\n" for container in containers))
        state_dir = self.directory()
        first = measure.scplan("apply", "--auto-approve", "-f", config, state_dir=state_dir)
        row(f"apply, {CONTAINERS} containers of 10 resources", first)
        plan, reads = measure.medians(
            TIMES, lambda: _unchanged(config, state_dir), lambda: measure.run([floor], stdin=listed)
        )
        row(f"plan, {CONTAINERS} containers, unchanged", plan)
        ratio = f"plan / reads: {plan.wall_s / reads.wall_s:.1f} wall, {plan.cpu_s / reads.cpu_s:.1f} CPU"
        row("  the same live reads in C", reads, ratio)

    def resources(self, container: Container, number: int, bridge: str) -> dict[str, Any]:
        """10 resources: 2 devices, 2 NICs, 2 routes, 2 mounts, 2 cgroup settings."""
        net = f"{number >> 8}.{number & 255}"
        return {
            "runtime": "process",
            "pid": container.pid,
            "devices": [
                {"source": self.disk, "target": "/dev/disk", "permissions": "rw", "io": {"read_bps": "10m"}},
                "/dev/full:/dev/full0:rw",
            ],
            "nics": [
                {"name": "eth1", "host_name": self.session.name(), "bridge": bridge, "addresses": [f"10.{net}.5/24"]},
                {"name": "eth2", "host_name": self.session.name(), "bridge": bridge, "addresses": [f"11.{net}.5/24"]},
            ],
            "routes": [{"to": "default", "via": f"10.{net}.1"}, {"to": "192.168.0.0/16", "dev": "eth2"}],
            "mounts": [f"{self.directories[0]}:/mnt/data", f"{self.directories[1]}:/srv/config:ro"],
            "cgroup": {"memory.max": "1GiB", "pids.max": 1000},
        }

    def write(self, containers: dict[str, dict[str, Any]]) -> str:
        """The path of a configuration file with these containers."""
        path = self.directory() / "scplan.yaml"
        # One line a value, as people write it; JSON is YAML.
        path.write_text(json.dumps({"version": 1, "containers": containers}, indent=1))
        return str(path)

    def directory(self) -> Path:
        path = self.session.directory / self.session.name()
        path.mkdir(mode=0o700)
        return path

    def compile_floor(self) -> str:
        program = str(self.session.directory / "floor")
        subprocess.run(["gcc", "-O2", "-Wall", "-o", program, str(Path(__file__).with_name("floor.c"))], check=True)
        return program


def _in_starts(cost: Cost, python: Cost, goal_ms: int) -> str:
    """The cost in starts of Python, beside a number that was published for a machine that needs 8 ms for one."""
    goal = goal_ms / PYTHON_WHERE_PUBLISHED_MS
    return f"{cost.wall_s / python.wall_s:.1f} starts of Python; {goal_ms} ms where it takes 8 are {goal:.1f}"


def _unchanged(config: str, state_dir: Path) -> Cost:
    """A plan that finds nothing to do, and fails the benchmark when it finds something."""
    return measure.scplan("plan", "--detailed-exitcode", "-f", config, state_dir=state_dir)


def row(what: str, cost: Cost, remark: str = "") -> None:
    numbers = f"{cost.wall_s * 1000:9.0f} ms wall {cost.cpu_s * 1000:9.0f} ms CPU"
    # The kernel starts a child's peak at what its parent had; less than that is not known.
    if cost.peak_mib > 1.2 * measure.own_peak_mib():
        numbers += f" {cost.peak_mib:7.0f} MiB peak"
    print(f"{what:46}{numbers}" + (f"\n{'':46}  {remark}" if remark else ""), flush=True)


if __name__ == "__main__":
    main()

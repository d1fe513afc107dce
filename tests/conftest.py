"""Fixtures for all tests: throwaway containers, parts of the host, and the command line as a subprocess."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.containers import host_parts, needs
from tests.containers.container import Container
from tests.containers.host_parts import LoopDisk, Nic
from tests.containers.isolation import isolate
from tests.containers.session import CHECKOUT, Session
from tests.tried import TRIED

_skipped: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: a unit test that takes a second or more: `make quick` leaves it out")
    config.addinivalue_line(
        "markers", "needs(*what): skip the test, loudly, on a machine without these; a CI run fails"
    )
    _hear_signals()
    # With processes of pytest-xdist each of them is isolated, and this one runs no test.
    if not config.getoption("tx", default=None):
        isolate()


def _hear_signals() -> None:
    """Resets signals that a background job of a shell, or nohup(1), ignores: so would every scplan of the tests."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    wanted = tuple(need for mark in item.iter_markers("needs") for need in mark.args)
    if absent := needs.missing(wanted):
        pytest.skip(f"this machine has no {', '.join(absent)}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        _skipped.append(f"{report.nodeid}: {reason.removeprefix('Skipped: ')}")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _skipped.append(f"{report.nodeid}: the whole module")


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["tried"] = {what: dict(outcomes) for what, outcomes in TRIED.items()}
    if _skipped and _in_ci() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process that ran some of the tests has ended: adds what it counted."""
    for what, outcomes in getattr(node, "workeroutput", {}).get("tried", {}).items():
        TRIED[what].update(outcomes)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for what, outcomes in sorted(TRIED.items()):
        listed = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        terminalreporter.write_line(f"{what}: {outcomes.total()} ({listed})")
    if not _skipped:
        return
    terminalreporter.section("SKIPPED, a failure in CI" if _in_ci() else "SKIPPED, would fail in CI", bold=True)
    for line in _skipped:
        terminalreporter.write_line(line)


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


# containers


class MakeContainer(Protocol):
    """`make_container("runc", userns=True)`; the arguments are those of Session.container."""

    def __call__(self, runtime: str, **options: Any) -> Container: ...


@pytest.fixture(scope="session")
def session() -> Iterator[Session]:
    """Whatever is made with it is removed at the end, even if the tests are killed."""
    with Session() as made:
        for trouble in made.leftovers:
            print(f"left over by an earlier run: {trouble}", file=sys.stderr)
        yield made


@pytest.fixture
def make_container(session: Session) -> Iterator[MakeContainer]:
    """Starts containers that are removed after the test, the last one first."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda runtime, **options: stack.enter_context(session.container(runtime, **options))


@pytest.fixture
def process_container(make_container: MakeContainer) -> Container:
    """A process in namespaces and cgroups of its own; the quickest of them."""
    _require("root", "busybox")
    return make_container("process")


@pytest.fixture
def userns_container(make_container: MakeContainer) -> Container:
    """The same with a user namespace: root inside is 100000 outside."""
    _require("root", "busybox", "userns")
    return make_container("process", userns=True)


@pytest.fixture
def runc_container(make_container: MakeContainer) -> Container:
    _require("root", "busybox", "runc")
    return make_container("runc")


@pytest.fixture
def crun_container(make_container: MakeContainer) -> Container:
    _require("root", "busybox", "crun")
    return make_container("crun")


@pytest.fixture(params=["runc", "crun", "process", "process-userns", "runc-userns"])
def any_container(request: pytest.FixtureRequest, make_container: MakeContainer) -> Container:
    """The test runs once for each way of making a container."""
    runtime, _, userns = request.param.partition("-")
    _require("root", "busybox", *(["userns"] if userns else []), *([runtime] if runtime != "process" else []))
    return make_container(runtime, userns=bool(userns))


# parts of the host


@pytest.fixture
def loop_disk(session: Session) -> Iterator[LoopDisk]:
    """A disk of 8 MiB without partitions."""
    _require("loop")
    with host_parts.loop_disk(session) as disk:
        yield disk


@pytest.fixture
def partitioned_disk(session: Session) -> Iterator[LoopDisk]:
    """A disk of 16 MiB with two partitions."""
    _require("loop", "partx")
    with host_parts.loop_disk(session, size_bytes=16 << 20, partitions=2) as disk:
        yield disk


@pytest.fixture
def bridge(session: Session) -> Iterator[str]:
    """The name of a Linux bridge."""
    _require("bridge")
    with host_parts.bridge(session) as name:
        yield name


@pytest.fixture
def veth_pair(session: Session) -> Iterator[Nic]:
    """A stand-in for a physical NIC; the port at its other end is up."""
    _require("veth")
    with host_parts.nic(session) as pair:
        yield pair


@pytest.fixture
def small_disk(session: Session) -> Iterator[Path]:
    """A directory on a file system of 16 KiB."""
    _require("root")
    with host_parts.small_disk(session) as path:
        yield path


@pytest.fixture
def host_directory(session: Session) -> Iterator[Path]:
    """An empty directory of the host that containers with a user namespace can reach too."""
    with host_parts.scratch_directory(session) as path:
        yield path


@pytest.fixture
def tmp_state_dir(session: Session) -> Iterator[Path]:
    """Where scplan keeps its records during the test; not made yet, and short enough for a socket below it."""
    with host_parts.scratch_directory(session) as path:
        yield path / "state"


# the command line


@dataclass(frozen=True)
class Ran:
    """What a run of scplan came to."""

    argv: list[str]
    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON document."""
        return json.loads(self.stdout)

    @property
    def events(self) -> list[Any]:
        """Standard output as JSON lines."""
        return [json.loads(line) for line in self.stdout.splitlines()]

    def ok(self, code: int = 0) -> Ran:
        """Itself; fails the test with all that was printed when the exit code is another one."""
        assert self.code == code, (
            f"{' '.join(self.argv)}: exit code {self.code}, not {code}\n{self.stdout}{self.stderr}"
        )
        return self


class Scplan:
    """Runs scplan as users do. `config` is written to scplan.yaml in the working directory when it is given."""

    def __init__(self, directory: Path, state_dir: Path) -> None:
        self.directory = directory
        self.state_dir = state_dir
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(CHECKOUT),
            "SCPLAN_STATE_DIR": str(state_dir),
            "NO_COLOR": "1",
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "scplan", *arguments]

    def __call__(
        self,
        *arguments: str,
        config: str | dict[str, Any] | None = None,
        stdin: str = "",
        timeout_s: float = 60,
        environment: dict[str, str] | None = None,
    ) -> Ran:
        if config is not None:
            self.write(config)
        ended = subprocess.run(
            self.command(*arguments),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=self.directory,
            env={**self.environment, **(environment or {})},
        )
        return Ran(["scplan", *arguments], ended.returncode, ended.stdout, ended.stderr)

    def write(self, config: str | dict[str, Any], name: str = "scplan.yaml") -> Path:
        """The configuration as a file in the working directory; a mapping is written as JSON, which YAML contains."""
        path = self.directory / name
        path.write_text(config if isinstance(config, str) else json.dumps(config, indent=1))
        return path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A run that goes on in the background; the test ends it."""
        return subprocess.Popen(
            self.command(*arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.directory,
            env=self.environment,
        )


@pytest.fixture
def scplan(tmp_path: Path, tmp_state_dir: Path) -> Scplan:
    """`scplan("plan", "--json", config={…}).ok().json`"""
    return Scplan(tmp_path, tmp_state_dir)


def _require(*wanted: str) -> None:
    if absent := needs.missing(wanted):
        pytest.skip(f"this machine has no {', '.join(absent)}")

"""What the end-to-end tests share: configurations of throwaway containers, and the promise that nothing changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import Ran
from tests.containers.container import Container
from tests.containers.fingerprint import difference, fingerprint
from tests.containers.host_parts import LoopDisk

Config = dict[str, Any]


def config(*containers: tuple[Container, dict[str, Any]]) -> Config:
    """A configuration of several containers, each with its sections."""
    return {"version": 1, "containers": {one.name: {**naming(one), **sections} for one, sections in containers}}


def of(container: Container, **sections: Any) -> Config:
    """A configuration of one container: `of(web, nics=[…], routes=[…])`."""
    return config((container, sections))


def naming(container: Container) -> dict[str, Any]:
    """How a configuration says which container it means."""
    if container.runtime == "process":
        return {"runtime": "process", "pid": container.pid}
    return {"runtime": container.runtime}


def everything(container: Container, disk: LoopDisk, bridge: str, directory: Path) -> Config:
    """A configuration with every kind of resource."""
    return of(
        container,
        devices=[
            {
                "source": disk.path,
                "target": "/dev/data",
                "permissions": "r",
                "mode": "0640",
                "gid": 6,
                "io": {"read_bps": "10m", "write_iops": 500},
            }
        ],
        nics=[
            {
                "name": "eth1",
                "bridge": bridge,
                "addresses": ["10.97.0.5/24", "fd97::5/64"],
                "mac": "02:5c:97:00:00:05",
                "mtu": 1400,
            }
        ],
        routes=[{"to": "default", "via": "10.97.0.1"}, {"to": "10.98.0.0/16", "dev": "eth1", "metric": 50}],
        mounts=[f"{directory}:/srv/data:ro"],
        cgroup={"memory.max": "64MiB", "cpu.max": "50000 100000", "pids.max": 100},
    )


@contextmanager
def nothing_changed(*containers: Container) -> Iterator[None]:
    """Host and containers are the same at the end of the block as at its beginning."""
    before = fingerprint(containers)
    yield
    changes = difference(before, fingerprint(containers))
    assert not changes, "\n".join(changes)


def address(container: Container, rest: str) -> str:
    """`web/nic/eth1`"""
    return f"{container.name}/{rest}"


def planned(ran: Ran) -> dict[str, str]:
    """Actions by address, of `plan --json`, the container's name left out."""
    return {change["address"].partition("/")[2]: change["action"] for change in ran.json["changes"]}


def refused(ran: Ran, *said: str, code: int = 1) -> None:
    """The run ended with this code, said all of that, and did not break down."""
    ran.ok(code)
    for words in said:
        assert words in ran.stderr, f"{words!r} is not in: {ran.stderr}"
    assert "Traceback" not in ran.stderr
    assert "bug in scplan" not in ran.stderr

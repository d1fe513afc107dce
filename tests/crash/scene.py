"""What the crash tests stand on: two containers, configurations of them, and scplan in a child of the tests.

From the first configuration to the second every kind of resource is created, updated, replaced, deleted and adopted.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import scplan
from tests.containers import host_parts
from tests.containers.container import Container
from tests.containers.fingerprint import Fingerprint, fingerprint
from tests.containers.host_parts import LoopDisk
from tests.containers.session import Session
from tests.crash import tracer
from tests.e2e.scene import Config, config

Sections = dict[str, Any]
_ADOPTED_PIDS = 77


class Parts(NamedTuple):
    """What of the host is plugged in. `one` has a directory `in`; `absent` is not there."""

    disk: LoopDisk
    bridge: str
    nic: str
    one: Path
    two: Path
    absent: Path


class Scene:
    """Two containers and what may be done with them. `web` has ids of the host, `db` a user namespace."""

    def __init__(self, web: Container, db: Container, parts: Parts, directory: Path) -> None:
        self.containers = (web, db)
        self.parts = parts
        self.directory = directory
        self.state_dir = directory / "state"
        self.first = self._written("first", config((web, _web_first(parts)), (db, _db_first(parts))))
        self.second = self._written("second", config((web, _web_second(parts)), (db, _db_second(parts))))
        self.impossible = self._written("impossible", config((web, _impossible(parts)), (db, _db_second(parts))))

    def _written(self, name: str, content: Config) -> str:
        path = self.directory / f"{name}.yaml"
        path.write_text(json.dumps(content, indent=1))
        return str(path)

    def run(self, *arguments: str, decide: Callable[[tracer.Call], tracer.Verdict] = lambda _: None) -> tracer.Ran:
        """Runs scplan in a child of this process, where everything is imported: a start costs a fork."""
        return tracer.run(partial(_command, self, arguments), decide)

    def done(self, *arguments: str) -> tracer.Ran:
        """The same, where nothing is to go wrong."""
        ran = self.run(*arguments)
        assert ran.code == 0, f"scplan {' '.join(arguments)}: exit code {ran.code}\n{ran.output}"
        return ran

    def picture(self) -> Fingerprint:
        """Host and containers, complete, and the records by what they say."""
        picture = fingerprint(self.containers)
        for name, link in picture["host"]["links"].items():
            # The kernel makes up the MAC address of a veth's host end anew each time.
            if link.get("linkinfo", {}).get("info_kind") == "veth" and name != self.parts.nic:
                link.pop("address")
        for container in self.containers:
            # Where scplan makes what it mounts on.
            found = container.exec(["find", "/srv", "-xdev"], check=True).stdout
            picture[container.name]["files"] = sorted(map(_nameless, found.split()))
        return {**picture, "records": self.records(), "host files": self._host_files()}

    def records(self) -> dict[str, Any]:
        """The records as JSON, and the names of everything that should not stay: open journals, *.tmp."""
        found: dict[str, Any] = {}
        for path in sorted(self.state_dir.glob("containers/*/*")):
            if path.suffix == ".json":
                found[path.name] = _said_by(path)
            elif not path.name.endswith(".json.previous"):
                found[path.name] = "left over"
        found |= {path.name: "left over" for path in self.state_dir.glob("journal/*")}
        return found

    def _host_files(self) -> list[str]:
        """What is below the directories that are mounted: scplan makes some of them."""
        roots = (self.parts.one, self.parts.two, self.parts.absent)
        return sorted(str(path) for root in roots for path in (root, *root.rglob("*")) if path.exists())


def _nameless(path: str) -> str:
    """The path without the random part of the name under which scplan keeps a file."""
    return re.sub(r"(\.scplan-saved-)[0-9a-f]+$", r"\1…", path)


def _timeless(text: str) -> str:
    """A text of a kept link, without the time at which it was kept and the link's index."""
    return re.sub(r"^(boottime )\d+$|^(link .{8}).{8}", lambda found: found[1] or found[2], text)


def _said_by(record: Path) -> dict[str, Any]:
    """The resources of a record, without what is another one each time that it is made.

    That is the inode of a directory made for `create_source`, the MAC address of a veth's host end, the name of a file
    that is kept, and the time at which a NIC was lent with its index.
    """
    resources: dict[str, Any] = json.loads(record.read_text().partition(" ")[2])["resources"]
    for resource in resources.values():
        resource.pop("host_mac", None)
        if "saved_as" in resource:
            resource["saved_as"] = _nameless(resource["saved_as"])
        if "host_state" in resource:
            resource["host_state"] = [_timeless(text) for text in resource["host_state"]]
        if resource.get("made_source"):
            resource.pop("source_identity", None)
    return resources


def _command(scene: Scene, arguments: tuple[str, ...]) -> int:
    import gc

    from scplan.cli.app import run

    os.chdir(scene.directory)
    os.environ |= {"SCPLAN_STATE_DIR": str(scene.state_dir), "NO_COLOR": "1"}
    gc.disable()
    return run(arguments)


@contextmanager
def open_scene(session: Session) -> Iterator[Scene]:
    """A scene in which nothing is applied yet."""
    import_all()
    with (
        session.container("process") as web,
        session.container("process", userns=True) as db,
        host_parts.loop_disk(session) as disk,
        host_parts.bridge(session) as bridge,
        host_parts.nic(session) as nic,
        host_parts.scratch_directory(session) as one,
        host_parts.scratch_directory(session) as two,
        host_parts.scratch_directory(session) as directory,
    ):
        (one / "in").mkdir()
        (one / "file").write_text("one")
        (web.cgroups["pids"] / "pids.max").write_text(str(_ADOPTED_PIDS))
        web.exec(["sh", "-c", "echo old > /srv/in-the-way"], check=True)
        yield Scene(web, db, Parts(disk, bridge, nic.name, one, two, directory / "made"), directory)


def import_all() -> None:
    """All of scplan, and so all that it needs but for what it imports in functions."""
    for module in pkgutil.walk_packages(scplan.__path__, "scplan."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


# configurations


def _web_first(parts: Parts) -> Sections:
    return {
        "devices": [
            {"source": parts.disk.path, "target": "/dev/data", "permissions": "rw", "io": {"read_bps": "10m"}},
            {"source": "/dev/null", "target": "/dev/replaced"},
            {"source": "/dev/full", "target": "/dev/deep/deleted"},
        ],
        "nics": [
            _nic(parts, "eth1", 1, addresses=["10.97.0.5/24", "fd97::5/64"], mtu=1400),
            _nic(parts, "eth2", 2, addresses=["10.96.0.5/24"]),
            _nic(parts, "eth3", 3),
        ],
        "routes": [
            {"to": "default", "via": "10.97.0.1"},
            {"to": "10.98.0.0/16", "dev": "eth1", "metric": 50},
            {"to": "fd98::/64", "via": "fd97::1"},
        ],
        "mounts": [f"{parts.one}:/srv/updated", f"{parts.one}:/srv/replaced", f"{parts.two}:/srv/replaced/in"],
        "cgroup": {"memory.max": "64MiB", "cpu.max": "50000 100000"},
    }


def _web_second(parts: Parts) -> Sections:
    return {
        "devices": [
            {
                "source": parts.disk.path,
                "target": "/dev/data",
                "permissions": "r",
                "mode": "0640",
                "gid": 6,
                "io": {"read_bps": "5m", "write_iops": 100},
            },
            {"source": "/dev/zero", "target": "/dev/replaced"},
            {"source": "/dev/random", "target": "/srv/in-the-way", "replace_existing": True},
        ],
        "nics": [
            _nic(parts, "eth1", 1, addresses=["10.97.0.6/24", "fd97::5/64"], mtu=1300),
            _nic(parts, "eth2", 2, bridge=None, host_name=f"e2{parts.bridge[-9:]}"),
            {"name": "lan0", "type": "physical", "host_name": parts.nic, "addresses": ["10.95.0.5/24"], "mtu": 1450},
        ],
        "routes": [
            {"to": "default", "via": "10.97.0.2"},
            {"to": "10.94.0.0/16", "via": "10.95.0.1"},
            {"to": "fd98::/64", "via": "fd97::1"},
        ],
        "mounts": [
            f"{parts.one}:/srv/updated:ro,rprivate",
            f"{parts.two}:/srv/replaced",
            {"source": str(parts.absent / "deep"), "target": "/srv/made/here", "create_source": True},
            f"{parts.one}/file:/srv/made/file",
        ],
        "cgroup": {"memory.max": "70MiB", "pids.max": _ADOPTED_PIDS, "cpu.weight": 200},
    }


def _impossible(parts: Parts) -> Sections:
    """The second configuration with a limit that the kernel refuses, late: it holds more memory for the processes."""
    sections = _web_second(parts)
    sections["cgroup"]["memory.max"] = "96KiB"
    return sections


def _db_first(parts: Parts) -> Sections:
    return {
        "devices": [{"source": parts.disk.path, "target": "/dev/data"}],
        "nics": [_nic(parts, "eth1", 4, addresses=["10.97.0.7/24"])],
        "routes": [{"to": "10.92.0.0/16", "via": "10.97.0.1"}],
        "mounts": [f"{parts.one}:/srv/one:ro"],
        "cgroup": {"pids.max": 200},
    }


def _db_second(parts: Parts) -> Sections:
    return {
        "devices": [{"source": "/dev/null", "target": "/dev/there/is"}],
        "nics": [_nic(parts, "eth1", 4, addresses=["10.97.0.7/24"], txqueuelen=500)],
        "mounts": [f"{parts.one}:/srv/one", f"{parts.two}:/srv/one/in:ro"],
        "cgroup": {"pids.max": 201},
    }


def _nic(parts: Parts, name: str, number: int, **more: Any) -> Sections:
    """A veth whose two ends have the same MAC addresses each time."""
    entry = {"name": name, "bridge": parts.bridge, "mac": f"02:5c:97:00:00:{number:02x}", **more}
    return {key: value for key, value in entry.items() if value is not None}

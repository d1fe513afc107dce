"""What tests of stopping and starting share: a container with everything in it, its end, its record of another life."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from scplan.store.durable import decode_line, encode_line
from tests.conftest import Scplan
from tests.containers.container import Container
from tests.containers.host_parts import LoopDisk
from tests.containers.session import CHECKOUT

ALL = ["device", "nic", "route", "mount", "cgroup"]


def hooks(scplan: Scplan) -> dict[str, object]:
    command = [sys.executable, "-m", "scplan", "--state-dir", str(scplan.state_dir), "hook"]
    return {
        stage: [{"path": sys.executable, "args": [*command, stage], "env": [f"PYTHONPATH={CHECKOUT}"]}]
        for stage in ("createRuntime", "poststop")
    }


def kill(container: Container) -> None:
    """Ends the container as a crash of its process would; its runtime knows it still."""
    os.kill(container.pid, signal.SIGKILL)
    subprocess.run(["tail", "--pid", str(container.pid), "-f", "/dev/null"], timeout=10)


def start_again(container: Container) -> None:
    container.stop()
    container.start()


def parts(disk: LoopDisk, bridge: str, directory: Path) -> dict[str, Any]:
    return {
        "devices": [{"source": disk.path, "target": "/dev/data", "io": {"read_bps": "10m"}}],
        "nics": [{"name": "eth1", "bridge": bridge, "addresses": ["10.97.0.5/24"]}],
        "routes": [{"to": "default", "via": "10.97.0.1"}],
        "mounts": [f"{directory}:/srv/data:ro"],
        "cgroup": {"pids.max": 100},
    }


def record_path(scplan: Scplan, container: Container) -> Path:
    return scplan.state_dir / "containers" / container.runtime / f"{container.name}.json"


def rewrite_record(scplan: Scplan, container: Container, **changes: object) -> None:
    """The record as of another life, or of another container of the name."""
    path = record_path(scplan, container)
    document = decode_line(path.read_bytes(), str(path))
    document["container"].update(changes)
    path.write_bytes(encode_line(document))


def inside(container: Container) -> list[str]:
    """What of `parts` is in a running container."""
    links = {link["ifname"] for link in container.ip("link")}
    return [
        name
        for name, there in {
            "device": container.stat("/dev/data") is not None,
            "nic": "eth1" in links,
            "route": any(route["dst"] == "default" for route in container.ip("route")),
            "mount": "/srv/data" in container.mount_points(),
            "cgroup": container.cgroup_file("pids.max").strip() == "100",
        }.items()
        if there
    ]


def take_hook_out(container: Container) -> None:
    """Its bundle has no hooks from the next start on."""
    assert container.bundle
    path = container.bundle / "config.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in document.items() if key != "hooks"}))

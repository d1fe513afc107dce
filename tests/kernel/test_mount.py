"""Mounts as the kernel keeps them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import Scplan
from tests.containers.container import Container
from tests.e2e.scene import of

pytestmark = pytest.mark.needs("root", "busybox")


@pytest.mark.parametrize(("word", "shown"), [("private", False), ("rslave", False), ("rshared", True)])
def test_mount_in_a_shared_root_spreads_as_it_was_asked_to(
    word: str, shown: bool, process_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    """The root is shared under systemd and LXC, and the kernel shares what is mounted there."""
    web = process_container
    inside = ["nsenter", f"--target={web.pid}", "--mount", "/bin/busybox", "mount", "--make-rshared", "/"]
    subprocess.run(inside, check=True)
    asked = of(web, mounts=[f"{host_directory}:/srv/data:{word}"])
    scplan("apply", "--auto-approve", config=asked).ok()
    (mount,) = [line for line in web.mounts() if line.split()[4] == "/srv/data"]
    assert (" shared:" in mount.partition(" - ")[0]) is shown
    assert scplan("plan", "--json").ok().json["changes"] == []
    scplan("destroy", web.name, "--auto-approve").ok()
    assert "/srv/data" not in web.mount_points()

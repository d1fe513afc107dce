"""A container's network in the hands of its root: renames, floods, thousands of links, names that steer terminals."""

from __future__ import annotations

import contextlib
import ipaddress  # noqa: F401 - attackers have no modules inside
import json
import os
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from scplan.errors import ScplanError
from scplan.linux.container import Container as Opened
from scplan.linux.host import Host
from scplan.linux.network.netlink import Rtnl, open_socket
from tests.conftest import Scplan
from tests.containers.container import Container
from tests.e2e.scene import of, refused
from tests.hostile.attacker import MS_BIND, Attack, mount, once
from tests.hostile.ground import RACE_S, Ground

pytestmark = [pytest.mark.timeout(60 + 4 * RACE_S), pytest.mark.needs("veth", "bridge")]

_ESCAPES = "\x1b]0;owned\x07\x1b[2J"


def _rename() -> None:
    """The NIC goes by another name, and comes back."""
    with Rtnl(open_socket()) as rtnl:
        for old, new in (("eth1", "gone"), ("gone", "eth1")):
            link = rtnl.link(old)
            if link is not None:
                rtnl.set_link(link.index, name=new)


def _change_addresses() -> None:
    with Rtnl(open_socket()) as rtnl:
        link = rtnl.link("eth1") or rtnl.link("lo")
        if link is not None:
            rtnl.add_address(link.index, "10.66.0.9/24")
            rtnl.delete_address(link.index, "10.66.0.9/24")


def _flood() -> None:
    """Messages to every netlink port that scplan could have: its PID, and those that the kernel gives out."""
    message = struct.pack("IHHII", 16, 3, 0, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sending:
        sending.setblocking(False)
        for port in (*range(_OWN_PID, _OWN_PID + 40), *range(0xFFFFF000, 0xFFFFF040)):
            with contextlib.suppress(OSError):
                sending.sendto(message * 64, (port, 0))


_OWN_PID = os.getpid()
ATTACKS: dict[str, Callable[[], None]] = {"renames": _rename, "addresses": _change_addresses, "floods": _flood}


@pytest.mark.parametrize("attack", ATTACKS)
def test_network_that_changes_all_the_time(
    attack: str, process_container: Container, bridge: str, tmp_path: Path
) -> None:
    ground = Ground(process_container, tmp_path)
    ground.write(
        nics=[{"name": "eth1", "bridge": bridge, "addresses": ["10.66.0.5/24"], "mtu": 1400}],
        routes=[{"to": "10.67.0.0/16", "via": "10.66.0.1"}],
    )
    before = set(socket.if_nameindex())
    with Attack(process_container, _tolerantly(ATTACKS[attack])) as attacking:
        runs = ground.race()
    ground.verdict(f"network against {attack}", attacking.rounds, runs)
    once(process_container, _name_back)
    ground.settle()
    assert set(socket.if_nameindex()) == before


def _tolerantly(step: Callable[[], None]) -> Callable[[], None]:
    """Refusals of the kernel are the lot of racers."""
    from scplan.errors import KernelError

    def tolerant() -> None:
        with contextlib.suppress(KernelError):
            step()

    return tolerant


def _name_back() -> None:
    with Rtnl(open_socket()) as rtnl:
        link = rtnl.link("gone")
        if link is not None:
            rtnl.set_link(link.index, name="eth1")


def test_thousands_of_links_and_addresses(process_container: Container, scplan: Scplan, tmp_path: Path) -> None:
    """1000 links with 4 addresses each, as its root can make them."""
    batch = tmp_path / "batch"
    lines = [f"link add l{number} type ifb" for number in range(1000)]
    lines += [
        f"addr add 10.{1 + number // 250}.{number % 250}.{one}/32 dev lo" for number in range(1000) for one in range(4)
    ]
    batch.write_text("\n".join(lines))
    enter = ["nsenter", "--target", str(process_container.pid), "--net", "ip", "-batch", str(batch)]
    subprocess.run(enter, check=True, capture_output=True, timeout=40)
    scplan.write(of(process_container, nics=[{"name": "eth1"}], routes=[{"to": "10.99.0.0/16", "dev": "eth1"}]))
    scplan("apply", "--auto-approve").ok()
    scplan("plan", "--detailed-exitcode").ok()
    scplan("destroy", "--auto-approve", process_container.name).ok()


def test_names_never_reach_the_terminal_raw(process_container: Container, scplan: Scplan, tmp_path: Path) -> None:
    """Interfaces, mount points, symlinks and cgroups can have names that steer terminals or forge lines."""

    def plant() -> None:
        name = f"/srv/{_ESCAPES}\nerror: forged"
        os.mkdir(name)
        mount("/bin", name, flags=MS_BIND)
        os.symlink(f"/{_ESCAPES}\nnowhere", "/srv/link")
        os.mknod(f"/dev/{_ESCAPES}\nnode", 0o600 | 0x2000, os.makedev(1, 3))

    once(process_container, plant)
    enter = ["nsenter", "--target", str(process_container.pid), "--net", "ip"]
    subprocess.run([*enter, "link", "add", "\x1b[31mred\x07", "type", "ifb"], check=True, timeout=10)
    scplan.write(of(process_container, mounts=[f"{tmp_path}:/srv/link"], nics=[{"name": "eth1"}]))
    runs = [
        scplan("apply", "--auto-approve"),
        scplan("plan"),
        scplan("plan", "--markdown"),
        scplan("plan", "--json"),
        scplan("drift"),
        scplan("show"),
        scplan("snapshot"),
        scplan("destroy", "--auto-approve", "-f", "scplan.yaml"),
    ]
    for ran in runs:
        raw = [char for char in ran.stdout + ran.stderr if not char.isprintable() and char != "\n"]
        assert raw == [], ran.argv
        assert "\nerror: forged" not in ran.stdout + ran.stderr
        assert "Traceback" not in ran.stderr
    assert "\\u001b" in json.dumps(runs[6].json)


def test_code_of_the_container_is_not_run(process_container: Container, scplan: Scplan, tmp_path: Path) -> None:
    """Where scplan looks for its modules there are others in the container: none of them is imported."""
    import sys

    places = [path for path in sys.path if path.startswith("/")] + [str(Path(__file__).parents[2])]

    def plant() -> None:
        for place in places:
            for name in ("pickle", "traceback", "linecache", "stat", "scplan", "encodings/ascii", "encodings/idna"):
                os.makedirs(f"{place}/{name}".rpartition("/")[0], exist_ok=True)
                with open(f"{place}/{name}.py", "w") as file:
                    file.write("open('/srv/run', 'w').close()\n")

        # A file system without an inode left: what is to be made there fails inside, where no plan can look.
        os.mkdir("/srv/full")
        mount("tmpfs", "/srv/full", "tmpfs", options="nr_inodes=1")

    once(process_container, plant)
    scplan.write(of(process_container, mounts=[f"{tmp_path}:/srv/a:ro"], devices=["/dev/null:/srv/null"]))
    scplan("apply", "--auto-approve").ok()
    refused(scplan("plan", config=of(process_container, mounts=["/nowhere:/srv/b"])), "/nowhere")
    asked = of(process_container, mounts=[f"{tmp_path}:/bin/busybox/x"])
    refused(
        scplan("apply", "--auto-approve", config=asked), "scplan.yaml:", "/bin/busybox in the container is no directory"
    )
    asked = of(process_container, mounts=[f"{tmp_path}:/srv/full/x"])
    refused(scplan("apply", "--auto-approve", config=asked), "/srv/full/x", "No space left on device", code=3)
    asked = of(process_container, devices=["/dev/null:/srv/full/null"])
    refused(scplan("apply", "--auto-approve", config=asked), "/srv/full/null", "No space left on device", code=3)
    assert process_container.stat("/srv/run") is None


def test_step_inside_can_not_import(process_container: Container) -> None:
    """The reason for the test above: a module that is not loaded yet is an error there, never the container's file."""

    def plant() -> None:
        os.makedirs("/usr/lib/python3.11", exist_ok=True)
        with open("/usr/lib/python3.11/antigravity.py", "w") as file:
            file.write("open('/srv/run', 'w').close()\n")

    once(process_container, plant)
    with (
        Host() as host,
        Opened(process_container.name, process_container.pid, 0, host) as opened,
        pytest.raises(ScplanError, match="ModuleNotFoundError"),
    ):
        opened.bounded(_import_inside, what="import inside")
    assert process_container.stat("/srv/run") is None


def _import_inside(container: Opened) -> None:
    container.enter()
    import this  # noqa: F401


def test_cgroup_that_is_moved_and_removed(process_container: Container, scplan: Scplan) -> None:
    """Its processes are in another cgroup than when it was planned: settings go to where it is, or nowhere."""
    scplan.write(of(process_container, cgroup={"pids.max": 50}))
    scplan("apply", "--auto-approve").ok()
    home = process_container.cgroups["pids"]
    below = home / "below"
    below.mkdir()
    try:
        (below / "cgroup.procs").write_text(str(process_container.pid))
        drift = scplan("drift", "--detailed-exitcode")
        assert drift.code in (1, 2)
        assert "Traceback" not in drift.stderr
        scplan("apply", "--auto-approve").ok()
        assert (below / "pids.max").read_text() == "50\n"
        assert (home.parent / "pids.max").exists() is False or (home.parent / "pids.max").read_text() != "50\n"
        (home.parent / "cgroup.procs").write_text(str(process_container.pid))
        ran = scplan("apply", "--auto-approve")
        assert ran.code in (0, 1, 3)
        assert "Traceback" not in ran.stderr
    finally:
        (home / "cgroup.procs").write_text(str(process_container.pid))
        below.rmdir()


def test_cgroup_outside_of_the_namespace_of_scplan(process_container: Container, scplan: Scplan) -> None:
    """Its path then begins with /.., and names another cgroup below the mount point."""
    home = process_container.cgroups["pids"]
    before = (home / "pids.max").read_text()
    own = home.parent / f"{process_container.name}-scplan"
    own.mkdir()
    try:
        scplan.write(of(process_container, cgroup={"pids.max": 50}))
        script = f'echo $$ > {own}/cgroup.procs && exec unshare --cgroup "$@"'
        command = ["sh", "-c", script, "sh", *scplan.command("apply", "--auto-approve")]
        ended = subprocess.run(
            command, cwd=scplan.directory, env=scplan.environment, capture_output=True, text=True, timeout=30
        )
        assert ended.returncode == 1
        assert "outside of scplan's cgroup namespace" in ended.stderr
        assert (home / "pids.max").read_text() == before
    finally:
        own.rmdir()

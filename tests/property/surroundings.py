"""What runtimes, admins and other tools do to a container and its host, drawn at random: state that is not empty.

Each is a few commands, none of them scplan's. One that does not work where it is drawn (no such NIC) does nothing.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import Literal

from hypothesis import strategies as st

from tests.containers import cgroups
from tests.containers.container import Container

Where = Literal["network", "mounts", "host", "cgroup"]


@dataclass(frozen=True)
class Disturbance:
    """Shell commands, run in the container's network, in its mount namespace (by its busybox), or on the host.

    For `cgroup` the command is `CONTROLLER FILE VALUE`.
    """

    where: Where
    command: str

    def __repr__(self) -> str:
        return f"{self.where}: {self.command}"

    def make(self, container: Container) -> None:
        """Does it, as far as it can be done."""
        if self.where == "cgroup":
            _write(container, *self.command.split(" ", 2))
            return
        enter = ["nsenter", "--target", str(container.pid)]
        match self.where:
            case "network":
                argv = [*enter, "--net", "sh", "-c", self.command]
            case "mounts":
                # With the ids of the host's root, as a runtime has them.
                shell = ["/bin/busybox", "env", "PATH=/bin", "/bin/busybox", "sh", "-c", self.command]
                argv = [*enter, "--mount", *shell]
            case "host":
                argv = ["sh", "-c", self.command.replace("PID", str(container.pid))]
        subprocess.run(argv, capture_output=True, timeout=30)


def _write(container: Container, controller: str, file: str, value: str) -> None:
    path = cgroups.of_process(container.pid).get(controller)
    if path is None or container.name not in path.parts:
        return  # not the container's own
    try:
        (path / file).write_text(value)
    except OSError:
        return  # the kernel refuses it there


def before_scplan(parts: dict[str, str]) -> st.SearchStrategy[list[Disturbance]]:
    """What is there when scplan comes for the first time."""
    return st.lists(st.sampled_from([*_runtime(parts), *_inside(), *_settings(parts)]), max_size=5, unique=True)


def after_scplan(parts: dict[str, str]) -> st.SearchStrategy[list[Disturbance]]:
    """What is done to what scplan has plugged in, and beside it."""
    everything = [*_over_nics(parts), *_host_ends(parts), *_inside(), *_settings(parts)]
    return st.lists(st.sampled_from(everything), max_size=6, unique=True)


def _runtime(parts: dict[str, str]) -> list[Disturbance]:
    """A NIC of the runtime's, with a default route, and its nodes."""
    end, disk = parts["foreign"], parts["disk_numbers"].replace(":", " ")
    nic = (
        f"ip link add {end} type veth peer name eth0 netns PID && ip link set {end} up && "
        "nsenter -t PID -n sh -c 'ip link set eth0 up; ip addr add 10.60.0.2/24 dev eth0"
    )
    return [
        Disturbance("host", f"{nic}'"),
        Disturbance("host", f"{nic}; ip route add default via 10.60.0.1 mtu 1400'"),
        Disturbance("host", f"{nic}; ip route add default via 10.60.0.1 metric 50 proto 77'"),
        Disturbance("mounts", f"mknod -m 660 /dev/d0 b {disk}; chown 0:6 /dev/d0"),
        Disturbance("mounts", "mknod -m 600 /dev/d1 c 1 3; chown 5:5 /dev/d1"),
        Disturbance("mounts", "ln -s /dev/null /dev/d1"),
        Disturbance("mounts", "mkdir -p /dev/d1"),
        Disturbance("mounts", "touch /dev/d0"),
    ]


def _inside() -> list[Disturbance]:
    """Mounts, files and links of the container's own."""
    return [
        Disturbance("mounts", command)
        for command in (
            "mkdir -p /srv/a && mount -t tmpfs -o nosuid,nodev,noexec sct-own /srv/a",
            "mkdir -p /srv/a/deep && mount -t tmpfs sct-own /srv/a/deep",
            "mkdir -p /srv/b && mount -t tmpfs -o ro sct-own /srv/b",
            "mkdir -p /srv/b && mount -t tmpfs -o nodev sct-own /srv/b && mkdir -p /srv/b/in",
            "mkdir -p /srv && ln -s /srv /link",
            "ln -s /nowhere /dangling",
            "mkdir -p /etc/mounted",
            "mkdir -p /etc && touch /etc/mounted && chmod 640 /etc/mounted",
            "mkdir -p /srv && touch /srv/b",
            "mkdir -p /new && chmod 700 /new && chown 7:7 /new",
            "mount -o remount,bind,noexec,nosuid none /srv/a",
            "mount -t tmpfs sct-own /srv/b",
        )
    ]


def _settings(parts: dict[str, str]) -> list[Disturbance]:
    return [
        Disturbance("cgroup", text)
        for text in (
            "pids pids.max 33",
            "cpu cpu.shares 1000",
            "cpu cpu.shares 77",
            "cpu cpu.cfs_period_us 50000",
            "cpu cpu.idle 1",
            "memory memory.limit_in_bytes 100000000",
            "memory memory.soft_limit_in_bytes 50000000",
            "cpuset cpuset.cpus 0",
            f"blkio blkio.throttle.read_bps_device {parts['disk_numbers']} 5000000",
            f"blkio blkio.throttle.write_iops_device {parts['disk_numbers']} 70",
            f"devices devices.allow b {parts['disk_numbers']} r",
            "devices devices.allow c 1:3 rwm",
        )
    ]


def _over_nics(parts: dict[str, str]) -> list[Disturbance]:
    """Addresses, routes, neighbours and settings over the NICs that the configurations name."""
    net = parts["net"]
    commands: list[str] = []
    for number in "12":
        dev, four, six = f"eth{number}", f"10.{net}{number}.0", f"fd{net}{number}:"
        commands += [
            f"ip addr add {four}.9/24 dev {dev} label {dev}:vip",
            f"ip addr add {four}.10/24 dev {dev} valid_lft 90000 preferred_lft 80000",
            f"ip addr add {four}.11/24 dev {dev} noprefixroute metric 77",
            f"ip addr add {four}.12/32 peer {four}.13 dev {dev}",
            f"ip addr add {six}:9/64 dev {dev} nodad",
            f"ip addr add {six}:a/64 dev {dev} nodad valid_lft 90000 preferred_lft 0",
            f"ip addr add fe80::9/64 dev {dev} nodad",
            f"ip route add 10.80.{number}.0/24 via {four}.1 mtu 1300 advmss 1200",
            f"ip route add 10.81.{number}.0/24 nexthop via {four}.1 weight 2 nexthop via {four}.3",
            f"ip route add 10.94.0.0/16 via {four}.3 metric 50",
            f"ip route add 10.95.7.0/24 via {four}.3 proto 88",
            f"ip route add throw 10.82.{number}.0/24",
            "ip route add blackhole 10.94.0.0/16",
            f"ip route prepend default via {four}.3",
            f"ip route add 10.83.{number}.0/24 dev {dev} table 100",
            f"ip route add 10.84.{number}.0/24 dev {dev} src {four}.5 initcwnd 20",
            f"ip -6 route add fd98:{number}::/64 via {six}:1 mtu 1300 pref high",
            f"ip -6 route add fd99:{number}::/64 nexthop via {six}:1 nexthop via {six}:3",
            f"ip -6 route add default via {six}:3 dev {dev} proto ra metric 1024",
            f"ip neigh add {four}.1 lladdr 02:5c:00:00:00:99 dev {dev} nud permanent",
            f"ip -6 neigh add {six}:1 lladdr 02:5c:00:00:00:98 dev {dev} nud permanent",
            f"ip neigh add proxy {four}.77 dev {dev}",
            f"ip rule add iif {dev} table 100 priority 1000",
            f"ip link set {dev} alias 'of the admin'",
            f"ip link set {dev} promisc on",
            f"ip link set {dev} txqueuelen 77",
            f"ip link set {dev} mtu 1390",
            f"echo 2 >/proc/sys/net/ipv4/conf/{dev}/rp_filter; echo 1 >/proc/sys/net/ipv4/conf/{dev}/proxy_arp",
            f"echo 0 >/proc/sys/net/ipv6/conf/{dev}/accept_ra",
        ]
    return [Disturbance("network", command) for command in commands]


def _host_ends(parts: dict[str, str]) -> list[Disturbance]:
    """What others do on the host to the host ends of NICs, and to the bridge."""
    commands: list[str] = []
    for number in "12":
        end, four = f"{parts['end']}{number}", f"10.{parts['net']}{number}.0"
        commands += [
            f"ip addr add {four}.1/24 dev {end}; ip route add 10.8{number}.0.0/16 via {four}.5 dev {end} mtu 1400",
            f"ip link set {end} alias uplink",
            f"ip link set {end} mtu 9000",
            f"ip link set {end} txqueuelen 55",
            f"bridge link set dev {end} isolated on hairpin on cost 7",
            f"bridge fdb add 02:5c:00:00:00:97 dev {end} master static",
            f"bridge vlan add dev {end} vid 100; bridge vlan del dev {end} vid 1",
            f"ip neigh add {four}.5 lladdr 02:5c:00:00:00:96 dev {end} nud permanent",
            f"echo 2 >/proc/sys/net/ipv4/conf/{end}/rp_filter",
        ]
    return [Disturbance("host", command) for command in commands]

"""What a runtime's configuration puts into its containers, read from the files that users and engines write."""

from __future__ import annotations

import json
from pathlib import Path

from scplan.model.provided import ANY_VALUE
from scplan.runtimes.lxc_config import of_lxc
from scplan.runtimes.nspawn_options import of_nspawn
from scplan.runtimes.provided import of_bundle

ANY = frozenset((ANY_VALUE,))


def bundle(tmp_path: Path, **parts: object) -> str:
    (tmp_path / "config.json").write_text(json.dumps(parts))
    return str(tmp_path)


def test_bundle_has_mounts_devices_and_limits_as_the_kernel_keeps_them(tmp_path: Path) -> None:
    resources = {
        "memory": {"limit": 100_000_000, "swap": 100_000_000},
        "pids": {"limit": 77},
        "cpu": {"quota": 50_000, "period": 200_000, "shares": 512},
        "unified": {"io.weight": "50"},
    }
    linux = {"resources": resources, "devices": [{"path": "/dev/xx"}], "namespaces": [{"type": "network"}]}
    found = of_bundle(bundle(tmp_path, mounts=[{"destination": "/data/"}], linux=linux), "runc")
    assert (set(found.mounts), set(found.devices), set(found.nics)) == ({"/data"}, {"/dev/xx"}, set())
    assert found.settings == {
        "memory.max": frozenset(("99999744",)),
        "memory.swap.max": frozenset(("0",)),
        "pids.max": frozenset(("77",)),
        "cpu.max": frozenset(("50000 200000",)),
        "cpu.weight": ANY,
        "io.weight": frozenset(("50",)),
    }


def test_bundle_in_a_named_network_namespace_has_a_nic_of_its_engine(tmp_path: Path) -> None:
    linux = {"namespaces": [{"type": "network", "path": "/run/netns/netns-1"}]}
    assert set(of_bundle(bundle(tmp_path, linux=linux), "podman").nics) == {"eth0"}


def test_limits_that_limit_nothing_are_none(tmp_path: Path) -> None:
    resources = {"memory": {"limit": -1, "swap": -1}, "pids": {"limit": 0}, "cpu": {"quota": -1, "cpus": ""}}
    assert of_bundle(bundle(tmp_path, linux={"resources": resources}), "runc").settings == {}


def test_configuration_of_lxc_is_read_with_what_it_includes(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "a.conf").write_text("lxc.cgroup.pids.max = 99\nlxc.cgroup2.memory.max = 1G\n")
    (tmp_path / "common" / "README").write_text("lxc.cgroup.cpuset.cpus = 0\n")
    (tmp_path / "fstab").write_text("# none\n/srv/x srv/x none bind 0 0\n")
    config = tmp_path / "config"
    config.write_text(
        f"lxc.include = {tmp_path}/common\n"
        "lxc.net.0.type = veth\nlxc.net.1.type = empty\nlxc.net.2.type = veth\nlxc.net.2.name = lan\n"
        "lxc.mount.entry = /srv/my\\040data my\\040data none bind 0 0\n"
        f"lxc.mount.fstab = {tmp_path}/fstab\n"
        "lxc.cgroup.memory.limit_in_bytes = 1G\n"
    )
    found = of_lxc(str(config))
    assert set(found.nics) == {"eth0", "lan"}
    assert set(found.mounts) == {"/my data", "/srv/x"}
    assert found.settings.keys() >= {"pids.max", "memory.max"}
    assert "cpuset.cpus" not in found.settings


def test_options_of_nspawn_name_nics_mounts_and_limits() -> None:
    options = ["-M", "web", "--network-veth", "--network-veth-extra=ve-x:lan", "--network-macvlan=ens5"]
    options += ["--bind", "/srv/a", "--bind-ro=/srv/b:/b:rbind", "--tmpfs=/t:mode=700", "--overlay=/l:/u:/o"]
    options += ["--property=MemoryMax=1G", "--", "/bin/sh", "--bind=/no"]
    found = of_nspawn("no-such-machine", options)
    assert set(found.nics) == {"host0", "lan", "mv-ens5"}
    assert set(found.mounts) >= {"/srv/a", "/b", "/t", "/o"}
    assert "/no" not in found.mounts
    assert found.settings == {"memory.max": ANY}

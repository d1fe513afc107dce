"""Containers of real engines that have a user namespace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.containers import needs, oci
from tests.containers.engines import ENGINES, Containerd, Docker, Engine, Lxc, Nspawn, Podman
from tests.containers.fingerprint import difference
from tests.containers.host_parts import LoopDisk
from tests.containers.room import Room
from tests.e2e.rooms import RoomScplan, container
from tests.e2e.scene import planned
from tests.e2e.test_runtimes import config, fingerprint, look_inside

pytestmark = pytest.mark.needs("root", "cgroup1", "busybox", "runc", "loop", "userns")
FIRST, COUNT = 2 << 16, 1 << 16
"""nspawn takes no other IDs than multiples of 2^16."""
USER = "dockremap"


class MappedDocker(Docker):
    userns = True
    daemon_options = (f"--userns-remap={USER}",)

    def up(self) -> None:
        script = """
        echo "$1:x:990:990::/:/bin/false" >>/etc/passwd; echo "$1:x:990:" >>/etc/group
        for file in /etc/subuid /etc/subgid; do echo "$1:$2:$3" >>$file; done
        """
        self.room.sh(script, USER, str(FIRST), str(COUNT))
        super().up()


class MappedPodman(Podman):
    userns = True
    options = (*Podman.options, f"--uidmap=0:{FIRST}:{COUNT}", f"--gidmap=0:{FIRST}:{COUNT}")

    def remove(self, name: str) -> None:
        """Podman 4.3 may leave the shm of a mapped container mounted, and fail to remove its directory."""
        self.stop(name)
        shm = f"/var/lib/containers/storage/overlay-containers/{self.full_id(name)}/userdata/shm"
        self.room.run("umount", shm, check=False)
        super().remove(name)


class MappedContainerd(Containerd):
    """By a bundle's config.json: of root file systems that are not of an image, ctr maps no users."""

    userns = True

    def run(self, name: str) -> None:
        bundle = self.directory / name
        oci.make_bundle(bundle, name, userns=True)
        spec = json.loads((bundle / "config.json").read_text())
        spec["root"]["path"] = str(bundle / "rootfs")
        (bundle / "config.json").write_text(json.dumps(spec))
        self.room.run("ctr", "run", "--detach", "--config", str(bundle / "config.json"), name)


class MappedLxc(Lxc):
    userns = True

    def up(self) -> None:
        super().up()
        self.room.sh('for file in /etc/subuid /etc/subgid; do echo "root:$1:$2" >>$file; done', str(FIRST), str(COUNT))

    def create(self, name: str) -> None:
        super().create(name)
        script = """
        for kind in u g; do echo "lxc.idmap = $kind 0 $2 $3"; done >>"$1/config"
        chown -R "$2:$2" "$1/rootfs"; chmod 755 "$1"
        """
        self.room.sh(script, f"{self.path}/{name}", str(FIRST), str(COUNT))


class MappedNspawn(Nspawn):
    userns = True
    options = (f"--private-users={FIRST}:{COUNT}", "--private-users-ownership=chown")


MAPPED: dict[str, type[Engine]] = {
    engine.name: engine for engine in (MappedDocker, MappedPodman, MappedContainerd, MappedLxc, MappedNspawn)
}


@pytest.fixture(scope="module", params=MAPPED)
def engine(request: pytest.FixtureRequest, room: Room) -> Engine:
    if absent := needs.missing(ENGINES[request.param].needs):
        pytest.skip(f"this machine has no {', '.join(absent)}")
    return MAPPED[request.param](room)


def test_container_has_what_was_planned_until_it_is_destroyed(
    engine: Engine, scplan: RoomScplan, loop_disk: LoopDisk, host_directory: Path
) -> None:
    (host_directory / "hello").write_text("hello\n")
    with container(engine) as name:
        mapped = engine.room.sh("cat /proc/$1/uid_map", str(engine.pid(name))).split()
        assert mapped in (["0", str(FIRST), str(COUNT)], ["0", str(oci.USERNS_FIRST_ID), str(oci.USERNS_IDS)])
        before = fingerprint(engine, name)
        asked: dict[str, Any] = config(name, engine.name, loop_disk, host_directory)
        plan = scplan("plan", "--json", config=asked).ok()
        assert set(planned(plan).values()) == {"create"}
        scplan("apply", "--auto-approve").ok()
        assert scplan("plan", "--json").ok().json["changes"] == []
        inside = look_inside(engine, name)
        for expected in ("67108864", "hello", "10.97.0.5/24", "10.98.0.0/16 via 10.97.0.1", "readable", "read-only"):
            assert expected in inside
        assert scplan("drift", "--json").ok().json["drifted"] == []
        scplan("destroy", name, "--auto-approve").ok()
        assert difference(before, fingerprint(engine, name)) == []

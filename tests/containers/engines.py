"""Container engines as tests call them, each in a room: its daemon, and the life of its containers.

The containers hold nothing but busybox, and nothing is fetched from a network.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from abc import ABC, abstractmethod
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import ClassVar

from tests.containers import oci, rootfs
from tests.containers.needs import INCUSD
from tests.containers.room import Room, until

_IMAGE = "localhost/bb:1"


class Engine(ABC):
    """One engine. Its daemon, if it has one, runs after `up`; each container has a root file system of its own."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    userns: ClassVar[bool] = False

    def __init__(self, room: Room) -> None:
        self.room = room
        self.directory = room.directory / self.name
        self.directory.mkdir()
        self.up()

    @abstractmethod
    def up(self) -> None:
        """Starts what it needs to run containers."""

    @abstractmethod
    def run(self, name: str) -> None:
        """Makes a container and starts it."""

    @abstractmethod
    def stop(self, name: str) -> None: ...

    @abstractmethod
    def start(self, name: str) -> None:
        """Starts it again."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Stops and removes it."""

    @abstractmethod
    def pid(self, name: str) -> int:
        """Its first process, as the engine itself says."""

    def full_id(self, name: str) -> str:
        """Its ID, as the engine itself says."""
        return name

    def root(self, place: Path) -> Path:
        """A new root file system at `place`, instead of that of a container that was removed."""
        if place.exists():
            shutil.rmtree(place)
        rootfs.build(place)
        (place / "usr/bin").mkdir(parents=True)
        (place / "sbin").mkdir()
        (place / "sbin/init").symlink_to("../bin/busybox")
        return place

    @cached_property
    def tarball(self) -> Path:
        path = self.directory / "root.tar"
        with tarfile.open(path, "w") as archive:
            archive.add(self.root(self.directory / "root"), ".")
        return path


class _CommandLine(Engine):
    """Docker's command line, which podman has too."""

    options: ClassVar[tuple[str, ...]] = ()
    at_once: ClassVar[tuple[str, ...]] = ()

    def run(self, name: str) -> None:
        self.room.run(
            self.name, "run", "--detach", "--network=none", *self.options, f"--name={name}", _IMAGE, *oci.SLEEP_FOREVER
        )

    def stop(self, name: str) -> None:
        self.room.run(self.name, "stop", "--time=0", name)

    def start(self, name: str) -> None:
        self.room.run(self.name, "start", name)

    def remove(self, name: str) -> None:
        self.room.run(self.name, "rm", "--force", *self.at_once, name)

    def pid(self, name: str) -> int:
        return int(self._inspect(name, "{{.State.Pid}}"))

    def full_id(self, name: str) -> str:
        return self._inspect(name, "{{.Id}}")

    def _inspect(self, name: str, form: str) -> str:
        return self.room.run(self.name, "container", "inspect", f"--format={form}", name).stdout.strip()


class Podman(_CommandLine):
    name = "podman"
    needs = ("podman", "runc")
    at_once = ("--time=0",)
    options = ("--ulimit=nofile=20000:20000", "--ulimit=nproc=32768:32768")

    def up(self) -> None:
        self.room.run("podman", "import", str(self.tarball), _IMAGE)

    def run(self, name: str) -> None:
        self.run_by("runc", name)

    def run_by(self, runtime: str, name: str) -> None:
        """A container that another OCI runtime than the usual one runs."""
        command = ("run", "--detach", "--network=none", *self.options, f"--name={name}", _IMAGE, *oci.SLEEP_FOREVER)
        self.room.run("podman", f"--runtime={runtime}", *command)


class Docker(_CommandLine):
    """On a containerd that others use as well, as distributions ship it."""

    name = "docker"
    needs = ("dockerd", "docker", "containerd", "runc")

    def up(self) -> None:
        start_containerd(self.room)
        isolated = ("--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none")
        self.room.start("dockerd", "--containerd=/run/containerd/containerd.sock", *isolated, log="dockerd.log")
        self.room.until_works("docker", "version", log="dockerd.log")
        self.room.run("docker", "import", str(self.tarball), _IMAGE)


def start_containerd(room: Room) -> None:
    if not (room.directory / "containerd.log").exists():
        room.start("containerd", log="containerd.log")
    room.until_works("ctr", "version", log="containerd.log")


class Containerd(Engine):
    name = "containerd"
    needs = ("containerd", "ctr", "runc")

    def up(self) -> None:
        start_containerd(self.room)

    def run(self, name: str) -> None:
        self.run_in("default", name)

    def run_in(self, namespace: str, name: str) -> None:
        root = self.root(self.directory / f"{namespace}.{name}")
        self.room.run(
            "ctr", "--namespace", namespace, "run", "--detach", "--rootfs", str(root), name, *oci.SLEEP_FOREVER
        )

    def stop(self, name: str) -> None:
        self.room.run("ctr", "task", "kill", "--signal=KILL", name)
        self._until("STOPPED", name)

    def start(self, name: str) -> None:
        self.room.run("ctr", "task", "delete", name)
        self.room.run("ctr", "task", "start", "--detach", name)

    def remove(self, name: str, namespace: str = "default") -> None:
        self.room.run("ctr", "--namespace", namespace, "task", "rm", "--force", name, check=False)
        self.room.run("ctr", "--namespace", namespace, "container", "rm", name)

    def pid(self, name: str) -> int:
        return int(self._row(name)[1])

    def _row(self, name: str) -> list[str]:
        rows = [line.split() for line in self.room.run("ctr", "task", "ls").stdout.splitlines()]
        return next(row for row in rows if row[0] == name)

    def _until(self, status: str, name: str) -> None:
        assert until(lambda: self._row(name)[2] == status, 20), f"{name} is not {status}"


class Lxc(Engine):
    name = "lxc"
    needs = ("lxc-start", "busybox")
    path = "/var/lib/lxc"

    def up(self) -> None:
        self.room.sh('mkdir -p "$1"', self.path)

    def run(self, name: str) -> None:
        template = ("-t", "busybox", "-f", "/dev/null", "--", "--busybox-path", "/bin/busybox")
        self.room.run("lxc-create", "-P", self.path, "-n", name, *template)
        self.start(name)

    def stop(self, name: str) -> None:
        self.room.run("lxc-stop", "-P", self.path, "-n", name, "-k")

    def start(self, name: str) -> None:
        self.room.run("lxc-start", "-P", self.path, "-n", name, "-d")
        self.await_process(name)

    def await_process(self, name: str) -> None:
        """lxc-start can be through before the container has its first process."""
        assert until(lambda: self.pid(name) > 0, 20), f"{name} has no process"

    def remove(self, name: str) -> None:
        self.room.run("lxc-destroy", "-P", self.path, "-f", "-n", name)

    def pid(self, name: str) -> int:
        return int(self.room.run("lxc-info", "-P", self.path, "-n", name, "-p", "-H").stdout)

    def full_id(self, name: str) -> str:
        return f"{self.path}/{name}"


class Incus(Engine):
    """Its containers have a user namespace."""

    name = "incus"
    needs = ("incus", "incusd")
    userns = True

    def up(self) -> None:
        self.room.sh("mkdir -p /var/lib/incus /var/log/incus /var/cache/incus")
        self.room.start(str(INCUSD), "--group", "root", log="incusd.log")
        self.room.until_works("incus", "admin", "waitready", "--timeout=20", log="incusd.log")
        self.room.run("incus", "storage", "create", "default", "dir")
        self.room.run("incus", "profile", "device", "add", "default", "root", "disk", "path=/", "pool=default")
        self.room.run("incus", "image", "import", str(self._image()), "--alias", "bb")

    def _image(self) -> Path:
        path = self.directory / "image.tar"
        about = b"architecture: x86_64\ncreation_date: 1700000000\nproperties: {description: busybox}\n"
        with tarfile.open(path, "w") as archive:
            entry = tarfile.TarInfo("metadata.yaml")
            entry.size = len(about)
            archive.addfile(entry, BytesIO(about))
            archive.add(self.root(self.directory / "root"), "rootfs")
        return path

    def run(self, name: str) -> None:
        self.room.run("incus", "launch", "--quiet", "bb", name)

    def stop(self, name: str) -> None:
        self.room.run("incus", "stop", "--force", name)

    def start(self, name: str) -> None:
        self.room.run("incus", "start", name)

    def remove(self, name: str) -> None:
        self.room.run("incus", "delete", "--force", name)

    def pid(self, name: str) -> int:
        state = json.loads(self.room.run("incus", "query", f"/1.0/instances/{name}/state").stdout)
        return int(state["pid"])


class Nspawn(Engine):
    """Without systemd: each supervisor is in cgroups of its own, as a service would have them."""

    name = "nspawn"
    needs = ("systemd-nspawn",)
    images = "/var/lib/machines"

    def up(self) -> None:
        self.room.sh('mkdir -p "$1"', self.images)

    def run(self, name: str) -> None:
        root = self.root(self.directory / name)
        self.room.sh('cp -a "$1" "$2/"', str(root), self.images)
        self.start(name)

    def start(self, name: str, *, in_own_cgroup: bool = True) -> None:
        join = """
        for hierarchy in /sys/fs/cgroup/*/; do
          group=$hierarchy/$1; mkdir -p $group
          if [ -e $group/cpuset.cpus ]; then for f in cpus mems; do cat $hierarchy/cpuset.$f >$group/cpuset.$f; done; fi
          echo $$ >$group/cgroup.procs
        done
        """
        spawn = 'shift; exec systemd-nspawn "$@"'
        options = ("--quiet", "--register=no", "--keep-unit", "-D", f"{self.images}/{name}", "-M", name)
        command = (*options, "--private-network", "--console=pipe", *oci.SLEEP_FOREVER)
        script = join + spawn if in_own_cgroup else spawn
        self.room.start("sh", "-c", script, "sh", name, *command, log=f"{name}.log")
        assert until(lambda: self._child(name) > 0, 20), (self.room.directory / f"{name}.log").read_text()

    def stop(self, name: str) -> None:
        child = self._child(name)
        assert child, f"{name} does not run"
        self.room.run("kill", "-KILL", str(child))
        assert until(lambda: not self._supervisor(name), 20)

    def remove(self, name: str) -> None:
        if self._supervisor(name):
            self.stop(name)
        self.room.sh('rm -rf "$1"', f"{self.images}/{name}")

    def pid(self, name: str) -> int:
        return self._child(name)

    def _supervisor(self, name: str) -> str:
        return self.room.run("pgrep", "-o", "-f", f"^systemd-nspawn .* -M {name} ", check=False).stdout.strip()

    def _child(self, name: str) -> int:
        """The process that sleeps in it, once its supervisor has set it up."""
        supervisor = self._supervisor(name)
        command = ("pgrep", "-P", supervisor, "-x", "sleep")
        found = self.room.run(*command, check=False).stdout.split() if supervisor else []
        return int(found[0]) if found else 0


class Isulad(Engine):
    """iSulad is not packaged: runc runs its containers here, and the files are written as its daemon writes them."""

    name = "isulad"
    needs = ("runc",)
    engines = "/var/lib/isulad/engines/runc"
    _ROOT = "/run/isulad/runc"

    def up(self) -> None:
        self.room.sh('mkdir -p "$1" "$2"', self.engines, self._ROOT)
        self._ids: dict[str, str] = {}

    def run(self, name: str) -> None:
        self._ids[name] = f"{len(self._ids) + 10:02x}{name.encode().hex()}".ljust(64, "e")
        oci.make_bundle(self.directory / name, name)
        self.start(name)

    def start(self, name: str) -> None:
        bundle = self.directory / name
        command = ("run", "--detach", "--bundle", str(bundle), "--pid-file", str(bundle / "pid"), self._ids[name])
        # Not by `run`: the container keeps the standard output.
        self.room.start("runc", "--root", self._ROOT, *command, log=f"{name}.log")
        assert until((bundle / "pid").exists, 20), (self.room.directory / f"{name}.log").read_text()
        self._write(name, running=True)

    def stop(self, name: str) -> None:
        self.room.run("runc", "--root", self._ROOT, "delete", "--force", self._ids[name])
        (self.directory / name / "pid").unlink()
        self._write(name, running=False)

    def remove(self, name: str) -> None:
        self.room.run("runc", "--root", self._ROOT, "delete", "--force", self._ids[name])
        self.room.sh('rm -rf "$1"', f"{self.engines}/{self._ids[name]}")
        shutil.rmtree(self.directory / name)

    def pid(self, name: str) -> int:
        return int((self.directory / name / "pid").read_text())

    def full_id(self, name: str) -> str:
        return self._ids[name]

    def _write(self, name: str, *, running: bool) -> None:
        pid = self.pid(name) if running else 0
        started = self.room.sh("cut -d' ' -f22 /proc/$1/stat", str(pid)).strip() if running else "0"
        document = {
            "CommonConfig": {
                "Path": "/bin/sleep",
                "Name": name,
                "id": self._ids[name],
                "Image": "bb",
                "RestartCount": 0,
            },
            "Image": "bb",
            "State": {
                "Running": running,
                "Paused": False,
                "Restarting": False,
                "Pid": pid,
                "PPid": 1,
                "StartTime": int(started),
                "PStartTime": 1,
                "ExitCode": 0,
            },
        }
        place = f"{self.engines}/{self._ids[name]}"
        write = 'mkdir -p "$1"; printf %s "$2" >"$1/config.v2.json"; cp "$3/config.json" "$1/"'
        self.room.sh(write, place, json.dumps(document), str(self.directory / name))


ENGINES: dict[str, type[Engine]] = {
    engine.name: engine for engine in (Docker, Podman, Containerd, Isulad, Incus, Lxc, Nspawn)
}

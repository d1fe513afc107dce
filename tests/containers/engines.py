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
from typing import Any, ClassVar

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

    def kill(self, name: str) -> None:
        """Kills its first process, and waits until the engine has noticed."""
        self.room.run("kill", "-9", str(self.pid(name)))
        self.await_end(name)

    @abstractmethod
    def await_end(self, name: str) -> None:
        """Waits until the engine knows that it has ended."""

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


class WithDaemon(Engine):
    """Its containers run on while its daemon is down."""

    socket: ClassVar[str]

    @abstractmethod
    def start_daemon(self) -> None:
        """Starts it, and waits until it answers."""

    @abstractmethod
    def kill_daemon(self) -> None:
        """Kills it, and waits for its end."""


class _CommandLine(Engine):
    """Docker's command line, which podman has too."""

    command: ClassVar[str]
    before: ClassVar[tuple[str, ...]] = ()
    """Options of the command line, before its command."""
    options: ClassVar[tuple[str, ...]] = ()
    at_once: ClassVar[tuple[str, ...]] = ()

    def run(self, name: str) -> None:
        self.create(name)
        self.start(name)

    def create(self, name: str) -> None:
        made_of = ("--network=none", *self.options, f"--name={name}", _IMAGE, *oci.SLEEP_FOREVER)
        self.room.run(self.command, *self.before, "create", *made_of)

    def pause(self, name: str) -> None:
        self.room.run(self.command, "pause", name)

    def unpause(self, name: str) -> None:
        self.room.run(self.command, "unpause", name)

    def rename(self, name: str, new: str) -> None:
        self.room.run(self.command, "rename", name, new)

    def await_end(self, name: str) -> None:
        assert until(lambda: self.pid(name) == 0, 20), f"{name} has not ended"

    def stop(self, name: str) -> None:
        self.room.run(self.command, "stop", "--time=0", name)

    def start(self, name: str) -> None:
        self.room.run(self.command, "start", name)

    def remove(self, name: str) -> None:
        self.room.run(self.command, "rm", "--force", *self.at_once, name)

    def pid(self, name: str) -> int:
        return int(self._inspect(name, "{{.State.Pid}}"))

    def full_id(self, name: str) -> str:
        return self._inspect(name, "{{.Id}}")

    def _inspect(self, name: str, form: str) -> str:
        return self.room.run(self.command, "container", "inspect", f"--format={form}", name).stdout.strip()


class Podman(_CommandLine):
    name = command = "podman"
    needs = ("podman", "runc")
    before = ("--runtime=runc",)
    at_once = ("--time=0",)
    options = ("--ulimit=nofile=20000:20000", "--ulimit=nproc=32768:32768")

    def up(self) -> None:
        self.room.run(self.command, "import", str(self.tarball), _IMAGE)

    def run_by(self, runtime: str, name: str) -> None:
        """A container that another OCI runtime than the usual one runs."""
        command = ("run", "--detach", "--network=none", *self.options, f"--name={name}", _IMAGE, *oci.SLEEP_FOREVER)
        self.room.run(self.command, f"--runtime={runtime}", *command)


class Docker(_CommandLine, WithDaemon):
    """On a containerd that others use as well, as distributions ship it."""

    name = command = "docker"
    needs = ("dockerd", "docker", "containerd", "runc")
    socket = "/run/docker.sock"
    daemon_options: ClassVar[tuple[str, ...]] = ()

    def up(self) -> None:
        self.start_daemon()
        self.room.run(self.command, "import", str(self.tarball), _IMAGE)

    def start_daemon(self) -> None:
        start_containerd(self.room)
        self.room.sh("rm -f /run/docker.pid /run/docker.sock")
        isolated = ("--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none", "--live-restore")
        self.room.start(
            "dockerd",
            "--containerd=/run/containerd/containerd.sock",
            *isolated,
            *self.daemon_options,
            log="dockerd.log",
        )
        self.room.until_works(self.command, "version", log="dockerd.log")

    def kill_daemon(self) -> None:
        _kill(self.room, self.room.sh("cat /run/docker.pid").strip())


def _kill(room: Room, pid: str) -> None:
    """Kills a process of the room, and waits for its end."""
    room.sh('kill -9 "$1"; while kill -0 "$1" 2>/dev/null; do sleep 0.05; done', pid)


def start_containerd(room: Room) -> None:
    if not (room.directory / "containerd.log").exists():
        room.start("containerd", log="containerd.log")
    room.until_works("ctr", "version", log="containerd.log")


class Containerd(WithDaemon):
    name = "containerd"
    needs = ("containerd", "ctr", "runc")
    socket = "/run/containerd/containerd.sock"

    def up(self) -> None:
        start_containerd(self.room)

    def run(self, name: str) -> None:
        self.run_in("default", name)

    def run_in(self, namespace: str, name: str) -> None:
        root = self.root(self.directory / f"{namespace}.{name}")
        self.room.run(
            "ctr", "--namespace", namespace, "run", "--detach", "--rootfs", str(root), name, *oci.SLEEP_FOREVER
        )

    def start_daemon(self) -> None:
        self.room.start("containerd", log="containerd.log")
        self.room.until_works("ctr", "version", log="containerd.log")

    def kill_daemon(self) -> None:
        _kill(self.room, self.room.run("pgrep", "-o", "-x", "containerd").stdout.strip())

    def pause(self, name: str) -> None:
        self.room.run("ctr", "task", "pause", name)

    def unpause(self, name: str) -> None:
        self.room.run("ctr", "task", "resume", name)

    def stop(self, name: str) -> None:
        self.room.run("ctr", "task", "kill", "--signal=KILL", name)
        self.await_end(name)

    def await_end(self, name: str) -> None:
        """containerd hears of the end of a process a moment later."""
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
        self.create(name)
        self.start(name)

    def create(self, name: str) -> None:
        template = ("-t", "busybox", "-f", "/dev/null", "--", "--busybox-path", "/bin/busybox")
        self.room.run("lxc-create", "-P", self.path, "-n", name, *template)

    def pause(self, name: str) -> None:
        self.room.run("lxc-freeze", "-P", self.path, "-n", name)

    def unpause(self, name: str) -> None:
        self.room.run("lxc-unfreeze", "-P", self.path, "-n", name)

    def rename(self, name: str, new: str) -> None:
        """LXC renames no container that runs."""
        self.room.run("lxc-copy", "-P", self.path, "-n", name, "--rename", "-N", new)

    def stop(self, name: str) -> None:
        self.room.run("lxc-stop", "-P", self.path, "-n", name, "-k")

    def start(self, name: str) -> None:
        self.room.run("lxc-start", "-P", self.path, "-n", name, "-d")
        self.await_process(name)

    def await_process(self, name: str) -> None:
        """lxc-start can be through before the container has its first process."""
        assert until(lambda: self.pid(name) > 0, 20), f"{name} has no process"

    def await_end(self, name: str) -> None:
        self.room.run("lxc-wait", "-P", self.path, "-n", name, "-s", "STOPPED", "-t", "20")

    def remove(self, name: str) -> None:
        self.room.run("lxc-destroy", "-P", self.path, "-f", "-n", name)

    def pid(self, name: str) -> int:
        return int(self.room.run("lxc-info", "-P", self.path, "-n", name, "-p", "-H").stdout)

    def full_id(self, name: str) -> str:
        return f"{self.path}/{name}"


class Incus(WithDaemon):
    """Its containers have a user namespace."""

    name = "incus"
    needs = ("incus", "incusd")
    userns = True
    socket = "/var/lib/incus/unix.socket"

    def start_daemon(self) -> None:
        self.room.start(str(INCUSD), "--group", "root", log="incusd.log")
        self.room.until_works("incus", "admin", "waitready", "--timeout=20", log="incusd.log")

    def kill_daemon(self) -> None:
        _kill(self.room, self.room.run("pgrep", "-o", "-x", "incusd").stdout.strip())

    def up(self) -> None:
        self.room.sh("mkdir -p /var/lib/incus /var/log/incus /var/cache/incus")
        self.start_daemon()
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
        self.create(name)
        self.start(name)

    def create(self, name: str) -> None:
        self.room.run("incus", "init", "--quiet", "bb", name)

    def pause(self, name: str) -> None:
        self.room.run("incus", "pause", name)

    def unpause(self, name: str) -> None:
        self.room.run("incus", "resume", name)

    def rename(self, name: str, new: str) -> None:
        """Incus renames no container that runs."""
        self.room.run("incus", "rename", name, new)

    def stop(self, name: str) -> None:
        self.room.run("incus", "stop", "--force", name)

    def start(self, name: str) -> None:
        self.room.run("incus", "start", name)

    def await_end(self, name: str) -> None:
        listed = ("incus", "list", "--columns=s", "--format=csv", f"^{name}$")
        assert until(lambda: "STOPPED" in self.room.run(*listed).stdout, 20), f"{name} has not ended"

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
    options: ClassVar[tuple[str, ...]] = ()

    def up(self) -> None:
        self.room.sh('mkdir -p "$1"', self.images)

    def run(self, name: str) -> None:
        self.create(name)
        self.start(name)

    def create(self, name: str) -> None:
        root = self.root(self.directory / name)
        self.room.sh('cp -a "$1" "$2/"', str(root), self.images)

    def rename(self, name: str, new: str) -> None:
        """`machinectl rename` of an image."""
        self.room.sh('mv "$1/$2" "$1/$3"', self.images, name, new)

    def start(self, name: str, *, in_own_cgroup: bool = True) -> None:
        join = """
        for hierarchy in /sys/fs/cgroup/*/; do
          group=$hierarchy/$1; mkdir -p $group
          if [ -e $group/cpuset.cpus ]; then for f in cpus mems; do cat $hierarchy/cpuset.$f >$group/cpuset.$f; done; fi
          echo $$ >$group/cgroup.procs
        done
        """
        spawn = 'shift; exec systemd-nspawn "$@"'
        place = ("-D", f"{self.images}/{name}", "-M", name)
        options = ("--quiet", "--register=no", "--keep-unit", *self.options, *place)
        command = (*options, "--private-network", "--console=pipe", *oci.SLEEP_FOREVER)
        script = join + spawn if in_own_cgroup else spawn
        self.room.start("sh", "-c", script, "sh", name, *command, log=f"{name}.log")
        assert until(lambda: self._child(name) > 0, 20), (self.room.directory / f"{name}.log").read_text()

    def stop(self, name: str) -> None:
        assert self.pid(name), f"{name} does not run"
        self.kill(name)

    def await_end(self, name: str) -> None:
        assert until(lambda: not self._supervisor(name), 20), f"{name} has not ended"

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
    """iSulad is not packaged: runc runs its containers here, among files that iSulad wrote, with another name and ID.

    They are those of tests/fixtures/isulad-2.1.6, which has what its daemon writes for each status.
    """

    name = "isulad"
    needs = ("runc",)
    graph = "/var/lib/isulad"
    runtime: ClassVar[str] = "runc"
    has_state_file: ClassVar[bool] = True
    """False: as versions before 2.0.8, which kept the state in config.v2.json."""
    _ROOT = "/run/isulad/runc"

    def up(self) -> None:
        self.room.sh('mkdir -p "$1/engines" "$2"', self.graph, self._ROOT)
        self._ids: dict[str, str] = {}
        self._made = 0

    def run(self, name: str) -> None:
        self.create(name)
        self.start(name)

    def create(self, name: str) -> None:
        """`isula create`."""
        self._made += 1
        self._ids[name] = container_id = f"{self._made + 10:02x}{name.encode().hex()}".ljust(64, "e")[:64]
        oci.make_bundle(self.directory / container_id, name, userns=self.userns)
        self.bundle(name).mkdir(parents=True)
        config = json.loads((self.directory / container_id / "config.json").read_text())
        config["root"]["path"] = str(self.directory / container_id / "rootfs")
        config["linux"]["cgroupsPath"] = f"/isulad/{container_id}"
        hooks = self.hooks()
        if hooks:
            config["hooks"] = hooks
        (self.bundle(name) / "config.json").write_text(json.dumps(config))
        recorded = ISULAD_RECORDED["lcr" if self.runtime == "lcr" else "created"]
        for file in ("config.v2.json", "hostconfig.json", "network_settings.json"):
            text = (recorded / file).read_text().replace(recorded.name, container_id)
            document = json.loads(text)
            if file == "config.v2.json":
                document["CommonConfig"] |= {"Name": name, "BaseFs": config["root"]["path"]}
            _replace_file(self.bundle(name) / file, document)
        if self.runtime == "lcr":
            _replace_file(self.bundle(name) / "ocihooks.json", hooks)
        self.write_state(name, "created")

    def hooks(self) -> dict[str, Any]:
        """What `isula create --hook-spec` was given."""
        return {}

    def start(self, name: str) -> None:
        command = 'runc --root "$1" run --detach --bundle "$2" --pid-file "$2/pid" "$3" >"$2/log" 2>&1 </dev/null'
        script = f'{command} || {{ cat "$2/log"; exit 1; }}'
        self.room.sh(script, self._ROOT, self._inside(name), self._ids[name])
        self.write_state(name, "running")

    def stop(self, name: str) -> None:
        self.room.run("runc", "--root", self._ROOT, "delete", "--force", self._ids[name])
        (self.bundle(name) / "pid").unlink()
        self.write_state(name, "exited")

    def await_end(self, name: str) -> None:
        """Its daemon deletes what has ended, as `isula stop` does."""
        self.stop(name)

    def pause(self, name: str) -> None:
        self.room.run("runc", "--root", self._ROOT, "pause", self._ids[name])
        self.write_state(name, "paused")

    def unpause(self, name: str) -> None:
        self.room.run("runc", "--root", self._ROOT, "resume", self._ids[name])
        self.write_state(name, "running")

    def rename(self, name: str, new: str) -> None:
        """`isula rename`: the name changes in place."""
        path = self.bundle(name) / "config.v2.json"
        document = json.loads(path.read_text())
        document["CommonConfig"]["Name"] = new
        _replace_file(path, document)
        self._ids[new] = self._ids.pop(name)

    def remove(self, name: str) -> None:
        container_id = self._ids[name]
        self.room.run("runc", "--root", self._ROOT, "delete", "--force", container_id)
        shutil.rmtree(self.bundle(name))
        shutil.rmtree(self.directory / container_id)
        del self._ids[name]

    def pid(self, name: str) -> int:
        return int((self.bundle(name) / "pid").read_text())

    def full_id(self, name: str) -> str:
        return self._ids[name]

    def bundle(self, name: str) -> Path:
        """Its directory, as it is seen from outside of the room."""
        return Path(f"/proc/{self.room.pid}/root{self._inside(name)}")

    def _inside(self, name: str) -> str:
        return f"{self.graph}/engines/{self.runtime}/{self._ids[name]}"

    def write_state(self, name: str, status: str) -> None:
        """The state as iSulad writes it for this status: created, running, paused, exited or restarting."""
        state = json.loads((ISULAD_RECORDED[status] / "container_state.json").read_text())
        if "Pid" in state:
            of_process = 'cut -d" " -f22 /proc/$1/stat; cut -d" " -f4 /proc/$1/stat'
            started, parent = map(int, self.room.sh(of_process, str(self.pid(name))).split())
            state |= {"Pid": self.pid(name), "StartTime": started, "PPid": parent, "PStartTime": started - 1}
        if status == "restarting":
            # None was recorded: container_state_set_restarting() of iSulad sets these two, and no process.
            state |= {"Running": True, "Restarting": True}
        if self.has_state_file:
            _replace_file(self.bundle(name) / "container_state.json", state)
        else:
            path = self.bundle(name) / "config.v2.json"
            _replace_file(path, json.loads(path.read_text()) | {"State": state})


def _replace_file(path: Path, document: object) -> None:
    """As iSulad writes its files: a temporary one, which is renamed, with 4 spaces of indentation."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(json.dumps(document, indent=4) + "\n")
    temporary.rename(path)


_ISULAD_ENGINES = Path(__file__).parent.parent / "fixtures/isulad-2.1.6/engines"
ISULAD_RECORDED: dict[str, Path] = {
    "created": _ISULAD_ENGINES / "runc/528c9a04eadbcb7c254c006dcff01cbb67ef52f0b4b6b5032e42731a5804ad5e",
    "running": _ISULAD_ENGINES / "runc/301c992edea5d7c1ba0a021b5c2034ff258546b880d7aa262f24fca511c5f215",
    "paused": _ISULAD_ENGINES / "runc/80def51c20c0876b3c38a9c900efc1c0a8960c86150f8781fb8346406c3ee523",
    "exited": _ISULAD_ENGINES / "runc/ebff837af68d37fd731cd2d00229ef73b9ba9787aec63abcf8f85366d13b926d",
    "mapped": _ISULAD_ENGINES / "runc/b38b89cbe36dce78dc74c13f3800a6c501ca47279660ca4d64a04543fa333989",
    "lcr": _ISULAD_ENGINES / "lcr/d9293d572aa9bca3c5ad71e92dd26d75f514b2159a9d8be6e920899ac9ff9d62",
}
ISULAD_RECORDED["restarting"] = ISULAD_RECORDED["exited"]


ENGINES: dict[str, type[Engine]] = {
    engine.name: engine for engine in (Docker, Podman, Containerd, Isulad, Incus, Lxc, Nspawn)
}

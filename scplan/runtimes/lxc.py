"""LXC: the directories of its lxcpath, and the command socket of each running container's monitor. lxc(7)."""

from __future__ import annotations

import os

from scplan.model.live import ContainerFacts
from scplan.runtimes.configured_hooks import is_in_lxc_configuration
from scplan.runtimes.lxc_monitor import init_pid
from scplan.runtimes.runtime import ContainerName, Runtime, by_reference
from scplan.runtimes.state_files import facts_of, list_directories, read_file

_SYSTEM_PATH = "/var/lib/lxc"
_SOCKETS = "/proc/net/unix"


class Lxc(Runtime):
    """Containers by name. The ID is LXCPATH/NAME, so that a record finds a container below another path again."""

    name = "lxc"

    def places(self) -> list[str]:
        return [default_path()]

    def find(self, reference: str, pid: int | None, pid_file: str | None) -> list[ContainerFacts]:
        (path,) = self.places()
        if not os.path.isdir(path):
            return []
        if os.path.isfile(f"{path}/{reference}/config"):
            return [_facts(ContainerName(reference, f"{path}/{reference}", path))]
        known = self.all()
        return [
            _facts(one)
            for name in by_reference(reference, {one.name for one in known})
            for one in known
            if one.name == name
        ]

    def find_recorded(self, name: str, container_id: str, place: str = "") -> list[ContainerFacts]:
        one = ContainerName(name, container_id, os.path.dirname(container_id))
        return [_facts(one)] if os.path.isfile(f"{one.id}/config") else []

    def all(self) -> list[ContainerName]:
        (path,) = self.places()
        names = [name for name in list_directories(path) if os.path.isfile(f"{path}/{name}/config")]
        return [*(ContainerName(name, f"{path}/{name}", path) for name in names), *_running_elsewhere(path)]

    def has_hook(self, facts: ContainerFacts) -> bool:
        """Whether the container's configuration has the hook; what that includes is not followed."""
        text = read_file(f"{facts.id}/config")
        return text is not None and is_in_lxc_configuration(text.decode(errors="replace"))


def default_path() -> str:
    """lxc.lxcpath of this user's lxc.conf(5), else where LXC looks without it."""
    own = os.geteuid() != 0
    home = os.path.expanduser("~")
    text = read_file(f"{home}/.config/lxc/lxc.conf" if own else "/etc/lxc/lxc.conf") or b""
    for line in text.decode(errors="replace").split("\n"):
        key, _, value = line.partition("=")
        if key.strip() == "lxc.lxcpath" and value.strip():
            return value.strip()
    return f"{home}/.local/share/lxc" if own else _SYSTEM_PATH


def _running_elsewhere(path: str) -> list[ContainerName]:
    """Running containers below other paths (`lxc-start -P`), by the sockets of their monitors."""
    found = []
    for line in (read_file(_SOCKETS) or b"").splitlines():
        address = os.fsdecode(line).partition(" @")[2]
        directory, _, last = address.rpartition("/")
        place, _, name = directory.rpartition("/")
        # The paths of incus and lxd have the daemon's socket beside them.
        of_engine = os.path.exists(f"{os.path.dirname(place)}/unix.socket")
        if last == "command" and place.startswith("/") and name and place != path and not of_engine:
            found.append(ContainerName(name, directory, place))
    return sorted(set(found))


def _facts(one: ContainerName) -> ContainerFacts:
    return facts_of(one.name, Lxc.name, init_pid(one.id), 0, id=one.id)._replace(place=one.place)

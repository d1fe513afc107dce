"""LXC: directories below the lxcpath, and the command socket of each running container's monitor. lxc(7)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from scplan.model.live import ContainerFacts
from scplan.runtimes.configured_hooks import state_dirs_in_lxc_configuration
from scplan.runtimes.foreign_pid import refuse_foreign
from scplan.runtimes.lxc_monitor import init_pid, monitor_title, payload_cgroup, socket_name
from scplan.runtimes.runtime import ContainerName, Runtime, by_reference
from scplan.runtimes.state_files import facts_of, list_directories, read_file

if TYPE_CHECKING:
    from scplan.model.provided import Provided

_SYSTEM_PATH = "/var/lib/lxc"
_SOCKETS = "/proc/net/unix"
_HASHED = "lxc/"
_MONITOR = "[lxc monitor] "


class Lxc(Runtime):
    """Containers are known by name. The ID is LXCPATH/NAME, so a record finds a container below another lxcpath."""

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

    def refuse_foreign(self, facts: ContainerFacts) -> None:
        """Accepts a process in the container's cgroup, or with the container's monitor as its parent."""
        path, name = os.path.split(facts.id)
        refuse_foreign(
            facts, f"\0{socket_name(facts.id)}", cgroup=payload_cgroup(name), monitor=monitor_title(path, name)
        )

    def provided(self, facts: ContainerFacts) -> Provided:
        """Parts in the container's configuration and in the files that it includes."""
        from scplan.runtimes.lxc_config import of_lxc  # here, since most commands do not need it

        return of_lxc(f"{facts.id}/config")

    def hook_state_dirs(self, facts: ContainerFacts) -> list[str] | None:
        """State directories of the hook in the container's configuration; included files are not read."""
        text = read_file(f"{facts.id}/config")
        return [] if text is None else state_dirs_in_lxc_configuration(text.decode(errors="replace"))


def default_path() -> str:
    """lxc.lxcpath of this user's lxc.conf(5), else LXC's default directory."""
    own = os.geteuid() != 0
    home = os.path.expanduser("~")
    text = read_file(f"{home}/.config/lxc/lxc.conf" if own else "/etc/lxc/lxc.conf") or b""
    for line in text.decode(errors="replace").split("\n"):
        key, _, value = line.partition("=")
        if key.strip() == "lxc.lxcpath" and value.strip():
            return value.strip()
    return f"{home}/.local/share/lxc" if own else _SYSTEM_PATH


def _running_elsewhere(path: str) -> list[ContainerName]:
    """Running containers below other lxcpaths (`lxc-start -P`), by the sockets of their monitors."""
    # The kernel shows the leading NUL of an abstract socket's name as @: unix_seq_show() in net/unix/af_unix.c.
    addresses = {os.fsdecode(line).partition(" @")[2] for line in (read_file(_SOCKETS) or b"").splitlines()}
    directories = {directory for one in addresses if (directory := _directory_in(one)).startswith("/")}
    if any(one.startswith(_HASHED) for one in addresses):
        # LXC hashes a long path. The monitor's title has the path; the hash confirms that the title is true.
        directories |= {one for one in _titles_of_monitors() if socket_name(one) in addresses}
    found = []
    for directory in directories:
        place, _, name = directory.rpartition("/")
        # The lxcpath of incus or lxd has the daemon's socket beside it.
        of_engine = os.path.exists(f"{os.path.dirname(place)}/unix.socket")
        if name and place not in ("", path) and not of_engine:
            found.append(ContainerName(name, directory, place))
    return sorted(found)


def _directory_in(address: str) -> str:
    """LXCPATH/NAME from the address of a monitor's socket; "" for any other socket."""
    directory, _, last = address.rpartition("/")
    return directory if last == "command" else ""


def _titles_of_monitors() -> Iterator[str]:
    """LXCPATH/NAME from the titles of processes that claim to be a monitor: "[lxc monitor] LXCPATH NAME"."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            title = os.fsdecode(read_file(f"/proc/{entry}/cmdline") or b"").rstrip("\0")
            place, _, name = title.removeprefix(_MONITOR).rpartition(" ")
            if title.startswith(_MONITOR) and place and name:
                yield f"{place}/{name}"


def _facts(one: ContainerName) -> ContainerFacts:
    return facts_of(one.name, Lxc.name, init_pid(one.id), 0, id=one.id)._replace(place=one.place)

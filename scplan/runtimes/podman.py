"""Podman: the containers in its storage, and the state files of runc or crun. containers-storage.conf(5)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from scplan.errors import KernelError, RecordDamaged
from scplan.linux.processes.process import acts_for_user, user_namespace_owner
from scplan.model.live import ContainerFacts
from scplan.model.provided import Provided
from scplan.runtimes.configured_hooks import runs_scplan, state_dir_of
from scplan.runtimes.crun import Crun
from scplan.runtimes.runc import Runc
from scplan.runtimes.runtime import ContainerName, Runtime, Signs, by_name_or_id
from scplan.runtimes.state_files import (
    damaged,
    facts_of,
    field,
    list_directories,
    list_suffixed,
    parse,
    pid_in_file,
    plain,
    read_file,
    read_state,
    stopped,
    toml_list,
    toml_value,
    user_directory,
)
from scplan.startup import strict_json

# Containers of `podman run --rm` may be in the second list.
_LISTS = ("containers.json", "volatile-containers.json")
_OCI_RUNTIMES = (Runc(), Crun())
_MAX_COMMAND = 1 << 16
_HOOK_DIRECTORIES = ("/usr/share/containers/oci/hooks.d",)
_CONFIGURATIONS = ("/usr/share/containers/containers.conf", "/etc/containers/containers.conf")


class Podman(Runtime):
    name = "podman"
    programs = ("podman",)
    has_own_ids = True
    as_owner = "podman unshare"

    def places(self) -> list[str]:
        return [_storage()]

    def find(self, reference: str, pid: int | None, pid_file: str | None) -> list[ContainerFacts]:
        names = by_name_or_id(reference, self.all())
        if not any(reference in one[:2] for one in names):
            for error in self.unreadable.values():
                raise error  # the container may be in the damaged list
        return [_facts(one) for one in names]

    def find_recorded(self, name: str, container_id: str, place: str = "") -> list[ContainerFacts]:
        """The container by ID, which survives a rename; else by name, since a re-created container has another ID."""
        known = self._all_in(place or _storage())
        named = [one for one in known if one.id == container_id] or [one for one in known if one.name == name]
        if not named:
            for error in self.unreadable.values():
                raise error  # not gone: the container may be in the damaged list
        return [_facts(one) for one in named]

    def all(self) -> list[ContainerName]:
        return self._all_in(_storage())

    def _all_in(self, storage: str) -> list[ContainerName]:
        """Containers of a storage, except in damaged lists; the `place` of each is the directory of its list."""
        self.unreadable.clear()
        drivers = [name for name in list_directories(storage) if name.endswith("-containers")]
        return [one for driver in drivers for file in _LISTS for one in self._listed(f"{storage}/{driver}/{file}")]

    def _listed(self, path: str) -> tuple[ContainerName, ...]:
        try:
            return _names(path)
        except RecordDamaged as error:
            self.unreadable[path] = error
            return ()

    def in_bundle(self, bundle: str, container_id: str) -> ContainerFacts | None:
        # The bundle is PLACE/ID/userdata; the hook's environment may name another storage.
        place, own, last = ("", "", *os.path.normpath(bundle).rsplit("/", 2))[-3:]
        is_its_own = (own, last) == (container_id, "userdata")
        known = [one for file in _LISTS for one in self._listed(f"{place}/{file}")] if is_its_own else self.all()
        found = next((one for one in known if one.id == container_id), None)
        return None if found is None else stopped(found, Podman.name, os.path.dirname(found.place))

    def signs(self, name: str, container_id: str, place: str = "") -> Signs:
        """Files of the OCI runtimes and of conmon: podman's socket needs its service, which costs memory."""
        states = [file for one in _OCI_RUNTIMES for file in one.signs(name, container_id, one.default_root()).files]
        storage = f"{_run_directory()}/overlay-containers"
        return Signs(files=(*states, f"{storage}/{container_id}/userdata/pidfile"))

    def bundle(self, facts: ContainerFacts) -> str | None:
        for one in self._all_in(facts.place or _storage()):
            if one.id == facts.id:
                return f"{one.place}/{one.id}/userdata"
        return None

    def labels(self, facts: ContainerFacts) -> tuple[str, ...] | None:
        from scplan.runtimes.podman_database import labels_in

        return labels_in(facts.place or _storage(), facts.id)

    def provided(self, facts: ContainerFacts) -> Provided:
        """Parts in the bundle and CNI results, and the bridges of all networks: netavark has no file per container."""
        own = acts_for_user()
        graph = facts.place or _storage()
        networks = f"{os.path.dirname(graph) if own else '/etc/containers'}/networks"
        bridges = {"podman0": "the NIC of podman's network podman", "cni-podman0": "the NIC of podman's network podman"}
        for file in list_suffixed(networks, ".json"):
            network = read_state(f"{networks}/{file}") or {}
            bridge = network.get("network_interface")
            if isinstance(bridge, str):
                bridges[bridge] = f"the NIC of podman's network {network.get('name')}"
        return Provided(bridges=bridges).joined(super().provided(facts))

    def hook_state_dirs(self, facts: ContainerFacts) -> list[str] | None:
        """State directories of the hook in podman's directories of hooks, else in the container's bundle.

        Podman writes a bundle with the hooks in its directories at each start: removed hooks no longer count.
        """
        files = {name: f"{directory}/{name}" for directory in hook_directories() for name in _hook_files(directory)}
        hooks = [(read_state(path) or {}).get("hook") for path in files.values()]
        found = [state_dir_of(hook) for hook in hooks if isinstance(hook, dict) and runs_scplan(hook)]
        return found or super().hook_state_dirs(facts)


def hook_directories() -> list[str]:
    """Directories in which podman looks for hooks; the last takes precedence.

    containers.conf(5), hooks_dir: the last file with this key counts.
    """
    found = (toml_list(path, "engine", "hooks_dir") for path in reversed(_configurations()))
    return next((directories for directories in found if directories), list(_HOOK_DIRECTORIES))


def _configurations() -> list[str]:
    """Files of containers.conf(5) that podman reads; the last takes precedence.

    CONTAINERS_CONF replaces all of them; CONTAINERS_CONF_OVERRIDE (since podman 4.6) is last in any case.
    """
    override = os.environ.get("CONTAINERS_CONF_OVERRIDE")
    last = [override] if override else []
    chosen = os.environ.get("CONTAINERS_CONF")
    if chosen:
        return [chosen, *last]
    files = [*_CONFIGURATIONS]
    if acts_for_user():
        own = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        files.append(f"{own}/containers/containers.conf")
    return [one for file in files for one in (file, *_drop_ins(f"{file}.d"))] + last


def _drop_ins(directory: str) -> list[str]:
    return [f"{directory}/{name}" for name in sorted(list_suffixed(directory, ".conf"))]


def _hook_files(directory: str) -> list[str]:
    return sorted(list_suffixed(directory, ".json"))


def _storage() -> str:
    """Directory in which this user's podman keeps its containers."""
    default = "/var/lib/containers/storage"
    if acts_for_user():
        default = (os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")) + "/containers/storage"
    chosen = os.environ.get("CONTAINERS_STORAGE_CONF")
    found = toml_value(_storage_configuration(), "storage", "graphroot")
    return found or (chosen and _storage_of_owner(chosen)) or default


def _storage_configuration() -> str:
    """The storage.conf that this user's podman reads."""
    directory = "/etc"
    if acts_for_user():
        directory = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.environ.get("CONTAINERS_STORAGE_CONF") or f"{directory}/containers/storage.conf"


def _storage_of_owner(configuration: str) -> str | None:
    """Storage of the user who owns a storage.conf, by which root selects it; None for root's own storage.conf."""
    try:
        uid = os.stat(configuration).st_uid
    except FileNotFoundError:
        return None
    if uid in (0, os.geteuid()):
        return None
    import pwd

    try:
        return f"{pwd.getpwuid(uid).pw_dir}/.local/share/containers/storage"
    except KeyError:
        return None


def _names(path: str) -> tuple[ContainerName, ...]:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise KernelError.from_os(f"stat({path})", error) from None
    # The file's version is part of the cache's key: a list that was replaced is parsed again.
    return _parsed(path, (status.st_ino, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=4)
def _parsed(path: str, _version: tuple[int, ...]) -> tuple[ContainerName, ...]:
    """Containers of a list file, which has about a kilobyte per container; podman replaces the file at each change."""
    text = read_file(path)
    rows = [] if text is None else parse(text, path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise damaged(path, "it is not a list of objects")
    place = os.path.dirname(path)
    found = []
    for row in rows:
        container_id = plain(field(row, "id", str, path), path)
        names = row.get("names")
        first = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else container_id
        flags = row.get("flags")
        is_temporary = isinstance(flags, dict) and flags.get("Volatile") is True
        found.append(ContainerName(plain(first, path), container_id, place, _image_of(row), is_temporary))
    return tuple(found)


def _image_of(row: dict[str, Any]) -> str:
    """Name of the image in libpod's metadata, a JSON text; "" if it has none."""
    note = row.get("metadata")
    try:
        document = strict_json.loads(note.encode()) if isinstance(note, str) else None
    except ValueError:
        return ""
    name = document.get("image-name") if isinstance(document, dict) else None
    return name if isinstance(name, str) else ""


def _facts(one: ContainerName) -> ContainerFacts:
    storage = os.path.dirname(one.place)
    uid = _other_owner(storage)
    if uid is not None:
        return _facts_of_user(one, storage, uid)
    for runtime in _OCI_RUNTIMES:
        found = runtime.read(runtime.default_root(), one.id)
        if found is not None:
            found = found._replace(name=one.name, runtime=Podman.name, place=storage)
            return found._replace(image=one.image, is_temporary=one.is_temporary)
    # Another OCI runtime, whose state files scplan does not know: use the PID file of conmon(8).
    pid = pid_in_file(f"{_run_directory()}/{os.path.basename(one.place)}/{one.id}/userdata/pidfile", one.id)
    facts = facts_of(one.name, Podman.name, pid, 0, id=one.id)
    return facts._replace(place=storage, image=one.image, is_temporary=one.is_temporary)


def _run_directory() -> str:
    """Directory of podman's files that last until the next boot. containers-storage.conf(5), runroot."""
    chosen = toml_value(_storage_configuration(), "storage", "runroot")
    if chosen:
        return chosen
    own = user_directory()
    return f"{own}/containers" if own else "/run/containers/storage"


# containers of other users, for root


def _other_owner(storage: str) -> int | None:
    """UID of the user whose rootless podman has the storage, if that is neither root nor the caller; else None."""
    if acts_for_user():
        return None
    try:
        uid = os.stat(storage).st_uid
    except FileNotFoundError:
        return None
    return uid or None


def _facts_of_user(one: ContainerName, storage: str, uid: int) -> ContainerFacts:
    """Facts from files of a user. They can name any process, so the process must be in a user namespace of that user.

    The runtime directory is that of the user's session, else the directory that the container's conmon(8) names.
    """
    directories = [f"/run/user/{uid}", *_run_directories(one.id, uid)]
    for directory in dict.fromkeys(directories):
        for runtime in _OCI_RUNTIMES:
            found = runtime.read(f"{directory}/{runtime.name}", one.id)
            # The user can write any PID into the file, but not change the owner of a user namespace. ioctl_ns(2)
            if found is not None and (not found.pid or user_namespace_owner(found.pid) == uid):
                return found._replace(name=one.name, runtime=Podman.name, place=storage)
    return facts_of(one.name, Podman.name, 0, 0, id=one.id)._replace(place=storage)


def _run_directories(container_id: str, uid: int) -> Iterator[str]:
    """$XDG_RUNTIME_DIR of the container's conmon(8), whose `-p` is DIRECTORY/containers/…-containers/ID/userdata/….

    Searched only if the session's directory, which is the usual place, does not have the container.
    """
    if any(os.path.isdir(f"/run/user/{uid}/{runtime.name}/{container_id}") for runtime in _OCI_RUNTIMES):
        return
    for name in os.listdir("/proc"):
        try:
            if not name.isdigit() or os.stat(f"/proc/{name}").st_uid != uid:
                continue
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = os.fsdecode(file.read(_MAX_COMMAND)).split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue  # the process has ended
        if os.path.basename(words[0]) == "conmon" and container_id in words and "-p" in words[:-1]:
            path = words[words.index("-p") + 1]
            directory, found, _ = path.partition("/containers/")
            if found and directory.startswith("/"):
                yield directory

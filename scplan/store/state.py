"""Which resources scplan owns in each container, and what they replaced; the locks that keep applies apart."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from scplan.errors import KernelError, RecordDamaged, ScplanError
from scplan.kinds.kind import Kinds
from scplan.model.address import Address
from scplan.model.codec import from_json, naming_from_json, naming_to_json, to_json
from scplan.model.comparison import at_next_start
from scplan.model.live import ContainerFacts, Naming, Status
from scplan.model.resource import RECORDED, Resource
from scplan.startup.named_tuple import NamedTuple
from scplan.store import locks
from scplan.store.durable import (
    FILE_MODE,
    Prepared,
    check_version,
    decode_line,
    encode_line,
    listed,
    make_directory,
    read_bytes,
    refuse_foreign_directory,
    sweep,
)

FORMAT_VERSION = "1.1"


class Record(NamedTuple):
    """What scplan owns in one container. `id` is the container's as its runtime knew it when the record was written.

    `boot_id`, `start_time` and `pid` say in which of its lives the resources were plugged in; "" and 0: in none, they
    wait for its next start. `modules` are kernel modules that must be loaded first; None: those of the record so far.
    `bundle` is the directory of the container's OCI configuration, which tells it from others of the same ID; "": that
    of the record so far. `cgroup` and `pid_namespace` are those of that life, as in ContainerFacts. `place` is where
    the runtime keeps the container, as in ContainerFacts; "": that of the record so far, or not known (records of
    former versions). `naming` says which container of the name it is about; None: as the record so far.
    """

    name: str
    runtime: str
    id: str
    resources: Mapping[Address, Resource]
    boot_id: str = ""
    start_time: int = 0
    pid: int = 0
    modules: tuple[str, ...] | None = None
    bundle: str = ""
    cgroup: str = ""
    pid_namespace: int = 0
    place: str = ""
    naming: Naming | None = None

    @classmethod
    def of(cls, facts: ContainerFacts, boot_id: str, resources: Mapping[Address, Resource]) -> Record:
        """The record of a container as it is now."""
        boot_id = boot_id if facts.start_time else ""
        return cls(
            facts.name,
            facts.runtime,
            facts.id,
            resources,
            boot_id,
            facts.start_time,
            facts.pid,
            bundle=facts.bundle,
            cgroup=facts.cgroup,
            pid_namespace=facts.pid_namespace,
            place=facts.place,
            naming=facts.recorded_naming,
        )

    @property
    def follows_name(self) -> bool:
        """True if a container that is made again under the name is the same one, restarted."""
        return self.naming is not None and self.naming.follows_name

    def facts(self) -> ContainerFacts:
        """The container in the life that the record is about, as if it ran; no runtime is asked."""
        return ContainerFacts(
            self.name,
            self.runtime,
            self.id,
            Status.RUNNING,
            self.pid,
            self.start_time,
            bundle=self.bundle,
            cgroup=self.cgroup,
            pid_namespace=self.pid_namespace,
            place=self.place,
        )

    def is_over(self, facts: ContainerFacts, boot_id: str) -> bool:
        """Whether the container's process is another one than that into which the resources were plugged."""
        life = self.boot_id, self.start_time, self.pid
        return bool(self.start_time) and life != (boot_id, facts.start_time, facts.pid)

    def lost(self, facts: ContainerFacts, boot_id: str) -> Mapping[Address, Resource]:
        """What the container had of the host when it ended; nothing while it runs, or once the host was booted.

        Once that was returned: what stayed in its pod.
        """
        if not self.start_time:
            return {address: one for address, one in self.resources.items() if one.is_lent}
        return self.resources if self.boot_id == boot_id and self.is_over(facts, boot_id) else {}

    @property
    def has_lent(self) -> bool:
        """True if a container that has ended left things of the host in its pod, which are not returned yet."""
        return not self.start_time and any(one.is_lent for one in self.resources.values())

    def at_next_start(self) -> Record:
        """The record when the container has ended and the host has its things back."""
        resources = {address: at_next_start(resource) for address, resource in self.resources.items()}
        return self._replace(resources=resources, boot_id="", start_time=0, pid=0, cgroup="", pid_namespace=0)


class Update:
    """New versions of records, to be put in place together."""

    def __init__(self) -> None:
        self.files: list[Prepared] = []

    def commit(self) -> None:
        """Puts them in place; only renames are left to do."""
        for file in self.files:
            file.commit()

    def discard(self) -> None:
        """Takes the new versions away; harmless after a commit."""
        for file in self.files:
            file.discard()


class State:
    """The records below one state directory: `containers/RUNTIME/NAME.json`, `locks/`.

    Raises ScplanError for a directory that somebody else could have written to.
    """

    def __init__(self, directory: str, kinds: Kinds) -> None:
        refuse_foreign_directory(directory)
        self.directory = directory
        self._kinds = kinds

    # records

    def read(self, runtime: str, name: str) -> Record | None:
        """The container's record; None when scplan owns nothing there.

        Raises RecordDamaged, naming the file and the last good copy, when it can't be trusted; never taken as empty.
        """
        path = self._path(runtime, name)
        content = read_bytes(path)
        if content is None:
            return None
        try:
            return self._decode(content, path, runtime, name)
        except RecordDamaged as error:
            raise RecordDamaged(
                error.diagnostics[0].summary,
                detail=error.diagnostics[0].detail,
                hint=error.diagnostics[0].hint or _way_out(path),
            ) from None

    def prepare(self, records: Iterable[Record]) -> Update:
        """Writes new versions of records beside the old ones; `commit` of what is returned puts them in place.

        A record without resources is removed. Raises KernelError, with nothing left behind, when the disk refuses.
        """
        update = Update()
        try:
            for record in records:
                if record.modules is None or record.naming is None or not record.bundle or not record.place:
                    record = _completed(record, self.read(record.runtime, record.name))
                content = encode_line(_document(record)) if record.resources else None
                path = self._path(record.runtime, record.name)
                if content is not None and content == read_bytes(path):
                    continue  # else the last version that was another one would be lost
                update.files.append(Prepared(path, content, keep_previous=True))
        except BaseException:
            update.discard()
            raise
        return update

    def write(self, records: Iterable[Record]) -> None:
        """Puts new versions of records in place; for changes of records alone, where nothing else can fail."""
        update = self.prepare(records)
        try:
            update.commit()
        finally:
            update.discard()

    def sweep(self, containers: Iterable[ContainerFacts]) -> None:
        """Takes away what a crash left of new versions of records. The containers' locks must be held."""
        for facts in containers:
            sweep(self._path(facts.runtime, facts.name))

    def all(self) -> Iterator[Record]:
        """Every record, by runtime and name. Raises RecordDamaged for one that can't be trusted."""
        for runtime, name in self.names():
            record = self.read(runtime, name)
            if record is not None:
                yield record

    def survey(self) -> tuple[list[Record], list[ScplanError]]:
        """(every record that can be read, why the others can't): for commands that only report."""
        records: list[Record] = []
        failures: list[ScplanError] = []
        for runtime, name in self.names():
            try:
                record = self.read(runtime, name)
            except ScplanError as error:
                failures.append(error)
            else:
                records += [record] if record is not None else []
        return records, failures

    def names(self) -> list[tuple[str, str]]:
        """(runtime, container) of every record."""
        top = os.path.join(self.directory, "containers")
        return sorted(
            (runtime, entry.removesuffix(".json"))
            for runtime in listed(top)
            for entry in listed(os.path.join(top, runtime))
            if entry.endswith(".json")
        )

    def elsewhere(self, containers: Collection[ContainerFacts]) -> dict[Address, Resource]:
        """What the records of all other containers than these hold. Raises RecordDamaged."""
        own = {(facts.runtime, facts.name) for facts in containers}
        records = (self.read(*name) for name in self.names() if name not in own)
        return {address: one for record in records if record is not None for address, one in record.resources.items()}

    def has_open_journals(self) -> bool:
        """Whether any apply is at work, or did not end."""
        return bool(listed(os.path.join(self.directory, "journal")))

    def last_begun_or_ended(self) -> int:
        """When an apply last began or ended, in ns since the epoch; 0 where none ever did."""
        try:
            return os.stat(os.path.join(self.directory, "journal")).st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return 0
        except OSError as error:
            raise KernelError.from_os(f"stat({self.directory}/journal)", error) from None

    def _path(self, runtime: str, name: str) -> str:
        return os.path.join(self.directory, "containers", runtime, f"{name}.json")

    def _decode(self, content: bytes, path: str, runtime: str, name: str) -> Record:
        document = decode_line(content, path)
        check_version(document, FORMAT_VERSION, path)
        container, resources = document.get("container"), document.get("resources")
        if not isinstance(container, dict) or not isinstance(resources, dict):
            raise RecordDamaged(f"{path}: container or resources are missing")
        if (container.get("runtime"), container.get("name")) != (runtime, name):
            raise RecordDamaged(f"{path} is the record of another container")
        decoded: dict[Address, Resource] = {}
        for key, value in resources.items():
            kind, _, identity = key.partition("/")
            if kind not in self._kinds:
                raise RecordDamaged(f"{path}: unknown kind {kind!r}")
            decoded[Address(name, kind, identity)] = from_json(self._kinds[kind].record, value, f"{path}: {key}")
        boot_id, started, pid = container.get("boot_id", ""), container.get("start_time", 0), container.get("pid", 0)
        pid_namespace = container.get("pid_namespace", 0)
        if any(type(number) is not int for number in (started, pid, pid_namespace)):
            raise RecordDamaged(f"{path}: start_time, pid or pid_namespace is not a number")
        record = Record(name, runtime, str(container.get("id", "")), decoded, str(boot_id), started, pid)
        modules, bundle = _modules(document.get("modules", []), path), str(container.get("bundle", ""))
        cgroup, place = str(container.get("cgroup", "")), str(container.get("place", ""))
        naming = naming_from_json(container)
        record = record._replace(modules=modules, bundle=bundle, cgroup=cgroup, place=place, naming=naming)
        return record._replace(pid_namespace=pid_namespace)

    # locks

    @contextmanager
    def locked(self, containers: list[ContainerFacts], *, host: bool, timeout_s: float) -> Iterator[None]:
        """Holds the locks of these containers, and the one of the host's things, against other applies.

        The kernel drops a lock when its holder ends, however it ends. Raises Locked after `timeout_s`.
        """
        names = sorted({f"{facts.runtime}.{facts.name}" for facts in containers})
        with ExitStack() as stack:
            # Always in the same order, so that no two applies can wait for each other.
            for name in [*names, *(["host"] if host else [])]:
                fd = self._lock(f"{name}.lock", time.monotonic() + timeout_s)
                stack.callback(locks.release, fd)
            yield

    @contextmanager
    def supervised(self, timeout_s: float) -> Iterator[int]:
        """Keeps a second supervisor away; gives the fd of the lock. Raises Locked after `timeout_s`."""
        fd = self._lock("watch.lock", time.monotonic() + timeout_s)
        try:
            yield fd
        finally:
            locks.release(fd)

    def _lock(self, name: str, deadline: float) -> int:
        directory = os.path.join(self.directory, "locks")
        make_directory(directory)
        path = os.path.join(directory, name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        except OSError as error:
            raise KernelError.from_os(f"open({path})", error) from None
        try:
            locks.wait_for(fd, deadline, path)
        except BaseException:
            os.close(fd)
            raise
        return fd


def records_of(
    containers: Mapping[str, ContainerFacts],
    owned: Mapping[Address, Resource],
    boot_id: str,
    modules: Mapping[str, tuple[str, ...]],
) -> list[Record]:
    """A record for each of the containers, with what of `owned` is in it; `boot_id` is that of their facts.

    `modules` are the kernel modules of those containers of which they are known anew.
    """
    by_container: dict[str, dict[Address, Resource]] = {name: {} for name in containers}
    for address, resource in owned.items():
        if address.container in by_container:
            by_container[address.container][address] = resource
    return [
        Record.of(facts, boot_id, by_container[name])._replace(modules=modules.get(name))
        for name, facts in containers.items()
    ]


def _completed(record: Record, known: Record | None) -> Record:
    """The record with what it leaves to the one so far."""
    modules = record.modules
    if modules is None:
        modules = known.modules if known else ()
    naming = record.naming
    if naming is None:
        naming = known.naming if known else None
    record = record._replace(modules=modules, naming=naming)
    if known is None or known.id != record.id:
        return record
    return record._replace(bundle=record.bundle or known.bundle, place=record.place or known.place)


def _modules(document: object, path: str) -> tuple[str, ...]:
    if not isinstance(document, list) or not all(type(name) is str for name in document):
        raise RecordDamaged(f"{path}: modules are not an array of names")
    return tuple(document)


def _document(record: Record) -> dict[str, object]:
    return {
        "format_version": FORMAT_VERSION,
        "container": {
            "name": record.name,
            "runtime": record.runtime,
            "id": record.id,
            "boot_id": record.boot_id,
            "start_time": record.start_time,
            "pid": record.pid,
            **({"bundle": record.bundle} if record.bundle else {}),
            **({"cgroup": record.cgroup} if record.cgroup else {}),
            **({"pid_namespace": record.pid_namespace} if record.pid_namespace else {}),
            **({"place": record.place} if record.place else {}),
            **naming_to_json(record.naming),
        },
        "modules": list(record.modules or ()),
        "resources": {
            f"{address.kind}/{address.identity}": to_json(resource, RECORDED)
            for address, resource in record.resources.items()
        },
    }


def _way_out(path: str) -> str:
    previous = f"{path}.previous"
    if os.path.exists(previous):
        return f"the copy before it is {previous}: look at it, and put it in its place"
    return "restore it from a backup; nothing of its container is changed while it can't be read"

"""Records: the resources that scplan owns in each container, with the former values; and the locks between applies."""

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
    """The resources that scplan owns in one container.

    `id` is the container's ID from its runtime when the record was written. `boot_id`, `start_time` and `pid` identify
    the process of the container in which the resources were made; "" and 0 if they wait for the container's next start.
    `cgroup` and `pid_namespace` belong to the same process; they and `place` are as in ContainerFacts. `bundle` is the
    directory of the container's OCI configuration, which distinguishes containers of the same ID. `modules` are kernel
    modules to load before the resources are made. `naming` is the rule that recognises a container made again.

    When a record is written, `modules` None, `bundle` "", `place` "" and `naming` None keep the value of the record on
    disk. `place` is "" in records of earlier versions.
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
        """Record of a container, from its current facts."""
        # A container that does not run belongs to no boot: its resources wait for its next start.
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
        """True if a container made again under the same name counts as the same container, restarted."""
        return self.naming is not None and self.naming.follows_name

    def facts(self) -> ContainerFacts:
        """Facts of the container as recorded, with status RUNNING, without a call to the runtime."""
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
        """True if the process in which the resources were made has ended: the container stopped or was restarted."""
        # A PID alone is reused; a start time alone is in ticks since boot. All three identify a process.
        life = self.boot_id, self.start_time, self.pid
        return bool(self.start_time) and life != (boot_id, facts.start_time, facts.pid)

    def lost(self, facts: ContainerFacts, boot_id: str) -> Mapping[Address, Resource]:
        """Resources that a container still had when its process ended, some of which are to be returned to the host.

        Empty while the process runs, and after a reboot of the host. Once the host has its things back (see
        `at_next_start`): the lent resources, which stayed in the container's pod.
        """
        if not self.start_time:
            return {address: one for address, one in self.resources.items() if one.is_lent}
        return self.resources if self.boot_id == boot_id and self.is_over(facts, boot_id) else {}

    @property
    def has_lent(self) -> bool:
        """True if a container that has ended left things of the host in its pod that are not returned yet."""
        return not self.start_time and any(one.is_lent for one in self.resources.values())

    def at_next_start(self) -> Record:
        """The record for after the container has ended and the host has its things back: without the process."""
        resources = {address: at_next_start(resource) for address, resource in self.resources.items()}
        return self._replace(resources=resources, boot_id="", start_time=0, pid=0, cgroup="", pid_namespace=0)


class Update:
    """New versions of several records, on disk beside the old ones, to be put in place together."""

    def __init__(self) -> None:
        self.files: list[Prepared] = []

    def commit(self) -> None:
        """Put the new versions in place. Only renames: a full disk does not prevent it."""
        for file in self.files:
            file.commit()

    def discard(self) -> None:
        """Remove the new versions; does nothing after a commit."""
        for file in self.files:
            file.discard()


class State:
    """Records and locks in one state directory: `containers/RUNTIME/NAME.json`, `locks/`.

    Raises ScplanError for a directory that another user owns or may write to.
    """

    def __init__(self, directory: str, kinds: Kinds) -> None:
        refuse_foreign_directory(directory)
        self.directory = directory
        self._kinds = kinds

    # records

    def read(self, runtime: str, name: str) -> Record | None:
        """Record of a container; None if scplan owns nothing in it.

        Raises RecordDamaged, naming the file and the copy of the version before it, if the record is damaged: a damaged
        record never counts as empty.
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
        """Write new versions of records beside the old ones, for `Update.commit` to put in place.

        A record without resources is removed. Raises KernelError if a file can't be written; no new version is left.
        """
        update = Update()
        try:
            for record in records:
                if record.modules is None or record.naming is None or not record.bundle or not record.place:
                    record = _completed(record, self.read(record.runtime, record.name))
                content = encode_line(_document(record)) if record.resources else None
                path = self._path(record.runtime, record.name)
                if content is not None and content == read_bytes(path):
                    continue  # writing it again would replace NAME.json.previous with the same content
                update.files.append(Prepared(path, content, keep_previous=True))
        except BaseException:
            update.discard()
            raise
        return update

    def write(self, records: Iterable[Record]) -> None:
        """Prepare and commit new versions of records at once; for changes of records alone."""
        update = self.prepare(records)
        try:
            update.commit()
        finally:
            update.discard()

    def sweep(self, containers: Iterable[ContainerFacts]) -> None:
        """Remove temporary files of records that a crash left. The caller holds the containers' locks."""
        for facts in containers:
            sweep(self._path(facts.runtime, facts.name))

    def all(self) -> Iterator[Record]:
        """Every record, sorted by runtime and name. Raises RecordDamaged at a damaged record."""
        for runtime, name in self.names():
            record = self.read(runtime, name)
            if record is not None:
                yield record

    def survey(self) -> tuple[list[Record], list[ScplanError]]:
        """(records that can be read, errors of the records that can't), for commands that only report."""
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
        """(runtime, container name) of every record, sorted."""
        top = os.path.join(self.directory, "containers")
        return sorted(
            (runtime, entry.removesuffix(".json"))
            for runtime in listed(top)
            for entry in listed(os.path.join(top, runtime))
            if entry.endswith(".json")
        )

    def elsewhere(self, containers: Collection[ContainerFacts]) -> dict[Address, Resource]:
        """Owned resources of all recorded containers except these. Raises RecordDamaged."""
        own = {(facts.runtime, facts.name) for facts in containers}
        records = (self.read(*name) for name in self.names() if name not in own)
        return {address: one for record in records if record is not None for address, one in record.resources.items()}

    def has_open_journals(self) -> bool:
        """True if an apply is running, crashed, or awaits confirmation."""
        return bool(listed(os.path.join(self.directory, "journal")))

    def last_begun_or_ended(self) -> int:
        """Time at which an apply last began or ended, in ns since the epoch; 0 if none ever did."""
        # A journal is made in this directory and moved out at its end; both set the directory's mtime. inode(7).
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
        """Hold the locks of these containers, and with `host` the lock of the host's things, against other applies.

        The kernel releases a lock when its holder exits or is killed. Raises Locked if a lock is not free within
        `timeout_s`.
        """
        names = sorted({f"{facts.runtime}.{facts.name}" for facts in containers})
        with ExitStack() as stack:
            # Sorted, and the host last: with one order for all applies no two can wait for each other.
            for name in [*names, *(["host"] if host else [])]:
                fd = self._lock(f"{name}.lock", time.monotonic() + timeout_s)
                stack.callback(locks.release, fd)
            yield

    @contextmanager
    def supervised(self, timeout_s: float) -> Iterator[int]:
        """Hold the lock against a second `scplan watch`; yields its fd. Raises Locked after `timeout_s`."""
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
            # O_NOFOLLOW: the holder's PID is written into this file, which must not be a symlink to another one.
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
    """A record for each container, with its resources from `owned`. `boot_id` is the boot in which the facts were read.

    `modules` are kernel modules by container; records of containers that are not in it keep theirs.
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
    """`record`, with the values that it does not set taken from `known`, the record on disk."""
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

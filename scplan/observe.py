"""Live resources of containers, for all kinds: the only stage that reads the kernel for a plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain

from scplan.errors import ScplanError
from scplan.kinds.kind import Kinds
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.model.address import Address
from scplan.model.live import ContainerFacts, HostFacts, LinkFact, PathFact, Status
from scplan.model.resource import Resource
from scplan.startup.named_tuple import NamedTuple

_KEPT_OPEN = 16


class Wanted(NamedTuple):
    """Resources to read in one container: its record, or else the desired resource, by kind and identity. None: all."""

    by_kind: Mapping[str, Mapping[str, Resource]] | None


def observe(
    containers: Mapping[str, ContainerFacts], wanted: Mapping[str, Wanted], kinds: Kinds, host: Host
) -> dict[Address, Resource]:
    """Live resources by address; none for stopped containers. Raises ContainerGone if a container ends meanwhile."""
    # A few containers at a time: each open container holds fds, which RLIMIT_NOFILE limits. getrlimit(2).
    running = [(name, facts) for name, facts in containers.items() if facts.status is not Status.STOPPED]
    resources: dict[Address, Resource] = {}
    for first in range(0, len(running), _KEPT_OPEN):
        with ExitStack() as stack:
            opened = {
                name: stack.enter_context(open_container(facts, host))
                for name, facts in running[first : first + _KEPT_OPEN]
            }
            resources.update(_read(opened, wanted, kinds, host))
    return resources


def _read(
    opened: Mapping[str, Container], wanted: Mapping[str, Wanted], kinds: Kinds, host: Host
) -> Iterator[tuple[Address, Resource]]:
    """(address, live resource) of open containers, grouped by container.

    Kind by kind, because the code and data of a kind stay in the CPU's caches from one container to the next.
    """
    found: dict[str, list[tuple[Address, Resource]]] = {name: [] for name in opened}
    for kind in kinds.values():
        for name, container in opened.items():
            by_kind = wanted[name].by_kind
            chosen = None if by_kind is None else by_kind.get(kind.name)
            if by_kind is not None and not chosen:
                continue
            live = kind.read(container, host, chosen)
            found[name] += [(Address(container.name, kind.name, identity), one) for identity, one in live.items()]
    return chain.from_iterable(found.values())


def open_container(facts: ContainerFacts, host: Host) -> Container:
    """The container, pinned by its process. Raises ScplanError if the container is stopped."""
    if facts.status is Status.STOPPED:
        raise ScplanError(
            f"container {facts.name} is not running", hint=f"start it with {facts.runtime}, then run scplan again"
        )
    return Container(facts.name, facts.pid, facts.start_time, host, facts.root, facts.runtime, facts.cgroup)


class OpenContainers(Mapping[str, Container]):
    """Running containers by name, opened on first use. Only the last few stay open, since each holds several fds.

    Use it in a `with` block. A look-up raises ContainerGone if the process of the container has ended.
    """

    def __init__(self, containers: Mapping[str, ContainerFacts], host: Host) -> None:
        self._facts = containers
        self._host = host
        self._open: dict[str, Container] = {}

    def __enter__(self) -> OpenContainers:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def __getitem__(self, name: str) -> Container:
        # A dict keeps the order of insertion: to pop and insert makes the first entry the least recently used.
        container = self._open.pop(name, None) or open_container(self._facts[name], self._host)
        self._open[name] = container
        if len(self._open) > _KEPT_OPEN:
            self._open.pop(next(iter(self._open))).close()
        return container

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)


def host_facts(host: Host, paths: Iterable[str] = ()) -> HostFacts:
    """Facts of the host that planning needs; `paths` are the paths that iteration gives, for snapshots."""
    return HostFacts(
        paths=_PathFacts(host, paths),
        links=_LinkFacts(host),
        uplinks=host.uplinks,
        ovs_bridges=frozenset(host.ovs.bridges()) if host.ovs is not None else frozenset(),
        page_size=host.page_size,
        boot_id=host.boot_id,
        has_udev=host.has_udev,
    )


class _PathFacts(Mapping[str, PathFact | None]):
    """Facts of host paths, each looked up on first access; iteration gives only the paths in `named`."""

    def __init__(self, host: Host, named: Iterable[str]) -> None:
        self._host = host
        self._named = sorted(set(named))
        self._known: dict[str, PathFact | None] = {}

    def __getitem__(self, path: str) -> PathFact | None:
        if path not in self._known:
            found = self._host.look_up(path)
            self._known[path] = PathFact(**found._asdict()) if found is not None else None
        return self._known[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)


class _LinkFacts(Mapping[str, LinkFact]):
    """The host's links by name; a fact is made on access, since a host can have thousands of links.

    An alternative name (ip-link(8), "property") returns the fact with the link's own name.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    def __getitem__(self, name: str) -> LinkFact:
        link = self._host.link_called(name)
        # IFLA_MASTER has the index of the bridge or bond. if_link.h of the kernel.
        master = self._host.links().get(link.master)
        return LinkFact(
            name=link.name, kind=link.kind, mac=link.mac, mtu=link.mtu, master=master.name if master else ""
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._host.links_by_name)

    def __len__(self) -> int:
        return len(self._host.links_by_name)

"""Contract of a resource kind: all code that is particular to devices, NICs, routes, mounts or cgroup settings.

A kind is a package with a record class (the attributes that users write and the kernel has) and a subclass of `Kind`.
The stages call a kind through this contract, and never by its name. See docs/explanation/adding-a-kind.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.model.address import Address
from scplan.model.change import Change, Disruption
from scplan.model.comparison import as_configured
from scplan.model.live import HostFacts
from scplan.model.resource import Resource, brought_by
from scplan.startup.named_tuple import NamedTuple

if TYPE_CHECKING:
    from scplan.model.provided import Provided

R = TypeVar("R", bound=Resource)


class Hears(Enum):
    """Part of a container whose changes the kernel reports."""

    NETWORK = "network"
    MOUNTS = "mounts"


class Target(NamedTuple, Generic[R]):
    """Place of an operation: an open container, the host, and the other managed resources of the kind in the container.

    `peers` maps identities to the records of the kind that scplan owns in this container now; `others` returns the
    kind's records at all other addresses of the host, and raises RecordDamaged. `state_dir` is the directory of the
    records, and `apply_id` identifies the apply: both are "" for an operation without records.
    """

    container: Container
    host: Host
    peers: Mapping[str, R]
    others: Callable[[], Collection[R]] = tuple
    state_dir: str = ""
    apply_id: str = ""


class Claim(NamedTuple):
    """A thing that only one resource on the whole host can have: a host NIC, a MAC address.

    Two claims collide when their `thing` is equal and their scopes overlap; an empty scope overlaps all scopes.
    """

    thing: str
    scope: str = ""

    def collides(self, other: Claim) -> bool:
        """True if both resources can't have their claims at the same time."""
        return self.thing == other.thing and (not self.scope or not other.scope or self.scope == other.scope)


class Described(NamedTuple, Generic[R]):
    """Resources of one kind in a container, by identity, as a configuration file would describe them.

    `left_out` is (resource, reason) for the rest: resources that belong to the runtime, or that no file can describe.
    """

    resources: Mapping[str, R]
    left_out: tuple[tuple[str, str], ...] = ()


class Unsuitable(ValueError):
    """The configuration asks for something that this host or container can't provide.

    `args[0]` is the problem, `hint` the way to fix it. `absent` marks a missing source: a device, bridge or path that
    the host does not have. `taken` marks a place in a container that others took before scplan reattached its own
    resource. Both are warnings for entries with `required: false`.
    """

    def __init__(self, message: str, *, hint: str = "", absent: bool = False, taken: bool = False) -> None:
        super().__init__(message)
        self.hint = hint
        self.absent = absent
        self.taken = taken


class Foreseen(NamedTuple):
    """One finding about a planned change, made in the container before anyone agrees to the plan.

    `refused`: the present state of the container rules out the change. `put_back` are objects of others that the kernel
    drops with the change and scplan restores ("3 routes of others over eth1"); `taken_along` are objects that go with a
    removed resource, and that an undo restores; `lost` are objects that nothing restores, not even an undo. `warning`
    is (summary, hint). Findings about one change add up.
    """

    address: Address
    refused: Unsuitable | None = None
    put_back: tuple[str, ...] = ()
    taken_along: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    warning: tuple[str, str] | None = None


class Kind(ABC, Generic[R]):
    """One kind of resource. Methods below "kernel" act on live systems; all other methods are pure."""

    name: ClassVar[str]
    """As in addresses and plans: "device"."""
    section: ClassVar[str]
    """Its key in the configuration: "devices"."""
    section_form: ClassVar[Literal["list", "mapping"]] = "list"
    """A list of entries, or a mapping of identity to value (`cgroup:`; the record then has `name` and `value`)."""
    record: type[R]
    of_host: ClassVar[bool] = False
    """True if changes touch things that the whole host shares, so that only one apply may make them at a time."""

    lives_in: ClassVar[Literal["net", "mnt", "cgroup", ""]] = ""
    """The namespace that its resources are in, or the cgroup: containers that share it share them."""
    foresees_starts: ClassVar[bool] = False
    """True if changes are checked in a container that starts, too: settings of its runtime may stand against them."""
    hears: ClassVar[Hears | None] = None
    """Part of a container whose changes the kernel reports as resources change; None: they must be polled."""

    # configuration

    def parse_short(self, text: str) -> dict[str, str]:
        """Attributes in the short form of an entry, as texts that are still to be parsed.

        Raises ValueError if the kind has no short form, or the text does not follow it.
        """
        raise ValueError(f"a {self.name} is written as a mapping, not as text")

    def normalise(self, desired: R) -> R:
        """The record with derived attributes filled in. Raises ValueError if attributes contradict each other."""
        return desired

    @abstractmethod
    def identity(self, resource: R) -> str:
        """Identity of the resource, the last part of its address: `dev/sdb123` in web/device/dev/sdb123."""

    def check_together(self, resources: Mapping[Address, Resource]) -> Iterable[tuple[Address, str]]:
        """(address, problem) for rules over resources of all kinds in one container, as far as files alone decide."""
        return ()

    def check_all(self, resources: Mapping[str, R]) -> Iterable[tuple[str, str]]:
        """(identity, problem) for rules over all resources of the kind in one container: limits, overlaps."""
        return ()

    def claims(self, address: Address, resource: R) -> Iterable[Claim]:
        """Claims of the resource, on the whole host: no other resource may have the same."""
        return ()

    def host_links(self, address: Address, resource: R) -> Iterable[str]:
        """Names of the host's links that belong to the resource while it is plugged in."""
        return ()

    def wanted_again(self, record: R) -> R | None:
        """The resource to make from a record when its container starts; None if another resource brings it."""
        return None if brought_by(record) is not None else self.normalise(as_configured(record))

    def brings_others(self, record: R) -> bool:
        """True if resources come and go with this one while it is plugged in, as partitions do with a disk."""
        return False

    # planning

    def host_paths(self, resource: R) -> Iterable[str]:
        """Paths of the host that `resolve` needs facts about."""
        return ()

    def resolve(self, desired: R, host: HostFacts) -> Iterable[R]:
        """The resource as this host provides it: device numbers looked up, partitions added.

        Raises Unsuitable if the host can't provide it.
        """
        yield desired

    def remarks(self, desired: R, host: HostFacts) -> Iterable[tuple[str, str]]:
        """(limitation of this host for the resource, way out): warnings, which stop nothing."""
        return ()

    def check_creation(self, address: Address, desired: R, host: HostFacts) -> None:
        """Raise Unsuitable if the present state of the host rules out creating the resource.

        Not called if another change of the plan releases the resource's claims.
        """

    def completed(self, address: Address, desired: R, host: HostFacts) -> R:
        """`desired` with a value for every attribute that a creation sets."""
        return desired

    def promised(
        self, address: Address, desired: R, others: Mapping[Address, Resource], owned: R | None, live: R | None
    ) -> R:
        """`desired` with PROMISED values, from its record and from `others`, all desired resources of its container."""
        return desired

    def value_before(self, owned: R, path: str) -> Any:
        """Value of an attribute before scplan set it, from the record; None if the record does not have it."""
        return None

    def can_take_over(self, desired: R, live: R) -> bool:
        """True if a live resource of others may be changed to the desired one, with its former state kept for later."""
        return False

    def takes_over_in_place(self, desired: R, live: R) -> bool:
        """True if taking over changes others' resource in place, and a removal leaves it in its former state."""
        return False

    def is_own(self, owned: R, live: R, *, is_new: bool) -> bool | None:
        """True if `live` has a mark from scplan's record, False if others certainly made it, None if nothing decides.

        `is_new`: the container has been started since the record was written.
        """
        return None

    def came_with(self, resource: R, provided: Provided) -> str:
        """Part of its runtime's configuration that a live resource came from ("a mount of docker's"); "" if none.

        For a container that does not run: the part that will take the place of a desired resource.
        """
        return ""

    def with_found(self, provided: Provided, resource: R, origin: str) -> Provided:
        """`provided` with the name of a live resource that turned out to come from the runtime."""
        return provided

    def foresee_start(
        self, host: Host, after: Mapping[Address, Resource], settings: Mapping[str, frozenset[str]]
    ) -> Iterable[Foreseen]:
        """Findings about resources that wait for the start of a container that does not run.

        `after` are all resources that the container will have, `settings` those of Provided: cgroup settings of its
        runtime.
        """
        return ()

    def requires(self, resource: R, others: Mapping[Address, Resource], address: Address) -> Iterable[Address]:
        """Addresses in `others` (same container) that must exist before this resource, and without which it is lost."""
        return ()

    def hides(self, address: Address, resource: R, others: Mapping[Address, Resource]) -> Iterable[Address]:
        """Addresses in `others` that its creation would cover: they are taken out before, and restored after."""
        return ()

    def disruption(self, before: R, after: R) -> tuple[Disruption, str]:
        """Interruption by an update in place, with its words: (BRIEF, "link down for a moment").

        After any disruption but NONE the resources that require this one are made again.
        """
        return Disruption.NONE, ""

    def is_interrupted(self, resource: R, cause: Address, before: Resource, after: Resource) -> bool:
        """True if `resource` goes down when the resource at `cause`, which it requires, changes in place."""
        return True

    def is_given_back(self, removed: R, live: R) -> bool:
        """True if the live resource after a removal is the one that was there before scplan."""
        return False

    def is_left_to_others(self, made: R, live: R | None) -> bool:
        """True if a resource that an undo made may differ afterwards, because others took its place or renamed it."""
        return False

    # kernel

    @abstractmethod
    def read(self, container: Container, host: Host, wanted: Mapping[str, R] | None) -> dict[str, R]:
        """Live resources by identity, with every attribute that is needed to create them again.

        `wanted` limits the result to these identities, and has the desired or recorded resource of each (some
        attributes, such as a source, can't always be read back); None reads all resources. Absent resources are left
        out.
        """

    def describe(self, container: Container, host: Host) -> Described[R]:
        """Resources of the container as entries of a configuration file, for `scplan import`."""
        return Described(self.read(container, host, None))

    def foresee(
        self, container: Container, host: Host, changes: Sequence[Change], after: Mapping[Address, Resource]
    ) -> Iterable[Foreseen]:
        """Findings about the planned changes of this kind in one running container. Reads the kernel, changes nothing.

        `after` has every resource, of all kinds, that will be managed in the container once the plan is applied.
        """
        return ()

    def foresee_together(
        self, container: Container, host: Host, changes: Sequence[Change], after: Mapping[Address, Resource]
    ) -> Iterable[Foreseen]:
        """`foresee` with the planned changes of all kinds: for resources that depend on those of other kinds."""
        return ()

    def capture(self, target: Target[R], before: R | None, after: R | None) -> tuple[R | None, R | None]:
        """Both sides of an operation with FORMER attributes filled from live state, just before it is journaled.

        An operation that is refused here leaves nothing to undo.
        """
        return before, after

    @abstractmethod
    def create(self, target: Target[R], after: R) -> None:
        """Create the resource. Succeeds if it exists, so that a crash before its journal line is harmless."""

    @abstractmethod
    def update(self, target: Target[R], before: R, after: R) -> None:
        """Change the resource in place, from any state between the two, to `after`.

        Create it if it vanished since its capture.
        """

    @abstractmethod
    def delete(self, target: Target[R], before: R) -> None:
        """Remove the resource and restore the state from before scplan.

        Succeeds if the resource is gone, and does nothing where `create` refuses: an undo must not be refused as well.
        """

    def release(self, state_dir: str, apply_id: str) -> None:
        """Drop all that is kept for the undo of an apply whose journal has ended. A second call does nothing."""

    def kept_by(self, state_dir: str) -> Iterable[str]:
        """IDs of the applies of a state directory for which something is kept for an undo."""
        return ()

    def change_waiting(
        self,
        before: R | None,
        after: R | None,
        others: Callable[[], Collection[R]],
        beside: Callable[[], Container | None],
    ) -> None:
        """Make or remove, at once, the parts of a change that a container that does not run can't wait for.

        `others` is as in Target. `beside` opens a container in the network namespace in which the stopped container's
        NICs still are; it returns None if there is none.
        """

    def reclaim(self, host: Host, lost: R) -> None:
        """`delete` for a container that has ended: restore the host's part; the rest went with the container."""

    def stays(self, host: Host, lost: R, pid: int) -> bool:
        """True if the resource of an ended container stays, since other containers share its namespace.

        `pid` is the process of the container's next run, which may be in that namespace; 0 while it does not run.
        """
        return False

    def process_beside(self, host: Host, lost: R) -> int:
        """PID of a container's process in the namespace in which `lost` stays after its own container ended.

        0 if `lost` went with its container.
        """
        return 0

    def without_left_over(self, facts: HostFacts, host: Host, owned: R, pid: int) -> HostFacts:
        """The facts without the resource's remains from a namespace that other containers keep: `create` removes them.

        `pid` is the process of the container, 0 while it does not run.
        """
        return facts

    def left_behind(self, host: Host, lost: R) -> tuple[str, str] | None:
        """Resource that `reclaim` would return to the host, and its place; None if there is none.

        For example ("NIC ens5", "on the host as wan0").
        """
        return None

    def after_reclaim(self, facts: HostFacts, host: Host, lost: R) -> HostFacts:
        """Facts of the host as they will be after `reclaim`; changes nothing."""
        return facts


Kinds = Mapping[str, Kind[Any]]
"""The registry, by name, in the order in which independent changes are made."""

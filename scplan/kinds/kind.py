"""The contract of a resource kind: everything particular to devices, NICs, routes, mounts or cgroup settings.

A kind is one module with a record (what users write and the kernel holds) and a subclass of `Kind`. The stages call it
through this contract and never name it. See docs/explanation/adding-a-kind.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar, Generic, Literal, TypeVar

from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.model.address import Address
from scplan.model.change import Change, Disruption
from scplan.model.comparison import as_configured
from scplan.model.live import HostFacts
from scplan.model.provided import Provided
from scplan.model.resource import Resource, brought_by
from scplan.startup.named_tuple import NamedTuple

R = TypeVar("R", bound=Resource)


class Hears(Enum):
    """What of a container the kernel tells about when it changes."""

    NETWORK = "network"
    MOUNTS = "mounts"


class Target(NamedTuple, Generic[R]):
    """Where an operation acts: an opened container, the host, and the kind's other managed resources there.

    `peers` maps identities to the records that scplan answers for in this container at this moment; `others` gives
    those of the kind at all other addresses of the host, and raises RecordDamaged. `state_dir` is where they are kept,
    and `apply_id` names the apply: both are "" for an operation without records.
    """

    container: Container
    host: Host
    peers: Mapping[str, R]
    others: Callable[[], Collection[R]] = tuple
    state_dir: str = ""
    apply_id: str = ""


class Claim(NamedTuple):
    """Something that only one resource can have, on the whole host: a host NIC, a MAC address.

    Two claims collide when their `thing` is equal and their scopes overlap; an empty scope overlaps all scopes.
    """

    thing: str
    scope: str = ""

    def collides(self, other: Claim) -> bool:
        return self.thing == other.thing and (not self.scope or not other.scope or self.scope == other.scope)


class Described(NamedTuple, Generic[R]):
    """What a container has of one kind, as files would say it: resources by identity.

    `left_out` is (what, why) of the rest: it is the runtime's own, or can't be written.
    """

    resources: Mapping[str, R]
    left_out: tuple[tuple[str, str], ...] = ()


class Unsuitable(ValueError):
    """The configuration asks for what this host or container can't give; `args[0]` says what, `hint` the way out.

    `absent` marks a missing source: a device, bridge or path that the host does not have. `taken` marks a place in a
    container that others took before scplan reattached what it owns. Both are warnings for entries with
    `required: false`.
    """

    def __init__(self, message: str, *, hint: str = "", absent: bool = False, taken: bool = False) -> None:
        super().__init__(message)
        self.hint = hint
        self.absent = absent
        self.taken = taken


class Foreseen(NamedTuple):
    """One finding about a planned change, made in the container before anyone agrees to the plan.

    `refused`: the container as it is now stands against the change. `put_back` are objects of others that the kernel
    drops with it and scplan restores ("3 routes of others over eth1"); `taken_along` are those that go with a resource
    that is removed, and that an undo restores; `lost` are those that nothing restores, not even
    an undo. `warning` is (summary, hint). Findings about one change add up.
    """

    address: Address
    refused: Unsuitable | None = None
    put_back: tuple[str, ...] = ()
    taken_along: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    warning: tuple[str, str] | None = None


class Kind(ABC, Generic[R]):
    """One kind of resource. Methods below "kernel" act on live systems; all the others are pure."""

    name: ClassVar[str]
    """As in addresses and plans: "device"."""
    section: ClassVar[str]
    """Its key in the configuration: "devices"."""
    section_form: ClassVar[Literal["list", "mapping"]] = "list"
    """A list of entries, or a mapping of identity to value (`cgroup:`; the record then has `name` and `value`)."""
    record: type[R]
    of_host: ClassVar[bool] = False
    """Whether changes touch what the whole host shares, so that only one apply may make them at a time."""

    lives_in: ClassVar[Literal["net", "mnt", "cgroup", ""]] = ""
    """The namespace that its resources are in, or the cgroup: containers that share it share them."""
    foresees_starts: ClassVar[bool] = False
    """True if changes are checked in a container that starts, too: settings of its runtime may stand against them."""
    hears: ClassVar[Hears | None] = None
    """What the kernel tells about when live resources change; None: they have to be looked at from time to time."""

    # configuration

    def parse_short(self, text: str) -> dict[str, str]:
        """The attributes that the short form of an entry spells, as texts still to be parsed.

        Raises ValueError when the kind has no short form or the text is not one.
        """
        raise ValueError(f"a {self.name} is written as a mapping, not as text")

    def normalise(self, desired: R) -> R:
        """The record with derived attributes filled in; raises ValueError where attributes contradict each other."""
        return desired

    @abstractmethod
    def identity(self, resource: R) -> str:
        """Its part of the address: `dev/sdb123` of web/device/dev/sdb123."""

    def check_together(self, resources: Mapping[Address, Resource]) -> Iterable[tuple[Address, str]]:
        """(address, problem) for rules over resources of all kinds in one container, as far as files alone tell."""
        return ()

    def check_all(self, resources: Mapping[str, R]) -> Iterable[tuple[str, str]]:
        """(identity, what is wrong) for rules over all resources of the kind in one container: limits, overlaps."""
        return ()

    def claims(self, address: Address, resource: R) -> Iterable[Claim]:
        """What the resource takes for itself on the whole host; must not be claimed by another one."""
        return ()

    def host_links(self, address: Address, resource: R) -> Iterable[str]:
        """Names of links of the host that are part of the resource while it is plugged in."""
        return ()

    def wanted_again(self, record: R) -> R | None:
        """What a record asks for when its container starts; None when another resource will bring it then."""
        return None if brought_by(record) is not None else self.normalise(as_configured(record))

    def brings_others(self, record: R) -> bool:
        """Whether resources come and go with it while it is plugged in: the partitions of a disk."""
        return False

    # planning

    def host_paths(self, resource: R) -> Iterable[str]:
        """Paths of the host that `resolve` needs to know about."""
        return ()

    def resolve(self, desired: R, host: HostFacts) -> Iterable[R]:
        """The resource as this host gives it: numbers looked up, partitions added.

        Raises Unsuitable when the host can't provide it.
        """
        yield desired

    def remarks(self, desired: R, host: HostFacts) -> Iterable[tuple[str, str]]:
        """(what this host does not do for the resource, the way out): warnings, which stop nothing."""
        return ()

    def check_creation(self, address: Address, desired: R, host: HostFacts) -> None:
        """Raises Unsuitable when the host, as it is now, stands against making the resource.

        Not asked when another change of the plan hands over what the resource claims.
        """

    def completed(self, address: Address, desired: R, host: HostFacts) -> R:
        """`desired` with a value for every attribute that a creation sets."""
        return desired

    def promised(
        self, address: Address, desired: R, others: Mapping[Address, Resource], owned: R | None, live: R | None
    ) -> R:
        """`desired` with PROMISED values, from the record and from `others`: all that is desired in its container."""
        return desired

    def value_before(self, owned: R, path: str) -> Any:
        """What an attribute was before scplan set it, as the record remembers; None when it does not."""
        return None

    def can_take_over(self, desired: R, live: R) -> bool:
        """Whether what is there without scplan may be changed to what is desired, its former state being kept."""
        return False

    def takes_over_in_place(self, desired: R, live: R) -> bool:
        """True if taking over changes what others made in place, so that its removal leaves it there as it was."""
        return False

    def is_own(self, owned: R, live: R, *, is_new: bool) -> bool | None:
        """True if `live` has a mark of scplan's record, False if it is certainly of others, None if nothing tells.

        `is_new`: the container has been started since the record was written.
        """
        return None

    def came_with(self, resource: R, provided: Provided) -> str:
        """The part of its runtime's configuration that a live resource came from ("a mount of docker's"); "" if none.

        For a container that does not run: the part that will take the place of a desired resource.
        """
        return ""

    def with_found(self, provided: Provided, resource: R, origin: str) -> Provided:
        """`provided` with the name of a live resource that is known by then to have come from the runtime."""
        return provided

    def foresee_start(
        self, host: Host, after: Mapping[Address, Resource], settings: Mapping[str, frozenset[str]]
    ) -> Iterable[Foreseen]:
        """Findings about resources that wait for the start of a container that does not run.

        `after` are all resources that it will have, `settings` those of Provided: cgroup settings of its runtime.
        """
        return ()

    def requires(self, resource: R, others: Mapping[Address, Resource], address: Address) -> Iterable[Address]:
        """Addresses in `others` (of the same container) that must be there first, and without which it is lost."""
        return ()

    def hides(self, address: Address, resource: R, others: Mapping[Address, Resource]) -> Iterable[Address]:
        """Addresses in `others` that creating this one would bury: they are taken out before and put back after."""
        return ()

    def disruption(self, before: R, after: R) -> tuple[Disruption, str]:
        """What an update in place interrupts, and how to say it: (BRIEF, "link down for a moment").

        After anything but NONE the resources that require this one are made again.
        """
        return Disruption.NONE, ""

    def is_interrupted(self, resource: R, cause: Address, before: Resource, after: Resource) -> bool:
        """True if `resource` goes down when the one at `cause`, which it requires, changes in place."""
        return True

    def is_given_back(self, removed: R, live: R) -> bool:
        """Whether what is still there after a removal is what was there before scplan."""
        return False

    def is_left_to_others(self, made: R, live: R | None) -> bool:
        """Whether what an undo has made need not be there as it was: others have its place, or have renamed it."""
        return False

    # kernel

    @abstractmethod
    def read(self, container: Container, host: Host, wanted: Mapping[str, R] | None) -> dict[str, R]:
        """Live resources by identity, with every attribute that creating them again would need.

        `wanted` limits it to these identities, and gives the desired or recorded resource of each (what a name such as
        a source stands for can't always be read back); None reads everything there is. Absent ones are left out.
        """

    def describe(self, container: Container, host: Host) -> Described[R]:
        """What the container has now, as a file would ask for it: for `scplan import`."""
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
        """`foresee` with the planned changes of all kinds: for resources that stand on those of other kinds."""
        return ()

    def capture(self, target: Target[R], before: R | None, after: R | None) -> tuple[R | None, R | None]:
        """Both sides of an operation with FORMER attributes filled from live state, just before it is journaled.

        What is refused here leaves nothing to undo.
        """
        return before, after

    @abstractmethod
    def create(self, target: Target[R], after: R) -> None:
        """Makes it. Succeeds when it is there already, so that a crash before its journal line is harmless."""

    @abstractmethod
    def update(self, target: Target[R], before: R, after: R) -> None:
        """Changes it in place, from anything between the two to `after`; made anew where it went since its capture."""

    @abstractmethod
    def delete(self, target: Target[R], before: R) -> None:
        """Takes it away and gives back what was there before.

        Succeeds when it is gone already, and does nothing where `create` refuses: an undo must not be refused as well.
        """

    def release(self, state_dir: str, apply_id: str) -> None:
        """Drops what is kept for the undo of an apply: its journal has ended. Nothing is kept after a second call."""

    def kept_by(self, state_dir: str) -> Iterable[str]:
        """IDs of the applies of a state directory for whose undo something is kept."""
        return ()

    def change_waiting(
        self,
        before: R | None,
        after: R | None,
        others: Callable[[], Collection[R]],
        beside: Callable[[], Container | None],
    ) -> None:
        """Make or remove what a change of a container that does not run needs at once; `others` as in Target.

        `beside` opens a container that has the network namespace in which the NICs of that one are still; None if
        there is none.
        """

    def reclaim(self, host: Host, lost: R) -> None:
        """`delete` for a container that has ended: gives back what is the host's; all else went with the container."""

    def stays(self, host: Host, lost: R, pid: int) -> bool:
        """True if what a container that ended had stays where it is, since other containers share the namespace.

        `pid` is the process of the container's next life, which may be in that namespace; 0 while it does not run.
        """
        return False

    def process_beside(self, host: Host, lost: R) -> int:
        """PID of a process of a container in whose namespace `lost` stays, although its own has ended; 0 if it went."""
        return 0

    def without_left_over(self, facts: HostFacts, host: Host, owned: R, pid: int) -> HostFacts:
        """The facts without what `create` takes away: the resource as it was made for a namespace that others keep.

        `pid` is the process of the container, 0 while it does not run.
        """
        return facts

    def left_behind(self, host: Host, lost: R) -> tuple[str, str] | None:
        """("NIC ens5", "on the host as wan0"): what `reclaim` would bring home, and from where; None: nothing."""
        return None

    def after_reclaim(self, facts: HostFacts, host: Host, lost: R) -> HostFacts:
        """The facts of the host as they will be after `reclaim`; changes nothing."""
        return facts


Kinds = Mapping[str, Kind[Any]]
"""The registry, by name, in the order in which independent changes are made."""

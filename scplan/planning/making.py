"""The plan from desired, live and owned resources. Pure: no file, no clock, no kernel.

Each address gets at most one draft of a change. Drafts are then added for the resources that these changes take down
(draft.py), and the operations of all drafts are put in order (ordering.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from scplan.errors import Diagnostic, PlanError, Severity, SourceRange, in_file_order
from scplan.kinds.kind import Claim, Kind, Kinds, Unsuitable
from scplan.model.address import Address, Selection
from scplan.model.change import Action, Change, Disruption, Operation, Plan
from scplan.model.comparison import (
    account_of,
    as_recorded,
    differences,
    goal,
    is_recorded_as,
    promises_more,
    rewritten,
    surplus,
    with_promises,
    with_values,
    withdrawn,
)
from scplan.model.live import ContainerFacts, HostFacts, Live, Status
from scplan.model.resource import CONFIGURABLE, REPLACING, Resource, Role, brought_by
from scplan.planning.at_next_start import removal_at_next_start, waiting
from scplan.planning.draft import REMADE, Dependencies, Draft
from scplan.planning.ordering import Circle, put_in_order
from scplan.startup.named_tuple import NamedTuple

Resources = Mapping[Address, Resource]
# A changed identity is another address, not a change of this one.
_WRITTEN = CONFIGURABLE - {Role.IDENTITY}
SourceOf = Callable[[Address], SourceRange | None]


class Resolution(NamedTuple):
    """The desired resources, resolved on the host.

    `skipped` are addresses that the host can't provide: `diagnostics` has an error for each, or a warning if the
    resource is optional. `remarked` are addresses with a warning about a feature that the host lacks.
    """

    desired: Resources
    skipped: frozenset[Address]
    diagnostics: tuple[Diagnostic, ...]
    remarked: frozenset[Address] = frozenset()


class Owner(NamedTuple):
    """The owner of a resource that two containers share: its address, and its state directory if not this one.

    `origin` is set for a resource of the container's runtime: the part of the runtime's configuration that made it.
    """

    address: Address
    directory: str = ""
    origin: str = ""

    def __str__(self) -> str:
        if self.origin:
            return f"the container's runtime: {self.origin}"
        return f"{self.address} in the records of {self.directory}" if self.directory else str(self.address)


class Inputs(NamedTuple):
    """The inputs of a plan.

    `owned` are the resources in the records of these containers, `foreign` the resources in the records of all other
    containers. `source_of` returns the place of an address in the files. `unread` containers have no live state here,
    because the selection leaves out all of their resources. `shared` maps a resource to its other owner: a container
    in the same namespace or cgroup, or the container's runtime. With `goes_on`, for reports, an entry that can't be
    planned is reported, and the other entries are planned. `new` containers were started after their records were
    written: scplan has attached nothing to them yet. `staying` resources belong to stopped containers, but are in a
    namespace that other containers share.
    """

    containers: Mapping[str, ContainerFacts]
    resolution: Resolution
    owned: Resources
    live: Live
    foreign: Resources
    source_of: SourceOf
    selection: Selection
    unread: frozenset[str] = frozenset()
    shared: Mapping[Address, Owner] = MappingProxyType({})
    goes_on: bool = False
    new: frozenset[str] = frozenset()
    staying: frozenset[Address] = frozenset()


def resolve(desired: Resources, host: HostFacts, kinds: Kinds, source_of: SourceOf) -> Resolution:
    """Look up on the host the objects that the files only name: device numbers, partitions, the files behind paths."""
    resolved: dict[Address, Resource] = {}
    skipped: set[Address] = set()
    remarked: set[Address] = set()
    diagnostics: list[Diagnostic] = []
    for address, resource in desired.items():
        kind = kinds[address.kind]
        try:
            for one in kind.resolve(resource, host):
                identity = kind.identity(one)
                if identity == address.identity:
                    resolved[address] = one
                    continue
                place = Address(address.container, kind.name, identity)
                # An entry of its own wins over a resource derived from another entry, such as a partition of a disk.
                if place not in desired:
                    resolved[place] = one
            for words in kind.remarks(resource, host):
                remarked.add(address)
                diagnostics.append(_remark(source_of(address), address, *words))
        except Unsuitable as error:
            diagnostics.append(unsuitable(source_of(address), address, error, _severity(resource, error)))
            skipped.add(address)
    return Resolution(resolved, frozenset(skipped), tuple(diagnostics), frozenset(remarked))


def _remark(source: SourceRange | None, address: Address, summary: str, hint: str) -> Diagnostic:
    return Diagnostic(summary=summary, detail=str(address), hint=hint, source=source, severity=Severity.WARNING)


def accounts(resolution: Resolution, containers: Iterable[str], selection: Selection) -> dict[str, str]:
    """Digests (account_of) of the desired resources of each container without skipped or remarked resources.

    A container has no changes if the digest of its record is equal and live state is as recorded. Containers that the
    globs of the selection match are left out: a glob that matches their resources must not be reported as idle.
    """
    others = {address.container for address in (*resolution.skipped, *resolution.remarked)}
    for _, glob in _globs(selection):
        others |= {address.container for address in _named_by(glob, resolution.desired, resolution.skipped)}
    found: dict[str, list[tuple[str, str, Resource]]] = {name: [] for name in containers if name not in others}
    for address, resource in resolution.desired.items():
        if address.container in found:
            found[address.container].append((address.kind, address.identity, resource))
    return {name: account_of(resources) for name, resources in found.items()}


def _severity(resource: Resource, error: Unsuitable) -> Severity:
    """WARNING if the resource is optional and is absent from the host, or its place is taken; else ERROR."""
    optional = getattr(resource, "required", True) is False or brought_by(resource) is not None
    return Severity.WARNING if optional and (error.absent or error.taken) else Severity.ERROR


def make_plan(inputs: Inputs, kinds: Kinds) -> Plan:
    """The ordered changes from live to desired. Raises PlanError with all errors, in file order."""
    inputs = inputs._replace(resolution=inputs.resolution._replace(desired=_promised(inputs, kinds)))
    return finish(inputs, kinds, *_draft_all(inputs, kinds))


def _promised(inputs: Inputs, kinds: Kinds) -> Resources:
    """The desired resources, with values that their kinds promise for attributes that the files leave unset."""
    desired = inputs.resolution.desired
    # Only kinds that override `promised`; without them the resources need not be grouped.
    promising = {name for name, kind in kinds.items() if type(kind).promised is not Kind.promised}
    chosen = [address for address in desired if address.kind in promising and address.container not in inputs.unread]
    by_container: dict[str, dict[Address, Resource]] = {address.container: {} for address in chosen}
    if not by_container:
        return desired
    for address, resource in desired.items():
        if address.container in by_container:
            by_container[address.container][address] = resource
    settled = {
        address: kinds[address.kind].promised(
            address,
            desired[address],
            by_container[address.container],
            inputs.owned.get(address),
            inputs.live.resources.get(address),
        )
        for address in chosen
        if not is_waiting(inputs, address)
    }
    return {**desired, **settled}


def finish(
    inputs: Inputs,
    kinds: Kinds,
    drafts: dict[Address, Draft],
    refreshed: Mapping[Address, Resource],
    problems: Iterable[Diagnostic],
) -> Plan:
    """The plan of these drafts and of the drafts that they add. Raises PlanError with all errors, in file order."""
    diagnostics = [*inputs.resolution.diagnostics, *problems, *_collisions(inputs, kinds), *_idle_globs(inputs)]
    errors = [diagnostic for diagnostic in diagnostics if diagnostic.severity is Severity.ERROR]
    # Reports go on with the entries that can be planned.
    if errors and not inputs.goes_on:
        raise PlanError.of(in_file_order(errors))
    dependencies = Dependencies(kinds, drafts, desired=inputs.resolution.desired, owned=inputs.owned, live=inputs.live)
    # Selection first: resources that a selected change takes down are re-created even if the selection lacks them.
    dependencies.select(inputs.selection)
    dependencies.draw_in_dependents()
    changes, operations = _ordered(dependencies, list(inputs.containers), kinds)
    chosen = {address: record for address, record in refreshed.items() if address in inputs.selection}
    return Plan(
        containers=inputs.containers,
        changes=(*changes, *_record_changes(inputs.owned, chosen, len(changes))),
        operations=operations,
        refreshed=chosen,
        diagnostics=tuple(diagnostics),
    )


def _ordered(
    dependencies: Dependencies, containers: list[str], kinds: Kinds
) -> tuple[tuple[Change, ...], tuple[Operation, ...]]:
    """Changes and operations in order.

    When updates exchange things of the host in a circle (two NICs that swap their host names), one update becomes a
    replacement: its deletion releases a thing for the other updates, and its creation comes after them.
    """
    while True:
        try:
            return put_in_order(list(dependencies.drafts.values()), dependencies, containers, kinds)
        except Circle as circle:
            if not dependencies.break_circle(circle.addresses):
                raise PlanError(
                    f"these changes wait for one another: {' → '.join(map(str, circle.addresses))}",
                    hint="take one of them out of the files, apply, and apply again with it",
                ) from None


def _record_changes(owned: Resources, refreshed: Resources, before: int) -> Iterator[Change]:
    """A change for each refreshed record that differs in attributes users write, numbered from `before` + 1."""
    order = before
    for address, record in refreshed.items():
        changed = rewritten(owned[address], record, _WRITTEN)
        if not changed:
            continue
        order += 1
        yield Change(
            order=order,
            address=address,
            action=Action.UPDATE,
            reason="changed in the configuration; what is live is so already",
            before=owned[address],
            after=record,
            managed=record,
            owned=owned[address],
            changed=changed,
            effect="in the records only",
            records_only=True,
        )


def unsuitable(source: SourceRange | None, address: Address, error: Unsuitable, severity: Severity) -> Diagnostic:
    """A diagnostic for a resource that the host or the container can't provide."""
    return Diagnostic(
        summary=str(error.args[0]),
        detail=str(address),
        hint=error.hint,
        source=source,
        severity=severity,
    )


def _draft_all(inputs: Inputs, kinds: Kinds) -> tuple[dict[Address, Draft], dict[Address, Resource], list[Diagnostic]]:
    """(drafts by address, records to refresh because only they change, diagnostics about unsuitable entries)"""
    drafts: dict[Address, Draft] = {}
    refreshed: dict[Address, Resource] = {}
    diagnostics = []
    live = inputs.live.resources
    desired = inputs.resolution.desired
    for address in inputs.owned:
        if address.container in inputs.unread:
            continue
        if address not in desired and address not in inputs.resolution.skipped:
            drafts[address] = _removal(inputs, kinds, address)
    # Things that these removals release are free for creations of the same plan.
    given_up = [claim for address in drafts for claim in kinds[address.kind].claims(address, inputs.owned[address])]
    for address, wanted in desired.items():
        if address.container in inputs.unread:
            continue
        owned = inputs.owned.get(address)
        kind = kinds[address.kind]
        try:
            owner = inputs.shared.get(address)
            if owner is not None and (owned is None or owner.origin):
                raise _belongs_to(kind, address, owner)
            recorded = owned is not None and is_recorded_as(wanted, owned)
            if is_waiting(inputs, address):
                draft = waiting(kind, address, wanted, owned, inputs.live.host)
            else:
                there = live.get(address)
                is_others = owned is not None and there is not None and _is_of_others(inputs, kinds, address, there)
                draft = _draft(kind, address, wanted, there, owned, inputs.live.host, recorded, is_others)
            if needs_check(inputs, address, draft) and not is_handed_over(kind, address, wanted, given_up):
                kind.check_creation(address, wanted, inputs.live.host)
        except Unsuitable as error:
            diagnostics.append(unsuitable(inputs.source_of(address), address, error, _severity(wanted, error)))
            continue
        if draft is not None:
            drafts[address] = draft
        elif owned is not None and (not recorded or promises_more(wanted, owned)):
            refreshed[address] = with_promises(wanted, owned)
    return drafts, refreshed, diagnostics


def _belongs_to(kind: Kind[Any], address: Address, owner: Owner) -> Unsuitable:
    if owner.origin:
        return Unsuitable(
            f"{kind.name} {address.identity} belongs to {owner}",
            hint="each start makes it, and scplan does not change or remove it: choose another one for scplan's, or"
            f" leave it out; `scplan state rm {address}` forgets it where it is in the records",
        )
    places = {"net": "network namespace", "mnt": "mount namespace", "cgroup": "cgroup"}
    hint = f"their containers share a {places.get(kind.lives_in, 'namespace')}: write it for one of them"
    if owner.directory:
        name = owner.address.container
        hint = f"work with that one, or have it forgotten there: `scplan --state-dir {owner.directory} state rm {name}`"
    return Unsuitable(f"{kind.name} {address.identity} belongs to {owner}", hint=hint)


def is_waiting(inputs: Inputs, address: Address) -> bool:
    """True if the container is stopped: its resources are planned from its record, and attached at its next start."""
    return inputs.containers[address.container].status is Status.STOPPED


def needs_check(inputs: Inputs, address: Address, draft: Draft | None) -> bool:
    """True if the plan, or the next start of the container, creates the resource: the host must allow that."""
    return is_waiting(inputs, address) or (draft is not None and inputs.live.resources.get(address) is None)


def is_handed_over(kind: Kind[Any], address: Address, wanted: Resource, given_up: list[Claim]) -> bool:
    """True if a deletion in the same plan releases a thing of the host that the creation claims."""
    if not given_up:
        return False
    return any(claim.collides(other) for claim in kind.claims(address, wanted) for other in given_up)


def _draft(
    kind: Kind[Any],
    address: Address,
    desired: Resource,
    live: Resource | None,
    owned: Resource | None,
    host: HostFacts,
    recorded: bool,
    is_others: bool,
) -> Draft | None:
    """The change of one desired address; None if live state is as desired. Raises Unsuitable.

    `recorded`: the record equals the desired resource already. `is_others`: the live resource was not made by scplan
    although the address is owned, and is handled as in a first plan.
    """
    if live is None:
        gone = "owned, but gone from the container"
        reason = "in the configuration, not in the container" if owned is None else gone
        return _creation(kind, address, desired, None, owned, host, reason)
    if owned is None:
        return taking_over(kind, address, desired, live, host)
    if recorded and not promises_more(desired, owned):
        # Compare with the record: it equals the desired resource, and has the promised values besides.
        wanted, changed = desired, differences(owned, live)
    else:
        wanted = with_promises(with_values(desired, _given_back(kind, address, desired, owned, host)), owned)
        changed = tuple(dict.fromkeys(differences(wanted, live) + surplus(owned, desired, live)))
    # is_own() is None without a mark: a resource without differences is then taken for scplan's.
    is_foreign = is_others and (changed or kind.is_own(owned, live, is_new=True) is False)
    if is_foreign and not kind.can_take_over(desired, live):
        raise _taken(kind, address, changed)
    if not changed:
        return None
    return _alteration(kind, address, desired, wanted, live, owned, host, changed)


def _is_of_others(inputs: Inputs, kinds: Kinds, address: Address, live: Resource) -> bool:
    """True if the live resource at an owned address is not the recorded one.

    scplan's mark decides, where the kind has marks. Without a mark, resources of a container that was started after the
    record was written come from its runtime, unless another resource in the same namespace has a mark: then the
    namespace outlived the earlier process.
    """
    owned, is_new = inputs.owned[address], address.container in inputs.new
    own = kinds[address.kind].is_own(owned, live, is_new=is_new)
    if own is not None:
        return not own
    return is_new and not _is_kept(inputs, kinds, address)


def _is_kept(inputs: Inputs, kinds: Kinds, address: Address) -> bool:
    """True if a mark of scplan's shows that the namespace of the address outlived the container's earlier process."""
    place = kinds[address.kind].lives_in
    return any(
        kinds[other.kind].is_own(owned, live, is_new=True)
        for other, owned in inputs.owned.items()
        if other.container == address.container
        and kinds[other.kind].lives_in == place
        and (live := inputs.live.resources.get(other)) is not None
    )


def _taken(kind: Kind[Any], address: Address, changed: tuple[str, ...]) -> Unsuitable:
    differs = f", and differs in {', '.join(changed)}" if changed else ""
    return Unsuitable(
        f"{kind.name} {address.identity} is there already, made by others{differs}",
        hint="the container's runtime may have made it: choose another place for scplan's and apply; "
        f"`scplan state rm {address}` forgets that, and `required: false` in its entry makes this a warning",
        taken=True,
    )


def _given_back(
    kind: Kind[Any], address: Address, desired: Resource, owned: Resource, host: HostFacts
) -> dict[str, Any]:
    """Values to restore, by dotted path, for attributes that scplan had set and the files no longer set."""
    paths = withdrawn(owned, desired)
    if not paths:
        return {}
    completed = kind.completed(address, desired, host)
    values = {}
    for path in paths:
        # The neutral value of the attribute, else the value from before scplan, else the value of a new resource.
        on_unset = owned.attribute(path).on_unset
        value = on_unset if on_unset is not None else kind.value_before(owned, path)
        values[path] = completed.get(path) if value is None else value
    return values


def _creation(
    kind: Kind[Any],
    address: Address,
    desired: Resource,
    live: Resource | None,
    owned: Resource | None,
    host: HostFacts,
    reason: str,
) -> Draft:
    return Draft(
        address=address,
        action=Action.CREATE,
        reason=reason,
        before=live,
        after=with_promises(kind.completed(address, desired, host), owned),
        managed=with_promises(desired, owned),
        owned=owned,
    )


def taking_over(kind: Kind[Any], address: Address, desired: Resource, live: Resource, host: HostFacts) -> Draft:
    """The change for a live resource that scplan does not own: an adoption if it is as desired, else a take-over.

    Raises Unsuitable if the kind does not allow the take-over.
    """
    changed = differences(desired, live)
    if not changed:
        return Draft(
            address=address,
            action=Action.ADOPT,
            reason="in the container already, as the configuration says",
            before=live,
            after=goal(desired, live, None),
            managed=desired,
            owned=None,
        )
    if not kind.can_take_over(desired, live):
        raise Unsuitable(
            f"{kind.name} {address.identity} is there already, made by others, and differs in {', '.join(changed)}",
            hint="make the entry say what is there (it is then adopted, and can be changed later), or remove it there",
        )
    reason = "in the configuration; what is there now is kept and given back later"
    if not kind.takes_over_in_place(desired, live):
        return _creation(kind, address, desired, live, None, host, reason)
    after = goal(desired, live, None)
    draft = Draft(
        address=address,
        action=Action.UPDATE,
        reason=reason,
        before=live,
        after=after,
        managed=desired,
        owned=None,
        changed=changed,
    )
    return draft.interrupting(*kind.disruption(live, after))


def _alteration(
    kind: Kind[Any],
    address: Address,
    desired: Resource,
    wanted: Resource,
    live: Resource,
    owned: Resource,
    host: HostFacts,
    changed: tuple[str, ...],
) -> Draft:
    """An update in place, or a replacement if one of the changed attributes can't change in place."""
    before = as_recorded(live, owned)
    # Drift alone, if every changed attribute differs from the record as well.
    drifted = set(differences(owned, live))
    reason = "changed outside scplan" if set(changed) <= drifted else "changed in the configuration"
    draft = Draft(
        address=address,
        action=Action.UPDATE,
        reason=reason,
        before=before,
        after=goal(wanted, live, owned),
        managed=with_promises(desired, owned),
        owned=owned,
        changed=changed,
    )
    if any(desired.attribute(path).role in REPLACING for path in changed):
        return draft._replace(
            action=Action.REPLACE, after=kind.completed(address, desired, host), managed=desired
        ).interrupting(Disruption.RECREATE, REMADE)
    disruption, effect = kind.disruption(before, draft.after)
    return draft.interrupting(disruption, effect)


def _removal(inputs: Inputs, kinds: Kinds, address: Address) -> Draft:
    """Removal of an owned resource that left the files; by its record alone if the live resource is not scplan's."""
    live, owned = inputs.live.resources.get(address), inputs.owned[address]
    is_gone = live is not None and not kinds[address.kind].can_take_over(owned, live)
    is_gone = is_gone and live is not None and _is_of_others(inputs, kinds, address, live)
    return removal(inputs, address, "no longer in the configuration", is_gone=is_gone)


def removal(inputs: Inputs, address: Address, reason: str, *, is_gone: bool = False) -> Draft:
    """Removal of an owned resource: from the running container, or from the record of a stopped one.

    `is_gone`: the live resource at the address is not the owned one, so the deletion works from the record alone. A
    resource that another container or the runtime owns, too, is released and stays.
    """
    owned = inputs.owned[address]
    if is_waiting(inputs, address):
        return removal_at_next_start(address, owned, reason, stays=address in inputs.staying)
    live = inputs.live.resources.get(address)
    if address in inputs.shared and live is not None:
        return released(address, live, owned, f"{reason}; it stays, and belongs to {inputs.shared[address]}")
    return _deletion(address, None if is_gone else live, owned, reason)


def released(address: Address, live: Resource, owned: Resource, reason: str) -> Draft:
    """Release: the resource leaves the record, and stays in the container as it is."""
    there = as_recorded(live, owned)
    return Draft(
        address=address, action=Action.RELEASE, reason=reason, before=there, after=there, managed=None, owned=owned
    )


def _deletion(address: Address, live: Resource | None, owned: Resource, reason: str) -> Draft:
    """Deletion of an owned resource, which also restores the resource from before scplan."""
    return Draft(
        address=address,
        action=Action.DELETE,
        reason=reason if live is not None else f"{reason}, and gone from the container",
        before=owned if live is None else as_recorded(live, owned),
        after=None,
        managed=None,
        owned=owned,
    )


def _collisions(inputs: Inputs, kinds: Kinds) -> list[Diagnostic]:
    """An error for each thing of the host that a desired resource claims and a container outside the plan owns."""
    taken: dict[str, list[tuple[Claim, Address]]] = {}
    for address, resource in inputs.foreign.items():
        for claim in kinds[address.kind].claims(address, resource):
            taken.setdefault(claim.thing, []).append((claim, address))
    if not taken:
        return []
    diagnostics = []
    for address, resource in inputs.resolution.desired.items():
        for claim in kinds[address.kind].claims(address, resource):
            for other, owner in taken.get(claim.thing, ()):
                if claim.collides(other):
                    diagnostics.append(_collision(inputs, address, claim, owner))
    return diagnostics


def _collision(inputs: Inputs, address: Address, claim: Claim, owner: Address) -> Diagnostic:
    return Diagnostic(
        summary=f"{claim.thing} is taken by {owner}",
        detail=str(address),
        hint="only one resource can have it; remove it there first, or choose another one",
        source=inputs.source_of(address),
    )


def _idle_globs(inputs: Inputs) -> list[Diagnostic]:
    """A warning for each glob of the selection that matches nothing: a misspelt glob would look like `No changes.`"""
    known = (inputs.resolution.desired, inputs.owned, inputs.resolution.skipped)
    return [
        Diagnostic(
            summary=f"{option} {glob!r} matches nothing",
            hint="an address is CONTAINER/KIND/IDENTITY; a plan without the option and `scplan state list` show them",
            severity=Severity.WARNING,
        )
        for option, glob in _globs(inputs.selection)
        if not any(True for _ in _named_by(glob, *known))
    ]


def _globs(selection: Selection) -> list[tuple[str, str]]:
    """(option, glob) of the selection, targets first."""
    return [("--target", glob) for glob in selection.targets] + [("--exclude", glob) for glob in selection.excludes]


def _named_by(glob: str, *known: Iterable[Address]) -> Iterable[Address]:
    """The addresses in `known` that one glob matches."""
    alone = Selection((glob,))
    return (address for addresses in known for address in addresses if address in alone)

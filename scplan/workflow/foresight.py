"""A plan checked against the containers that it changes: refusals, and side effects on resources of others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from scplan.errors import Diagnostic, PlanError, Severity, in_file_order
from scplan.kinds import KINDS
from scplan.kinds.kind import Foreseen, Kind, Unsuitable
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.linux.processes.authority import lacking
from scplan.model.address import Address
from scplan.model.change import Action, Change, Plan
from scplan.model.live import ContainerFacts, Status
from scplan.model.resource import Resource
from scplan.observe import open_container
from scplan.planning.making import SourceOf, unsuitable
from scplan.runtimes import RUNTIMES
from scplan.workflow.recorded import AboutStart


def with_foresight(
    made: Plan,
    owned: Mapping[Address, Resource],
    source_of: SourceOf,
    host: Host,
    about_start: Callable[[str], AboutStart | None] = lambda _: None,
) -> Plan:
    """The plan with the findings of Kind.foresee about its changes, and of Kind.foresee_start about waiting changes.

    Raises PlanError with every refused change. `owned` are the records before the plan; `about_start` returns
    facts about the next start of a container, by its engine.
    """
    found = list(_found(made, owned, host, KINDS.values()))
    made = _without_optional(made, found, source_of)
    found = [one for one in found if one.refused is None or _is_required(made, one)]
    waiting = list(_found_at_starts(made, owned, host, about_start))
    refused = [
        unsuitable(source_of(one.address), one.address, one.refused, Severity.ERROR)
        for one in (*found, *(one for one in waiting if _is_required(made, one)))
        if one.refused
    ]
    if refused:
        raise PlanError.of(in_file_order(refused))
    warnings = [_warning(one, source_of) for one in found if one.warning is not None]
    # Recorded before, or not required: the container starts without the resource.
    warnings += [
        unsuitable(source_of(one.address), one.address, one.refused, Severity.WARNING) for one in waiting if one.refused
    ]
    changes = tuple(_with(change, [one for one in found if one.address == change.address]) for change in made.changes)
    return made._replace(changes=changes, diagnostics=(*made.diagnostics, *warnings)) if found or waiting else made


def with_start_foreseen(made: Plan, owned: Mapping[Address, Resource], host: Host) -> Plan:
    """The plan of a start without the changes that limits of the runtime prevent; each becomes a warning.

    These could not be seen when the apply was planned: the runtime's limits may have changed since. A user's engine may
    call the hook with less authority than the apply had (`podman unshare --rootless-netns`): raises PlanError for
    changes beyond this authority.
    """
    kinds = [kind for kind in KINDS.values() if kind.foresees_starts]
    has_authority = host.is_in_initial_user_namespace
    if has_authority and not any(change.address.kind == kind.name for change in made.changes for kind in kinds):
        return made
    found = [one for one in _found(made, owned, host, kinds) if one.refused is not None]
    left_out = [one for one in found if one.refused is not None and one.refused.taken]
    made = _without(made, left_out, lambda _: None)
    made = _without_optional(made, [one for one in found if one not in left_out], lambda _: None)
    beyond = [one for one in found if one not in left_out and _is_required(made, one)]
    if beyond and not has_authority:
        raise PlanError.of(
            [unsuitable(None, one.address, one.refused, Severity.ERROR) for one in beyond if one.refused is not None]
        )
    return made


def _without_optional(made: Plan, found: Iterable[Foreseen], source_of: SourceOf) -> Plan:
    """The plan without the refused changes of entries with `required: false`; each becomes a warning."""
    return _without(made, [one for one in found if one.refused is not None and not _is_required(made, one)], source_of)


def _is_required(made: Plan, found: Foreseen) -> bool:
    """False for an entry with `required: false`, and for an address that is not in the plan."""
    after = [change.after for change in made.changes if change.address == found.address]
    return any(getattr(one, "required", True) is not False for one in after)


def _without(made: Plan, refused: Iterable[Foreseen], source_of: SourceOf) -> Plan:
    """The plan without the addresses of these findings; each becomes a warning."""
    warnings = {
        one.address: unsuitable(source_of(one.address), one.address, one.refused, Severity.WARNING)
        for one in refused
        if one.refused is not None
    }
    if not warnings:
        return made
    return made._replace(
        changes=tuple(change for change in made.changes if change.address not in warnings),
        operations=tuple(operation for operation in made.operations if operation.address not in warnings),
        refreshed={address: one for address, one in made.refreshed.items() if address not in warnings},
        diagnostics=(*made.diagnostics, *warnings.values()),
    )


def _found(
    made: Plan, owned: Mapping[Address, Resource], host: Host, kinds: Collection[Kind[Any]]
) -> Iterable[Foreseen]:
    """Findings about the changes that are made at once, container by container."""
    for name, changes in made.by_container():
        now = [change for change in changes if not (change.at_next_start or change.records_only)]
        if not now:
            continue
        after = _managed_after(name, changes, owned)
        with open_container(made.containers[name], host) as container:
            beyond = list(_beyond_authority(container, made.containers[name], now))
            # Kind.foresee enters the namespaces, which takes the same authority. setns(2).
            if beyond:
                yield from beyond
                continue
            for kind in kinds:
                of_kind = [change for change in now if change.address.kind == kind.name]
                if of_kind:
                    yield from kind.foresee(container, host, of_kind, after)
                yield from kind.foresee_together(container, host, now, after)


def _found_at_starts(
    made: Plan, owned: Mapping[Address, Resource], host: Host, about_start: Callable[[str], AboutStart | None]
) -> Iterable[Foreseen]:
    """Findings about all resources that wait for the next start of stopped containers, changed by the plan or not."""
    for name, facts in made.containers.items():
        if facts.status is not Status.STOPPED:
            continue
        after = _managed_after(name, [one for one in made.changes if one.address.container == name], owned)
        start = about_start(name) if after else None
        if start is not None and not start.is_absent:
            for kind in KINDS.values():
                yield from kind.foresee_start(host, after, start.settings)


def _beyond_authority(container: Container, facts: ContainerFacts, changes: Iterable[Change]) -> Iterable[Foreseen]:
    """A refusal for each change in a namespace of the container that this process has no authority to change."""
    reasons: dict[str, str] = {}
    for change in changes:
        kind = KINDS[change.address.kind]
        if kind.lives_in in ("net", "mnt") and kind.name not in reasons:
            reasons[kind.name] = lacking(container, kind.lives_in, of_host=kind.of_host)
        if reason := reasons.get(kind.name):
            # Root in the container's user namespace has no authority over the host's namespaces. user_namespaces(7).
            as_owner = "" if kind.of_host else RUNTIMES[facts.runtime].as_owner
            hint = f"run scplan as root{f', or by `{as_owner} scplan …`' if as_owner else ''}"
            yield Foreseen(change.address, refused=Unsuitable(reason, hint=hint))


def _managed_after(name: str, changes: Iterable[Change], owned: Mapping[Address, Resource]) -> dict[Address, Resource]:
    """Owned resources of the container after these changes."""
    after = {address: one for address, one in owned.items() if address.container == name}
    for change in changes:
        if change.after is None or change.action is Action.RELEASE:
            after.pop(change.address, None)
        else:
            after[change.address] = change.after
    return after


def _with(change: Change, found: list[Foreseen]) -> Change:
    """The change with the side effects of its findings, each text once."""
    if not found:
        return change
    return change._replace(
        put_back=tuple(dict.fromkeys(text for one in found for text in one.put_back)),
        taken_along=tuple(dict.fromkeys(text for one in found for text in one.taken_along)),
        lost=tuple(dict.fromkeys(text for one in found for text in one.lost)),
    )


def _warning(found: Foreseen, source_of: SourceOf) -> Diagnostic:
    assert found.warning is not None
    summary, hint = found.warning
    return Diagnostic(
        summary=summary,
        detail=str(found.address),
        hint=hint,
        source=source_of(found.address),
        severity=Severity.WARNING,
    )

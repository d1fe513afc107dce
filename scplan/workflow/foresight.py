"""A plan held against the containers that it changes: what they refuse, and what of others goes with each change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from scplan.errors import Diagnostic, PlanError, Severity, in_file_order
from scplan.kinds import KINDS
from scplan.kinds.kind import Foreseen, Unsuitable
from scplan.linux.authority import lacking
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.model.address import Address
from scplan.model.change import Action, Change, Plan
from scplan.model.live import ContainerFacts
from scplan.model.resource import Resource
from scplan.observe import open_container
from scplan.plan import SourceOf, unsuitable
from scplan.runtimes import RUNTIMES


def with_foresight(made: Plan, owned: Mapping[Address, Resource], source_of: SourceOf, host: Host) -> Plan:
    """The plan with what Kind.foresee found about its changes. Raises PlanError with every change that is refused.

    `owned` are the records before the plan. Changes that wait for a container's next start are not looked at.
    """
    found = list(_found(made, owned, host))
    refused = [
        unsuitable(source_of(one.address), one.address, one.refused, Severity.ERROR) for one in found if one.refused
    ]
    if refused:
        raise PlanError.of(in_file_order(refused))
    warnings = tuple(_warning(one, source_of) for one in found if one.warning is not None)
    changes = tuple(_with(change, [one for one in found if one.address == change.address]) for change in made.changes)
    return made._replace(changes=changes, diagnostics=(*made.diagnostics, *warnings)) if found else made


def _found(made: Plan, owned: Mapping[Address, Resource], host: Host) -> Iterable[Foreseen]:
    for name, changes in made.by_container():
        now = [change for change in changes if not (change.at_next_start or change.records_only)]
        if not now:
            continue
        after = _managed_after(name, changes, owned)
        with open_container(made.containers[name], host) as container:
            beyond = list(_beyond_authority(container, made.containers[name], now))
            if beyond:
                yield from beyond
                continue
            for kind in KINDS.values():
                of_kind = [change for change in now if change.address.kind == kind.name]
                if of_kind:
                    yield from kind.foresee(container, host, of_kind, after)
                yield from kind.foresee_together(container, host, now, after)


def _beyond_authority(container: Container, facts: ContainerFacts, changes: Iterable[Change]) -> Iterable[Foreseen]:
    """A refusal of each change in a namespace of the container that this process may not change."""
    reasons: dict[str, str] = {}
    for change in changes:
        kind = KINDS[change.address.kind]
        if kind.lives_in in ("net", "mnt") and kind.name not in reasons:
            reasons[kind.name] = lacking(container, kind.lives_in, of_host=kind.of_host)
        if reason := reasons.get(kind.name):
            # The owner of the container's namespaces has no more authority over those of the host than the user.
            as_owner = "" if kind.of_host else RUNTIMES[facts.runtime].as_owner
            hint = f"run scplan as root{f', or by `{as_owner} scplan …`' if as_owner else ''}"
            yield Foreseen(change.address, refused=Unsuitable(reason, hint=hint))


def _managed_after(name: str, changes: Iterable[Change], owned: Mapping[Address, Resource]) -> dict[Address, Resource]:
    after = {address: one for address, one in owned.items() if address.container == name}
    for change in changes:
        if change.after is None or change.action is Action.RELEASE:
            after.pop(change.address, None)
        else:
            after[change.address] = change.after
    return after


def _with(change: Change, found: list[Foreseen]) -> Change:
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

"""A plan with every action, and what belongs to it, for the tests of the renderers."""

from __future__ import annotations

from scplan.errors import Diagnostic, Severity, SourceRange
from scplan.model.address import Address
from scplan.model.change import Action, Change, Disruption, Operation, Plan
from scplan.model.live import ContainerFacts, Status
from scplan.model.resource import Attributes, Resource, Role, attr, nested
from scplan.model.values import (
    ABSOLUTE_PATH,
    BOOL,
    BYTES_PER_SECOND,
    DESTINATION,
    INTERFACE_ADDRESS,
    INTERFACE_NAME,
    IP,
    PERMISSIONS,
    TEXT,
    integer,
)


class Limits(Attributes):
    read_bps: int | None = attr("bytes per second", BYTES_PER_SECOND)


class Device(Resource):
    target: str = attr("path in the container", ABSOLUTE_PATH, role=Role.IDENTITY, required=True)
    source: str | None = attr("host device", ABSOLUTE_PATH, role=Role.FIXED)
    permissions: str | None = attr("subset of rwm", PERMISSIONS)
    required: bool | None = attr("whether its absence is an error", BOOL, role=Role.POLICY)
    numbers: str | None = attr("major:minor", TEXT, role=Role.RESOLVED)
    io: Limits | None = nested("limits", Limits)


class Nic(Resource):
    name: str = attr("name", INTERFACE_NAME, role=Role.IDENTITY, required=True)
    mtu: int | None = attr("MTU", integer(68, 65535))
    addresses: tuple[str, ...] | None = attr("addresses", INTERFACE_ADDRESS, many=True)
    former_mtu: int | None = attr("MTU on the host", integer(68, 65535), role=Role.FORMER)


class Route(Resource):
    to: str = attr("destination", DESTINATION, role=Role.IDENTITY, required=True)
    via: str | None = attr("next hop", IP, role=Role.FIXED)


class Mount(Resource):
    target: str = attr("path in the container", ABSOLUTE_PATH, role=Role.IDENTITY, required=True)
    source: str | None = attr("host path", ABSOLUTE_PATH, role=Role.FIXED)
    read_only: bool | None = attr("read-only", BOOL)


class Setting(Resource):
    name: str = attr("file", TEXT, role=Role.IDENTITY, required=True)
    value: str = attr("content", TEXT, required=True)
    former: str | None = attr("content before scplan", TEXT, role=Role.FORMER)


WEB = ContainerFacts(name="web", runtime="runc", id="4f6c", status=Status.RUNNING, pid=4242)
DISK = Device(target="/dev/sdb123", source="/dev/sdb", permissions="rwm", io=Limits(read_bps=10 << 20))
NIC = Nic(name="eth1", mtu=1400)
ROUTE = Route(to="default", via="10.0.0.1")
WARNING = Diagnostic(
    summary="/dev/sdc is not there",
    detail="device /dev/data of web",
    hint="it is left out, since it is not required",
    source=SourceRange("web.yaml", 12, 5),
    severity=Severity.WARNING,
)


def change(
    order: int,
    address: str,
    action: Action,
    before: Resource | None,
    after: Resource | None,
    *,
    reason: str = "as the configuration says",
    changed: tuple[str, ...] = (),
    disruption: Disruption = Disruption.NONE,
    effect: str = "",
    managed: Resource | None = None,
    requires: tuple[Address, ...] = (),
) -> Change:
    return Change(
        order=order,
        address=Address.parse(address),
        action=action,
        reason=reason,
        before=before,
        after=after,
        managed=managed or after,
        owned=before,
        changed=changed,
        disruption=disruption,
        effect=effect,
        requires=requires,
    )


def plan(*changes: Change, containers: dict[str, ContainerFacts] | None = None, warned: bool = False) -> Plan:
    return Plan(
        containers={"web": WEB} if containers is None else containers,
        changes=changes,
        operations=(),
        refreshed={},
        diagnostics=(WARNING,) if warned else (),
    )


ADD = change(1, "web/device/dev/sdb123", Action.CREATE, None, DISK)
CHANGE = change(
    2,
    "web/nic/eth1",
    Action.UPDATE,
    NIC.replace(mtu=1500),
    NIC,
    changed=("mtu",),
    disruption=Disruption.BRIEF,
    effect="link down for a moment",
)
REPLACE = change(
    3,
    "web/route/default",
    Action.REPLACE,
    ROUTE,
    ROUTE,
    disruption=Disruption.RECREATE,
    effect="its NIC goes down in 2",
    requires=(CHANGE.address,),
)
REMOVE = change(4, "web/mount/old", Action.DELETE, Mount(target="/old", source="/srv/old"), None)
PLAN = plan(ADD, CHANGE, REPLACE, REMOVE)


def operation(of: Change) -> Operation:
    return Operation(
        order=of.order,
        address=of.address,
        action=of.action,
        before=of.before,
        after=of.after,
        owned_before=of.before,
        owned_after=of.after,
    )

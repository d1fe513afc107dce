"""Attributes of a NIC, their notation, and the default name of a host end."""

from __future__ import annotations

from scplan.model.resource import Resource, Role, ValueType, attr
from scplan.model.values import BOOL, INTERFACE_ADDRESS, INTERFACE_NAME, MAC, TEXT, integer

VETH, PHYSICAL = "veth", "physical"
# Live type of another link that the container's root has given the name of a veth; users can't write it.
FOREIGN = "foreign"
# As ether_setup() makes a link: ETH_DATA_LEN, DEFAULT_TX_QUEUE_LEN. net/ethernet/eth.c
DEFAULT_MTU, DEFAULT_TXQUEUELEN = 1500, 1000
# RFC 8200, section 5.
IPV6_MIN_MTU = 1280
# IFNAMSIZ without the terminating zero. linux/if.h
_HOST_NAME_BYTES = 15
_MESSAGES = frozenset(("host_state", "carried_link", "carried_host_end"))


def _parse_type(text: str) -> str:
    if text not in (VETH, PHYSICAL, "eth"):
        raise ValueError(f"{text!r} is not one of veth, physical (or its alias eth)")
    return PHYSICAL if text == "eth" else text


NIC_TYPE = ValueType(_parse_type, stored=str, schema={"enum": [VETH, PHYSICAL, "eth"]})
# "" is the live value of a NIC on no bridge; users can't write it.
BRIDGE = ValueType(INTERFACE_NAME.parse, stored=str, schema=INTERFACE_NAME.schema)


class Nic(Resource):
    """One NIC of a container: a veth pair, or a physical NIC of the host.

    `former_…` are attributes that a physical NIC had on the host; `host_state` is its whole state there.
    """

    name: str = attr("name in the container", INTERFACE_NAME, role=Role.IDENTITY, required=True)
    type: str | None = attr("veth (default), or physical: a NIC of the host, moved in", NIC_TYPE, role=Role.FIXED)
    host_name: str | None = attr(
        "veth: name of its end on the host, derived by default; physical: the host's NIC, required",
        INTERFACE_NAME,
    )
    bridge: str | None = attr("bridge of the host, Linux or Open vSwitch, that the host end joins", BRIDGE, on_unset="")
    addresses: tuple[str, ...] | None = attr(
        "addresses with prefix length; those that others added stay",
        INTERFACE_ADDRESS,
        many=True,
        examples=("10.0.0.5/24", "fd00::5/64"),
    )
    mac: str | None = attr("MAC address in the container; a physical NIC keeps its own without it", MAC)
    mtu: int | None = attr("largest packet in bytes; new veths have 1500", integer(68, 65535))
    txqueuelen: int | None = attr(
        "transmit queue in packets; new veths have 1000", integer(0, 2**31 - 1), aliases=("qlen",)
    )
    up: bool | None = attr("whether it is up; default true", BOOL)
    allow_uplink: bool = attr(
        "physical: may be the NIC of the host's default route", BOOL, role=Role.POLICY, default=False
    )
    required: bool = attr(
        "false: a missing host NIC or bridge is a warning and not an error", BOOL, role=Role.POLICY, default=True
    )
    device: str | None = attr("physical: the host's NIC that it is", TEXT, role=Role.RESOLVED)
    host_mtu: int | None = attr(
        "MTU of the host end: on a bridge the bridge's, so that it keeps it, else mtu where that is written",
        integer(0, 2**32 - 1),
        role=Role.PROMISED,
    )
    host_txqueuelen: int | None = attr(
        "transmit queue of the host end, where txqueuelen is written", integer(0, 2**32 - 1), role=Role.PROMISED
    )
    host_bridge: str | None = attr("empty for a host end that was made for no bridge", TEXT, role=Role.PROMISED)
    former_mac: str | None = attr("MAC address on the host", TEXT, role=Role.FORMER)
    former_mtu: int | None = attr("MTU on the host", integer(0, 2**32 - 1), role=Role.FORMER)
    former_txqueuelen: int | None = attr("transmit queue on the host", integer(0, 2**32 - 1), role=Role.FORMER)
    origin_kind: str | None = attr("kind of link that it is, empty for hardware", TEXT, role=Role.FORMER)
    origin_peer: bool | None = attr(
        "whether its other end, or what it is based on, is on the host", BOOL, role=Role.FORMER
    )
    former_up: bool | None = attr("whether it was up on the host", BOOL, role=Role.FORMER)
    former_bridge: str | None = attr("its bridge on the host", TEXT, role=Role.FORMER)
    former_addresses: tuple[str, ...] | None = attr("its addresses on the host", TEXT, role=Role.FORMER, many=True)
    former_routes: tuple[str, ...] | None = attr("routes of the host over it", TEXT, role=Role.FORMER, many=True)
    host_state: tuple[str, ...] | None = attr(
        "the link on the host with all that goes with it, as messages of the kernel", TEXT, role=Role.FORMER, many=True
    )
    pinned: str | None = attr("where the network namespace is kept, so that it comes back", TEXT, role=Role.FORMER)
    made_name: str | None = attr(
        "name of the host end when it was made, where none is written", TEXT, role=Role.FORMER, lasting=True
    )
    host_mac: str | None = attr(
        "MAC address of the host end, by which it is known again", TEXT, role=Role.FORMER, lasting=True
    )
    found_mac: str | None = attr(
        "the same of one that was adopted, as it was then", TEXT, role=Role.FORMER, lasting=True, of_others=True
    )
    found_name: str | None = attr(
        "name of the host end of one that was adopted", TEXT, role=Role.FORMER, lasting=True, of_others=True
    )
    carried_mac: str | None = attr("MAC address of the host end, put back by an undo", TEXT, role=Role.CARRIED)
    carried_name: str | None = attr(
        'name in the container when it was removed, "" when it was not there', TEXT, role=Role.CARRIED
    )
    carried_link: tuple[str, ...] | None = attr(
        "the link in the container with all that goes with it, as messages of the kernel, put back by an undo",
        TEXT,
        role=Role.CARRIED,
        many=True,
    )
    carried_host_end: tuple[str, ...] | None = attr("the same of the host end", TEXT, role=Role.CARRIED, many=True)
    carried_routes: tuple[str, ...] | None = attr(
        "the same of its routes, as earlier versions kept them",
        TEXT,
        role=Role.CARRIED,
        many=True,
    )

    def shown(self, path: str, value: object) -> str:
        if path in _MESSAGES and isinstance(value, tuple):
            return f"{len(value)} objects, as the kernel holds them"
        return super().shown(path, value)

    @property
    def is_physical(self) -> bool:
        return self.type == PHYSICAL

    @property
    def is_lent(self) -> bool:
        return self.is_physical and self.pinned is not None

    @property
    def mark(self) -> str | None:
        """MAC address of the host end, by which the recorded veth is recognised."""
        return self.host_mac or self.found_mac


def plain(address: str) -> str:
    """An address without the note that it expires or is deprecated, which live addresses can have."""
    return address.partition(" (")[0]


def derived_host_name(container: str, nic: str) -> str:
    """Name of the host end if none is written: always the same for one NIC, and different for each NIC.

    `web-eth1` if that fits and can be read back; otherwise a hash, which never holds a "-" and so never equals such a
    name.
    """
    plain = f"{container}-{nic}"
    if len(plain.encode()) <= _HOST_NAME_BYTES and plain.isascii() and "-" not in nic:
        try:
            return str(INTERFACE_NAME.parse(plain))
        except ValueError:
            pass  # a container's name may have characters that a link's can't
    from scplan.startup.digest import sha256_hex

    digest = sha256_hex(f"{container}/{nic}".encode())
    return f"veth{digest}"[:_HOST_NAME_BYTES]

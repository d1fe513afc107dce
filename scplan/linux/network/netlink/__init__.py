"""rtnetlink without a library: links, addresses and routes of a network namespace. rtnetlink(7), netlink(7)."""

from __future__ import annotations

from scplan.linux.network.netlink.raw import RawRoute, raw_from_text, raw_route, route_body
from scplan.linux.network.netlink.records import (
    IFA_F_NOPREFIXROUTE,
    IFA_F_PERMANENT,
    IFA_F_SECONDARY,
    MAIN_TABLE,
    RT_SCOPE_LINK,
    RTN_UNICAST,
    RTPROT_BOOT,
    RTPROT_KERNEL,
    RTPROT_RA,
    RTPROT_REDIRECT,
    RTPROT_STATIC,
    Addr,
    Link,
    NextHop,
    Route,
)
from scplan.linux.network.netlink.route_options import option_attributes, options_of
from scplan.linux.network.netlink.rtnl import Batch, Rtnl, open_socket
from scplan.linux.network.netlink.table import LinkTable, SharedDump

__all__ = [
    "IFA_F_NOPREFIXROUTE",
    "IFA_F_PERMANENT",
    "IFA_F_SECONDARY",
    "MAIN_TABLE",
    "RTN_UNICAST",
    "RTPROT_BOOT",
    "RTPROT_KERNEL",
    "RTPROT_RA",
    "RTPROT_REDIRECT",
    "RTPROT_STATIC",
    "RT_SCOPE_LINK",
    "Addr",
    "Batch",
    "Link",
    "LinkTable",
    "NextHop",
    "RawRoute",
    "Route",
    "Rtnl",
    "SharedDump",
    "open_socket",
    "option_attributes",
    "options_of",
    "raw_from_text",
    "raw_route",
    "route_body",
]

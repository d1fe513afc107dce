"""IP addresses and networks as numbers, to test what contains what. Without `ipaddress`, which is slow to import."""

from __future__ import annotations

from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_pton

from scplan.startup.named_tuple import NamedTuple

_BITS: dict[int, int] = {AF_INET: 32, AF_INET6: 128}


class Network(NamedTuple):
    """An IP network: AF_INET or AF_INET6, its first address as a number, and its prefix length."""

    family: int
    first: int
    length: int

    def holds(self, address: str) -> bool:
        """True if the network contains the address. Raises OSError if the text is not an address."""
        family, value = number_of(address)
        shift = _BITS[self.family] - self.length
        return family == self.family and value >> shift == self.first >> shift

    def is_broadcast(self, address: str) -> bool:
        """True if the address is the last one of an IPv4 network that has a broadcast address."""
        family, value = number_of(address)
        # Networks of /31 have two hosts and no broadcast address. RFC 3021.
        return (
            family == AF_INET == self.family and self.length < 31 and value == self.first + (1 << 32 - self.length) - 1
        )


@lru_cache(maxsize=4096)
def number_of(address: str) -> tuple[int, int]:
    """(family, number) of an address such as "10.0.0.5". Raises OSError if the text is not an address. inet_pton(3)."""
    # Every IPv6 address has a colon, and no IPv4 address has one.
    family = AF_INET6 if ":" in address else AF_INET
    return family, int.from_bytes(inet_pton(family, address))


@lru_cache(maxsize=4096)
def network_of(text: str) -> Network:
    """The network of "10.0.0.5/24", of a single address, or of "default" (IPv4). Raises OSError or ValueError.

    For an address with a peer, "10.0.0.5/32 peer 10.0.0.6", the network is that of the peer.
    """
    if text == "default":
        return Network(AF_INET, 0, 0)
    written, _, peer = text.partition(" (")[0].partition(" peer ")
    address, _, length = written.partition("/")
    address = peer or address
    family, value = number_of(address)
    bits = int(length) if length else _BITS[family]
    shift = _BITS[family] - bits
    return Network(family, value >> shift << shift, bits)

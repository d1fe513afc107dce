"""Types of values: sizes, numbers, paths, addresses. Each parses the written text to one normal form."""

from __future__ import annotations

import os
import re
from socket import AF_INET, AF_INET6, inet_pton

from scplan.model.resource import ValueType
from scplan.startup.ip_text import ip_text

UINT32_MAX = 2**32 - 1
UINT64_MAX = 2**64 - 1
# include/uapi/linux/limits.h; PATH_MAX counts the NUL at the end.
PATH_MAX = 4096
NAME_MAX = 255

# The limited broadcast address, RFC 919: never the address of a host.
_BROADCAST = b"\xff\xff\xff\xff"

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SIZE = re.compile(r"(\d{1,40})(?:\.(\d{1,20}))?\s*(?:([kmgt])(?:i?b)?|b)?", re.IGNORECASE | re.ASCII)
_INTEGER = re.compile(r"[+-]?(?:0|[1-9]\d{0,19})", re.ASCII)
_PREFIX_LENGTH = re.compile(r"\d{1,3}", re.ASCII)
_MAC = re.compile(r"[0-9a-f]{2}([:-])(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}", re.IGNORECASE | re.ASCII)
# Matches a path that may not be in normal form: double slashes, parts that begin with a dot, a trailing slash.
_UNUSUAL_PATH = re.compile(r"//|/\.|/$")
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


def parse_size(text: str) -> int:
    """Bytes of `10m`, `10mb`, `10MiB`, `1.5g` or `4096`. Every unit is a power of 1024. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if not match or (match[2] and not match[3]):
        raise ValueError(f"not a size: {text!r}; write a number with an optional k, m, g or t, such as 10m")
    whole, fraction, unit = match.groups("")
    scale: int = 1024 ** _UNITS[unit.lower()]
    part: int = int(fraction or 0) * scale // 10 ** len(fraction)
    value = int(whole) * scale + part
    if value > UINT64_MAX:
        raise ValueError(f"{text} is more than the kernel can count (64 bits)")
    return value


def show_size(value: int) -> str:
    """Text of a number of bytes in the largest unit that is exact: `10 MiB`."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value and value % 1024**power == 0:
            return f"{value // 1024**power} {unit}"
    return f"{value} B"


def integer(minimum: int, maximum: int) -> ValueType:
    """Type of the integers from `minimum` to `maximum`."""

    def parse(text: str) -> int:
        if not _INTEGER.fullmatch(text):
            raise ValueError(f"not a whole number: {text!r}")
        value = int(text)
        if not minimum <= value <= maximum:
            raise ValueError(f"{value} is out of range; it must be between {minimum} and {maximum}")
        return value

    return ValueType(parse, stored=int, schema={"type": "integer", "minimum": minimum, "maximum": maximum})


def _parse_bool(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(f"neither true nor false: {text!r}")


def choice(*words: str) -> ValueType:
    """Type of a closed set of words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}")
        return text

    return ValueType(parse, stored=str, schema={"enum": list(words)})


def check_text(text: str) -> str:
    """Return `text`. Raises ValueError for control characters: they can forge output and end strings in the kernel."""
    if not text.isprintable():
        raise ValueError(f"{text!r} holds a control character")
    return text


def _parse_absolute_path(text: str) -> str:
    check_text(text)
    if not text.startswith("/"):
        raise ValueError(f"not an absolute path: {text!r}")
    if text.isascii() and len(text) <= NAME_MAX and not _UNUSUAL_PATH.search(text):
        return text
    if len(text.encode()) >= PATH_MAX:
        raise ValueError(f"a path may have at most {PATH_MAX - 1} bytes")
    parts = [part for part in text.split("/") if part and part != "."]
    # After a symlink ".." is the parent of the symlink's target, so that it can't be removed from the text.
    # path_resolution(7).
    if ".." in parts:
        raise ValueError(f"{text!r} holds '..'; write the path that is meant")
    if any(len(part.encode()) > NAME_MAX for part in parts):
        raise ValueError(f"a part of a path may have at most {NAME_MAX} bytes")
    return "/" + "/".join(parts)


def _parse_permissions(text: str) -> str:
    # Accesses of the device cgroup controller: Documentation/admin-guide/cgroup-v1/devices.rst.
    if not text or set(text) - set("rwm") or len(set(text)) != len(text):
        raise ValueError(f"{text!r} is not a set of r (read), w (write) and m (mknod)")
    return "".join(letter for letter in "rwm" if letter in text)


def _parse_mode(text: str) -> str:
    if not re.fullmatch(r"(0o?)?[0-7]{3,4}", text, re.ASCII):
        raise ValueError(f'{text!r} is not an octal file mode such as "0660"')
    return f"{int(text.replace('o', ''), 8):04o}"


def _parse_mac(text: str) -> str:
    if not _MAC.fullmatch(text):
        raise ValueError(f"not a MAC address: {text!r}; write six pairs of hex digits, such as 02:00:5e:10:00:01")
    mac = text.lower().replace("-", ":")
    # The kernel refuses both as a NIC's address: is_valid_ether_addr(), include/linux/etherdevice.h.
    if int(mac[:2], 16) & 1:
        raise ValueError(f"{text} is a multicast address; the first octet of a NIC's MAC is even")
    if mac == "00:00:00:00:00:00":
        raise ValueError("the MAC address is all zeros")
    return mac


def _parse_interface_name(text: str) -> str:
    check_text(text)
    # IFNAMSIZ is 16, with the NUL. dev_valid_name() in net/core/dev.c; "%" would ask the kernel for a free number.
    if len(text.encode()) > 15:
        raise ValueError(f"{text!r} has {len(text.encode())} bytes; the name of a network interface has at most 15")
    if not text or text in (".", "..") or re.search(r"[\s/:%]", text):
        raise ValueError(f"{text!r} can't be the name of a network interface: no spaces, '/', ':' or '%'")
    # /proc/sys/net/ipv4/conf/ and …/ipv6/conf/ have directories of these names.
    if text in ("all", "default"):
        raise ValueError(f"{text!r} stands for all interfaces in the kernel's settings; it can't be the name of one")
    return text


def _packed(text: str) -> tuple[bytes, int]:
    """(address in network byte order, its length in bits). Raises ValueError if the text is not an IP address.

    inet_pton(3) accepts the same texts as `ipaddress`, without leading zeros, in a tenth of the time.
    """
    try:
        return (inet_pton(AF_INET6, text), 128) if ":" in text else (inet_pton(AF_INET, text), 32)
    except OSError:
        raise ValueError(f"not an IP address: {text!r}") from None


def _with_prefix(text: str) -> tuple[bytes, int]:
    """(address, prefix length) of `10.0.0.7/24`; without a prefix length that of one host, 32 or 128."""
    host, slash, length = text.partition("/")
    packed, bits = _packed(host)
    if not slash:
        return packed, bits
    if not _PREFIX_LENGTH.fullmatch(length) or int(length) > bits:
        raise ValueError(f"{text!r}: the prefix length is a number up to {bits}")
    return packed, int(length)


def _is_multicast(packed: bytes) -> bool:
    # 224.0.0.0/4, RFC 5771; ff00::/8, RFC 4291.
    return packed[0] >> 4 == 0xE if len(packed) == 4 else packed[0] == 0xFF


def _parse_interface_address(text: str) -> str:
    """A NIC's address in normal form, `10.0.0.7/24`; without a prefix length, that of one host (/32, /128).

    An address with a peer, in ip-address(8) `10.0.0.7 peer 10.0.0.8/32`, becomes `10.0.0.7/32 peer 10.0.0.8`.
    """
    own, word, far = text.partition(" peer ")
    if word:
        far, _, far_length = far.strip().partition("/")
        own, _, own_length = own.strip().partition("/")
        if far_length and own_length and far_length != own_length:
            raise ValueError(f"{text!r}: an address and its peer have one prefix length")
        prefix = f"/{far_length or own_length}".rstrip("/")
        one, other = _parse_interface_address(own + prefix), _parse_interface_address(far + prefix)
        if (":" in one) != (":" in other):
            raise ValueError(f"{text!r}: an address and its peer are of the same family")
        return f"{one} peer {other.partition('/')[0]}"
    try:
        packed, length = _with_prefix(text)
    except ValueError:
        raise ValueError(f"not an IP address with prefix length: {text!r}; write it as 10.0.0.7/24") from None
    if _is_multicast(packed) or not any(packed) or packed == _BROADCAST:
        raise ValueError(f"{text} can't be the address of a NIC")
    return f"{ip_text(packed)}/{length}"


def _check_interface_address(text: str) -> None:
    """Raise ValueError for a text that is not a NIC's address. One from the kernel may end in ` (…)`: it expires."""
    own, word, far = text.partition(" (")[0].partition(" peer ")
    _with_prefix(own)
    if word:
        _packed(far)


def _parse_ip(text: str) -> str:
    packed, _ = _packed(text)
    if _is_multicast(packed) or not any(packed) or packed == _BROADCAST:
        raise ValueError(f"{text} can't be used here")
    return ip_text(packed)


def _parse_destination(text: str) -> str:
    """`default`, or a network with prefix length; an address without one gets /32 or /128."""
    if text in ("", "default"):
        return "default"
    try:
        packed, length = _with_prefix(text)
    except ValueError:
        raise ValueError(f"not a destination: {text!r}; write a network, an address or 'default'") from None
    # A network with a shorter prefix, such as 0.0.0.0/0, also contains addresses that are not multicast.
    if _is_multicast(packed) and length >= (4 if len(packed) == 4 else 8):
        raise ValueError(f"{text} is a multicast network")
    network = _network(packed, length)
    if network != packed:
        raise ValueError(f"{text} has host bits set; the network is {ip_text(network)}/{length}")
    return f"{ip_text(packed)}/{length}"


def _check_ip(text: str) -> None:
    """Raise ValueError for a text that is neither an IP address nor "", which records have for a route without one."""
    if text:
        _packed(text)


def _check_destination(text: str) -> None:
    if text != "default" and _network(*(parts := _with_prefix(text))) != parts[0]:
        raise ValueError(f"{text} has host bits set")


def _network(packed: bytes, length: int) -> bytes:
    host_bits = len(packed) * 8 - length
    return (int.from_bytes(packed, "big") >> host_bits << host_bits).to_bytes(len(packed), "big")


SIZE = ValueType(parse_size, stored=int, schema={"type": ["integer", "string"]}, show=show_size)
BYTES_PER_SECOND = ValueType(
    parse_size,
    stored=int,
    schema={"type": ["integer", "string"], "examples": ["10m", 1048576]},
    show=lambda value: f"{show_size(value)}/s" if value else "no limit",
)
OPERATIONS_PER_SECOND = ValueType(
    integer(0, UINT32_MAX).parse,
    stored=int,
    schema={"type": "integer", "minimum": 0, "maximum": UINT32_MAX},
    show=lambda value: f"{value}/s" if value else "no limit",
)


def _show_file_identity(text: str) -> str:
    """Text of "st_dev:st_ino", stat(2): `inode 131 on device 8:1`."""
    device, _, inode = text.partition(":")
    if not (device.isdecimal() and inode.isdecimal()):
        return text
    # st_dev encodes both numbers. makedev(3).
    return f"inode {inode} on device {os.major(int(device))}:{os.minor(int(device))}"


BOOL = ValueType(_parse_bool, stored=bool, schema={"type": "boolean"})
TEXT = ValueType(check_text, stored=str, schema={"type": "string"})
FILE_IDENTITY = ValueType(check_text, stored=str, schema={"type": "string"}, show=_show_file_identity, opaque=True)
ABSOLUTE_PATH = ValueType(_parse_absolute_path, stored=str, schema={"type": "string", "pattern": "^/"})
PERMISSIONS = ValueType(
    _parse_permissions, stored=str, schema={"type": "string", "pattern": "^[rwm]{1,3}$"}, shown_without_name=True
)
MODE = ValueType(_parse_mode, stored=str, schema={"type": ["string", "integer"], "examples": ["0660"]})
# Not UINT32_MAX: that is -1, which means "leave unchanged". chown(2).
ID = integer(0, UINT32_MAX - 1)
MAC = ValueType(_parse_mac, stored=str, schema={"type": "string", "pattern": "^([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}$"})
INTERFACE_NAME = ValueType(
    _parse_interface_name, stored=str, schema={"type": "string", "minLength": 1, "maxLength": 15}
)
INTERFACE_ADDRESS = ValueType(
    _parse_interface_address,
    stored=str,
    schema={"type": "string", "examples": ["10.0.0.5/24", "fd00::5/64", "10.0.0.5 peer 10.0.0.6/32"]},
    check=_check_interface_address,
)
IP = ValueType(_parse_ip, stored=str, schema={"type": "string"}, check=_check_ip)
DESTINATION = ValueType(
    _parse_destination,
    stored=str,
    schema={"type": ["string", "null"], "examples": ["default", "192.168.0.0/16"]},
    check=_check_destination,
)

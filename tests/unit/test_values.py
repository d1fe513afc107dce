"""How values are written: one normal form for each, and a reason for what is refused."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scplan.model.resource import ValueType
from scplan.model.values import (
    ABSOLUTE_PATH,
    BOOL,
    DESTINATION,
    ID,
    INTERFACE_ADDRESS,
    INTERFACE_NAME,
    IP,
    MAC,
    MODE,
    OPERATIONS_PER_SECOND,
    PERMISSIONS,
    SIZE,
    TEXT,
    UINT64_MAX,
    parse_size,
    show_size,
)

TYPES = [
    ABSOLUTE_PATH,
    BOOL,
    DESTINATION,
    ID,
    INTERFACE_ADDRESS,
    INTERFACE_NAME,
    IP,
    MAC,
    MODE,
    OPERATIONS_PER_SECOND,
    PERMISSIONS,
    SIZE,
    TEXT,
]


def refused(kind: ValueType, text: str) -> bool:
    try:
        kind.parse(text)
    except ValueError as error:
        return bool(str(error))
    return False


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096b", 4096),
        ("10k", 10 * 1024),
        ("10m", 10 * 1024**2),
        ("10mb", 10 * 1024**2),
        ("10MB", 10 * 1024**2),
        ("10MiB", 10 * 1024**2),
        ("10 MiB", 10 * 1024**2),
        ("1.5g", 3 * 512 * 1024**2),
        ("0.5k", 512),
        ("2T", 2 * 1024**4),
        (str(UINT64_MAX), UINT64_MAX),
    ],
)
def test_sizes_are_1024_based(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "-10m",
        "m",
        "10p",
        "10x",
        "1.5",
        "1.5b",
        "10ib",
        "1e3",
        "1,5g",
        "0x10",
        "10mm",
        "\u0663k",
        "16777216t",
        "9" * 100,
        str(UINT64_MAX + 1),
        "1..5g",
        ".5g",
        "1.g",
        "inf",
        "nan",
        "10m\n5",
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    assert refused(SIZE, text)


@given(st.integers(0, UINT64_MAX))
def test_a_shown_size_reads_back(size: int) -> None:
    assert parse_size(show_size(size)) == size


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("1000", 1000), ("4294967295", 4294967295), ("+5", 5)])
def test_operations_fit_32_bits(text: str, value: int) -> None:
    assert OPERATIONS_PER_SECOND.parse(text) == value


@pytest.mark.parametrize("text", ["4294967296", "99999999999", "-1", "1k", "010", "1_000", "1.0", "", " ", "9" * 5000])
def test_what_would_wrap_or_is_no_number_is_refused(text: str) -> None:
    assert refused(OPERATIONS_PER_SECOND, text)


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("Yes", True), ("on", True), ("no", False), ("OFF", False)]
)
def test_booleans(text: str, value: bool) -> None:
    assert BOOL.parse(text) is value


@pytest.mark.parametrize("text", ["1", "0", "y", "", "tru\u0435"])  # it ends with a Cyrillic letter
def test_what_is_no_boolean_is_refused(text: str) -> None:
    assert refused(BOOL, text)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/", "/"),
        ("/dev/sdb", "/dev/sdb"),
        ("/dev//sdb/", "/dev/sdb"),
        ("//srv", "/srv"),
        ("/srv/./data/.", "/srv/data"),
        ("/srv/.hidden", "/srv/.hidden"),
        ("/srv/..data", "/srv/..data"),
        ("/srv/mit Leerzeichen", "/srv/mit Leerzeichen"),
        ("/srv/ä", "/srv/ä"),
        ("/" + "a" * 255, "/" + "a" * 255),
    ],
)
def test_paths_have_one_form(text: str, path: str) -> None:
    assert ABSOLUTE_PATH.parse(text) == path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "srv",
        "./srv",
        "/srv/..",
        "/../etc",
        "/a/../b",
        "/a\nb",
        "/a\x00b",
        "/\x1b[31m",
        "/\u202egpj",
        "~/x",
        "/\udcff",
        "/" + "a" * 256,
        "/" + "ä" * 128,
        "/a" * 2048,
    ],
)
def test_what_is_no_path_is_refused(text: str) -> None:
    assert refused(ABSOLUTE_PATH, text)


@pytest.mark.parametrize(("text", "value"), [("rwm", "rwm"), ("mwr", "rwm"), ("r", "r"), ("wr", "rw")])
def test_permissions_are_put_in_order(text: str, value: str) -> None:
    assert PERMISSIONS.parse(text) == value


@pytest.mark.parametrize("text", ["", "x", "rr", "rwmx", "RW", "rwmr"])
def test_what_is_no_set_of_permissions_is_refused(text: str) -> None:
    assert refused(PERMISSIONS, text)


@pytest.mark.parametrize(
    ("text", "value"), [("0660", "0660"), ("660", "0660"), ("0o660", "0660"), ("1777", "1777"), ("02755", "2755")]
)
def test_modes_are_octal(text: str, value: str) -> None:
    assert MODE.parse(text) == value


@pytest.mark.parametrize("text", ["", "0888", "66", "77777", "rw-rw----", "-660", "0x1ff", "\u0660\u0666\u0666\u0660"])
def test_what_is_no_mode_is_refused(text: str) -> None:
    assert refused(MODE, text)


@pytest.mark.parametrize("text", ["02:00:5E:10:00:01", "02-00-5e-10-00-01"])
def test_macs_have_one_form(text: str) -> None:
    assert MAC.parse(text) == "02:00:5e:10:00:01"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "02:00:5e:10:00",
        "02:00:5e:10:00:01:02",
        "02:00:5e:10:00:0g",
        "02-00:5e:10:00:01",
        "01:00:5e:10:00:01",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
        "02005e100001",
        "0200.5e10.0001",
        "2:0:5e:10:0:1",
    ],
)
def test_what_is_no_mac_of_a_nic_is_refused(text: str) -> None:
    assert refused(MAC, text)


@pytest.mark.parametrize("text", ["eth0", "a" * 15, "ä" * 7, "veth-1.2", "-x", "eth0@if3"])
def test_interface_names(text: str) -> None:
    assert INTERFACE_NAME.parse(text) == text


@pytest.mark.parametrize(
    "text", ["", ".", "..", "a" * 16, "ä" * 8, "a b", "a/b", "a:b", "a%d", "a\tb", "a\0", "all", "default", "\u3000"]
)
def test_what_the_kernel_takes_for_no_interface_name_is_refused(text: str) -> None:
    assert refused(INTERFACE_NAME, text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10.0.0.7/24", "10.0.0.7/24"),
        ("10.0.0.7", "10.0.0.7/32"),
        ("fd00::5/64", "fd00::5/64"),
        ("FD00:0:0:0:0:0:0:5/64", "fd00::5/64"),
        ("fd00:0:0:1::", "fd00:0:0:1::/128"),
        ("2001:db8:0:1:1:1:1:1/64", "2001:db8:0:1:1:1:1:1/64"),
        ("fe80::1/64", "fe80::1/64"),
    ],
)
def test_interface_addresses_have_the_form_of_the_kernel(text: str, value: str) -> None:
    assert INTERFACE_ADDRESS.parse(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0",
        "10.0.0.07/24",
        "010.0.0.7/24",
        "10.0.0.256/24",
        "10.0.0.7/33",
        "10.0.0.7/-1",
        "10.0.0.7/",
        "/24",
        "fd00::5/129",
        "fd00::5%eth0/64",
        "fd00:::5",
        "1:2:3:4:5:6:7:8:9",
        "224.0.0.1/24",
        "ff02::1/64",
        "0.0.0.0/8",
        "::/64",
        "255.255.255.255/32",
        "10.0.0.7/24/24",
        " 10.0.0.7/24",
        "\u0661\u0660.0.0.7/24",
        "10.0.0.7/\u0662\u0664",
        "0x0a.0.0.7",
        "10.0.0.7\x00/24",
        "10.0.0.7/255.255.255.0",
        "\udcff",
    ],
)
def test_what_is_no_address_of_a_nic_is_refused(text: str) -> None:
    assert refused(INTERFACE_ADDRESS, text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", "default"),
        ("default", "default"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.1", "10.0.0.1/32"),
        ("FD00::/64", "fd00::/64"),
        ("fd00::1", "fd00::1/128"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ],
)
def test_destinations_have_the_form_of_the_kernel(text: str, value: str) -> None:
    assert DESTINATION.parse(text) == value


@pytest.mark.parametrize(
    "text", ["10.0.0.1/8", "10.0.0.1/0", "fd00::1/64", "224.0.0.0/4", "ff00::/8", "Default", "0/0", "x"]
)
def test_what_is_no_destination_is_refused(text: str) -> None:
    assert refused(DESTINATION, text)


def test_host_bits_are_refused_with_the_network_that_is_meant() -> None:
    with pytest.raises(ValueError, match=r"the network is 10\.0\.0\.0/8"):
        DESTINATION.parse("10.1.2.3/8")


addresses = st.one_of(
    st.ip_addresses().map(str),
    st.ip_addresses(v=6).map(lambda address: address.exploded),
    st.ip_addresses(network="::ffff:0:0/96").map(str),
    st.ip_addresses(network="::/96").map(str),
    st.from_regex(r"[0-9a-fA-F:.]{2,20}", fullmatch=True),
    st.text(max_size=20),
)


def in_records(text: str) -> str:
    """Since Python 3.13 the last 32 bits of a mapped address are printed in dots, which records never held."""
    head, colon, dotted = text.partition("::ffff:")
    if "." not in dotted or not colon:
        return text
    host, slash, length = dotted.partition("/")
    number = int(ipaddress.IPv4Address(host))
    return f"{head}::ffff:{number >> 16:x}:{number & 0xFFFF:x}{slash}{length}"


def is_multicast(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """As the kernel sees it: since Python 3.13 a mapped address is what it is mapped to."""
    return address in ipaddress.ip_network("224.0.0.0/4" if address.version == 4 else "ff00::/8")


@given(addresses)
def test_addresses_are_read_as_ipaddress_reads_them(text: str) -> None:
    try:
        expected = ipaddress.ip_address(text)
    except ValueError:
        assert refused(IP, text)
        return
    unusable = is_multicast(expected) or int(expected) == 0 or text == "255.255.255.255" or "%" in text
    assert refused(IP, text) if unusable else IP.parse(text) == in_records(str(expected))


@given(addresses, st.integers(-1, 130))
def test_networks_are_read_as_ipaddress_reads_them(text: str, length: int) -> None:
    written = f"{text}/{length}"
    try:
        expected = ipaddress.ip_network(written)
    except ValueError:
        assert refused(DESTINATION, written)
        return
    unusable = is_multicast(expected.network_address) or "%" in text
    assert refused(DESTINATION, written) if unusable else DESTINATION.parse(written) == in_records(str(expected))


@given(addresses, st.integers(-1, 130))
def test_interface_addresses_are_read_as_ipaddress_reads_them(text: str, length: int) -> None:
    written = f"{text}/{length}"
    try:
        expected = ipaddress.ip_interface(written)
    except ValueError:
        assert refused(INTERFACE_ADDRESS, written)
        return
    if is_multicast(expected.ip) or int(expected.ip) == 0 or text == "255.255.255.255" or "%" in text:
        assert refused(INTERFACE_ADDRESS, written)
    else:
        assert INTERFACE_ADDRESS.parse(written) == in_records(str(expected))


@pytest.mark.parametrize("kind", TYPES)
@given(text=st.text(max_size=40))
def test_any_text_is_a_value_or_a_reasoned_refusal(kind: ValueType, text: str) -> None:
    if not refused(kind, text):
        assert type(kind.parse(text)) is kind.stored


@pytest.mark.parametrize("kind", TYPES)
@given(text=st.text(alphabet="0123456789abcdefkmgt:./-rw", max_size=24))
def test_a_normal_form_is_its_own_normal_form(kind: ValueType, text: str) -> None:
    if not refused(kind, text):
        value = kind.parse(text)
        written = str(value).lower() if isinstance(value, bool) else str(value)
        assert kind.parse(written) == value

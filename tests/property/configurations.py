"""Random configurations of two containers, valid by construction: every kind, alone and standing on others."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import strategies as st

Sections = dict[str, Any]
Pair = tuple[Sections, Sections]
CHOICES = st.sampled_from
_WILD_TARGETS = ("/link/a", "/link/new/in", "/dangling", "/dangling/in", "/srv/b/in", "/srv/a/new", "/etc/mounted")
_DRAWN = ("hop", "sourced", "by_link")


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping with any of these keys."""
    return st.fixed_dictionaries({}, optional=fields)


def configurations(parts: dict[str, str]) -> st.SearchStrategy[Pair]:
    """`parts` names things of the host: disk, bridge, nic, one and two (directories with a file `file` and `deep`).

    `end` is what the names of host ends begin with. Only one of the two containers has the NIC; both can have the rest.
    """
    own = [parts | {"end": f"{parts['end']}{letter}", "net": net} for letter, net in (("a", "4"), ("b", "5"))]
    return CHOICES((None, 0, 1)).flatmap(
        lambda lent_to: st.tuples(*(of_one(own[number], has_nic=lent_to == number) for number in (0, 1)))
    )


def of_one(parts: dict[str, str], *, has_nic: bool, is_wild: bool = False) -> st.SearchStrategy[Sections]:
    """The sections of one container. Wild ones may ask for what can't be: a plan has to say so."""
    routes, mounts, devices = _route(), _mount(parts), _device(parts)
    if is_wild:
        routes, mounts = _seldom(routes, _wild_route(parts)), _seldom(mounts, _wild_mount(parts))
        devices = _seldom(devices, _wild_device())
    return st.builds(
        _sections,
        devices=st.lists(devices, max_size=3, unique_by=lambda one: one["target"]),
        limits=st.none() | _limits(),
        nics=st.lists(CHOICES(("eth1", "eth2", "eth3")), max_size=3, unique=True).flatmap(
            lambda names: st.tuples(*(_veth(name, parts) for name in names))
        ),
        physical=_physical(parts) if has_nic else st.none(),
        routes=st.lists(routes, max_size=4, unique_by=lambda one: (one["to"], one.get("metric"), one.get("table"))),
        mounts=st.lists(mounts, max_size=4, unique_by=lambda one: one["target"]),
        cgroup=_seldom(_cgroup(), _wild_cgroup()) if is_wild else _cgroup(),
        disk=st.just(parts["disk"]),
    )


def _seldom(usual: st.SearchStrategy[Any], wild: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Most draws have nothing wild in them: else most plans are refused, and nothing more is learnt from them."""
    return st.integers(0, 24).flatmap(lambda number: wild if number == 0 else usual)


def _sections(
    devices: list[dict[str, Any]],
    limits: dict[str, Any] | None,
    nics: tuple[dict[str, Any], ...],
    physical: dict[str, Any] | None,
    routes: list[dict[str, Any]],
    mounts: list[dict[str, Any]],
    cgroup: dict[str, Any],
    disk: str,
) -> Sections:
    """Only routes whose NIC is there, up, and has an address of their family are kept."""
    if limits is not None:
        devices = [*devices, {"source": disk, "target": "/dev/limited", "io": limits}]
    everything = [*nics, *([physical] if physical else [])]
    reached = {
        (nic["name"], ":" in address): address
        for nic in everything
        if nic.get("up", True)
        for address in nic.get("addresses", ())
    }
    usable = []
    for route in routes:
        if "hop" not in route:
            usable.append(route)
            continue
        address = reached.get((route["dev"], ":" in route["to"]))
        if address is None:
            continue
        own = address.partition("/")[0]
        entry = {key: value for key, value in route.items() if key not in _DRAWN}
        if route["hop"] is not None:
            entry |= {"via": own.rstrip("0123456789") + "1", **route["hop"]}
        if route["sourced"]:
            entry["src"] = own
        if not route["by_link"] and entry.keys() & {"via", "src"} and not entry.get("onlink"):
            del entry["dev"]
        usable.append(entry)
    return {"devices": devices, "nics": everything, "routes": usable, "mounts": mounts, "cgroup": cgroup}


def _device(parts: dict[str, str]) -> st.SearchStrategy[dict[str, Any]]:
    needed = {
        "source": CHOICES(("/dev/null", "/dev/zero", parts["disk"])),
        "target": CHOICES(("/dev/d0", "/dev/d1", "/dev/deep/d2")),
    }
    extra = {
        "permissions": CHOICES(("r", "w", "rw", "rwm")),
        "mode": CHOICES(("0600", "0640", "0666")),
        "uid": CHOICES((0, 5)),
        "gid": CHOICES((0, 6)),
        "replace_existing": st.booleans(),
        "required": st.booleans(),
    }
    return st.fixed_dictionaries(needed, optional=extra)


def _limits() -> st.SearchStrategy[dict[str, Any]]:
    return optional(
        read_bps=CHOICES(("1m", "10m", 0)),
        write_bps=CHOICES(("2m",)),
        write_iops=CHOICES((100, 5000)),
        read_iops=CHOICES((7,)),
    )


def _veth(name: str, parts: dict[str, str]) -> st.SearchStrategy[dict[str, Any]]:
    number = name[-1]
    net = parts["net"] + number
    pool = [f"10.{net}.0.5/24", f"10.{net}.0.6/24", f"10.1{net}.0.6/24", f"fd{net}::5/64"]
    return st.fixed_dictionaries(
        {"name": st.just(name)},
        optional={
            "bridge": st.just(parts["bridge"]),
            "addresses": st.lists(CHOICES(pool), max_size=3, unique=True),
            "mac": CHOICES((f"02:5c:{net}:00:00:01", f"02:5c:{net}:00:00:02")),
            "mtu": CHOICES((1400, 1500, 9000)),
            "txqueuelen": CHOICES((100, 1000)),
            "up": st.booleans(),
            "required": st.booleans(),
            "host_name": st.just(f"{parts['end']}{number}"),
        },
    )


def _physical(parts: dict[str, str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"name": CHOICES(("eth4", "eth5")), "type": st.just("physical"), "host_name": st.just(parts["nic"])},
        optional={
            "addresses": st.just([f"10.{parts['net']}4.0.5/24"]),
            "mtu": CHOICES((1300, 1400)),
            "txqueuelen": st.just(77),
        },
    )


def _route() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "to": CHOICES(("default", "10.94.0.0/16", "10.95.7.0/24", "fd94::/64", "::/0")),
            "dev": CHOICES(("eth1", "eth2", "eth3", "eth4")),
            "hop": st.none() | optional(onlink=st.booleans()),
            "sourced": st.booleans(),
            "by_link": st.booleans(),
        },
        optional={"metric": CHOICES((50, 200)), "table": st.just(100), "required": st.booleans()},
    )


def _mount(parts: dict[str, str]) -> st.SearchStrategy[dict[str, Any]]:
    directories = CHOICES((parts["one"], parts["two"], f"{parts['one']}/deep"))
    extra = {
        "read_only": st.booleans(),
        "propagation": CHOICES(("private", "rprivate", "rslave", "slave")),
        "recursive": st.booleans(),
        "required": st.booleans(),
    }
    # /srv/a/deep may lie in a mount of any of the directories, and is there in all of them but those that are made.
    places = CHOICES(("/srv/a", "/srv/a/deep", "/srv/b", "/new/place"))
    of_directories = st.fixed_dictionaries({"source": directories, "target": places}, optional=extra)
    of_files = st.fixed_dictionaries(
        {"source": CHOICES((f"{parts['one']}/file", f"{parts['two']}/file")), "target": st.just("/etc/mounted")},
        optional={"read_only": st.booleans()},
    )
    of_made = st.fixed_dictionaries(
        {
            "source": CHOICES((f"{parts['one']}/made", f"{parts['one']}/made/in", f"{parts['two']}/made")),
            "target": CHOICES(("/srv/a/deep", "/srv/b", "/new/place")),
            "create_source": st.just(True),
        },
        optional=extra,
    )
    return st.one_of(of_directories, of_directories, of_made, of_files)


def _wild_route(parts: dict[str, str]) -> st.SearchStrategy[dict[str, Any]]:
    """Written whatever NICs there are: the gateway may be in no network, the NIC absent or down."""
    net = parts["net"]
    return st.fixed_dictionaries(
        {"to": CHOICES(("default", "10.94.0.0/16", "10.95.7.0/24", "10.60.7.0/24"))},
        optional={
            "via": CHOICES((f"10.{net}1.0.1", f"10.{net}2.0.1", "10.60.0.1", "10.200.0.1")),
            "dev": CHOICES(("eth0", "eth1", "eth2", "eth9")),
            "metric": CHOICES((50, 200)),
        },
    ).filter(lambda one: "via" in one or "dev" in one)


def _wild_mount(parts: dict[str, str]) -> st.SearchStrategy[dict[str, Any]]:
    """At places that may be symlinks, files, read-only, or below one another."""
    return st.fixed_dictionaries(
        {
            "source": CHOICES((parts["one"], parts["two"], f"{parts['one']}/file", f"{parts['one']}/absent")),
            "target": CHOICES(
                (
                    "/link/a",
                    "/link/new/place",
                    "/dangling",
                    "/dangling/in",
                    "/srv/b/in",
                    "/srv/a/new",
                    "/etc/mounted",
                    "/srv/b",
                )
            ),
        },
        optional={"read_only": st.booleans(), "required": st.booleans(), "propagation": CHOICES(("rshared", "rslave"))},
    )


def _wild_device() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "source": CHOICES(("/dev/null", "/dev/zero", "/dev/absent", "/dev")),
            "target": CHOICES(("/srv/a/node", "/srv/b/node", "/link/node", "/dangling", "/etc/mounted", "/dev/d1")),
        },
        optional={"replace_existing": st.booleans(), "required": st.booleans(), "mode": st.just("0640")},
    )


def _wild_cgroup() -> st.SearchStrategy[dict[str, Any]]:
    """CPUs that may not exist, limits that may not go together."""
    return optional(
        **{
            "cpuset.cpus": CHOICES(("0", "0-1", "0-4095")),
            "cpuset.mems": CHOICES(("0", "7")),
            "memory.max": CHOICES(("4k", "64m", "512m")),
            "cpu.idle": CHOICES((0, 1)),
            "cpu.weight": CHOICES((50, 900)),
            "pids.max": CHOICES((50, "max")),
        }
    )


def _cgroup() -> st.SearchStrategy[dict[str, Any]]:
    fields = {
        "memory.max": CHOICES(("64m", "128m", "max")),
        "memory.low": CHOICES(("8m", "16m", 0)),
        "pids.max": CHOICES((50, 100, "max")),
        "cpu.max": CHOICES(("50000 100000", "max", "20000 50000")),
        "cpu.weight": CHOICES((50, 100, 900)),
        "cpu.idle": CHOICES((0, 1)),
        "cpuset.cpus": st.just("0"),
        "cpuset.mems": st.just("0"),
    }
    return optional(**fields)


def damaged(pair: Pair, parts: dict[str, str]) -> st.SearchStrategy[Pair]:
    """The same with entries missing, and with other values of what is written in the others: what drift can be."""
    return st.builds(
        lambda other, random: (_damaged(pair[0], other[0], random), _damaged(pair[1], other[1], random)),
        configurations(parts),
        st.randoms(use_true_random=False),
    )


def _damaged(sections: Sections, other: Sections, random: Random) -> Sections:
    found: Sections = {}
    for section, key in (("devices", ("target",)), ("nics", ("name",)), ("mounts", ("target",))):
        values = {tuple(one.get(name) for name in key): one for one in other[section]}
        found[section] = [
            _mixed(entry, values.get(tuple(entry.get(name) for name in key), {}))
            for entry in sections[section]
            if random.random() < 0.6
        ]
    for device in found["devices"]:
        # What others replace they keep beside it: that is theirs.
        device.pop("replace_existing", None)
    found["cgroup"] = {
        name: other["cgroup"].get(name, value) for name, value in sections["cgroup"].items() if random.random() < 0.6
    }
    is_same_ground = found["nics"] == sections["nics"]
    found["routes"] = [one for one in sections["routes"] if is_same_ground and random.random() < 0.6]
    return found


def _mixed(entry: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The values of another entry for what this one writes, but that it stays the same thing.

    Of lists it has what both have: what others add stays.
    """
    mixed = {}
    for name, value in entry.items():
        there = value if name == "source" else other.get(name, value)
        if isinstance(value, dict):
            mixed[name] = _mixed(value, there)
        else:
            mixed[name] = [item for item in value if item in there] if isinstance(value, list) else there
    return mixed

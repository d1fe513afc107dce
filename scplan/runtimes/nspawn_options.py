"""NICs, mounts, devices and limits that systemd-nspawn gives a machine. systemd-nspawn(1), systemd.nspawn(5)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from scplan.model.provided import ANY_VALUE, Provided
from scplan.runtimes.provided import in_container
from scplan.runtimes.state_files import read_file

_FILES = ("/etc/systemd/nspawn", "/run/systemd/nspawn", "/var/lib/machines")
_MOUNTS = ("bind", "bind-ro", "tmpfs", "overlay", "overlay-ro", "inaccessible")
# Mounts: --timezone, --resolv-conf, --link-journal. Devices: copy_devnodes() in src/nspawn/nspawn.c.
_OWN_MOUNTS = ("/etc/localtime", "/etc/resolv.conf", "/run/systemd/resolve/resolv.conf", "/run/host/os-release")
_OWN_DEVICES = ("/dev/net/tun", "/dev/fuse")
# Options that create the NIC host0.
_VETHS = ("network-veth", "network-bridge", "network-zone")
# By option: the prefix of the NIC's name, if the value does not name the NIC.
_LINKS = {"network-interface": "", "network-macvlan": "mv-", "network-ipvlan": "iv-"}
_SECTIONS = {
    **{key: key.lower() for key in ("Bind", "Inaccessible", "Overlay")},
    "BindReadOnly": "bind-ro",
    "TemporaryFileSystem": "tmpfs",
    "OverlayReadOnly": "overlay-ro",
    "VirtualEthernet": "network-veth",
    "VirtualEthernetExtra": "network-veth-extra",
    "Interface": "network-interface",
    "MACVLAN": "network-macvlan",
    "IPVLAN": "network-ipvlan",
    "Bridge": "network-bridge",
    "Zone": "network-zone",
}
_PROPERTIES = {
    "MemoryMax": "memory.max",
    "MemoryLow": "memory.low",
    "MemoryHigh": "memory.high",
    "MemorySwapMax": "memory.swap.max",
    "TasksMax": "pids.max",
    "CPUQuota": "cpu.max",
    "CPUWeight": "cpu.weight",
    "AllowedCPUs": "cpuset.cpus",
    "AllowedMemoryNodes": "cpuset.mems",
}


def of_nspawn(name: str, arguments: list[str]) -> Provided:
    """NICs, mounts, devices and limits of a machine; `arguments` are its supervisor's, empty for a stopped machine."""
    nics: dict[str, str] = {}
    mounts = dict.fromkeys(_OWN_MOUNTS, "a mount of systemd-nspawn's own")
    devices = dict.fromkeys(_OWN_DEVICES, "a device of systemd-nspawn's own")
    settings: dict[str, frozenset[str]] = {}
    for option, value in (*_in_files(name), *_in_arguments(arguments)):
        if option in _MOUNTS:
            target = in_container(_target(option, value))
            mounts[target] = "a mount of systemd-nspawn's options"
            devices[target] = "a device of systemd-nspawn's options"
        elif option in _VETHS and value not in ("no", "false", "0"):
            nics["host0"] = f"the NIC of --{option}"
        elif option == "network-veth-extra":
            nics[value.rpartition(":")[2]] = f"the NIC of --{option}"
        elif option in _LINKS:
            on_host, _, inside = value.partition(":")
            nics[inside or f"{_LINKS[option]}{on_host}"] = f"the NIC of --{option}"
        elif option == "property":
            setting = _PROPERTIES.get(value.partition("=")[0])
            settings |= {setting: frozenset((ANY_VALUE,))} if setting else {}
    return Provided(nics=nics, mounts=mounts, devices=devices, settings=settings)


def _target(option: str, value: str) -> str:
    """Path in the machine: TARGET of SOURCE:TARGET:OPTIONS, else the only path; of overlays the last path."""
    # systemd-nspawn(1): \: is a colon in a path.
    parts = value.replace("\\:", "\0").split(":")
    if option.startswith("overlay"):
        target = parts[-1]
    else:
        target = parts[1] if len(parts) > 1 and option.startswith("bind") else parts[0]
    return target.lstrip("+-").replace("\0", ":")


def _in_arguments(arguments: list[str]) -> Iterator[tuple[str, str]]:
    words = iter(arguments)
    for word in words:
        if word == "--":
            return
        if word == "-n":
            yield "network-veth", ""
        elif word.startswith("--"):
            option, has_value, value = word[2:].partition("=")
            takes_value = option in (
                *_MOUNTS,
                *_LINKS,
                "network-veth-extra",
                "network-bridge",
                "network-zone",
                "property",
            )
            yield option, value if has_value or not takes_value else next(words, "")


def _in_files(name: str) -> Iterable[tuple[str, str]]:
    for place in _FILES:
        text = read_file(f"{place}/{name}.nspawn")
        if text is not None:
            lines = [line.partition("=") for line in text.decode(errors="replace").splitlines()]
            # A line can list several interfaces, separated by spaces.
            return [
                (_SECTIONS[key.strip()], part)
                for key, _, value in lines
                if key.strip() in _SECTIONS
                for part in value.split() or [""]
            ]
    return []

"""Live state and records of a host in one file, so that a plan can be made on another machine and without root."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from scplan import __version__
from scplan.errors import RecordDamaged
from scplan.kinds.kind import Kinds
from scplan.model.address import Address
from scplan.model.codec import address_from_json, facts_from_json, facts_to_json, from_json, to_json
from scplan.model.live import ContainerFacts, HostFacts, LinkFact, Live, PathFact
from scplan.model.resource import Resource
from scplan.startup import strict_json
from scplan.startup.named_tuple import NamedTuple
from scplan.store.durable import check_version, read_bytes

FORMAT_VERSION = "1.0"
F = TypeVar("F", PathFact, LinkFact)
# `nodes` serves error messages alone, and is not part of the format.
_NOT_KEPT = frozenset({"nodes"})
_STORED_AS = {"int": int, "str": str, "bool": bool}


class Snapshot(NamedTuple):
    """Live state as `observe` returned it, and the owned resources of the records.

    `stale` has an entry for each container that was made again under its name: its name, and the ID of the former
    container, which the records are about.
    """

    live: Live
    owned: Mapping[Address, Resource]
    stale: Mapping[str, str] = MappingProxyType({})


def encode(snapshot: Snapshot) -> str:
    """The snapshot as JSON text."""
    live = snapshot.live
    document = {
        "format_version": FORMAT_VERSION,
        "scplan_version": __version__,
        "host": {
            "paths": {path: _fact_to_json(fact) for path, fact in live.host.paths.items()},
            "links": {name: _fact_to_json(fact) for name, fact in live.host.links.items()},
            "uplinks": sorted(live.host.uplinks),
            "ovs_bridges": sorted(live.host.ovs_bridges),
            "page_size": live.host.page_size,
            "boot_id": live.host.boot_id,
            "machine": live.host.machine,
        },
        "containers": {name: facts_to_json(facts) for name, facts in live.containers.items()},
        "resources": {str(address): to_json(resource) for address, resource in live.resources.items()},
        "owned": {str(address): to_json(resource) for address, resource in snapshot.owned.items()},
        "stale": dict(snapshot.stale),
    }
    return json.dumps(document, indent=1)


def load(path: str, kinds: Kinds) -> Snapshot:
    """The snapshot in a file. Raises RecordDamaged, naming the fault, if this scplan can't read it."""
    content = read_bytes(path)
    if content is None:
        raise RecordDamaged(f"there is no snapshot {path}", hint="`scplan snapshot --out FILE` captures one")
    try:
        document = strict_json.loads(content)
    except ValueError as error:
        raise RecordDamaged(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise RecordDamaged(f"{path} is not a snapshot")
    check_version(document, FORMAT_VERSION, path)
    host, containers = _object(document, "host", path), _object(document, "containers", path)
    facts: dict[str, ContainerFacts] = {name: facts_from_json(name, one, path) for name, one in containers.items()}
    live = Live(
        host=_host(host, path),
        containers=facts,
        resources=_resources(_object(document, "resources", path), kinds, path),
    )
    stale = _object(document, "stale", path) if "stale" in document else {}
    if not all(type(one) is str for one in stale.values()):
        raise RecordDamaged(f"{path}: stale holds something that is no ID")
    return Snapshot(live=live, owned=_resources(_object(document, "owned", path), kinds, path), stale=stale)


def _host(document: dict[str, Any], path: str) -> HostFacts:
    paths, links = _object(document, "paths", path), _object(document, "links", path)
    page_size = document.get("page_size", 4096)
    if type(page_size) is not int or page_size <= 0:
        raise RecordDamaged(f"{path}: page_size is not a number of bytes")
    return HostFacts(
        paths={key: None if fact is None else _fact(PathFact, fact, f"{path}: {key}") for key, fact in paths.items()},
        links={key: _fact(LinkFact, fact, f"{path}: {key}") for key, fact in links.items()},
        uplinks=_names(document, "uplinks", path),
        ovs_bridges=_names(document, "ovs_bridges", path),
        page_size=page_size,
        boot_id=str(document.get("boot_id", "")),
        machine=str(document.get("machine", "")),
    )


def _names(document: dict[str, Any], key: str, path: str) -> frozenset[str]:
    names = document.get(key, [])
    if not isinstance(names, list) or not all(type(name) is str for name in names):
        raise RecordDamaged(f"{path}: {key} is not an array of names")
    return frozenset(names)


def _fact_to_json(fact: PathFact | LinkFact | None) -> dict[str, Any] | None:
    return None if fact is None else {key: one for key, one in fact._asdict().items() if key not in _NOT_KEPT}


def _fact(kind: type[F], document: object, where: str) -> F:
    """The fact in a JSON object. Raises RecordDamaged if an attribute is missing or has another type."""
    if not isinstance(document, dict):
        raise RecordDamaged(f"{where}: not a JSON object")
    values: dict[str, Any] = {}
    for name, annotation in kind.__annotations__.items():
        if name in _NOT_KEPT:
            continue
        value = document.get(name)
        wanted = _STORED_AS.get(annotation, list)
        if type(value) is not wanted:
            raise RecordDamaged(f"{where}: {name} is missing or not of type {wanted.__name__}")
        values[name] = _partitions(value, where) if wanted is list else value
    return kind(**values)


def _partitions(document: Any, where: str) -> tuple[tuple[int, str, str], ...]:
    if not all(isinstance(one, list) and [*map(type, one)] == [int, str, str] for one in document):
        raise RecordDamaged(f"{where}: partitions are malformed")
    return tuple((number, path, numbers) for number, path, numbers in document)


def _resources(document: dict[str, Any], kinds: Kinds, path: str) -> dict[Address, Resource]:
    found: dict[Address, Resource] = {}
    for text, value in document.items():
        address = address_from_json(text, kinds, path)
        found[address] = resource = from_json(kinds[address.kind].record, value, f"{path}: {text}")
        _check(resource, f"{path}: {text}")
    return found


def _check(resource: Resource, where: str) -> None:
    """Raise RecordDamaged for values that are not of their attribute's type: planning computes with IP addresses."""
    for name, attribute, value in resource.leaves():
        if attribute.type is None or value is None:
            continue
        for text in value if attribute.many else (value,):
            try:
                attribute.type.check(text)
            except ValueError as error:
                raise RecordDamaged(f"{where}.{name}: {error}") from None


def _object(document: dict[str, Any], key: str, path: str) -> dict[str, Any]:
    value = document.get(key)
    if not isinstance(value, dict):
        raise RecordDamaged(f"{path}: {key} is missing or not an object")
    return value

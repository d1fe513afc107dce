"""Saved plans: the JSON of a plan, with the configuration that it was made from.

A saved plan is not replayed: it is planned again from its configuration, and refused when that gives other changes. So
it can do nothing that its configuration could not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from scplan.errors import Diagnostic, RecordDamaged, Severity, StalePlan
from scplan.kinds.kind import Kinds
from scplan.model.change import Action, Change, Disruption, Plan
from scplan.model.codec import address_from_json, facts_from_json, from_json
from scplan.model.plan_json import FORMAT_VERSION, plan_to_json
from scplan.model.probe import Probe
from scplan.model.resource import Resource
from scplan.startup import strict_json
from scplan.startup.digest import sha256_hex
from scplan.store.durable import check_version, read_bytes, refuse_writable_by_all, write_document

_EXPLAINED = 5
_COMPARED = ("order", "address", "action", "before", "after", "changed", "managed", "disruption")


def save(path: str, plan: Plan, origin: dict[str, Any], host: dict[str, str]) -> None:
    """Writes the plan for its owner alone.

    `origin` is what it takes to make it again: see workflow. `host` is whose plan it is, as of HostFacts.identity.
    """
    document = plan_to_json(plan) | {"host": host, "origin": origin}
    document["digest"] = _digest(document)
    write_document(path, (json.dumps(document, indent=1) + "\n").encode())


def load_to_apply(path: str, host: dict[str, str]) -> dict[str, Any]:
    """The document of a saved plan that is to be applied here.

    Raises as `load`; ScplanError when everybody could have changed it, StalePlan when it was made for another host.
    """
    refuse_writable_by_all(path)
    document = load(path)
    check_host(path, document, host)
    return document


def check_as_saved(path: str, document: dict[str, Any]) -> None:
    """Raises StalePlan when the file was changed since it was saved."""
    if is_as_saved(document):
        return
    raise StalePlan(
        f"{path} is stale: it was changed since it was saved",
        detail="its digest does not fit what it holds",
        hint="make a new plan, and review it again",
    )


def is_as_saved(document: dict[str, Any]) -> bool:
    """True if nothing in the document was changed since it was saved.

    Plans saved by earlier versions have no digest. For these, and whoever takes it out, all that an apply obeys is
    compared with what planning again gives.
    """
    return "digest" not in document or bool(document["digest"] == _digest(document))


def _digest(document: dict[str, Any]) -> str:
    """The same for documents that hold the same, apart from their digests and the host, which is compared by itself."""
    rest = {key: value for key, value in document.items() if key not in ("digest", "host")}
    return f"sha256:{sha256_hex(json.dumps(rest, sort_keys=True, separators=(',', ':')).encode())}"


def load(path: str) -> dict[str, Any]:
    """The document of a saved plan. Raises RecordDamaged when the file is not one that this scplan can read."""
    content = read_bytes(path)
    if content is None:
        raise RecordDamaged(f"there is no plan {path}", hint="`scplan plan --out FILE` saves one")
    try:
        document = strict_json.loads(content)
    except ValueError as error:
        raise RecordDamaged(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("changes"), list):
        raise RecordDamaged(f"{path} is not a saved plan")
    check_version(document, FORMAT_VERSION, path)
    origin = document.get("origin")
    if not isinstance(origin, dict):
        raise RecordDamaged(f"{path} has no origin: it is not a plan saved with --out")
    if not all(isinstance(origin.get(key, []), list) for key in ("targets", "excludes")):
        raise RecordDamaged(f"{path}: targets or excludes are not lists")
    return document


def check_host(path: str, document: dict[str, Any], host: dict[str, str]) -> None:
    """Raises StalePlan when the plan was made for another host, or before this one was restarted."""
    saved = document.get("host", {})
    if not isinstance(saved, dict):
        raise RecordDamaged(f"{path}: host is not an object")
    # Plans of before this was saved don't say it, and a host may have no machine ID.
    differing = [key for key in ("machine", "boot_id") if saved.get(key) and host[key] and saved[key] != host[key]]
    if not differing:
        return
    known_machine = saved.get("machine") and host["machine"]
    detail = "the host was restarted since" if known_machine and "machine" not in differing else "it is another host's"
    raise StalePlan(
        f"{path} was not made for this host as it runs now",
        detail=detail,
        hint="make a new plan here, and review it again",
    )


def check_unchanged(path: str, document: dict[str, Any], plan: Plan) -> None:
    """Raises StalePlan, naming the first changes that differ, when `plan` is not what was saved."""
    now = plan_to_json(plan)
    saved = _changes(document, path)
    current = _changes(now, path)
    others = [*_other_containers(document, now), *_other_orders(document, now)]
    if saved == current and not others:
        return
    named = [address for address in {**saved, **current} if saved.get(address) != current.get(address)]
    lines = others + [
        line for address in named[:_EXPLAINED] for line in _explain(address, saved.get(address), current.get(address))
    ]
    if len(named) > _EXPLAINED:
        lines.append(f"and {len(named) - _EXPLAINED} more changes")
    raise StalePlan(
        f"{path} is stale: the host is not as it was when the plan was saved",
        detail="\n".join(lines),
        hint="make a new plan, and review it again",
    )


def _explain(address: str, saved: dict[str, Any] | None, current: dict[str, Any] | None) -> Iterator[str]:
    """A line for each value of a change that is another one now."""
    if saved is None or current is None:
        yield f"{address}: {'not in the saved plan' if saved is None else 'not needed any more'}"
        return
    # Imported where a plan is refused, and nowhere else: it takes longer than planning does.
    from deepdiff import DeepDiff

    for found in DeepDiff(saved, current, view="tree").values():
        for item in found:
            path = ".".join(str(part) for part in item.path(output_format="list"))
            if path.endswith("_identity"):
                yield f"{address}: its source is another file or directory now"
            else:
                yield f"{address}: {path or 'it'} was {item.t1}, is {item.t2}"


def view(document: dict[str, Any], path: str, kinds: Kinds) -> Plan:
    """The plan that a document shows, without what it takes to execute it."""
    containers = document.get("containers")
    if not isinstance(containers, dict):
        raise RecordDamaged(f"{path}: containers are missing")
    return Plan(
        containers={name: facts_from_json(name, facts, path) for name, facts in containers.items()},
        changes=tuple(_change(change, path, kinds) for change in document["changes"]),
        operations=(),
        refreshed={},
        modules=_modules(document, "modules", path),
        new_modules=_modules(document, "new_modules", path),
        probes=tuple(_probes(document, path)),
        diagnostics=tuple(_diagnostics(document, path)),
    )


def _modules(document: dict[str, Any], key: str, path: str) -> dict[str, tuple[str, ...]]:
    modules = document.get(key, {})
    if not isinstance(modules, dict) or not all(isinstance(names, list) for names in modules.values()):
        raise RecordDamaged(f"{path}: {key} are no lists by container")
    return {name: tuple(map(str, names)) for name, names in modules.items()}


def _probes(document: dict[str, Any], path: str) -> Iterator[Probe]:
    probes = document.get("probes", [])
    for one in probes if isinstance(probes, list) else [{}]:
        seconds = one.get("timeout_s") if isinstance(one, dict) else None
        if not isinstance(one, dict) or not isinstance(seconds, int | float) or isinstance(seconds, bool):
            raise RecordDamaged(f"{path}: probes are no list of commands with time limits")
        yield Probe(str(one.get("command")), float(seconds))


def _diagnostics(document: dict[str, Any], path: str) -> Iterator[Diagnostic]:
    """The warnings of the plan when it was made, without their places in the files."""
    diagnostics = document.get("diagnostics", [])
    for one in diagnostics if isinstance(diagnostics, list) else [{}]:
        try:
            severity = Severity(one["severity"])
            yield Diagnostic(str(one["summary"]), str(one["detail"]), str(one["hint"]), severity=severity)
        except (KeyError, TypeError, ValueError):
            raise RecordDamaged(f"{path}: diagnostics are no list of warnings") from None


def _change(document: object, path: str, kinds: Kinds) -> Change:
    if not isinstance(document, dict):
        raise RecordDamaged(f"{path}: a change is not a JSON object")
    address = address_from_json(document.get("address"), kinds, path)
    record = kinds[address.kind].record
    sides = {
        side: None if document.get(side) is None else from_json(record, document[side], f"{path}: {address}")
        for side in ("before", "after", "managed")
    }
    try:
        return Change(
            order=_order(document),
            address=address,
            action=Action(document["action"]),
            reason=str(document.get("reason", "")),
            before=sides["before"],
            after=sides["after"],
            managed=sides["managed"],
            owned=None,
            changed=_changed(document, record),
            disruption=Disruption(document.get("disruption", "none")),
            effect=str(document.get("effect", "")),
            requires=tuple(address_from_json(text, kinds, path) for text in document.get("requires", ())),
            at_next_start=document.get("at_next_start") is True,
            put_back=_texts(document, "put_back"),
            lost=_texts(document, "lost"),
            taken_along=_texts(document, "taken_along"),
            records_only=document.get("records_only") is True,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RecordDamaged(f"{path}: {address}: {error}") from None


def _changed(document: dict[str, Any], record: type[Resource]) -> tuple[str, ...]:
    changed = document.get("changed", [])
    if not isinstance(changed, list) or not set(record.paths()).issuperset(map(str, changed)):
        raise TypeError("what changed is no list of its attributes")
    return tuple(map(str, changed))


def _texts(document: dict[str, Any], key: str) -> tuple[str, ...]:
    texts = document.get(key, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{key} is no list of texts")
    return tuple(texts)


def _order(document: dict[str, Any]) -> int:
    order = document["order"]
    if type(order) is not int:
        raise TypeError(f"order {order!r} is no number of a change")
    return order


def _changes(document: dict[str, Any], path: str) -> dict[str, Any]:
    changes = {}
    for change in document["changes"]:
        if not isinstance(change, dict):
            raise RecordDamaged(f"{path}: a change is not a JSON object")
        # Plans saved by earlier versions have no list of what is lost.
        compared = {key: change.get(key) for key in _COMPARED} | {"lost": change.get("lost", [])}
        changes[str(change.get("address"))] = compared
    return changes


def _other_containers(document: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """A line for each container that is not the one that was planned for."""
    saved, current = document.get("containers"), now["containers"]
    saved = saved if isinstance(saved, dict) else {}
    for name in {**saved, **current}:
        facts, there = saved.get(name), current.get(name)
        if not isinstance(facts, dict) or there is None:
            yield f"{name}: {'not meant any more' if there is None else 'not in the saved plan'}"
            continue
        # Plans of before this was saved have no start time.
        differing = [key for key, value in there.items() if key in facts and facts[key] != value]
        if not {"runtime", "id", "place"}.isdisjoint(differing):
            yield f"{name}: it is another container of that name: was {_named(facts)}, is {_named(there)}"
        elif differing:
            yield f"{name}: its first process is another process: it was {_told(facts)}, is {_told(there)}"


def _other_orders(document: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """A line for each thing besides changes that an apply would obey, and that is not as it was saved."""
    for key, words in (("modules", "kernel modules"), ("new_modules", "modules in the records"), ("probes", "probes")):
        saved, current = document.get(key, type(now[key])()), now[key]
        if saved != current:
            yield f"{words}: were {json.dumps(saved)}, are {json.dumps(current)}"


def _named(facts: dict[str, Any]) -> str:
    place = f" in {facts['place']}" if facts.get("place") else ""
    return f"{facts.get('runtime')} {facts.get('id')}{place}"


def _told(facts: dict[str, Any]) -> str:
    started = f", started at tick {facts['start_time']}" if facts.get("start_time") else ""
    return f"{facts.get('status')}, pid {facts.get('pid')}{started}"

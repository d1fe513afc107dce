"""Saved plans: the JSON of a plan, with the configuration from which it was made.

The operations of a saved plan are not replayed. scplan plans again from the configuration in the file, and refuses the
saved plan if the changes differ. So a forged file can do nothing that its configuration could not do.
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
    """Write the plan to `path`, readable by its owner alone.

    `origin` is the input from which workflow makes the plan again. `host` is HostFacts.identity of the plan's host.
    """
    document = plan_to_json(plan) | {"host": host, "origin": origin}
    document["digest"] = _digest(document)
    write_document(path, (json.dumps(document, indent=1) + "\n").encode())


def load_to_apply(path: str, host: dict[str, str]) -> dict[str, Any]:
    """Document of a saved plan that is to be applied on this host.

    Raises RecordDamaged as `load` does, ScplanError if the file is world-writable, StalePlan if the plan was made for
    another host.
    """
    refuse_writable_by_all(path)
    document = load(path)
    check_host(path, document, host)
    return document


def check_as_saved(path: str, document: dict[str, Any]) -> None:
    """Raise StalePlan if the file was changed since it was saved."""
    if is_as_saved(document):
        return
    raise StalePlan(
        f"{path} is stale: it was changed since it was saved",
        detail="its digest does not fit what it holds",
        hint="make a new plan, and review it again",
    )


def is_as_saved(document: dict[str, Any]) -> bool:
    """True if the document matches its digest, or has none.

    Earlier versions saved no digest, and an attacker can remove it. `check_unchanged` covers both: it compares
    everything that an apply depends on with a new plan.
    """
    return "digest" not in document or bool(document["digest"] == _digest(document))


def _digest(document: dict[str, Any]) -> str:
    """Digest of a document without its own digest and without the host, which `check_host` compares."""
    # sort_keys: a file whose JSON was formatted anew by another program keeps its digest.
    rest = {key: value for key, value in document.items() if key not in ("digest", "host")}
    return f"sha256:{sha256_hex(json.dumps(rest, sort_keys=True, separators=(',', ':')).encode())}"


def load(path: str) -> dict[str, Any]:
    """Document of a saved plan. Raises RecordDamaged if the file is not a saved plan that this scplan can read."""
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
    """Raise StalePlan if the plan was made for another host, or before this host was rebooted."""
    saved = document.get("host", {})
    if not isinstance(saved, dict):
        raise RecordDamaged(f"{path}: host is not an object")
    # Plans of earlier versions have no host, and a host may have no machine ID.
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
    """Raise StalePlan, with the first differences, if the new plan `plan` differs from the saved one."""
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
    """Yield a line for each value in which a saved change and the current one differ."""
    if saved is None or current is None:
        yield f"{address}: {'not in the saved plan' if saved is None else 'not needed any more'}"
        return
    # Imported only when a plan is refused: the import takes longer than planning.
    from deepdiff import DeepDiff

    for found in DeepDiff(saved, current, view="tree").values():
        for item in found:
            path = ".".join(str(part) for part in item.path(output_format="list"))
            if path.endswith("_identity"):
                yield f"{address}: its source is another file or directory now"
            else:
                yield f"{address}: {path or 'it'} was {item.t1}, is {item.t2}"


def view(document: dict[str, Any], path: str, kinds: Kinds) -> Plan:
    """The plan in a document, for display: it has no operations and can't be executed. Raises RecordDamaged."""
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
    """Warnings of the plan from when it was made, without their positions in the configuration files."""
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
        # Plans of earlier versions have no `lost`.
        compared = {key: change.get(key) for key in _COMPARED} | {"lost": change.get("lost", [])}
        changes[str(change.get("address"))] = compared
    return changes


def _other_containers(document: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each container that differs from the saved one: another container, or another process."""
    saved, current = document.get("containers"), now["containers"]
    saved = saved if isinstance(saved, dict) else {}
    for name in {**saved, **current}:
        facts, there = saved.get(name), current.get(name)
        if not isinstance(facts, dict) or there is None:
            yield f"{name}: {'not meant any more' if there is None else 'not in the saved plan'}"
            continue
        # Only keys of the saved plan: those of earlier versions have no start time.
        differing = [key for key, value in there.items() if key in facts and facts[key] != value]
        if not {"runtime", "id", "place"}.isdisjoint(differing):
            yield f"{name}: it is another container of that name: was {_named(facts)}, is {_named(there)}"
        elif differing:
            yield f"{name}: its first process is another process: it was {_told(facts)}, is {_told(there)}"


def _other_orders(document: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Yield a line for kernel modules and probes, on which an apply depends besides the changes, where they differ."""
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

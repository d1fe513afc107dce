"""Short texts for resources and changes: `mtu 1500 → 1400`, `source /dev/sdb, rwm, read_bps 10 MiB/s`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from scplan.errors import Severity
from scplan.model.address import Address
from scplan.model.change import Action, Change, Plan
from scplan.model.comparison import differences
from scplan.model.live import ContainerFacts
from scplan.model.resource import Attribute, Resource, Role
from scplan.render.lines import visible

if TYPE_CHECKING:
    from scplan.model.probe import Probe

SYMBOLS = {
    Action.CREATE: "+",
    Action.UPDATE: "~",
    Action.REPLACE: "-/+",
    Action.DELETE: "-",
    Action.ADOPT: "=",
    Action.RELEASE: "=",
}
_NOTABLE = frozenset({Role.REFERENCE, Role.MANAGED, Role.FIXED})
AT_NEXT_START = "at next start"
_COUNTED = {
    Action.CREATE: "to add",
    Action.UPDATE: "to change",
    Action.REPLACE: "to replace",
    Action.DELETE: "to remove",
    Action.ADOPT: "to adopt",
    Action.RELEASE: "to release",
}
_ALWAYS_COUNTED = frozenset({Action.CREATE, Action.UPDATE, Action.DELETE})


def container_words(name: str, facts: ContainerFacts | None) -> tuple[str, str]:
    """(name, facts such as `(runc, running, pid 4242)`). The facts are empty for a container that no runtime knows."""
    if facts is None:
        return visible(name), ""
    words = [facts.runtime, *([f"now {facts.renamed_to}"] if facts.renamed_to else []), str(facts.status)]
    if facts.pid:
        words.append(f"pid {facts.pid}")
    return visible(name), visible(f"({', '.join(words)})")


def resource_name(address: Address, resource: Resource | None) -> str:
    """Kind and identity of a resource, paths with their leading slash: `device /dev/sdb123`."""
    return visible(f"{address.kind} {_as_written(address.identity, resource)}")


def _as_written(identity: str, resource: Resource | None) -> str:
    for attribute in resource.attributes() if resource else ():
        if attribute.role is Role.IDENTITY:
            value = str(getattr(resource, attribute.name))
            if value.lstrip("/") == identity:
                return value
    return identity


def change_words(change: Change) -> str:
    """Text of a change, such as its differences; "" if the resource's name suffices."""
    match change.action:
        case Action.CREATE if change.before is not None and change.managed is not None:
            taken_over = differences(change.managed, change.before)
            return difference_words(taken_over, change.before, change.after)
        case Action.RELEASE:
            return "stays as it is, and is scplan's no longer"
        case Action.CREATE | Action.ADOPT:
            return resource_words(change.after, change.managed)
        case Action.UPDATE | Action.REPLACE if change.changed:
            return difference_words(change.changed, change.before, change.after)
        case Action.DELETE:
            return former_words(change.before)
        case _:
            return resource_words(change.after, change.managed)


def effect_words(change: Change) -> str:
    """The interruption by a change; the reason of a replacement that changes no value; or "at next start"."""
    if change.waits:
        return AT_NEXT_START
    if not change.effect and change.action is Action.REPLACE and not change.changed:
        return visible(change.reason)
    return visible(change.effect)


def resource_words(resource: Resource | None, managed: Resource | None = None) -> str:
    """Text of the notable attributes of a resource: without identity, policies and defaults.

    With `managed` only attributes that it sets.
    """
    if resource is None:
        return ""
    return ", ".join(
        _attribute_words(resource, path, attribute, value)
        for path, attribute, value in resource.leaves()
        if value is not None
        and value != ()
        and attribute.role in _NOTABLE
        and not _goes_without_saying(resource, path, attribute, value)
        and (managed is None or managed.get(path) is not None)
    )


def _goes_without_saying(resource: Resource, path: str, attribute: Attribute, value: Any) -> bool:
    """True for an attribute with its default value, unless its values are shown without the name (`rwm`)."""
    is_spoken = attribute.type is not None and attribute.type.shown_without_name
    return "." not in path and not is_spoken and resource.default(path) == value


def _attribute_words(resource: Resource, path: str, attribute: Attribute, value: Any) -> str:
    label = _label(path)
    if value is True:
        return label
    text = visible(resource.shown(path, value))
    if not label or (attribute.type is not None and attribute.type.shown_without_name):
        return text
    return f"{label} {text}"


def difference_words(changed: Iterable[str], before: Resource | None, after: Resource | None) -> str:
    """Text of the attributes at these dotted paths, before and after: `mtu 1500 → 1400, addresses +10.0.0.5/24`."""
    known = before or after
    if known is None:
        return ""
    return ", ".join(
        _difference(known, path, before and before.get(path), after and after.get(path))
        for path in _with_references(changed, known, before, after)
    )


def _with_references(
    changed: Iterable[str], known: Resource, before: Resource | None, after: Resource | None
) -> list[str]:
    """The paths, with those of changed references first and without resolved ones, which they replace.

    `source /a → /b` is clearer than the device numbers of both.
    """
    references = [attribute.name for attribute in known.attributes() if attribute.role is Role.REFERENCE]
    renamed = [name for name in references if before and after and before.get(name) != after.get(name)]
    left = (path for path in changed if path not in renamed)
    return renamed + [path for path in left if not renamed or known.attribute(path).role is not Role.RESOLVED]


def _difference(known: Resource, path: str, before: Any, after: Any) -> str:
    attribute = known.attribute(path)
    if attribute.type is not None and attribute.type.opaque:
        named = next((one.name for one in known.attributes() if one.role is Role.REFERENCE), path)
        return f"{named} is another file or directory now"
    label = f"{_label(path)} ".lstrip()
    if attribute.many:
        return f"{label}{_elements(attribute, before or (), after or ())}"
    return visible(f"{label}{known.shown(path, before)} → {known.shown(path, after)}")


def _elements(attribute: Attribute, before: tuple[Any, ...], after: tuple[Any, ...]) -> str:
    added = [f"+{attribute.show(item)}" for item in after if item not in before]
    removed = [f"-{attribute.show(item)}" for item in before if item not in after]
    return visible(" ".join(added + removed) or "in another order")


def former_words(resource: Resource | None) -> str:
    """Text of the former values that are restored when the resource is removed: `mtu was 1500`."""
    return ", ".join(
        f"{label} was {visible(resource.shown(path, value))}".lstrip()
        for path, attribute, value in (resource.leaves() if resource else ())
        if resource is not None
        and attribute.role is Role.FORMER
        and value not in (None, (), "")
        and (label := _former(path)) is not None
    )


def _former(path: str) -> str | None:
    """`mtu` of `former_mtu`, `limits` of `limits_before`; None for a FORMER attribute that is not a former value."""
    name = path.rpartition(".")[2]
    if name == "former":
        return ""
    label = name.removeprefix("former_").removesuffix("_before")
    return None if label == name else label


def _label(path: str) -> str:
    """`read_bps` of `io.read_bps`; "" for the `value` of a cgroup setting, whose name is its identity."""
    name = path.rpartition(".")[2]
    return "" if name == "value" else name


def summary_words(counts: Mapping[Action, int]) -> str:
    """Summary of counts: `Plan: 1 to add, 0 to change, 0 to remove.`; other actions only if there are any."""
    if not any(counts.values()):
        return "No changes."
    parts = [
        f"{counts.get(action, 0)} {words}"
        for action, words in _COUNTED.items()
        if counts.get(action) or action in _ALWAYS_COUNTED
    ]
    return f"Plan: {', '.join(parts)}."


def plan_summary_words(plan: Plan) -> str:
    """Summary of a plan's changes; of its kernel modules, if only the modules in records change."""
    if not plan.changes and plan.new_modules:
        return f"Plan: kernel modules of {counted(len(plan.new_modules), 'container')} to record."
    if not plan.changes and any(one.severity is Severity.ERROR for one in plan.diagnostics):
        # The errors are about containers that the plan omits: these must not be reported as unchanged.
        return "No changes in the containers whose state is known." if plan.containers else "Nothing could be planned."
    return summary_words(plan.summary())


def side_effect_words(change: Change) -> list[str]:
    """Texts of the objects of others that a change removes: `also: 3 routes of others over eth1, put back`."""
    texts = [f"also: {visible(text)}, put back" for text in change.put_back]
    texts += [f"also goes: {visible(text)}" for text in change.taken_along]
    return texts + [f"can't be brought back: {visible(text)}" for text in change.lost]


def module_words(container: str, names: Iterable[str]) -> str:
    """Text of the kernel modules of a container: `web: kernel modules dummy, wireguard, recorded`."""
    listed = visible(", ".join(names))
    return f"{visible(container)}: " + (f"kernel modules {listed}" if listed else "no kernel modules") + ", recorded"


def probe_words(probe: Probe) -> str:
    """Text of a probe in a plan: `then: ping -c 1 10.0.0.1, within 30 s, else all is undone`."""
    return f"then: {visible(probe.command)}, within {duration_words(probe.timeout_s)}, else all is undone"


def duration_words(seconds: float) -> str:
    """Text of a duration: `60 s`, `15 min`, `2 h`."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length and not seconds % length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.10g} s"


def moment_words(seconds: float) -> str:
    """Local time of a moment in seconds since the epoch: `2026-11-23 15:12:29`."""
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 resource`, `2 resources`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

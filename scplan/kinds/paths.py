"""Targets of the kinds that put files into a container, and which targets lie below others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from scplan.linux.container import Container
from scplan.model.address import Address
from scplan.model.change import Change
from scplan.model.resource import Resource

_KERNEL_TREES = ("/proc", "/sys")


def check_target(target: str) -> None:
    """Raise ValueError for targets that would break every container: /, /proc and /sys, and all below these two."""
    if target == "/":
        raise ValueError("the target / is the container's root")
    for tree in _KERNEL_TREES:
        if target == tree or target.startswith(tree + "/"):
            raise ValueError(f"the target {target} is in {tree}, which belongs to the kernel")


def identity_of(target: str) -> str:
    """Identity of a resource with this target: the target without its leading slash."""
    return target.removeprefix("/")


def merged_paths(known: tuple[str, ...] | None, missing: tuple[str, ...]) -> tuple[str, ...]:
    """Both lists, outermost first. All paths lead to one target, so a longer path lies deeper."""
    return tuple(sorted({*(known or ()), *missing}, key=len))


def covering(address: Address, target: str, others: Mapping[Address, Resource]) -> Iterable[Address]:
    """Addresses of the mounts in `others` that the target lies in."""
    for other in others:
        if other.kind == "mount" and other != address and target.startswith(f"/{other.identity}/"):
            yield other


def shows_again(
    container: Container, target: str, changes: Iterable[Change], after: Mapping[Address, Resource]
) -> bool:
    """True if a mount of scplan hides the target now, and the plan removes it with no other mount in its place.

    The target can't be inspected before that removal.
    """
    removed = [f"/{one.address.identity}" for one in changes if one.address.kind == "mount" and one.after is None]
    around = [point for point in removed if target == point or target.startswith(f"{point}/")]
    # A mount that is gone already hides nothing.
    around = [point for point in around if (there := container.status(point)) is not None and there.is_mount_root]
    if not around:
        return False
    innermost = max(map(len, around))
    staying = (address.identity for address in after if address.kind == "mount")
    return not any(len(point) + 1 >= innermost and target.startswith(f"/{point}/") for point in staying)


def below(address: Address, target: str, others: Mapping[Address, Resource]) -> Iterable[Address]:
    """Addresses of the resources in `others` with a target below this one."""
    for other, resource in others.items():
        there = getattr(resource, "target", None)
        if other != address and there is not None and there.startswith(target.rstrip("/") + "/"):
            yield other

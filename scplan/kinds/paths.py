"""What kinds that put files into a container share: targets, and which of them lie below others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from scplan.model.address import Address
from scplan.model.change import Change
from scplan.model.resource import Resource

_KERNEL_TREES = ("/proc", "/sys")


def check_target(target: str) -> None:
    """Raises ValueError for targets that would break every container: /, /proc and /sys, and all below these."""
    if target == "/":
        raise ValueError("the target / is the container's root")
    for tree in _KERNEL_TREES:
        if target == tree or target.startswith(tree + "/"):
            raise ValueError(f"the target {target} is in {tree}, which belongs to the kernel")


def identity_of(target: str) -> str:
    """The part of an address that a target is: without its leading slash."""
    return target.removeprefix("/")


def merged_paths(known: tuple[str, ...] | None, missing: tuple[str, ...]) -> tuple[str, ...]:
    """Both, outermost first. All of them lead to one target, so that a longer one lies deeper."""
    return tuple(sorted({*(known or ()), *missing}, key=len))


def covering(address: Address, target: str, others: Mapping[Address, Resource]) -> Iterable[Address]:
    """Mounts in `others` that the target lies in."""
    for other in others:
        if other.kind == "mount" and other != address and target.startswith(f"/{other.identity}/"):
            yield other


def shows_again(target: str, changes: Iterable[Change], after: Mapping[Address, Resource]) -> bool:
    """True if a mount of scplan's hides the target's place now, and the plan takes it out with nothing in its place.

    Nobody can look at such a place before.
    """
    removed = [f"/{one.address.identity}" for one in changes if one.address.kind == "mount" and one.after is None]
    around = [point for point in removed if target == point or target.startswith(f"{point}/")]
    if not around:
        return False
    innermost = max(map(len, around))
    staying = (address.identity for address in after if address.kind == "mount")
    return not any(len(point) + 1 >= innermost and target.startswith(f"/{point}/") for point in staying)


def below(address: Address, target: str, others: Mapping[Address, Resource]) -> Iterable[Address]:
    """Resources in `others` with a target below this one."""
    for other, resource in others.items():
        there = getattr(resource, "target", None)
        if other != address and there is not None and there.startswith(target.rstrip("/") + "/"):
            yield other

"""The resources before and after a plan, and which resources require, hide or claim each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from scplan.errors import PlanError
from scplan.kinds.kind import Claim, Kinds
from scplan.model.address import Address, Selection
from scplan.model.change import Action, Disruption
from scplan.model.comparison import as_recorded
from scplan.model.live import Live
from scplan.model.resource import Resource
from scplan.startup.named_tuple import NamedTuple

REMADE = "gone until it is made again"


class Draft(NamedTuple):
    """A change without a number yet. `cause` is the address of the change that takes this resource down.

    The other fields are as in Change.
    """

    address: Address
    action: Action
    reason: str
    before: Resource | None
    after: Resource | None
    managed: Resource | None
    owned: Resource | None
    changed: tuple[str, ...] = ()
    disruption: Disruption = Disruption.NONE
    effect: str = ""
    cause: Address | None = None
    at_next_start: bool = False
    at_once: bool = False

    def interrupting(self, disruption: Disruption, effect: str) -> Draft:
        """Copy of the draft with its disruption, and the effect in words."""
        return self._replace(disruption=disruption, effect=effect)


class Dependencies:
    """The resources before and after a plan, with their dependencies; adds drafts for resources that drafts take down.

    Only containers with drafts are looked at. "Before" are the owned resources with their live values, "after" the
    desired resources.
    """

    def __init__(
        self,
        kinds: Kinds,
        drafts: dict[Address, Draft],
        *,
        desired: Mapping[Address, Resource],
        owned: Mapping[Address, Resource],
        live: Live,
    ) -> None:
        self.kinds = kinds
        self.drafts = drafts
        self._owned = owned
        self._live = live
        self._memo: dict[tuple[bool, Address], list[Address]] = {}
        self._before: dict[str, dict[Address, Resource]] = {}
        self._after: dict[str, dict[Address, Resource]] = {}
        touched = {address.container for address in drafts}
        for address, resource in owned.items():
            if address.container in touched:
                # The live resource decides about dependencies; a resource that is gone keeps its recorded ones.
                there = live.resources.get(address)
                self._before.setdefault(address.container, {})[address] = (
                    as_recorded(there, resource) if there is not None else resource
                )
        for address, resource in desired.items():
            if address.container in touched:
                self._after.setdefault(address.container, {})[address] = resource

    def required_before(self, address: Address) -> list[Address]:
        """Addresses that the resource depends on before the plan."""
        return self._required(address, False)

    def required_after(self, address: Address) -> list[Address]:
        """Addresses that the resource will depend on after the plan."""
        return self._required(address, True)

    def _required(self, address: Address, after: bool) -> list[Address]:
        key = (after, address)
        if key not in self._memo:
            others = (self._after if after else self._before).get(address.container, {})
            resource = others.get(address)
            needed = () if resource is None else self.kinds[address.kind].requires(resource, others, address)
            self._memo[key] = [other for other in needed if other != address]
        return self._memo[key]

    def hidden_by(self, draft: Draft) -> list[Address]:
        """Addresses that a creation would hide, such as mounts below its target."""
        if draft.after is None or draft.action not in (Action.CREATE, Action.REPLACE):
            return []
        before = self._before.get(draft.address.container, {})
        return list(self.kinds[draft.address.kind].hides(draft.address, draft.after, before))

    def would_stand_on(self, draft: Draft) -> list[Address]:
        """Addresses that a creation would depend on if it came first.

        The plan deletes some of them: these deletions must come before the creation.
        """
        before = self._before.get(draft.address.container)
        if not before or draft.after is None or draft.action not in (Action.CREATE, Action.REPLACE):
            return []
        return list(self.kinds[draft.address.kind].requires(draft.after, before, draft.address))

    def claims(self, address: Address, resource: Resource | None) -> list[Claim]:
        """Claims of the resource on things of the host; none for None."""
        return [] if resource is None else list(self.kinds[address.kind].claims(address, resource))

    def select(self, selection: Selection) -> None:
        """Keep the selected drafts, the drafts that they depend on, and the drafts of resources that go with them.

        An excluded dependency is left out. Raises PlanError when a draft that goes with a selected one is excluded.
        """
        if selection.is_everything:
            return
        chosen = {address for address in self.drafts if address in selection}
        excluded = Selection((), selection.excludes)
        # Each added draft can need further drafts: repeat until nothing is added.
        waiting = list(chosen)
        while waiting:
            address = waiting.pop()
            going = self._going_with(address) - chosen
            refused = [other for other in going if other not in excluded]
            if refused:
                raise PlanError(
                    f"{min(refused)} goes with {address}, and is excluded",
                    hint=f"exclude {address} as well, or take both",
                )
            needed = {other for other in self.required_after(address) if other in self.drafts and other in excluded}
            waiting += (going | needed) - chosen
            chosen |= going | needed
        self.drafts = {address: draft for address, draft in self.drafts.items() if address in chosen}

    def _going_with(self, address: Address) -> set[Address]:
        """Addresses of the drafts whose resources depend on a resource that is removed or replaced."""
        if self.drafts[address].action not in (Action.DELETE, Action.REPLACE):
            return set()
        alongside = (other for other in self.drafts if other.container == address.container)
        return {other for other in alongside if address in self.required_before(other)}

    def draw_in_dependents(self) -> None:
        """Add re-creations of the resources that a change takes down or hides, until no more are found."""
        waiting = list(self.drafts.values())
        while waiting:
            cause = waiting.pop()
            for address in self._taken_down_by(cause):
                draft = self._recreation(address, cause)
                if draft is not None:
                    self.drafts[address] = draft
                    waiting.append(draft)

    def break_circle(self, addresses: Iterable[Address]) -> bool:
        """Turn one of the updates into a replacement, and re-create the resources that it takes down.

        Returns False if none of the addresses has an update that can become a replacement.
        """
        for address in addresses:
            draft = self.drafts.get(address)
            if draft is None or draft.action is not Action.UPDATE:
                continue
            # A replacement has two operations: the changes that wait can come between removal and creation.
            made_again = self._recreation(address, draft)
            if made_again is not None:
                reason = "trades what it has on the host with another one, and is made again"
                made_again = made_again._replace(cause=None, reason=reason).interrupting(Disruption.RECREATE, REMADE)
                self.drafts[address] = made_again
                self.draw_in_dependents()
                return True
        return False

    def _taken_down_by(self, cause: Draft) -> Iterable[Address]:
        """Addresses that the change hides, or that depend on its resource and are interrupted by it."""
        yield from self.hidden_by(cause)
        takes_down = cause.action in (Action.REPLACE, Action.DELETE) or cause.disruption is not Disruption.NONE
        if takes_down and cause.action is not Action.CREATE:
            for address, resource in self._before.get(cause.address.container, {}).items():
                if cause.address in self.required_before(address) and self._is_interrupted(address, resource, cause):
                    yield address

    def _is_interrupted(self, address: Address, resource: Resource, cause: Draft) -> bool:
        if cause.action is not Action.UPDATE or cause.before is None or cause.after is None:
            return True
        return self.kinds[address.kind].is_interrupted(resource, cause.address, cause.before, cause.after)

    def _recreation(self, address: Address, cause: Draft) -> Draft | None:
        """Replacement of a resource that the plan keeps; None if the plan creates, replaces or deletes it anyway."""
        # An update of the same resource becomes part of its replacement.
        planned = self.drafts.get(address)
        if planned is not None and planned.action is not Action.UPDATE:
            return None
        desired = self._after.get(address.container, {}).get(address)
        live = self._live.resources.get(address)
        if desired is None or live is None:
            return None
        owned = self._owned[address]
        return Draft(
            address=address,
            action=Action.REPLACE,
            reason="",
            before=as_recorded(live, owned),
            after=self.kinds[address.kind].completed(address, desired, self._live.host),
            managed=desired,
            owned=owned,
            changed=planned.changed if planned else (),
            disruption=Disruption.RECREATE,
            cause=cause.address,
        )

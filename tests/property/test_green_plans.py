"""Random files in random surroundings: what a plan without errors promises is what happens.

It applies; what changes is what its rows name; the second plan is empty; and however it is taken back (an undo, a
failure at the end or on the way, a death and its recovery), an independent fingerprint is as before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from scplan.errors import ApplyFailed, ConfigurationError, PlanError
from scplan.model.address import Address
from scplan.model.change import Change, Plan
from scplan.model.probe import Probe
from scplan.model.report import Step
from scplan.workflow import applying, planning, reporting
from tests.containers import host_parts
from tests.containers.fingerprint import difference
from tests.containers.session import Session
from tests.kernel.test_contract import Ground, killed_while_applying, without_random_addresses
from tests.property.configurations import of_one
from tests.property.surroundings import Disturbance, after_scplan, before_scplan
from tests.property.test_property import stopped_at, undo
from tests.tried import TRIED

pytestmark = pytest.mark.needs("root", "busybox", "cgroup1", "userns", "veth", "bridge", "loop")
EXAMPLES = int(os.environ.get("SCPLAN_GREEN_EXAMPLES", "40"))
# Of many draws a failure costs its share alone, and processes can take shares.
SHARE = 20
SETTINGS = settings(
    max_examples=min(EXAMPLES, SHARE),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
    database=None,
)
WAYS = ("undo", "probe", "step", "death")
Sections = dict[str, Any]


class Lab:
    """Parts of the host for all draws; each draw has a container of its own."""

    def __init__(self, session: Session, stack: ExitStack) -> None:
        self.session = session
        enter = stack.enter_context
        one, two = enter(host_parts.scratch_directory(session)), enter(host_parts.scratch_directory(session))
        for directory in (one, two):
            (directory / "deep/deep").mkdir(parents=True)
            (directory / "file").write_text(directory.name)
        disk = enter(host_parts.loop_disk(session))
        self.parts = {
            "disk": disk.path,
            "disk_numbers": disk.numbers,
            "bridge": enter(host_parts.bridge(session)),
            "nic": "unused",
            "one": str(one),
            "two": str(two),
            "net": "4",
        }

    @contextmanager
    def ground(self, *, userns: bool) -> Iterator[Ground]:
        parts = self.parts | {"end": self.session.name(), "foreign": self.session.name()}
        with host_parts.scratch_directory(self.session) as directory, ExitStack() as stack:
            container = stack.enter_context(self.session.container("process", userns=userns))
            yield Surrounded(container, directory, parts)
            with container.leaving_no_host_ends():
                stack.close()


class Surrounded(Ground):
    """Its picture has the directories of the host that are mounted, too."""

    def picture(self) -> dict[str, Any]:
        files = sorted(
            f"{file} {file.lstat().st_mode:o} {file.lstat().st_uid}:{file.lstat().st_gid}"
            for name in ("one", "two")
            for file in Path(self.parts[name]).rglob("*")
        )
        picture = without_random_addresses(super().picture())
        return picture | {"host": picture["host"] | {"files": files}}

    def disturb(self, disturbances: Sequence[Disturbance]) -> None:
        for one in disturbances:
            print(f"others {one}")
            one.make(self.container)


@pytest.fixture(scope="module")
def lab(session: Session) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(session, stack)


@pytest.mark.parametrize("share", range(max(1, EXAMPLES // SHARE)))
@SETTINGS
@given(data=st.data())
def test_a_plan_without_errors_applies_and_is_taken_back(lab: Lab, share: int, data: st.DataObject) -> None:
    print(f"share {share}")
    with lab.ground(userns=data.draw(st.booleans())) as ground:
        ground.disturb(data.draw(before_scplan(ground.parts)))
        first = data.draw(of_one(ground.parts, has_nic=False, is_wild=True))
        if _planned(ground, first) is not None:
            _apply(ground)
            assert ground.actions() == []
        ground.disturb(data.draw(after_scplan(ground.parts)))
        before = ground.picture()
        second = data.draw(of_one(ground.parts, has_nic=False, is_wild=True))
        drifted = _drifted(ground)
        planned = _planned(ground, second)
        assert difference(before, ground.picture()) == [], "a plan changed something"
        if planned is not None and planned.operations:
            _taken_back(ground, planned, before, drifted, data)


def _drifted(ground: Ground) -> set[Address]:
    """What others had changed of scplan's own: an undo returns that to what the records say."""
    return {one.address for one in reporting.drift(ground.request).drifted}


def _taken_back(
    ground: Ground, planned: Plan, before: dict[str, Any], drifted: set[Address], data: st.DataObject
) -> None:
    way = data.draw(st.sampled_from(WAYS))
    number = data.draw(st.integers(1, len(planned.operations)))
    print(f"{way} {number} of {[f'{one.action} {one.address}' for one in planned.operations]}")
    match way:
        case "undo":
            _apply(ground)
            assert ground.actions() == []
            unplanned = unnamed(planned, difference(before, ground.picture()))
            assert unplanned == [], "changed, and named by no row of the plan"
            try:
                undo(ground)
            except PlanError as error:
                TRIED["green plans"]["applied; the undo is refused"] += 1
                print(f"undo refused: {error}")
                return
        case "probe":
            with pytest.raises(ApplyFailed, match="everything is as before"):
                _apply(ground, Probe("false"))
        case "step":
            stopped_at(ground, number)
        case "death":
            assert killed_while_applying(ground, data.draw(st.sampled_from((Step.STARTED, Step.DONE))), number)
            applying.recover(ground.request, "back", lambda _: None, print)
    lost = [text for change in planned.changes for text in change.lost]
    # Routes of a router's are the kernel's to learn again.
    found = [line for line in difference(before, ground.picture()) if "'protocol': 'ra'" not in line]
    if way == "undo":
        healed = [change for change in planned.changes if change.address in drifted]
        found = [line for line in found if not any(_names(change, line) for change in healed)]
        if any(change.address.kind == "nic" for change in healed):
            # A bridge without an MTU of its own follows its ports.
            found = [line for line in found if not line.startswith(f"host.links.{ground.parts['bridge']}.mtu")]
    if lost and found:
        TRIED["green plans"][f"taken back by {way}, but for what the plan named"] += 1
    else:
        assert found == [], f"not as before after {way}"
        TRIED["green plans"][f"taken back by {way}"] += 1


def _planned(ground: Ground, sections: Sections) -> Plan | None:
    """The plan; None where it is refused. Anything but a refusal with its reason is a failure."""
    print(f"plan {sections}")
    ground.write(sections)
    try:
        planned = planning.make_plan(ground.request)
    except (PlanError, ConfigurationError) as error:
        print(f"refused: {error}")
        for one in error.diagnostics:
            kind = re.sub(r"[^ ]*[0-9/][^ ]*", "…", one.summary)
            TRIED["refusals"][kind[:60]] += 1
        TRIED["green plans"]["refused"] += 1
        ground.write({})
        return None
    return planned


def _apply(ground: Ground, *probes: Probe) -> None:
    with applying.open_apply(ground.request._replace(probes=probes)) as run:
        run.execute(lambda _: None)


# which row of a plan names a difference of the fingerprint


def unnamed(planned: Plan, found: Sequence[str]) -> list[str]:
    """The differences that no change of the plan names."""
    renamed = {line for change in planned.changes for line in _under_another_name(change, found)}
    return [line for line in found if line not in renamed and not any(_names(one, line) for one in planned.changes)]


def _under_another_name(change: Change, found: Sequence[str]) -> Iterator[str]:
    """What is as before but for the name of a host end, which the change gives another one."""
    if change.address.kind != "nic" or change.before is None or change.after is None:
        return
    old, new = change.before.get("host_name"), change.after.get("host_name")
    if not old or not new or old == new:
        return
    for line in found:
        same = line.replace(": gone: ", ": new: ", 1).replace(f"'{old}'", f"'{new}'")
        if ": gone: " in line and same in found:
            yield from (line, same)


def _names(change: Change, line: str) -> bool:
    """True if a difference (`web.links.eth1: was …`) is of what a change names."""
    identity = change.address.identity
    side, _, rest = line.partition(".")
    is_host = side == "host"
    what = rest.partition(".")[0].partition(":")[0]
    match change.address.kind, what:
        case "nic", "mounts" | "devices" | "cgroup" | "files":
            return False
        case "nic", "rules":
            # A rule for a link is detached as long as there is none of that name.
            return f"'iif': '{identity}'" in rest
        case "nic", _:
            link = _host_ends(change) if is_host else {identity}
            # The routes of a link that goes or comes: the kernel's own. Others' are named, and scplan's are rows.
            is_named = what != "routes" or "'protocol': 'kernel'" in rest or _goes_along(change, "route")
            texts = (*change.put_back, *change.taken_along, *change.lost)
            # A bridge whose MTU follows its ports.
            is_of_bridge = is_host and rest.partition(".")[2].partition(":")[0].endswith(".mtu")
            is_bridge_named = is_of_bridge and any(f" of {rest.split('.')[1]}," in text for text in texts)
            return is_bridge_named or (is_named and any(name in rest for name in link))
        case "route", "routes":
            to = identity.partition("@")[0]
            return not is_host and f"'dst': '{'default' if to == '::/0' else to}'" in rest
        case "mount" | "device", "mounts":
            return not is_host and any(f" {path}" in rest for path in (f"/{identity}", *_real_paths(change)))
        case "mount" | "device", "files":
            # Directories that are made, and what is made in a source for what lies in its mount.
            return is_host and ("made" in rest or f"/{identity.rpartition('/')[2]} " in rest)
        case "device", "devices":
            return (
                f"/{identity}" in rest
                or ".scplan-saved-" in rest
                or f"/{identity}".startswith(rest.partition(":")[0].removeprefix("devices."))
            )
        case "device", "cgroup":
            return any(name in rest for name in ("devices.", "blkio."))
        case "cgroup", "cgroup":
            return f"cgroup.{identity.partition('.')[0]}" in rest
    return False


def _goes_along(change: Change, what: str) -> bool:
    """True if the row says that objects of others go with the change."""
    return any(what in text for text in (*change.put_back, *change.taken_along, *change.lost))


def _host_ends(change: Change) -> set[str]:
    sides = (one for one in (change.before, change.after, change.owned) if one is not None)
    return {name for one in sides if (name := one.get("host_name"))}


def _real_paths(change: Change) -> set[str]:
    """A target below /link, which is a symlink to /srv."""
    return {f"/{change.address.identity}".replace("/link/", "/srv/", 1)}

"""For any two configurations, on real containers: the way to one does not matter, and there is a way back from it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from scplan.errors import ApplyFailed, ContainerNotFound
from scplan.model.report import Event, Step
from scplan.workflow import applying, planning, records, undoing
from tests.containers import host_parts
from tests.containers.container import Container
from tests.containers.fingerprint import difference, fingerprint
from tests.containers.session import Session
from tests.containers.sweep import has_link
from tests.e2e.mixed import ip
from tests.e2e.scene import Config, config
from tests.kernel.test_contract import Ground, killed_while_applying, without_random_addresses
from tests.property.configurations import Pair, configurations, damaged
from tests.tried import TRIED

pytestmark = pytest.mark.needs("root", "busybox", "cgroup1", "userns", "veth", "bridge", "loop")
EXAMPLES = int(os.environ.get("SCPLAN_PROPERTY_EXAMPLES", "8"))
# Shrinking takes minutes: it is for those who look for something.
SHRINKING = [Phase.shrink] if EXAMPLES > 10 else []
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, *SHRINKING),
    database=None,
)
Picture = dict[str, Any]


class TwoContainers(Ground):
    """Its picture shows the directories of the host that are mounted, too, and those that are made for it."""

    def __init__(self, containers: tuple[Container, Container], directory: Path, parts: dict[str, str]) -> None:
        super().__init__(containers[0], directory, parts)
        self.containers = containers

    def configuration(self, sections: Any) -> Config:
        return config(*zip(self.containers, sections, strict=True))

    def picture(self) -> Picture:
        files = sorted(str(file) for name in ("one", "two") for file in Path(self.parts[name]).rglob("*"))
        picture = fingerprint(self.containers)
        return picture | {"host": picture["host"] | {"files": files}}


class Lab:
    """Two containers for all examples, one in a user namespace. An example that failed leaves them to no other one."""

    def __init__(self, session: Session, stack: ExitStack) -> None:
        self.session = session
        self._ground: TwoContainers | None = None
        self._current = stack.enter_context(ExitStack())
        enter = stack.enter_context
        one, two = enter(host_parts.scratch_directory(session)), enter(host_parts.scratch_directory(session))
        for directory in (one, two):
            (directory / "deep/deep").mkdir(parents=True)
            (directory / "file").write_text(directory.name)
        self.parts = {
            "disk": enter(host_parts.loop_disk(session)).path,
            "bridge": enter(host_parts.bridge(session)),
            "nic": session.name(),
            "one": str(one),
            "two": str(two),
        }
        self.untouched: Picture = {}

    def enter(self) -> TwoContainers:
        if self._ground is None:
            self._current.close()
            self._make_nic()
            # The namespaces of the containers before, and with them the host ends, may live on for a while.
            self.parts["end"] = self.session.name()
            directory: Path = self._current.enter_context(host_parts.scratch_directory(self.session))
            containers = (self.session.container("process", userns=userns) for userns in (False, True))
            one, other = (self._current.enter_context(container) for container in containers)
            self._ground = TwoContainers((one, other), directory, self.parts)
            self.untouched = self._ground.picture()
        ground, self._ground = self._ground, None
        return ground

    def _make_nic(self) -> None:
        """The stand-in for a NIC, being a veth, went with the container that had it when an example failed."""
        name, peer = self.parts["nic"], self.session.name()
        if has_link(name):
            return
        ip("link", "add", name, "type", "veth", "peer", "name", peer)
        ip("link", "set", peer, "up")

    def leave(self, ground: TwoContainers) -> None:
        """The example ended well, so that the next one can begin here."""
        destroy(ground)
        assert difference(self.untouched, ground.picture()) == []
        self._ground = ground


@pytest.fixture(scope="module")
def lab(session: Session) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(session, stack)


def destroy(ground: Ground) -> None:
    """Takes everything away; where scplan owns nothing, it says so."""
    owned = {one.address.container for one in records.state_list(ground.request)}
    names = tuple(sorted(owned)) or (ground.container.name,)
    says_so = nullcontext() if owned else pytest.raises(ContainerNotFound)
    with says_so, applying.open_apply(ground.request._replace(destroy=True, containers=names, files=())) as run:
        run.execute(lambda _: None)


def reached(ground: Ground, sections: Pair) -> Picture:
    """What is there when a configuration was applied; the plan after it is empty."""
    print(f"reach {sections}")
    ground.reach(sections)
    return without_random_addresses(ground.picture())


def without_turns(picture: Picture) -> Picture:
    """Of two IPv4 addresses in one network the first one is primary: on the way there that is not scplan's to order."""
    for side in picture.values():
        for name, addresses in side["addresses"].items():
            kept = ({key: value for key, value in one.items() if key != "secondary"} for one in addresses)
            side["addresses"][name] = sorted(kept, key=repr)
        for route in side["routes"]:
            if route["protocol"] == "kernel":
                route.pop("prefsrc", None)
        side["routes"].sort(key=repr)
    return picture


@SETTINGS
@given(st.data())
def test_the_way_to_a_configuration_does_not_matter(lab: Lab, data: st.DataObject) -> None:
    """A then B is as B alone; and destroy gives back what was before, from either."""
    ground = lab.enter()
    first, second = data.draw(configurations(lab.parts)), data.draw(configurations(lab.parts))
    reached(ground, first)
    over_first = without_turns(reached(ground, second))
    destroy(ground)
    assert difference(lab.untouched, ground.picture()) == []
    assert difference(without_turns(reached(ground, second)), over_first) == []
    lab.leave(ground)
    TRIED["properties"]["two ways to one configuration"] += 1


@SETTINGS
@given(st.data())
def test_undo_gives_back_what_was_before(lab: Lab, data: st.DataObject) -> None:
    """And an undo of the undo is what was undone."""
    ground = lab.enter()
    first, second = data.draw(configurations(lab.parts)), data.draw(configurations(lab.parts))
    before = reached(ground, first)
    ground.write(second)
    if ground.actions():
        ground.apply()
        done = without_random_addresses(ground.picture())
        undo(ground)
        assert difference(before, without_random_addresses(ground.picture())) == []
        undo(ground)
        assert difference(done, without_random_addresses(ground.picture())) == []
        assert ground.actions() == []
    lab.leave(ground)
    TRIED["properties"]["undone, and done again"] += 1


def undo(ground: Ground) -> None:
    with undoing.open_undo(ground.request) as run:
        run.execute(lambda _: None)


@SETTINGS
@given(st.data())
def test_a_failure_at_any_step_gives_back_what_was_before(lab: Lab, data: st.DataObject) -> None:
    ground = lab.enter()
    first, second = data.draw(configurations(lab.parts)), data.draw(configurations(lab.parts))
    reached(ground, first)
    before = ground.picture()
    ground.write(second)
    operations = len(planning.make_plan(ground.request).operations)
    if operations:
        stopped_at(ground, data.draw(st.integers(1, operations)))
        assert difference(before, ground.picture()) == []
        ground.write(first)
        assert ground.actions() == []
    lab.leave(ground)
    TRIED["properties"]["undone at a random step"] += 1


def stopped_at(ground: Ground, number: int) -> None:
    """Applies, and is asked to stop when an operation begins."""
    print(f"stop at {number}")

    def stop(event: Event) -> None:
        if isinstance(event, Event) and (event.step, event.number) == (Step.STARTED, number):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(ApplyFailed, match="interrupted"):
        ground.apply(stop)


@SETTINGS
@given(st.data())
def test_a_death_at_any_operation_is_recovered(lab: Lab, data: st.DataObject) -> None:
    """Back to what was before, or forward to what had been planned."""
    ground = lab.enter()
    first, second = data.draw(configurations(lab.parts)), data.draw(configurations(lab.parts))
    before = reached(ground, first)
    ground.write(second)
    operations = len(planning.make_plan(ground.request).operations)
    if operations:
        step = data.draw(st.sampled_from((Step.STARTED, Step.DONE)))
        way = data.draw(st.sampled_from(("back", "forward")))
        number = data.draw(st.integers(1, operations))
        print(f"die at {step} {number}, and go {way}")
        assert killed_while_applying(ground, step, number)
        lines: list[str] = []
        applying.recover(ground.request, way, lambda _: None, lines.append)
        assert len(lines) == 1
        if way == "back":
            assert difference(before, without_random_addresses(ground.picture())) == []
            ground.write(first)
        assert ground.actions() == []
    lab.leave(ground)
    TRIED["properties"]["recovered"] += 1


@SETTINGS
@given(st.data())
def test_what_others_did_is_healed(lab: Lab, data: st.DataObject) -> None:
    """The others own the same things, and have records of their own; those of scplan are away for as long."""
    ground = lab.enter()
    sections = data.draw(configurations(lab.parts))
    damage = data.draw(damaged(sections, lab.parts))
    before = without_turns(reached(ground, sections))
    state_dir = Path(ground.request.state_dir)
    away = state_dir.rename(state_dir.with_name("away"))
    with host_parts.scratch_directory(lab.session) as directory:
        others = TwoContainers(ground.containers, directory, lab.parts)
        reached(others, sections)
        reached(others, damage)
    away.rename(state_dir)
    ground.apply()
    assert difference(before, without_turns(without_random_addresses(ground.picture()))) == []
    assert ground.actions() == []
    lab.leave(ground)
    TRIED["properties"]["healed"] += 1


# what these properties found


def test_what_lay_in_a_mount_that_goes_is_made_after_that(lab: Lab) -> None:
    ground = lab.enter()
    for sections in (
        {"mounts": [f"{lab.parts['one']}:/srv/a"]},
        {"mounts": [f"{lab.parts['one']}:/srv/a/deep"], "devices": ["/dev/null:/srv/a/null"]},
    ):
        reached(ground, (sections, {}))
    lab.leave(ground)


def test_undo_gives_back_what_was_drawn_in_while_only_its_record_changed(lab: Lab) -> None:
    ground, one = lab.enter(), lab.parts["one"]
    made = {"source": f"{one}/made", "create_source": True, "target": "/srv/a/deep"}
    nic = {"name": "eth1", "addresses": ["10.41.0.5/24"]}
    route = {"to": "10.94.0.0/16", "via": "10.41.0.1"}
    before = reached(ground, ({"mounts": [made], "nics": [nic], "routes": [route]}, {}))
    another = {"mounts": [{"source": one, "target": "/srv/a"}, made], "nics": [nic | {"addresses": ["10.41.0.6/24"]}]}
    after = reached(ground, (another | {"routes": [route | {"required": False}]}, {}))
    undo(ground)
    assert difference(before, without_random_addresses(ground.picture())) == []
    undo(ground)
    assert difference(after, without_random_addresses(ground.picture())) == []
    assert ground.actions() == []
    lab.leave(ground)

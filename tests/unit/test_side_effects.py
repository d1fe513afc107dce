"""What goes with a change is shown before anyone agrees to it, and a gate can refuse it."""

from __future__ import annotations

import pytest

from scplan.errors import ExitCode, Refused
from scplan.model.change import Action, Change, Disruption, Plan
from scplan.model.probe import Probe
from scplan.render.documents import plan_lines, saved_plan_lines
from scplan.render.lines import plain
from scplan.render.markdown import plan_markdown
from scplan.workflow.gates import refuse_disruption
from tests.unit.render_samples import NIC, WEB, change

BRIEF = change(1, "web/nic/eth1", Action.UPDATE, NIC.replace(mtu=1500), NIC, changed=("mtu",))._replace(
    disruption=Disruption.BRIEF, effect="link down for a moment"
)


def plan(*changes: Change) -> Plan:
    return Plan(containers={"web": WEB}, changes=changes, operations=(), refreshed={})


def test_objects_of_others_are_named_below_the_change() -> None:
    along = {"put_back": ("3 routes of others over eth1",), "taken_along": ("a qdisc of eth1",)}
    made = plan(BRIEF._replace(**along, lost=("2 neighbours\nof x",)))
    text = plain(plan_lines(made))
    assert "\n      also goes: a qdisc of eth1\n" in text
    assert "\n      also: 3 routes of others over eth1, put back\n" in text
    assert "\n      can't be brought back: 2 neighbours\\nof x\n" in text
    table = plan_markdown(made)
    row = next(line for line in table.splitlines() if "eth1" in line and line.startswith("| 1"))
    assert "link down for a moment<br>also: 3 routes of others over eth1, put back<br>also goes: a qdisc" in row
    assert "a qdisc of eth1<br>can't be brought back:" in row


def test_what_else_of_the_files_is_obeyed_is_shown() -> None:
    made = plan(BRIEF)._replace(
        modules={"web": ("dummy",)}, new_modules={"web": ("dummy",)}, probes=(Probe("ping -c 1 10.0.0.1"),)
    )
    text = plain(plan_lines(made))
    assert "web: kernel modules dummy, recorded\n" in text
    assert "then: ping -c 1 10.0.0.1, within 30 s, else all is undone\n" in text
    assert "web: needs kernel modules dummy\n" in plain(saved_plan_lines(made))
    alone = made._replace(changes=())
    assert alone.has_changes
    assert "No changes" not in plain(plan_lines(alone))


@pytest.mark.parametrize(
    ("changes", "most", "refused"),
    [
        ([BRIEF], None, 0),
        ([BRIEF], Disruption.BRIEF, 0),
        ([BRIEF], Disruption.NONE, 1),
        ([BRIEF._replace(at_next_start=True)], Disruption.NONE, 0),
        ([BRIEF._replace(disruption=Disruption.RECREATE)], Disruption.BRIEF, 1),
        ([BRIEF._replace(disruption=Disruption.NONE, lost=("a qdisc",)), BRIEF], Disruption.BRIEF, 1),
        ([BRIEF, BRIEF._replace(order=2)], Disruption.NONE, 2),
    ],
)
def test_limit_refuses_each_change_that_exceeds_it(
    changes: list[Change], most: Disruption | None, refused: int
) -> None:
    if not refused:
        refuse_disruption(plan(*changes), most)
        return
    with pytest.raises(Refused) as caught:
        refuse_disruption(plan(*changes), most)
    assert caught.value.exit_code is ExitCode.REFUSED == 10
    assert len(caught.value.diagnostics) == refused
    assert all("web/nic/eth1 exceeds --max-disruption" in one.summary for one in caught.value.diagnostics)

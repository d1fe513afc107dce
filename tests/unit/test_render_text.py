"""What people read, to the letter."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scplan.errors import Diagnostic, Severity
from scplan.model.address import Address
from scplan.model.change import Action, Plan
from scplan.model.live import ContainerFacts, Status
from scplan.model.report import Drifted, DriftReport, Event, Finding, Outcome, Owned, Step, Support
from scplan.render.documents import (
    address_lines,
    doctor_lines,
    drift_lines,
    event_line,
    outcome_lines,
    owned_lines,
    plan_lines,
    record_lines,
)
from scplan.render.lines import Line, line, plain, visible
from scplan.render.text import Progress, write_lines
from tests.unit.render_samples import (
    ADD,
    CHANGE,
    DISK,
    NIC,
    PLAN,
    ROUTE,
    WEB,
    Mount,
    Nic,
    Setting,
    change,
    operation,
    plan,
)

CHECKOUT = Path(__file__).parents[2]


def rows(made: Plan) -> list[str]:
    """The lines of the changes alone."""
    return plain(plan_lines(made)).splitlines()[1:-2]


# the plan


def test_plan_reads_as_documented() -> None:
    assert plain(plan_lines(PLAN)) == (
        "web  (runc, running, pid 4242)\n"
        "  1 + device /dev/sdb123      source /dev/sdb, rwm, read_bps 10 MiB/s\n"
        "  2 ~ nic eth1                mtu 1500 → 1400                      link down for a moment\n"
        "  3 -/+ route default         via 10.0.0.1                         its NIC goes down in 2\n"
        "  4 - mount /old\n"
        "\n"
        "Plan: 1 to add, 1 to change, 1 to replace, 1 to remove.\n"
    )


def test_plan_without_changes_says_so() -> None:
    assert plain(plan_lines(plan())) == "No changes.\n"


def test_plan_without_a_container_that_was_left_out_does_not_look_like_one_without_changes() -> None:
    left_out = Diagnostic("docker can't be reached")
    rest = plan()._replace(diagnostics=(left_out,))
    assert plain(plan_lines(rest)) == "No changes in the containers whose state is known.\n"
    assert plain(plan_lines(rest._replace(containers={}))) == "Nothing could be planned.\n"
    assert plain(plan_lines(plan(ADD)._replace(diagnostics=(left_out,)))).endswith(
        "\nPlan: 1 to add, 0 to change, 0 to remove.\n"
    )
    warned = plan()._replace(diagnostics=(left_out._replace(severity=Severity.WARNING),))
    assert plain(plan_lines(warned)) == "No changes.\n"


def test_summary_counts_replacements_and_adoptions_only_where_there_are_some() -> None:
    assert plain(plan_lines(plan(ADD))).endswith("\nPlan: 1 to add, 0 to change, 0 to remove.\n")
    adopted = change(1, "web/nic/eth1", Action.ADOPT, NIC, NIC)
    assert plain(plan_lines(plan(adopted))).endswith("\nPlan: 0 to add, 0 to change, 0 to remove, 1 to adopt.\n")


def test_adopted_resource_has_its_symbol() -> None:
    assert rows(plan(change(1, "web/nic/eth1", Action.ADOPT, NIC, NIC))) == ["  1 = nic eth1                mtu 1400"]


def test_containers_keep_the_order_of_execution() -> None:
    db = ContainerFacts(name="db", runtime="docker", id="9a", status=Status.RUNNING, pid=7)
    other = change(2, "db/mount/data", Action.CREATE, None, Mount(target="/data", source="/srv"))
    text = plain(plan_lines(plan(ADD, other, CHANGE._replace(order=3), containers={"db": db, "web": WEB})))
    assert [row.split()[0] for row in text.splitlines() if row] == ["web", "1", "3", "db", "2", "Plan:"]


def test_order_numbers_are_aligned() -> None:
    many = [change(n, f"web/nic/eth{n}", Action.CREATE, None, Nic(name=f"eth{n}")) for n in (9, 10)]
    assert rows(plan(*many)) == ["   9 + nic eth9", "  10 + nic eth10"]


def test_long_names_push_the_columns_of_all_rows() -> None:
    long = change(1, "web/mount/" + "x" * 40, Action.CREATE, None, Mount(target="/" + "x" * 40, source="/srv"))
    first, second = rows(plan(long, CHANGE))
    assert first.index("source") == second.index("mtu")


def test_stopped_container_says_when_its_changes_come() -> None:
    stopped = WEB._replace(status=Status.STOPPED, pid=0)
    text = plain(plan_lines(plan(ADD._replace(at_next_start=True), containers={"web": stopped})))
    assert text.startswith("web  (runc, stopped)\n")
    assert text.splitlines()[1].endswith("  at next start")


def test_container_that_no_runtime_knows_has_its_name_alone() -> None:
    assert plain(plan_lines(plan(ADD, containers={}))).startswith("web\n")


# the words of a change


def test_only_managed_attributes_are_mentioned() -> None:
    asked = DISK.replace(permissions=None, io=None)
    added = change(1, "web/device/dev/sdb123", Action.CREATE, None, DISK.replace(required=True), managed=asked)
    assert rows(plan(added)) == ["  1 + device /dev/sdb123      source /dev/sdb"]


def test_policy_and_resolved_attributes_are_not_mentioned() -> None:
    added = change(
        1, "web/device/dev/sdb123", Action.CREATE, None, DISK.replace(required=False, numbers="8:16", io=None)
    )
    assert rows(plan(added)) == ["  1 + device /dev/sdb123      source /dev/sdb, rwm"]


def test_true_is_said_by_the_name_alone() -> None:
    added = change(1, "web/mount/data", Action.CREATE, None, Mount(target="/data", source="/srv", read_only=True))
    assert rows(plan(added)) == ["  1 + mount /data             source /srv, read_only"]


def test_changed_addresses_show_what_comes_and_goes() -> None:
    before = NIC.replace(addresses=("10.0.0.5/24", "10.0.0.6/24"))
    after = NIC.replace(addresses=("10.0.0.6/24", "fd00::5/64"))
    changed = change(1, "web/nic/eth1", Action.UPDATE, before, after, changed=("addresses",))
    assert rows(plan(changed)) == ["  1 ~ nic eth1                addresses +fd00::5/64 -10.0.0.5/24"]


def test_attribute_of_a_nested_record_changes_from_unset() -> None:
    before = DISK.replace(io=None, permissions="r")
    changed = change(1, "web/device/dev/sdb123", Action.UPDATE, before, DISK, changed=("io.read_bps", "permissions"))
    assert rows(plan(changed)) == ["  1 ~ device /dev/sdb123      read_bps unset → 10 MiB/s, permissions r → rwm"]


def test_setting_shows_its_value_without_a_label_and_what_is_given_back() -> None:
    setting = Setting(name="memory.max", value="512", former="max")
    changed = change(
        1, "web/cgroup/memory.max", Action.UPDATE, setting, setting.replace(value="1024"), changed=("value",)
    )
    removed = change(2, "web/cgroup/memory.max", Action.DELETE, setting, None)
    assert rows(plan(changed, removed)) == [
        "  1 ~ cgroup memory.max       512 → 1024",
        "  2 - cgroup memory.max       was max",
    ]


def test_removal_says_the_former_values() -> None:
    removed = change(1, "web/nic/eth1", Action.DELETE, NIC.replace(former_mtu=9000), None)
    assert rows(plan(removed)) == ["  1 - nic eth1                mtu was 9000"]


def test_replacement_for_changed_values_shows_them() -> None:
    changed = change(1, "web/route/default", Action.REPLACE, ROUTE, ROUTE.replace(via="10.0.0.2"), changed=("via",))
    assert rows(plan(changed)) == ["  1 -/+ route default         via 10.0.0.1 → 10.0.0.2"]


def test_identity_that_is_not_one_attribute_is_shown_as_in_the_address() -> None:
    added = change(1, "web/route/default@metric=200", Action.CREATE, None, ROUTE)
    assert rows(plan(added)) == ["  1 + route default@metric=200  via 10.0.0.1"]


# text that comes out of containers


def test_escape_sequences_never_reach_the_terminal() -> None:
    hostile = "/tmp/\x1b[2J\x07\n+ device\u202e\udc80"
    added = change(1, "web/mount/x", Action.CREATE, None, Mount(target="/x", source=hostile))
    assert rows(plan(added)) == ["  1 + mount /x                source /tmp/\\x1b[2J\\x07\\n+ device\\u202e\\udc80"]


@settings(deadline=None)  # machines that run tests are busy
@given(st.text(min_size=1))
def test_visible_text_is_one_printable_line(text: str) -> None:
    assert visible(text).isprintable()


@settings(deadline=None)
@given(st.text(min_size=1), st.text(min_size=1))
def test_every_change_is_one_line_whatever_its_name(identity: str, source: str) -> None:
    added = change(1, "web/mount/x", Action.CREATE, None, Mount(target="/x", source=source))
    added = added._replace(address=Address("web", "mount", identity))
    assert len(plain(plan_lines(plan(added))).split("\n")) == 5


# events


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Event(step=Step.STARTED, operation=operation(CHANGE), number=2, total=12), "   2/12 ~ web: nic eth1  …"),
        (
            Event(step=Step.DONE, operation=operation(CHANGE), number=2, total=4, seconds=0.034),
            "  2/4 ~ web: nic eth1  done in 0.03 s",
        ),
        (
            Event(step=Step.FAILED, operation=operation(ADD), number=1, total=4, error="mknodat: EPERM\x1b"),
            "  1/4 + web: device /dev/sdb123  failed: mknodat: EPERM\\x1b",
        ),
        (
            Event(step=Step.UNDOING, operation=operation(ADD).inverse(), number=1, total=4),
            "  1/4 ↶ web: device /dev/sdb123  undoing …",
        ),
        (
            Event(step=Step.UNDONE, operation=operation(ADD).inverse(), number=1, total=4, seconds=1),
            "  1/4 ↶ web: device /dev/sdb123  undone in 1.00 s",
        ),
        (
            Event(step=Step.UNDO_FAILED, operation=operation(ADD).inverse(), number=1, total=4, error="EBUSY"),
            "  1/4 ↶ web: device /dev/sdb123  not undone: EBUSY",
        ),
    ],
)
def test_event_reads(event: Event, text: str) -> None:
    assert plain([event_line(event)]) == f"{text}\n"


def test_outcome_says_what_was_done() -> None:
    outcome = Outcome(apply_id="a", summary={Action.CREATE: 2, Action.DELETE: 1, Action.UPDATE: 0}, seconds=0.25)
    assert plain(outcome_lines(outcome)) == "Done: 2 added, 1 removed in 0.25 s.\n"


# drift, owned resources, doctor


def report(*drifted: Drifted, pending: Plan | None = None) -> DriftReport:
    return DriftReport(containers={"web": WEB}, checked=7, drifted=drifted, pending=pending or plan())


def test_drift_and_pending_changes_are_told_apart() -> None:
    drifted = (
        Drifted(address=CHANGE.address, changed=("mtu",), recorded=NIC, live=NIC.replace(mtu=9000)),
        Drifted(address=Address.parse("web/route/default"), changed=(), recorded=ROUTE, live=None),
    )
    assert plain(drift_lines(report(*drifted, pending=plan(ADD)))) == (
        "Drift: 2 of 7 owned resources not as scplan left it.\n"
        "web  (runc, running, pid 4242)\n"
        "  ~ nic eth1                  mtu 1400 → 9000\n"
        "  - route default             is gone\n"
        "\n"
        "Pending: what the files ask for and is not applied.\n"
        "web  (runc, running, pid 4242)\n"
        "  1 + device /dev/sdb123      source /dev/sdb, rwm, read_bps 10 MiB/s\n"
        "\n"
        "Plan: 1 to add, 0 to change, 0 to remove.\n"
    )


def test_no_drift_and_nothing_pending() -> None:
    assert plain(drift_lines(report())) == "No drift. 7 owned resources checked.\nNothing pending.\n"


def test_drift_that_is_not_known_does_not_look_like_none() -> None:
    unread = report()._replace(diagnostics=(Diagnostic("docker can't be reached"),))
    assert plain(drift_lines(unread)) == (
        "No drift in what could be read: 7 owned resources checked.\nNothing pending in what could be planned.\n"
    )
    assert plain(drift_lines(unread._replace(checked=0))).startswith("Nothing could be checked.\n")


def owned(address: str, recorded: Nic, live: Nic | None, problem: str = "") -> Owned:
    return Owned(
        address=Address.parse(address),
        runtime="runc",
        container_id="4f6c",
        recorded=recorded,
        live=live,
        problem=problem,
    )


def test_owned_resources_say_how_they_are_live() -> None:
    table = [
        owned("web/nic/eth1", NIC, NIC),
        owned("web/nic/eth2", NIC, NIC.replace(mtu=9000)),
        owned("web/nic/eth3", NIC, None),
        owned("db/nic/eth0", NIC, None, "the container is not running"),
    ]
    assert plain(owned_lines(table)) == (
        "RESOURCE      LIVE                          AS RECORDED\n"
        "web/nic/eth1  as recorded                   mtu 1400\n"
        "web/nic/eth2  mtu 1400 → 9000               mtu 1400\n"
        "web/nic/eth3  gone                          mtu 1400\n"
        "db/nic/eth0   the container is not running  mtu 1400\n"
    )


def test_owning_nothing_is_said() -> None:
    assert plain(owned_lines([])) == "scplan owns nothing here.\n"


def test_addresses_are_listed_one_a_line() -> None:
    assert plain(address_lines([owned("web/nic/eth1", NIC, None)])) == "web/nic/eth1\n"


def test_record_shows_every_attribute_that_is_set() -> None:
    assert plain(record_lines(owned("web/nic/eth1", NIC.replace(former_mtu=1500), None))) == (
        "web/nic/eth1\n  container   web (runc, 4f6c)\n  name        eth1\n  mtu         1400\n  former_mtu  1500\n"
    )


def test_findings_are_grouped_and_say_what_is_missing() -> None:
    findings = [
        Finding(topic="kernel", subject="open_tree", support=Support.YES, detail="5.2"),
        Finding(topic="kernel", subject="statmount", support=Support.NO, detail="ENOSYS", needed_for="quick reads"),
        Finding(topic="runtimes", subject="runc", support=Support.UNKNOWN, needed_for="containers of runc"),
    ]
    assert plain(doctor_lines(findings)) == (
        "kernel\n"
        "  open_tree  yes      5.2\n"
        "  statmount  no       ENOSYS; needed for quick reads\n"
        "\n"
        "runtimes\n"
        "  runc       unknown  needed for containers of runc\n"
    )


# the terminal


def on_terminal(lines: list[Line], monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """What a terminal of 80 columns gets."""
    for name in ("NO_COLOR", "TERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", **environment}.items():
        monkeypatch.setenv(name, value)
    master, slave = pty.openpty()
    with open(slave, "w", encoding="utf-8") as stream:
        write_lines(lines, stream)
    return all_of(master).replace("\r\n", "\n")


def all_of(master: int) -> str:
    """What the terminal got, once its other end is closed; closes it."""
    shown = b""
    try:
        while more := os.read(master, 4096):
            shown += more
    except OSError:  # EIO: nothing is left
        pass
    os.close(master)
    return shown.decode()


def test_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_terminal([line(("+ nic", "create"), " mtu 1400")], monkeypatch) == "\x1b[32m+ nic\x1b[0m mtu 1400\n"


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_terminal_without_colour_gets_plain_text(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_terminal(plan_lines(PLAN), monkeypatch, **environment) == plain(plan_lines(PLAN))


def test_terminal_and_pipe_get_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    import re

    coloured = on_terminal(plan_lines(PLAN), monkeypatch)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain(plan_lines(PLAN))


def test_markup_in_names_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_terminal([line("[red]:smile: http://x 12")], monkeypatch) == "[red]:smile: http://x 12\n"


def test_progress_in_a_pipe_is_a_line_for_each_step_that_ended(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    with path.open("w", encoding="utf-8") as stream, Progress(stream) as progress:
        for step in (Step.STARTED, Step.DONE):
            progress.show(Event(step=step, operation=operation(CHANGE), number=1, total=1))
    assert path.read_text(encoding="utf-8") == "  1/1 ~ web: nic eth1  done in 0.00 s\n"


def test_progress_on_a_terminal_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    with open(slave, "w", encoding="utf-8") as stream, Progress(stream) as progress:
        progress.show(Event(step=Step.STARTED, operation=operation(CHANGE), number=1, total=1))
        assert threading.active_count() == 1
        progress.show(Event(step=Step.DONE, operation=operation(CHANGE), number=1, total=1))
    assert "done in" in all_of(master)


def test_plain_text_does_not_import_rich() -> None:
    program = (
        "import sys\n"
        "from tests.unit.render_samples import PLAN\n"
        "from scplan.render.documents import plan_lines\n"
        "from scplan.render.text import write_lines\n"
        "write_lines(plan_lines(PLAN), sys.stdout)\n"
        "sys.exit('rich' in sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, timeout=60)
    assert ended.returncode == 0, ended.stderr

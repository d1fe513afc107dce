"""A plan as a comment of CI; names in it come out of containers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from scplan.model.change import Action
from scplan.render.markdown import plan_markdown
from tests.unit.render_samples import CHANGE, PLAN, Mount, change, plan


def test_plan_as_markdown() -> None:
    assert plan_markdown(plan(CHANGE, warned=True)) == (
        "**Plan: 0 to add, 1 to change, 0 to remove.**\n"
        "\n"
        "### `web` \\(runc, running, pid 4242\\)\n"
        "\n"
        "| # | | resource | change | interrupts |\n"
        "|--:|:-:|---|---|---|\n"
        "| 2 | `~` | `nic eth1` | `mtu 1500 → 1400` | link down for a moment |\n"
        "\n"
        "<details><summary>Warnings</summary>\n"
        "\n"
        "```\n"
        "web.yaml:12:5: warning: /dev/sdc is not there\n"
        "  device /dev/data of web\n"
        "  it is left out, since it is not required\n"
        "```\n"
        "\n"
        "</details>\n"
        "\n"
        "<details><summary>Before and after</summary>\n"
        "\n"
        "**2.** `web/nic/eth1` update: as the configuration says\n"
        "\n"
        "```json\n"
        "{\n"
        '  "before": {\n'
        '    "name": "eth1",\n'
        '    "mtu": 1500\n'
        "  },\n"
        '  "after": {\n'
        '    "name": "eth1",\n'
        '    "mtu": 1400\n'
        "  }\n"
        "}\n"
        "```\n"
        "\n"
        "</details>\n"
    )


def test_no_changes_is_one_line() -> None:
    assert plan_markdown(plan()) == "**No changes.**\n"


def test_every_change_has_a_row() -> None:
    rows = [row for row in plan_markdown(PLAN).splitlines() if row.startswith("| ") and not row.startswith("| #")]
    assert [row.split("|")[1].strip() for row in rows] == ["1", "2", "3", "4"]


def test_reason_makes_no_mention_and_no_link() -> None:
    text = plan_markdown(plan(CHANGE._replace(reason="@team [x](http://y) <b>")))
    assert "@<!-- -->team \\[x\\]\\(http://y\\) &lt;b\\>" in text


@settings(deadline=None)  # machines that run tests are busy
@given(st.text(alphabet="`|\n<>&@x", min_size=1))
def test_names_never_break_out_of_their_cell(source: str) -> None:
    added = change(1, "web/mount/x", Action.CREATE, None, Mount(target="/x", source=f"/{source}"))
    row = plan_markdown(plan(added)).splitlines()[6]
    assert row.replace("\\|", "").count("|") == 6


@settings(deadline=None)
@given(st.text(alphabet="`\n", min_size=1))
def test_values_never_end_their_block(source: str) -> None:
    added = change(1, "web/mount/x", Action.CREATE, None, Mount(target="/x", source=source))
    text = plan_markdown(plan(added))
    fence = text[: text.index("json\n{")].rsplit("\n", 1)[1]
    assert [row for row in text.splitlines() if row.startswith(fence)] == [f"{fence}json", fence]

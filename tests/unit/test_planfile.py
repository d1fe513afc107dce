"""What a stale plan says about how the host has moved on."""

from __future__ import annotations

from typing import Any

import pytest

from scplan.errors import StalePlan
from scplan.model.change import Plan
from scplan.model.plan_json import plan_to_json
from scplan.store.saved_plans import check_unchanged
from tests.unit.render_samples import ADD, CHANGE, plan


def document(made: Plan, **changes: Any) -> dict[str, Any]:
    saved = plan_to_json(made)
    for change in saved["changes"]:
        change.update(changes)
    return saved


def test_the_same_plan_is_not_stale() -> None:
    check_unchanged("web.plan", document(plan(CHANGE)), plan(CHANGE))


def test_each_value_that_differs_is_named_with_both_sides() -> None:
    saved = document(plan(CHANGE))
    saved["changes"][0]["before"]["mtu"] = 9000
    with pytest.raises(StalePlan, match=r"web/nic/eth1: before\.mtu was 9000, is 1500"):
        check_unchanged("web.plan", saved, plan(CHANGE))


def test_changes_that_came_and_went_are_told_apart() -> None:
    with pytest.raises(StalePlan) as caught:
        check_unchanged("web.plan", document(plan(ADD)), plan(CHANGE))
    assert "web/device/dev/sdb123: not needed any more" in str(caught.value)
    assert "web/nic/eth1: not in the saved plan" in str(caught.value)


def test_a_restarted_container_makes_a_plan_stale() -> None:
    saved = document(plan(CHANGE))
    saved["containers"]["web"]["pid"] += 1
    with pytest.raises(StalePlan, match="its first process is another process"):
        check_unchanged("web.plan", saved, plan(CHANGE))

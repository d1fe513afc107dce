"""READ FIRST: what every command does, as a few named steps over the stages.

    files ─▶ configuration ─▶ containers located (scene) ─▶ resolved, observed, planned (planning) ─▶ applied (applying)

The command line calls the functions named here, each of which is one command. A module is imported when one of its
functions is asked for: a command, and a container's start even more so, needs few of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scplan.records import default_state_dir as default_state_dir
    from scplan.records import write_document as write_document
    from scplan.workflow.applying import Run as Run
    from scplan.workflow.applying import accept_live as accept_live
    from scplan.workflow.applying import open_apply as open_apply
    from scplan.workflow.applying import open_saved as open_saved
    from scplan.workflow.applying import recover as recover
    from scplan.workflow.confirming import confirm as confirm
    from scplan.workflow.confirming import state_notices as state_notices
    from scplan.workflow.confirming import wait_for_confirmation as wait_for_confirmation
    from scplan.workflow.gates import refuse_disruption as refuse_disruption
    from scplan.workflow.hooking import carry_out as carry_out
    from scplan.workflow.hooking import hook_install as hook_install
    from scplan.workflow.hooking import hook_spec as hook_spec
    from scplan.workflow.hooking import hook_uninstall as hook_uninstall
    from scplan.workflow.importing import Meant as Meant
    from scplan.workflow.importing import import_container as import_container
    from scplan.workflow.importing import open_adoption as open_adoption
    from scplan.workflow.moving import state_mv as state_mv
    from scplan.workflow.planning import load_plan_view as load_plan_view
    from scplan.workflow.planning import make_plan as make_plan
    from scplan.workflow.planning import save_plan as save_plan
    from scplan.workflow.planning import schema as schema
    from scplan.workflow.records import recorded_containers as recorded_containers
    from scplan.workflow.records import state_list as state_list
    from scplan.workflow.records import state_rm as state_rm
    from scplan.workflow.records import state_show as state_show
    from scplan.workflow.reporting import doctor as doctor
    from scplan.workflow.reporting import drift as drift
    from scplan.workflow.reporting import record_notices as record_notices
    from scplan.workflow.reporting import show_owned as show_owned
    from scplan.workflow.reporting import snapshot as snapshot
    from scplan.workflow.scene import Request as Request
    from scplan.workflow.scene import validate as validate
    from scplan.workflow.undoing import awaiting as awaiting
    from scplan.workflow.undoing import give_up as give_up
    from scplan.workflow.undoing import history as history
    from scplan.workflow.undoing import open_undo as open_undo
    from scplan.workflow.watching import watch as watch
    from scplan.workflow.watching import writes_to_journal as writes_to_journal

_HOMES = {
    "Meant": "scplan.workflow.importing",
    "Request": "scplan.workflow.scene",
    "Run": "scplan.workflow.applying",
    "accept_live": "scplan.workflow.applying",
    "awaiting": "scplan.workflow.undoing",
    "carry_out": "scplan.workflow.hooking",
    "confirm": "scplan.workflow.confirming",
    "default_state_dir": "scplan.records",
    "doctor": "scplan.workflow.reporting",
    "drift": "scplan.workflow.reporting",
    "give_up": "scplan.workflow.undoing",
    "history": "scplan.workflow.undoing",
    "hook_install": "scplan.workflow.hooking",
    "hook_spec": "scplan.workflow.hooking",
    "hook_uninstall": "scplan.workflow.hooking",
    "import_container": "scplan.workflow.importing",
    "load_plan_view": "scplan.workflow.planning",
    "make_plan": "scplan.workflow.planning",
    "open_adoption": "scplan.workflow.importing",
    "open_apply": "scplan.workflow.applying",
    "open_saved": "scplan.workflow.applying",
    "open_undo": "scplan.workflow.undoing",
    "record_notices": "scplan.workflow.reporting",
    "recorded_containers": "scplan.workflow.records",
    "recover": "scplan.workflow.applying",
    "refuse_disruption": "scplan.workflow.gates",
    "save_plan": "scplan.workflow.planning",
    "schema": "scplan.workflow.planning",
    "show_owned": "scplan.workflow.reporting",
    "snapshot": "scplan.workflow.reporting",
    "state_list": "scplan.workflow.records",
    "state_mv": "scplan.workflow.moving",
    "state_notices": "scplan.workflow.confirming",
    "state_rm": "scplan.workflow.records",
    "state_show": "scplan.workflow.records",
    "validate": "scplan.workflow.scene",
    "wait_for_confirmation": "scplan.workflow.confirming",
    "watch": "scplan.workflow.watching",
    "write_document": "scplan.records",
    "writes_to_journal": "scplan.workflow.watching",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found

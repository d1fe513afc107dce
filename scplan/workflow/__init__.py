"""READ FIRST: what every command does, as a few named steps over the stages.

    files ─▶ configuration ─▶ containers located (scene) ─▶ resolved, observed, planned (planning) ─▶ applied (applying)

The command line calls the functions named here, each of which is one command.
"""

from __future__ import annotations

from scplan.records import write_document
from scplan.workflow.applying import Run, open_apply, open_saved, recover
from scplan.workflow.confirming import confirm, state_notices, wait_for_confirmation
from scplan.workflow.hooking import carry_out, hook_install, hook_spec, hook_uninstall
from scplan.workflow.importing import Meant, import_container, open_adoption
from scplan.workflow.moving import state_mv
from scplan.workflow.planning import load_plan_view, make_plan, save_plan, schema
from scplan.workflow.records import state_list, state_rm, state_show
from scplan.workflow.reporting import doctor, drift, record_notices, show_owned, snapshot
from scplan.workflow.scene import Request, default_state_dir, validate
from scplan.workflow.undoing import awaiting, give_up, history, open_undo
from scplan.workflow.watching import watch, writes_to_journal

__all__ = [
    "Meant",
    "Request",
    "Run",
    "awaiting",
    "carry_out",
    "confirm",
    "default_state_dir",
    "doctor",
    "drift",
    "give_up",
    "history",
    "hook_install",
    "hook_spec",
    "hook_uninstall",
    "import_container",
    "load_plan_view",
    "make_plan",
    "open_adoption",
    "open_apply",
    "open_saved",
    "open_undo",
    "record_notices",
    "recover",
    "save_plan",
    "schema",
    "show_owned",
    "snapshot",
    "state_list",
    "state_mv",
    "state_notices",
    "state_rm",
    "state_show",
    "validate",
    "wait_for_confirmation",
    "watch",
    "write_document",
    "writes_to_journal",
]

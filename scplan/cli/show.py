"""`scplan show`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Annotated

from scplan.cli.options import Json, request
from scplan.cli.output import code_of, complain, raw, results
from scplan.cli.parameters import Argument, Settings
from scplan.cli.plan import print_plan
from scplan.errors import ExitCode, RecordDamaged


def show(
    settings: Settings,
    plan_file: Annotated[str | None, Argument(metavar="[PLAN]", help="A plan saved by 'scplan plan --out'.")] = None,
    as_json: Json = False,
) -> ExitCode:
    """Print a saved plan, or what scplan owns and how that is live.

    Examples:
      scplan show
      scplan show web.plan --json
    """
    from scplan.workflow import confirming, planning, records, reporting

    if plan_file is not None:
        if not os.path.exists(plan_file):
            raise _no_plan(plan_file, records.recorded_containers(request(settings)))
        plan = planning.load_plan_view(plan_file)
        if as_json:
            print_plan(plan, as_json=True)
        else:
            from scplan.render.documents import saved_plan_lines

            results(saved_plan_lines(plan))
            complain(plan.diagnostics)
        return ExitCode.OK
    asked = request(settings)
    owned = reporting.show_owned(asked)
    notices = [*reporting.record_notices(asked), *confirming.state_notices(asked)]
    complain(notices)
    if as_json:
        from scplan.render.machine import owned_document, to_text

        raw(to_text(owned_document(owned, with_live=True, diagnostics=notices)))
    else:
        from scplan.render.documents import owned_lines

        results(owned_lines(owned))
    return code_of(notices)


def _no_plan(path: str, containers: Iterable[str]) -> RecordDamaged:
    container = path.partition("/")[0]
    if container in containers:
        what = f"scplan state show {path}" if "/" in path else "scplan show"
        hint = (
            f"{container} is a container: `{what}` shows what scplan owns, `scplan plan --target {container}` what is"
        )
        hint += " to be done"
        return RecordDamaged(f"there is no plan {path}", hint=hint)
    return RecordDamaged(f"there is no plan {path}", hint="`scplan plan --out FILE` saves one")

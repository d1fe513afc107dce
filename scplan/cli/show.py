"""`scplan show`."""

from __future__ import annotations

from typing import Annotated

from scplan.cli.options import Json, request
from scplan.cli.output import code_of, complain, raw, results
from scplan.cli.parameters import Argument, Settings
from scplan.cli.plan import print_plan
from scplan.errors import ExitCode


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
    from scplan import workflow

    if plan_file is not None:
        plan = workflow.load_plan_view(plan_file)
        if as_json:
            print_plan(plan, as_json=True)
        else:
            from scplan.render.documents import saved_plan_lines

            results(saved_plan_lines(plan))
            complain(plan.diagnostics)
        return ExitCode.OK
    asked = request(settings)
    owned = workflow.show_owned(asked)
    notices = [*workflow.record_notices(asked), *workflow.state_notices(asked)]
    complain(notices)
    if as_json:
        from scplan.render.machine import owned_document, to_text

        raw(to_text(owned_document(owned, with_live=True, diagnostics=notices)))
    else:
        from scplan.render.documents import owned_lines

        results(owned_lines(owned))
    return code_of(notices)

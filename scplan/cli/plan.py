"""`scplan plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from scplan.cli.options import (
    DetailedExitCode,
    Excludes,
    Files,
    Json,
    MaxDisruption,
    Paths,
    Targets,
    at_most_one,
    request,
)
from scplan.cli.output import code_of, complain, message, raw, results
from scplan.cli.parameters import Option, Settings
from scplan.errors import ExitCode, Refused

if TYPE_CHECKING:
    from scplan.model.change import Disruption, Plan


def plan(
    settings: Settings,
    paths: Paths = None,
    files: Files = None,
    targets: Targets = None,
    excludes: Excludes = None,
    destroy: Annotated[bool, Option(("--destroy",), help="Plan to remove all that scplan owns.")] = False,
    live: Annotated[
        str | None,
        Option(metavar="SNAPSHOT", help="Compare with a captured snapshot instead of this host."),
    ] = None,
    out: Annotated[str | None, Option(metavar="FILE", help="Save the plan, to be applied exactly as it is.")] = None,
    as_json: Json = False,
    markdown: Annotated[bool, Option(("--markdown",), help="Markdown, for comments that CI writes.")] = False,
    quiet: Annotated[bool, Option(("--quiet",), help="Print no plan: the exit code or --out is enough.")] = False,
    detailed_exitcode: DetailedExitCode = False,
    max_disruption: MaxDisruption = None,
) -> ExitCode:
    """Print the changes that apply would make, in their order.

    Compares the configuration with what the containers have, and never changes anything.
    Works without root as far as it can.

    Examples:
      scplan plan
      scplan plan web.yaml --target 'web/nic/*'
      scplan plan --out web.plan && scplan apply web.plan
      scplan plan --live host.snapshot --markdown
    """
    at_most_one(json=as_json, markdown=markdown, quiet=quiet)
    from scplan.workflow import planning

    asked = request(
        settings,
        files=[*(files or ()), *(paths or ())],
        targets=targets,
        excludes=excludes,
        destroy=destroy,
        live=live,
    )
    made = planning.make_plan(asked)
    refused = _refused(made, max_disruption)
    if refused is not None:
        made = made._replace(diagnostics=(*made.diagnostics, *refused.diagnostics))
    elif out is not None:
        planning.save_plan(made, asked, out)
    if not quiet:
        print_plan(made, as_json=as_json, markdown=markdown)
    if refused is not None:
        if as_json or markdown:
            return refused.exit_code
        complain(one for one in made.diagnostics if one not in refused.diagnostics)
        raise refused
    if not as_json and not markdown:
        complain(made.diagnostics)
    if out is not None and not as_json and not markdown and not quiet:
        message(f"saved; 'scplan apply {out}' makes exactly these changes")
    if code_of(made.diagnostics) is not ExitCode.OK:
        return ExitCode.ERROR
    return ExitCode.CHANGES if detailed_exitcode and made.has_changes else ExitCode.OK


def _refused(made: Plan, max_disruption: Disruption | None) -> Refused | None:
    if max_disruption is None:
        return None
    from scplan.workflow import gates

    try:
        gates.refuse_disruption(made, max_disruption)
    except Refused as error:
        return error
    return None


def print_plan(plan: Plan, *, as_json: bool = False, markdown: bool = False) -> None:
    """Print the plan as text, or as JSON or Markdown."""
    if as_json:
        from scplan.render.machine import plan_document, to_text

        raw(to_text(plan_document(plan)))
    elif markdown:
        from scplan.render.markdown import plan_markdown

        raw(plan_markdown(plan))
    else:
        from scplan.render.documents import plan_lines

        results(plan_lines(plan))

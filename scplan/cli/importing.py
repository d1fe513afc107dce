"""`scplan import`: prints a container as a configuration."""

from __future__ import annotations

from typing import Annotated

from scplan.cli.options import Json, LockTimeout, request
from scplan.cli.output import complain, message, raw
from scplan.cli.parameters import Argument, Option, Settings
from scplan.errors import ExitCode, UsageError


def import_container(
    settings: Settings,
    container: Annotated[str, Argument(metavar="CONTAINER", help="Its name, or the beginning of its ID.")],
    adopt: Annotated[bool, Option(("--adopt",), help="Also take ownership of what is imported.")] = False,
    runtime: Annotated[
        str,
        Option(metavar="NAME", help="The runtime that has it. Default: every one is asked."),
    ] = "auto",
    pid: Annotated[
        int | None, Option(least=1, metavar="PID", help="Its first process, for '--runtime process'.")
    ] = None,
    pid_file: Annotated[
        str | None, Option(metavar="PATH", help="A file with that PID, for '--runtime process'.")
    ] = None,
    as_json: Json = False,
    lock_timeout: LockTimeout = 30.0,
) -> ExitCode:
    """Print what a container has now as a configuration.

    Of devices, NICs, routes, mounts and cgroup settings those are printed that did not come with the runtime and that
    an entry can say; the others are comments, each with the reason. A plan of it changes nothing: it only adopts.

    Examples:
      scplan import web > web.yaml
      scplan import web --adopt > web.yaml
      scplan import app --runtime process --pid 4242
    """
    from scplan.workflow import confirming, importing

    if (pid is not None or pid_file is not None) != (runtime == "process"):
        raise UsageError(
            "--runtime process takes one of --pid and --pid-file, and no other runtime does",
            hint="scplan import app --runtime process --pid 4242",
        )
    asked = request(settings, lock_timeout_s=lock_timeout)
    imported = importing.import_container(importing.Meant(container, runtime, pid, pid_file), asked)
    complain(confirming.state_notices(asked))
    if as_json:
        from scplan.render.configuration import configuration_document
        from scplan.render.machine import to_text

        raw(to_text(configuration_document(imported)))
    else:
        from scplan.render.configuration import configuration_text

        raw(configuration_text(imported))
    if adopt:
        with importing.open_adoption(imported, asked) as run:
            adopted = len(run.plan.changes)
            run.execute(lambda _: None)
        message(f"{adopted} adopted" if adopted else "nothing to adopt: scplan owns all of it already")
    return ExitCode.OK

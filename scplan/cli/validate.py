"""`scplan validate` and `scplan schema`: configuration files alone, without a look at the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scplan.cli.options import Files, Json, Paths, request
from scplan.cli.output import complain, raw, results
from scplan.cli.parameters import Settings
from scplan.errors import ConfigurationError, ExitCode

if TYPE_CHECKING:
    from scplan.workflow.scene import Request


def validate(settings: Settings, paths: Paths = None, files: Files = None, as_json: Json = False) -> ExitCode:
    """Report all that is wrong in configuration files.

    The host is not looked at.

    Examples:
      scplan validate
      scplan validate web.yaml common.d/
      scplan validate -f web.yaml -f common.d/ --json
    """
    from scplan.workflow import scene

    asked = request(settings, files=[*(files or ()), *(paths or ())])
    if as_json:
        return _validate_for_machines(asked)
    from scplan.render.lines import line
    from scplan.render.words import counted

    configuration = scene.validate(asked)
    containers = configuration.containers
    resources = counted(sum(len(container.resources) for container in containers.values()), "resource")
    results([line((f"Valid: {counted(len(containers), 'container')}, {resources}.", "good"))])
    complain(configuration.diagnostics)
    return ExitCode.OK


def _validate_for_machines(asked: Request) -> ExitCode:
    from scplan.render.machine import to_text, validation_document
    from scplan.workflow import scene

    try:
        configuration = scene.validate(asked)
    except ConfigurationError as error:
        raw(to_text(validation_document({}, error.diagnostics, valid=False)))
        return error.exit_code
    addresses = {name: container.resources for name, container in configuration.containers.items()}
    raw(to_text(validation_document(addresses, configuration.diagnostics, valid=True)))
    return ExitCode.OK


def schema() -> ExitCode:
    """Print the JSON Schema of the configuration.

    Editors complete and check configuration files with it.

    Examples:
      scplan schema > scplan.schema.json
    """
    from scplan.render.machine import to_text
    from scplan.workflow import planning

    raw(to_text(planning.schema()))
    return ExitCode.OK

"""`scplan state`: the records of owned resources, and the history."""

from __future__ import annotations

from typing import Annotated

from scplan.cli.options import Json, LockTimeout, request
from scplan.cli.output import code_of, complain, message, raw, results
from scplan.cli.parameters import Argument, Option, Settings
from scplan.errors import ExitCode
from scplan.render.lines import visible


def state() -> None:
    """Read and mend the records of what scplan owns.

    Examples:
      scplan state list
      scplan state show web/nic/eth1
    """


def list_owned(settings: Settings, as_json: Json = False) -> ExitCode:
    """List the addresses of all that scplan owns, one a line.

    Examples:
      scplan state list
      scplan state list --json
    """
    from scplan.workflow import confirming, records, reporting

    asked = request(settings)
    owned = records.state_list(asked)
    notices = [*reporting.record_notices(asked), *confirming.state_notices(asked)]
    complain(notices)
    if as_json:
        from scplan.render.machine import owned_document, to_text

        raw(to_text(owned_document(owned, with_live=False, diagnostics=notices)))
    else:
        from scplan.render.documents import address_lines

        results(address_lines(owned))
    return code_of(notices)


def show(
    settings: Settings,
    address: Annotated[str, Argument(metavar="ADDR", help="CONTAINER/KIND/IDENTITY, as 'state list' prints it.")],
    as_json: Json = False,
) -> ExitCode:
    """Print all that the record of one resource holds.

    Examples:
      scplan state show web/nic/eth1
    """
    from scplan.model.address import Address
    from scplan.workflow import confirming, records

    asked = request(settings)
    owned, notices = records.state_show(asked, Address.parse(address)), confirming.state_notices(asked)
    complain(notices)
    if as_json:
        from scplan.render.machine import record_document, to_text

        raw(to_text(record_document(owned, notices)))
    else:
        from scplan.render.documents import record_lines

        results(record_lines(owned))
    return ExitCode.OK


def forget(
    settings: Settings,
    addresses: Annotated[
        list[str], Argument(metavar="ADDR...", help="As 'state list' prints them; globs, or a container's name.")
    ],
) -> ExitCode:
    """Forget resources, which then stay in their containers.

    Examples:
      scplan state rm web/nic/eth1
      scplan state rm web
    """
    from scplan.workflow import records

    asked = request(settings)
    for address in addresses:
        complain(records.state_rm(asked, address))
        message(f"{visible(address)}: no longer owned; it stays in the container")
    return ExitCode.OK


def move(
    settings: Settings,
    old: Annotated[str, Argument(metavar="OLD", help="A container with records: NAME, RUNTIME/NAME; or an ADDR.")],
    new: Annotated[str, Argument(metavar="NEW", help="The container that gets them, or the ADDR there.")],
    as_json: Json = False,
    lock_timeout: LockTimeout = 30.0,
) -> ExitCode:
    """Carry records over to another container: one that was made again, was renamed, or has another runtime.

    Only records change. The next apply for the container, or its next start, plugs in what they hold.

    Examples:
      scplan state mv web web
      scplan state mv runc/web podman/web
      scplan state mv web/mount/srv/data new/mount/srv/data
    """
    from scplan.workflow import moving

    moved = moving.state_mv(request(settings, lock_timeout_s=lock_timeout), old, new)
    complain(moved.returned)
    if as_json:
        from scplan.render.machine import moved_document, to_text

        raw(to_text(moved_document(moved)))
    else:
        from scplan.render.documents import moved_lines

        results(moved_lines(moved))
    return ExitCode.OK


def history(
    settings: Settings,
    limit: Annotated[int, Option(least=1, metavar="N", help="At most so many. Default: 20.")] = 20,
    as_json: Json = False,
) -> ExitCode:
    """List the applies, newest first: when, by whom, with which command, and what became of each.

    The last 100 are kept.

    Examples:
      scplan state history
      scplan state history --limit 1 --json
    """
    from scplan.workflow import confirming, undoing

    asked = request(settings)
    notices = confirming.state_notices(asked)
    past = undoing.history(asked, limit)
    complain(notices)
    if as_json:
        from scplan.render.machine import history_document, to_text

        raw(to_text(history_document(past, notices)))
    else:
        from scplan.render.documents import history_lines

        results(history_lines(past))
    return ExitCode.OK

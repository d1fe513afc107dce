"""`scplan hook`: installs the hook in a runtime's configuration. Calls by runtimes go to scplan/hooks/entry.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from scplan.cli.options import request
from scplan.cli.output import message, raw
from scplan.cli.parameters import Option, Settings
from scplan.errors import ExitCode
from scplan.render.lines import visible

if TYPE_CHECKING:
    from scplan.model.edit import Edit

_RUNTIMES = "runc, crun, podman, isulad, lxc, docker, containerd or incus."
_Runtime = Annotated[str, Option(("--runtime",), metavar="NAME", help=_RUNTIMES)]
_Installable = Annotated[str, Option(("--runtime",), metavar="NAME", help="podman, docker or lxc.")]
_Config = Annotated[
    str | None, Option(("--config",), metavar="PATH", help="The file to change, if it is not the usual one.")
]
_Container = Annotated[
    str | None, Option(("--container",), metavar="NAME", help="lxc: in this container's own configuration.")
]
_DryRun = Annotated[bool, Option(("--dry-run",), help="Show the change to the file, and don't make it.")]


def hook() -> None:
    """Have containers that start get what scplan owns in them.

    They get it before their own process runs. Runtimes call 'scplan hook STAGE' with the state of the container on
    standard input (LXC: in the environment); STAGE is createRuntime, prestart, poststart or poststop (LXC:
    start-host, post-stop). At a start the records are applied; if that fails, all is undone and the start is aborted.
    At a stop the host gets back what is the host's, such as a physical NIC. Options of the call: --runtime NAME,
    --lock-timeout DURATION, --state-dir DIR.

    Examples:
      scplan hook spec --runtime runc
      scplan hook install --runtime podman
    """


def spec(settings: Settings, runtime: _Runtime) -> ExitCode:
    """Print what to hand to a runtime.

    The paths in it are those of this scplan and of the state directory in effect: the hook gets no environment.

    Examples:
      scplan hook spec --runtime runc
      scplan hook spec --runtime isulad > /etc/isulad/scplan-hooks.json
    """
    from scplan.hooks.spec import spec as spec_for

    found = spec_for(runtime, request(settings).state_dir)
    raw(found.text)
    message(f"# {visible(found.where)}")
    return ExitCode.OK


def install(
    settings: Settings,
    runtime: _Installable,
    config: _Config = None,
    container: _Container = None,
    dry_run: _DryRun = False,
) -> ExitCode:
    """Put the hook in place in a runtime's configuration.

    What others wrote there stays as it is. Doing it twice changes nothing.

    Examples:
      scplan hook install --runtime podman
      scplan hook install --runtime docker --dry-run
      scplan hook install --runtime lxc --container web
    """
    from scplan.hooks import install as hooks

    edit = hooks.install(runtime, request(settings).state_dir, path=config, container=container)
    return _make(edit, dry_run, "has the hook already")


def uninstall(
    runtime: _Installable, config: _Config = None, container: _Container = None, dry_run: _DryRun = False
) -> ExitCode:
    """Take out just what install put in.

    Examples:
      scplan hook uninstall --runtime podman
      scplan hook uninstall --runtime lxc --container web
    """
    from scplan.hooks import install as hooks

    return _make(hooks.uninstall(runtime, path=config, container=container), dry_run, "has no hook of scplan")


def _make(edit: Edit, dry_run: bool, unchanged: str) -> ExitCode:
    path = visible(edit.path)
    if not edit.changes:
        message(f"{path} {unchanged}")
    elif dry_run:
        raw("".join(_difference(edit)))
    else:
        from scplan.hooks.install import carry_out

        carry_out(edit)
        message(f"{path}: {'removed' if edit.after is None else 'written'}" + (f"; {edit.then}" if edit.then else ""))
    return ExitCode.OK


def _difference(edit: Edit) -> Iterator[str]:
    import difflib

    before, after = ((text or "").splitlines() for text in (edit.before, edit.after))
    old, new = ("/dev/null" if text is None else edit.path for text in (edit.before, edit.after))
    for line in difflib.unified_diff(before, after, old, new, lineterm=""):
        yield f"{visible(line)}\n"

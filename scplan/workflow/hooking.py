"""How runtimes come to call scplan's hook: what to hand to them, and putting it in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scplan.workflow.scene import Request

if TYPE_CHECKING:
    from scplan.hooks.spec import Spec
    from scplan.model.edit import Edit


def hook_spec(request: Request, runtime: str) -> Spec:
    """What to hand to a runtime, so that it calls the hook with this state directory."""
    from scplan.hooks import spec

    return spec.spec(runtime, request.state_dir)


def hook_install(request: Request, runtime: str, path: str | None, container: str | None) -> Edit:
    """The edit of a runtime's configuration that puts the hook in place."""
    from scplan.hooks import install

    return install.install(runtime, request.state_dir, path=path, container=container)


def hook_uninstall(runtime: str, path: str | None, container: str | None) -> Edit:
    """The edit that takes out just that."""
    from scplan.hooks import install

    return install.uninstall(runtime, path=path, container=container)


def carry_out(edit: Edit) -> None:
    """Makes an edit."""
    from scplan.hooks import install

    install.carry_out(edit)

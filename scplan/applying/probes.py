"""Probes: commands run in order after the last change. If one fails, the changes are undone."""

from __future__ import annotations

import os
from collections.abc import Sequence

from scplan.errors import KernelError, ScplanError
from scplan.linux.processes.programs import run_bounded
from scplan.model.probe import Probe
from scplan.model.report import OnEvent, Probed, Step

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT_BYTES = 4096
_KEPT_LINES = 20


def run_probes(probes: Sequence[Probe], apply_id: str, on_event: OnEvent) -> None:
    """Run the probes in order; raises ScplanError, with the end of the output, if a probe fails or takes too long."""
    environment = _environment(apply_id)
    for number, probe in enumerate(probes, 1):
        running = Probed(step=Step.STARTED, probe=probe, number=number, total=len(probes))
        on_event(running)
        try:
            ended = run_bounded(probe.words, environment, timeout_s=probe.timeout_s, output_bytes=_KEPT_BYTES)
        except KernelError as error:
            on_event(running._replace(step=Step.FAILED, error=str(error)))
            raise ScplanError(f"probe {probe.command!r} failed: {error}") from None
        problem, output = _problem(ended.status, probe), _readable(ended.output)
        step = Step.FAILED if problem else Step.DONE
        on_event(running._replace(step=step, seconds=ended.seconds, error=problem, output=output))
        if problem:
            raise ScplanError(f"probe {probe.command!r} failed: {problem}", detail=output)


def _problem(status: int | None, probe: Probe) -> str:
    """Why the probe failed; "" if it passed. `status` as in Ended: None if its time was up, negative for a signal."""
    if status is None:
        return f"it did not end within {probe.timeout_s:g} s"
    if status < 0:
        return f"signal {-status} ended it"
    return f"exit status {status}" if status else ""


def _readable(output: bytes) -> str:
    """The last lines as text. Control characters are escaped later, where the text is printed."""
    return "\n".join(output.decode(errors="replace").splitlines()[-_KEPT_LINES:])


def _environment(apply_id: str) -> dict[str, str]:
    """Environment of a probe; nothing is inherited from the caller."""
    import pwd

    uid = os.geteuid()
    try:
        user, home = pwd.getpwuid(uid)[0], pwd.getpwuid(uid)[5]
    except KeyError:  # a UID without an entry in passwd(5)
        user, home = str(uid), "/"
    return {"PATH": _PATH, "HOME": home, "USER": user, "LOGNAME": user, "LANG": "C.UTF-8", "SCPLAN_APPLY_ID": apply_id}

"""`scplan hook STAGE`: the entry point for runtimes, recognised before the other commands are imported."""

from __future__ import annotations

import os
import sys

from scplan.hooks.state import OF_LXC, OF_UDEV, STAGES

_OPTIONS = ("--state-dir", "--runtime", "--lock-timeout")
_TIMEOUT_S = 30.0


class _Called:
    """A call of scplan, as the runtime's configuration writes it."""

    def __init__(self) -> None:
        self.state_dir: str | None = None
        self.runtime: str | None = None
        self.stage: str | None = None
        self.lock_timeout: str | None = None
        self.container: str | None = None
        self.is_hook = False


def called_by_runtime(arguments: list[str]) -> _Called | None:
    """The call, if these arguments are of a runtime; None if they are of a command for people."""
    called = _Called()
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        if name in _OPTIONS:
            if not equals and not waiting:
                return None
            setattr(called, name[2:].replace("-", "_"), value if equals else waiting.pop(0))
        elif word == "hook" and not called.is_hook:
            called.is_hook = True
        elif called.is_hook and called.stage is None and word in (*STAGES, OF_UDEV):
            called.stage = word
            if word in OF_LXC:
                waiting.clear()  # arguments of LXC's older hook version are in the environment, too
        elif called.stage == OF_UDEV and called.container is None:
            called.container = word
        else:
            return None
    # Without a stage, a terminal on standard input means a person: a runtime writes the container's state to it.
    return (
        called
        if called.is_hook and not (called.stage is None and sys.stdin is not None and sys.stdin.isatty())
        else None
    )


def run(called: _Called) -> int:
    """Does the work of the stage; returns the exit code. Each error is one line for the runtime, and logged."""
    from scplan.errors import ScplanError

    try:
        return _run(called)
    except ScplanError as error:
        lines = [one.line for one in error.diagnostics]
        code = int(error.exit_code)
    except OSError as error:
        lines, code = [f"{error.filename or 'scplan hook'}: {error.strerror}"], 1
    except Exception as error:
        lines, code = [f"{type(error).__name__}: {error}; this is a bug in scplan"], 1
        if os.environ.get("SCPLAN_DEBUG", "") not in ("", "0"):
            import traceback

            traceback.print_exc()
    tell(lines, failed=True)
    # At poststart the container's own process runs already: some runtimes kill it if the hook fails.
    return 0 if called.stage == "poststart" else code


def _run(called: _Called) -> int:
    from scplan.store.durable import default_state_dir

    state_dir = called.state_dir or os.environ.get("SCPLAN_STATE_DIR") or default_state_dir()
    timeout_s = _seconds(called.lock_timeout) if called.lock_timeout is not None else None
    if called.stage == OF_UDEV:
        from scplan.hooks import partitions

        tell(partitions.run(called.runtime or "", called.container or "", state_dir, timeout_s), failed=False)
        return 0
    return _run_stage(called, state_dir, _TIMEOUT_S if timeout_s is None else timeout_s)


def _run_stage(called: _Called, state_dir: str, timeout_s: float) -> int:
    from scplan.hooks.find import find_by_name, find_records, has_pins
    from scplan.hooks.state import call_of_lxc, parse_state, read_state

    if called.stage in OF_LXC:
        # LXC passes the container in environment variables, OCI runtimes pass JSON on standard input.
        call = call_of_lxc(os.environ, called.stage, called.runtime)
    else:
        call = parse_state(read_state(0), called.stage)
    found = find_records(state_dir, call.id, called.runtime)
    problems: list[str] = []
    if not found and STAGES[call.stage] == "start":
        found = find_by_name(state_dir, call, called.runtime, problems)
    tell(problems, failed=False)
    if not found and not (STAGES[call.stage] == "stop" and has_pins()):
        return 0
    from scplan.hooks import lifecycle

    tell(lifecycle.run(call, found, state_dir, timeout_s), failed=False)
    return 0


def _seconds(text: str) -> float:
    from scplan.model.probe import parse_duration

    return parse_duration(text)


def tell(lines: list[str], *, failed: bool) -> None:
    """Writes lines to standard error, which the runtime shows if the hook fails, and to the system's log."""
    if not lines:
        return
    import syslog

    syslog.openlog("scplan", syslog.LOG_PID, syslog.LOG_DAEMON)
    for line in lines:
        syslog.syslog(syslog.LOG_ERR if failed else syslog.LOG_NOTICE, line)
    try:
        sys.stderr.write("".join(f"scplan: {line}\n" for line in lines))
        sys.stderr.flush()
    except (OSError, AttributeError):
        return  # the runtime has closed standard error; the log has the lines

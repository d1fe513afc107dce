"""The entry point: tells apart what must start fast before the command line is imported."""

from __future__ import annotations

import sys

if False:
    from typing import NoReturn  # for type checkers: importing typing takes longer than all of --version


def main() -> int:
    """Runs the command line of this process and returns its exit code."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        from scplan import __version__

        return _write(f"scplan {__version__}\n")
    import gc

    # A short life with little garbage: looking for cycles would take a tenth of it.
    gc.disable()
    if "hook" in arguments:
        from scplan.hooks import entry

        called = entry.called_by_runtime(arguments)
        if called is not None:
            return entry.run(called)
    from scplan.cli.app import run

    return run(arguments)


def run() -> NoReturn:
    """The console script: ends the process as soon as everything is written.

    Taking the interpreter down module by module would take a twentieth of the time that a plan does.
    """
    code = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or 1
    import os  # imported by the interpreter already

    os._exit(code)


def _write(text: str) -> int:
    import os  # imported by the interpreter already

    try:
        os.write(1, text.encode())  # unbuffered: nothing is left that could fail at exit
    except OSError:
        return 1
    return 0


if __name__ == "__main__":
    run()

"""The entry point: tells apart what must start fast before the command line is imported."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command line of this process and returns its exit code."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        from scplan import __version__

        return _write(f"scplan {__version__}\n")
    import gc

    # A short life with little garbage: looking for cycles would take a tenth of it.
    gc.disable()
    from scplan.cli.app import run

    return run(arguments)


def _write(text: str) -> int:
    import os  # imported by the interpreter already

    try:
        os.write(1, text.encode())  # unbuffered: nothing is left that could fail at exit
    except OSError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The entry point: tells apart what must start fast before the command line is imported."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command line of this process and returns its exit code."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        from scplan import __version__

        sys.stdout.write(f"scplan {__version__}\n")
        return 0
    from scplan.cli.app import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())

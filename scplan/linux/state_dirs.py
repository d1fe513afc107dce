"""State directories that were used on this host since boot, so that one scplan finds another's. /run, hier(7)."""

from __future__ import annotations

import os

from scplan.errors import KernelError
from scplan.linux.processes.process import acts_for_user
from scplan.startup.digest import sha256_hex

_DIRECTORY = "/run/scplan/state-dirs"


def note_state_dir(directory: str) -> None:
    """Register root's state directory as in use. Those of other users are neither trusted nor needed."""
    if acts_for_user():
        return
    path = os.path.realpath(directory)
    note = f"{_DIRECTORY}/{sha256_hex(os.fsencode(path))[:32]}"
    try:
        if os.path.lexists(note):
            return
        os.makedirs(_DIRECTORY, mode=0o700, exist_ok=True)
        os.symlink(path, note)
    except FileExistsError:
        return
    except OSError as error:
        raise KernelError.from_os(f"symlink({note})", error, hint="/run must be writable") from None


def state_dirs() -> list[str]:
    """Registered state directories that still exist; empty for users who may not read the register."""
    try:
        notes = sorted(os.listdir(_DIRECTORY))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    found = []
    for note in notes:
        try:
            path = os.readlink(f"{_DIRECTORY}/{note}")
        except OSError:
            continue  # another process has removed the entry since
        if os.path.isdir(path):
            found.append(path)
        elif not acts_for_user():
            _forget(f"{_DIRECTORY}/{note}")
    return found


def _forget(note: str) -> None:
    try:
        os.unlink(note)
    except FileNotFoundError:
        return
    except OSError as error:
        raise KernelError.from_os(f"unlink({note})", error) from None

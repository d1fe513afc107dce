"""Paths inside a container: opened below its root by openat2(2), so that no symlink of the container leads out.

Everything is done on the fd that was opened; a path is never used twice. Source: openat2(2), Linux 5.6.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from scplan.errors import KernelError
from scplan.linux.syscalls import Resolve, openat2

_IN_ROOT = int(Resolve.IN_ROOT | Resolve.NO_MAGICLINKS)
_BENEATH = int(Resolve.BENEATH | Resolve.NO_SYMLINKS | Resolve.NO_MAGICLINKS)
_RACE_RETRIES = 64


def open_in_root(root_fd: int, path: str, flags: int = os.O_PATH) -> int:
    """An fd of `path` with `root_fd` as its root; symlinks on the way are followed inside it, a final one is not.

    Raises OSError (ENOENT, ENOTDIR, ELOOP …). A rename that races with the lookup is retried.
    """
    for _ in range(_RACE_RETRIES):
        try:
            return openat2(root_fd, path, flags | os.O_NOFOLLOW, resolve=_IN_ROOT)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
    raise KernelError(f"openat2({path})", errno.EAGAIN, detail="the container keeps renaming directories on the way")


def stat_in_root(root_fd: int, path: str) -> os.stat_result | None:
    """What is at `path` (a symlink itself, not its target); None when there is nothing."""
    try:
        fd = open_in_root(root_fd, path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise KernelError.from_os(f"openat2({path})", error) from None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


@contextmanager
def opened(fd: int) -> Iterator[int]:
    """Closes `fd` at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


def split(path: str) -> tuple[str, str]:
    """(directory, last part) of an absolute, normalised path."""
    directory, _, name = path.rpartition("/")
    return directory or "/", name


@contextmanager
def parent_of(root_fd: int, path: str) -> Iterator[tuple[int, str]]:
    """(fd of the directory that holds `path`, its last part); the directory must exist. Raises OSError."""
    directory, name = split(path)
    with opened(open_in_root(root_fd, directory, os.O_PATH | os.O_DIRECTORY)) as fd:
        yield fd, name


def missing_directories(root_fd: int, path: str) -> tuple[str, ...]:
    """Of the directories above `path`, those that are not there, outermost first."""
    parts = path.strip("/").split("/")[:-1]
    for depth in range(len(parts), 0, -1):
        if stat_in_root(root_fd, "/" + "/".join(parts[:depth])) is not None:
            return tuple("/" + "/".join(parts[:longer]) for longer in range(depth + 1, len(parts) + 1))
    return tuple("/" + "/".join(parts[: depth + 1]) for depth in range(len(parts)))


def make_directory(root_fd: int, path: str) -> None:
    """Makes one directory (0755, owned by this process); one that is there is left as it is. Raises OSError."""
    with parent_of(root_fd, path) as (parent, name):
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
        except FileExistsError:
            return
        with opened(openat2(parent, name, os.O_RDONLY | os.O_DIRECTORY, resolve=_BENEATH)) as fd:
            os.fchmod(fd, 0o755)


def make_file(root_fd: int, path: str) -> None:
    """Makes an empty file (0644, owned by this process); one that is there is left as it is. Raises OSError."""
    with parent_of(root_fd, path) as (parent, name):
        try:
            os.close(openat2(parent, name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode=0o644, resolve=_BENEATH))
        except FileExistsError:
            return


def remove_made(root_fd: int, paths: tuple[str, ...]) -> None:
    """Removes files and directories that scplan made (given outermost first), as far as they are still empty."""
    for path in reversed(paths):
        try:
            with parent_of(root_fd, path) as (parent, name):
                found = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    os.rmdir(name, dir_fd=parent)
                elif stat.S_ISREG(found.st_mode) and found.st_size == 0:
                    os.unlink(name, dir_fd=parent)
        except OSError as error:
            # Filled, replaced or mounted over by the container meanwhile: it is the container's now.
            if error.errno not in (
                errno.ENOENT,
                errno.ENOTDIR,
                errno.ENOTEMPTY,
                errno.EEXIST,
                errno.EBUSY,
                errno.ELOOP,
            ):
                raise KernelError.from_os(f"rmdir({path})", error) from None

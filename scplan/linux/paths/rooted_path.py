"""Paths inside a container: opened below its root by openat2(2), so that no symlink of the container leads out.

Everything is done on the fd that was opened; a path is never used twice. A file system that the container serves can
make all of this wait for ever: it is for steps, which have a time limit. `lookup` looks without waiting.
Source: openat2(2), Linux 5.6.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from scplan.errors import KernelError
from scplan.linux.syscalls import FileStatus, Resolve, openat2, statx

IN_ROOT = int(Resolve.IN_ROOT | Resolve.NO_MAGICLINKS)
BENEATH = int(Resolve.BENEATH | Resolve.NO_SYMLINKS | Resolve.NO_MAGICLINKS)
_RACE_RETRIES = 64


def open_in_root(root_fd: int, path: str, flags: int = os.O_PATH | os.O_NOFOLLOW) -> int:
    """An fd of `path` with `root_fd` as its root; symlinks on the way are followed inside it.

    A final one is not followed, unless the flags lack O_NOFOLLOW. Raises OSError (ENOENT, ENOTDIR, ELOOP …). A rename
    that races with the lookup is retried.
    """
    for _ in range(_RACE_RETRIES):
        try:
            return openat2(root_fd, path, flags, resolve=IN_ROOT)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
    raise KernelError(f"openat2({path})", errno.EAGAIN, detail="the container keeps renaming directories on the way")


def stat_in_root(root_fd: int, path: str) -> FileStatus | None:
    """What is at `path` (a symlink itself, not its target); None when there is nothing."""
    try:
        with opened(open_in_root(root_fd, path)) as fd:
            return statx(fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise KernelError.from_os(f"openat2({path})", error) from None


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
    """(fd of the directory that holds `path`, its last part); the directory must exist. Raises OSError.

    A directory that is a symlink is followed inside the root, as the container does: /var/run, which leads to /run.
    """
    directory, name = split(path)
    # With a dot at its end it is followed where it is a symlink, inside the root as all the others on the way.
    with opened(open_in_root(root_fd, f"{directory.rstrip('/')}/.", os.O_PATH | os.O_DIRECTORY)) as fd:
        yield fd, name


def missing_directories(status: Callable[[str], object | None], path: str) -> tuple[str, ...]:
    """Of the directories above `path`, those of which `status` finds nothing, outermost first."""
    parts = path.strip("/").split("/")[:-1]
    above = ["/" + "/".join(parts[: depth + 1]) for depth in range(len(parts))]
    for depth in range(len(above), 0, -1):
        if status(above[depth - 1]) is not None:
            return tuple(above[depth:])
    return tuple(above)


def make_directory(root_fd: int, path: str) -> bool:
    """Makes one directory (0755 where there is no umask, owned by this process); returns False where it is there.

    Raises OSError.
    """
    with parent_of(root_fd, path) as (parent, name), contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=parent)
        return True
    return False


def make_file(root_fd: int, path: str) -> bool:
    """Makes an empty file (0644 where there is no umask, owned by this process); returns False where it is there.

    Raises OSError.
    """
    with parent_of(root_fd, path) as (parent, name), contextlib.suppress(FileExistsError):
        os.close(openat2(parent, name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode=0o644, resolve=BENEATH))
        return True
    return False


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

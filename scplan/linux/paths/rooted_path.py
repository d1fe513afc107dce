"""Paths inside a container: opened below its root by openat2(2), so that no symlink of the container leads out.

All work is done on the opened fd; no path is used twice. A file system that the container serves can block any of these
functions for ever: they are for steps, which have a time limit. `lookup` never waits.
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

# RESOLVE_IN_ROOT implies NO_MAGICLINKS, but need not in future kernels. openat2(2)
IN_ROOT = int(Resolve.IN_ROOT | Resolve.NO_MAGICLINKS)
# For a name in a directory that is open: over no symlink, and not out of the directory.
BENEATH = int(Resolve.BENEATH | Resolve.NO_SYMLINKS | Resolve.NO_MAGICLINKS)
_RACE_RETRIES = 64


def open_in_root(root_fd: int, path: str, flags: int = os.O_PATH | os.O_NOFOLLOW) -> int:
    """fd of `path` with `root_fd` as its root; symlinks on the way are followed inside this root.

    A final symlink is not followed, unless the flags lack O_NOFOLLOW. Raises OSError (ENOENT, ENOTDIR, ELOOP …). A
    look-up that races with a rename (EAGAIN) is retried.
    """
    for _ in range(_RACE_RETRIES):
        try:
            return openat2(root_fd, path, flags, resolve=IN_ROOT)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
    raise KernelError(f"openat2({path})", errno.EAGAIN, detail="the container keeps renaming directories on the way")


def stat_in_root(root_fd: int, path: str) -> FileStatus | None:
    """Status of `path` (of a symlink itself, not its target); None if absent."""
    try:
        with opened(open_in_root(root_fd, path)) as fd:
            return statx(fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise KernelError.from_os(f"openat2({path})", error) from None


@contextmanager
def opened(fd: int) -> Iterator[int]:
    """Close `fd` at the end of the block."""
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
    """(fd of the directory that holds `path`, last part of `path`); the directory must exist. Raises OSError.

    A directory that is a symlink is followed inside the root, as in the container: /var/run, which leads to /run.
    """
    directory, name = split(path)
    # With the final dot, the last directory is followed, too, if it is a symlink: inside the root, as all others.
    with opened(open_in_root(root_fd, f"{directory.rstrip('/')}/.", os.O_PATH | os.O_DIRECTORY)) as fd:
        yield fd, name


def missing_directories(status: Callable[[str], object | None], path: str) -> tuple[str, ...]:
    """Directories above `path` for which `status` returns None, outermost first."""
    parts = path.strip("/").split("/")[:-1]
    above = ["/" + "/".join(parts[: depth + 1]) for depth in range(len(parts))]
    for depth in range(len(above), 0, -1):
        if status(above[depth - 1]) is not None:
            return tuple(above[depth:])
    return tuple(above)


def make_directory(root_fd: int, path: str) -> bool:
    """Make a directory (0755 without a umask, owned by this process). Returns False if the path exists.

    Raises OSError.
    """
    with parent_of(root_fd, path) as (parent, name), contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=parent)
        return True
    return False


def make_file(root_fd: int, path: str) -> bool:
    """Make an empty file (0644 without a umask, owned by this process). Returns False if the path exists.

    Raises OSError.
    """
    with parent_of(root_fd, path) as (parent, name), contextlib.suppress(FileExistsError):
        # O_EXCL does not follow a symlink that the container has put there. open(2)
        os.close(openat2(parent, name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode=0o644, resolve=BENEATH))
        return True
    return False


def remove_made(root_fd: int, paths: tuple[str, ...]) -> None:
    """Remove files and directories that scplan made (given outermost first), unless they have content."""
    for path in reversed(paths):
        try:
            with parent_of(root_fd, path) as (parent, name):
                found = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    os.rmdir(name, dir_fd=parent)
                elif stat.S_ISREG(found.st_mode) and found.st_size == 0:
                    os.unlink(name, dir_fd=parent)
        except OSError as error:
            # The container has filled, replaced or mounted over the path, which is now the container's.
            if error.errno not in (
                errno.ENOENT,
                errno.ENOTDIR,
                errno.ENOTEMPTY,
                errno.EEXIST,
                errno.EBUSY,
                errno.ELOOP,
            ):
                raise KernelError.from_os(f"rmdir({path})", error) from None

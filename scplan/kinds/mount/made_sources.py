"""Host directories that `create_source` made: made, removed, and made again as they were. mkdir(2), openat(2)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from typing import Protocol

from scplan.errors import KernelError, RecordDamaged, ScplanError
from scplan.linux.paths.made_files import attributes_of, restore_attributes, text_about
from scplan.linux.paths.rooted_path import opened
from scplan.linux.syscalls import AT_FDCWD, Resolve, openat2

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class MadeFor(Protocol):
    """A mount, with the record of the directories that were made for it."""

    @property
    def source(self) -> str: ...

    @property
    def made_source(self) -> tuple[str, ...] | None: ...


def missing_on_host(source: str) -> tuple[str, ...]:
    """The path and the directories above it that the host lacks, outermost first."""
    parts = source.strip("/").split("/")
    paths = ["/" + "/".join(parts[: depth + 1]) for depth in range(len(parts))]
    return tuple(path for path in paths if not os.path.lexists(path))


def leading_to(source: str, made: Iterable[str]) -> tuple[str, ...]:
    """The directories that lie on the way to the source, of those that were made.

    The record may have got another source since.
    """
    return tuple(directory for directory in made if f"{source}/".startswith(f"{directory}/"))


def made_for(others: Iterable[MadeFor], source: str) -> tuple[str, ...]:
    """Directories on the way to the source that were made for other mounts."""
    return leading_to(source, {directory for other in others for directory in other.made_source or ()})


def attributes_on_host(paths: Iterable[str]) -> tuple[str, ...]:
    """Owner, mode and extended attributes of the directories that exist."""
    texts = []
    for path in paths:
        try:
            with opened(os.open(path, _DIRECTORY)) as fd:
                texts.append(attributes_of(fd, path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise KernelError.from_os(f"open({path})", error) from None
    return tuple(texts)


def make_source(mount: MadeFor, leads_to: str | None, attributes: Sequence[str]) -> None:
    """Make the missing directories, each through a fd of its parent: a symlink put there meanwhile is not followed.

    `leads_to` is the source without symlinks, when it was planned; None: not known. `attributes` are for directories
    that are made again. Raises KernelError, and ScplanError if the path leads elsewhere by now.
    """
    check_leads_to(mount.source, leads_to)
    made = leading_to(mount.source, mount.made_source or ())
    if not made:
        return
    path = os.path.dirname(made[0])
    with ExitStack() as stack:
        try:
            directory = stack.enter_context(opened(_open_directory(path, mount.source, leads_to)))
            for path in made:
                name = os.path.basename(path)
                is_new = _make(name, directory)
                directory = stack.enter_context(opened(os.open(name, _DIRECTORY, dir_fd=directory)))
                text = text_about(attributes, path)
                if is_new and text is not None:
                    restore_attributes(directory, text)
        except OSError as error:
            raise KernelError.from_os(f"mkdir({path})", error) from None


def _open_directory(path: str, source: str, leads_to: str | None) -> int:
    """A fd of a directory above the source. If it is known where that led, no symlink is followed."""
    if leads_to is None:
        return os.open(path, _DIRECTORY & ~os.O_NOFOLLOW)
    real = leads_to.removesuffix(source[len(path.rstrip("/")) :]) or "/"
    return openat2(AT_FDCWD, real, os.O_PATH | os.O_DIRECTORY, resolve=int(Resolve.NO_SYMLINKS))


def check_leads_to(source: str, leads_to: str | None) -> None:
    """Raise ScplanError if a path leads elsewhere than when it was planned."""
    if leads_to is None:
        return
    now = os.path.realpath(source)
    if now != leads_to:
        raise ScplanError(
            f"{source} led to {leads_to} when it was planned, and leads to {now} now",
            detail="a directory on the way was replaced by a symlink, or a symlink was changed",
            hint="plan again",
        )


def _make(name: str, directory: int) -> bool:
    """Make a directory. True if it was absent."""
    try:
        os.mkdir(name, 0o755, dir_fd=directory)
    except FileExistsError:
        return False
    return True


def remove_source(mount: MadeFor, others: Callable[[], Collection[MadeFor]]) -> None:
    """Remove host directories that scplan made, if they are empty and no other mount needs them.

    Files in them are the user's.
    """
    made = leading_to(mount.source, mount.made_source or ())
    if not made:
        return
    try:
        needed = [f"{other.source}/" for other in others()]
    except RecordDamaged:
        return  # a mount with a damaged record may need them
    for directory in reversed(made):
        if any(source.startswith(f"{directory}/") for source in needed):
            return
        try:
            os.rmdir(directory)
        except OSError as error:
            if error.errno == errno.ENOENT:  # this directory could not be made; the ones above it were
                continue
            # The directory is not empty, a mount point (EBUSY), or another file by now (ENOTDIR). rmdir(2)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.ENOTDIR):
                return
            raise KernelError.from_os(f"rmdir({directory})", error) from None

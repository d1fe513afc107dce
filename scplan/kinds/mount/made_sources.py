"""Host directories that `create_source` has made: made, removed and made again as they were. mkdir(2), openat(2)."""

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
    """What the directories are made for: a mount, with what was remembered of it."""

    @property
    def source(self) -> str: ...

    @property
    def made_source(self) -> tuple[str, ...] | None: ...


def missing_on_host(source: str) -> tuple[str, ...]:
    """Of a path and the directories above it, those that the host lacks, outermost first."""
    parts = source.strip("/").split("/")
    paths = ["/" + "/".join(parts[: depth + 1]) for depth in range(len(parts))]
    return tuple(path for path in paths if not os.path.lexists(path))


def leading_to(source: str, made: Iterable[str]) -> tuple[str, ...]:
    """Of directories that were made, those on the way to a source: a record may have got another one since."""
    return tuple(directory for directory in made if f"{source}/".startswith(f"{directory}/"))


def made_for(others: Iterable[MadeFor], source: str) -> tuple[str, ...]:
    """Of the directories that lead to a source, those that were made for other mounts."""
    return leading_to(source, {directory for other in others for directory in other.made_source or ()})


def attributes_on_host(paths: Iterable[str]) -> tuple[str, ...]:
    """Owner, mode and extended attributes of the directories that are there."""
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
    """Makes the missing directories, each in the one before: a symlink that was put there meanwhile is not followed.

    `leads_to` is where the source was when it was planned, without symlinks; None: not known. `attributes` are given to
    directories that are made again. Raises KernelError, and ScplanError when the path leads elsewhere by now.
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
    """A fd of a directory above the source. Where it is known what that led to, no symlink is followed."""
    if leads_to is None:
        return os.open(path, _DIRECTORY & ~os.O_NOFOLLOW)
    real = leads_to.removesuffix(source[len(path.rstrip("/")) :]) or "/"
    return openat2(AT_FDCWD, real, os.O_PATH | os.O_DIRECTORY, resolve=int(Resolve.NO_SYMLINKS))


def check_leads_to(source: str, leads_to: str | None) -> None:
    """Raises ScplanError when a path leads elsewhere than it did when it was planned."""
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
    """True if it was not there."""
    try:
        os.mkdir(name, 0o755, dir_fd=directory)
    except FileExistsError:
        return False
    return True


def remove_source(mount: MadeFor, others: Callable[[], Collection[MadeFor]]) -> None:
    """Removes host directories that scplan made, as far as no other mount needs them and they are empty.

    What was put there is the user's.
    """
    made = leading_to(mount.source, mount.made_source or ())
    if not made:
        return
    try:
        needed = [f"{other.source}/" for other in others()]
    except RecordDamaged:
        return  # who can't be asked may need them
    for directory in reversed(made):
        if any(source.startswith(f"{directory}/") for source in needed):
            return
        try:
            os.rmdir(directory)
        except OSError as error:
            if error.errno == errno.ENOENT:  # it could not be made; those above it were
                continue
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.ENOTDIR):
                return
            raise KernelError.from_os(f"rmdir({directory})", error) from None

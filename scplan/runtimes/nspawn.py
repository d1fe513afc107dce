"""systemd-nspawn: its supervisors in /proc, and the images in /var/lib/machines. systemd-nspawn(1), proc(5)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from scplan.errors import KernelError
from scplan.model.live import ContainerFacts
from scplan.runtimes.runtime import ContainerName, Runtime, Signs, by_reference
from scplan.runtimes.state_files import facts_of, list_directories, list_suffixed, read_file, takes_root
from scplan.startup.named_tuple import NamedTuple

if TYPE_CHECKING:
    from scplan.model.provided import Provided

# One directory per running container, also without systemd-machined (--register=no).
_RUNNING = "/run/systemd/nspawn/propagate"
_IMAGES = ("/var/lib/machines", "/etc/machines", "/usr/lib/machines")
_SUPERVISOR = "systemd-nspawn"
_EPHEMERAL = "x"
_FALSE = ("no", "n", "false", "f", "off", "0")
_SUFFIX_DIGITS, _HEXADECIMAL = 16, frozenset("0123456789abcdef")
# Options whose value may be the next word: these letters, and all long options except _FLAGS.
_WITH_VALUE = "DuLMSZipE"
_FLAGS = (
    *("help", "version", "no-pager", "quiet", "ephemeral", "read-only", "volatile", "boot", "as-pid2", "pipe"),
    *("private-users", "private-users-chown", "private-network", "network-veth", "keep-unit", "share-system"),
)


class Nspawn(Runtime):
    """Machines are known by name: a running machine by its supervisor, a stopped machine by its image."""

    name = "nspawn"

    def places(self) -> list[str]:
        return [_RUNNING, *_IMAGES]

    def find(self, reference: str, pid: int | None, pid_file: str | None) -> list[ContainerFacts]:
        if os.path.isdir(f"{_RUNNING}/{reference}"):
            return [_facts(reference)]
        return [_facts(name) for name in by_reference(reference, _names())]

    def signs(self, name: str, container_id: str, place: str = "") -> Signs:
        return Signs(files=(f"{_RUNNING}/{name}",), is_polled=True)  # the directory may be left from an earlier run

    def provided(self, facts: ContainerFacts) -> Provided:
        """Parts in the settings file, and in the options of a running machine's supervisor."""
        from scplan.runtimes.nspawn_options import of_nspawn  # here, since most commands do not need it

        parent = _parent_of(facts.pid)
        words = os.fsdecode(read_file(f"/proc/{parent}/cmdline") or b"").split("\0") if parent else []
        return of_nspawn(facts.name, words[1:])

    def all(self) -> list[ContainerName]:
        return [ContainerName(name, name) for name in _names()]


def _names() -> list[str]:
    images = [name.removesuffix(".raw") for place in _IMAGES for name in _entries(place) if not name.startswith(".")]
    return sorted({*list_directories(_RUNNING), *images})


def _entries(place: str) -> list[str]:
    return [*list_directories(place), *list_suffixed(place, ".raw")]


def _facts(name: str) -> ContainerFacts:
    return facts_of(name, Nspawn.name, _leader(name), 0)


def _leader(name: str) -> int:
    """PID of the machine's first process; 0 if the machine does not run."""
    if not os.path.isdir(f"{_RUNNING}/{name}"):
        return 0
    base, _, suffix = name.rpartition("-")
    may_be_ephemeral = base and len(suffix) == _SUFFIX_DIGITS and _HEXADECIMAL.issuperset(suffix)
    ephemeral = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        started = _started_by(entry)
        if started.name == name and not started.is_suffixed and _is_of_host(entry):
            return _child_of(entry)
        if may_be_ephemeral and started == Started(base, True) and _is_of_host(entry):
            ephemeral.append(_child_of(entry))
    # Ephemeral machines of the same directory have the same arguments: only their mounts distinguish them.
    return next((pid for pid in ephemeral if pid and _has_directory_of(pid, name)), 0)


def _has_directory_of(pid: int, name: str) -> bool:
    """True if the process has the directory of that machine mounted (on /run/host/incoming). proc_pid_mountinfo(5)

    A machine can create a mount with any name, but not of the host's file system.
    """
    directory = f"{_RUNNING}/{name}"
    device = os.stat(directory).st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = read_file(f"/proc/{pid}/mountinfo")
    except KernelError as error:
        if error.errno != errno.EINVAL:
            raise
        return False  # the process is exiting, and has left its namespaces: mounts_open_common(), fs/proc_namespace.c
    for line in os.fsdecode(mounts or b"").splitlines():
        # Fields 3 and 4: MAJOR:MINOR of the file system, and the directory in it that is mounted.
        fields = line.split(" ")
        if fields[2] == numbers and directory.endswith(fields[3]) and fields[3].endswith(f"/{name}"):
            return True
    return False


def _started_by(pid: str) -> Started:
    """The machine that a process supervises, from its arguments; an empty name for any other process."""
    if read_file(f"/proc/{pid}/comm") != f"{_SUPERVISOR}\n".encode():
        return Started("", False)
    words = os.fsdecode(read_file(f"/proc/{pid}/cmdline") or b"").split("\0")
    return started_machine(words[1:])


def _is_of_host(pid: str) -> bool:
    """True if the process belongs to root, and to scplan's own PID and user namespaces."""
    try:
        # A process in a container can have the same name and arguments, but not the host's namespaces.
        same = all(os.stat(f"/proc/{pid}/ns/{kind}") == os.stat(f"/proc/self/ns/{kind}") for kind in ("pid", "user"))
        return same and os.stat(f"/proc/{pid}").st_uid == 0
    except FileNotFoundError:
        return False
    except PermissionError as error:
        raise KernelError.from_os(f"stat(/proc/{pid}/ns)", error, hint=takes_root(error)) from None


def _parent_of(pid: int) -> int:
    """PID of the parent of a process; 0 if there is none. Source: proc_pid_stat(5)."""
    # The second field is the name in brackets, which may contain brackets and spaces itself.
    fields = (read_file(f"/proc/{pid}/stat") or b"").rpartition(b")")[2].split()
    return int(fields[1]) if pid and len(fields) > 1 else 0


def _child_of(pid: str) -> int:
    """PID of the child in another PID namespace, which is the machine's first process; 0 if there is none."""
    own = os.stat(f"/proc/{pid}/ns/pid").st_ino
    # Children of the main thread, by a file of CONFIG_PROC_CHILDREN.
    for child in (read_file(f"/proc/{pid}/task/{pid}/children") or b"").split():
        try:
            if os.stat(f"/proc/{int(child)}/ns/pid").st_ino != own:
                return int(child)
        except FileNotFoundError:
            continue
    return 0


class Started(NamedTuple):
    """A machine as the arguments of its supervisor name it; nspawn appends 16 random digits to a suffixed name."""

    name: str
    is_suffixed: bool


def started_machine(arguments: list[str]) -> Started:
    """The machine that these arguments of systemd-nspawn start; an empty name if they have none.

    The name is `--machine`, else the last part of the directory or image, with a suffix if the machine is ephemeral.
    """
    told: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        if word == "--" or not word.startswith("-"):
            break
        if word.startswith("--"):
            option, has_value, value = word[2:].partition("=")
            if option not in _FLAGS:
                told[option] = value if has_value else next(words, "")
            elif option == "ephemeral":
                told[_EPHEMERAL] = value or "yes"
            continue
        for place, letter in enumerate(word[1:], start=2):
            if letter in _WITH_VALUE:
                told[letter] = word[place:] or next(words, "")
                break
            told[letter] = "yes"
    image = told.get("image") or told.get("i") or ""
    root = told.get("directory") or told.get("D") or image.removesuffix(".raw")
    chosen = told.get("machine") or told.get("M")
    is_ephemeral = told.get(_EPHEMERAL) not in (None, *_FALSE)
    return Started(chosen, False) if chosen else Started(os.path.basename(root.rstrip("/")), is_ephemeral)

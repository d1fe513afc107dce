"""A running container, opened: a directory fd of /proc/PID pins its process, with its namespaces, root and cgroups.

An fd of /proc/PID keeps naming the same process: when the process has ended, every use fails with ESRCH, even if the
PID is used again.
Sources: proc(5), pid_namespaces(7), cgroups(7), user_namespaces(7).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from scplan.errors import ContainerGone, KernelError, ScplanError
from scplan.linux.closing import Closing
from scplan.linux.mounts.mountinfo import Mount, escape, parse_mountinfo, read_all
from scplan.linux.paths.rooted_path import IN_ROOT
from scplan.linux.processes.namespaces import Child, forbid_imports, namespace_id, socket_apart, socket_in
from scplan.linux.processes.process import ends_in_cgroup, start_time
from scplan.linux.processes.signals import stop_requests_wait
from scplan.linux.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    FileStatus,
    openat2,
    owner_of_namespace,
    setns,
)
from scplan.startup.named_tuple import NamedTuple

if TYPE_CHECKING:
    from scplan.linux.host import Host
    from scplan.linux.network.netlink import Rtnl

T = TypeVar("T")
OVERFLOW_ID = 65534
"""Id that the kernel shows for an id that is not mapped. user_namespaces(7)."""


_ENDING_S = 0.05


class Container(Closing):
    """A running container, opened. Use it in a `with` block; fds are opened on first use and closed at its end."""

    def __init__(
        self,
        name: str,
        pid: int,
        expected_start_time: int,
        host: Host,
        root: str = "",
        runtime: str = "",
        cgroup: str = "",
    ) -> None:
        """Pin process `pid`. `runtime` is the name of the container's runtime; `cgroup` as in ContainerFacts.

        `root` is set while the container is being started, and its process has not entered its root directory yet: the
        path of that directory in the container's mount namespace. Raises ContainerGone if the process does not exist,
        or started at another time than expected (0 accepts any).
        """
        self.name = name
        self.runtime = runtime
        self._root = root.rstrip("/")
        self._cgroup = cgroup
        self.pid = pid
        self.host = host
        self._fds: dict[str, int] = {}
        self._rtnl: Rtnl | None = None
        self._cgroups: dict[str, str] | None = None
        self._shared: dict[str, bool] = {}
        self._id_maps: dict[str, list[tuple[int, int, int]]] = {}
        try:
            self._fds["proc"] = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            raise self._gone() from None
        found = self._started()
        if expected_start_time and found != expected_start_time:
            self.close()
            raise ContainerGone(
                f"container {name}: process {pid} is another one than the runtime recorded",
                detail=f"it started at tick {found}, the container's at {expected_start_time}",
                hint="the container ended, and its PID was taken again; ask its runtime for its state",
            )
        self.start_time = found

    def _gone(self) -> ContainerGone:
        return ContainerGone(
            f"container {self.name}: its process {self.pid} is gone", hint="start the container, then plan again"
        )

    def close(self) -> None:
        """Close everything that was opened."""
        if self._rtnl is not None:
            self._rtnl.close()
            self._rtnl = None
        while self._fds:
            os.close(self._fds.popitem()[1])

    # the process

    def open_proc(self, path: str, flags: int = os.O_RDONLY) -> int:
        """New fd of a file below /proc/PID. Raises ContainerGone if the process has ended."""
        try:
            return os.open(path, flags | os.O_CLOEXEC, dir_fd=self._fds["proc"])
        except OSError as error:
            raise self._unreadable("open", path, error) from None

    def read_proc(self, path: str, *, has_paths: bool = True) -> bytes:
        """Whole content of a file below /proc/PID; `has_paths` as in read_all."""
        fd = self.open_proc(path)
        try:
            return read_all(fd, has_paths=has_paths)
        except OSError as error:
            raise self._unreadable("read", path, error) from None
        finally:
            os.close(fd)

    def _unreadable(self, call: str, path: str, error: OSError) -> ScplanError:
        # The files of a process that was reaped give ESRCH, or do not exist any more.
        if error.errno in (errno.ESRCH, errno.ENOENT):
            return self._gone()
        hint = ""
        # root and ns/* of another process take a ptrace access check. proc_pid_ns(5), ptrace(2)
        if error.errno in (errno.EACCES, errno.EPERM):
            hint = f"to look into container {self.name} takes root (CAP_SYS_PTRACE); `plan --live` does without"
        return KernelError.from_os(f"{call}(/proc/{self.pid}/{path})", error, hint=hint)

    def check_alive(self) -> None:
        """Raise ContainerGone if the process has ended; a zombie counts as ended."""
        if not self._started():
            raise self._gone()

    def check_staying(self) -> None:
        """Raise ContainerGone if the process has ended, or is ending just now.

        An exiting process leaves its cgroups (cgroup_exit) and namespaces (exit_task_namespaces) before it becomes a
        zombie (exit_notify), in do_exit() of the kernel: look again a moment later.
        """
        self.check_alive()
        time.sleep(_ENDING_S)
        self.check_alive()

    def _started(self) -> int:
        return start_time(self.read_proc("stat", has_paths=False))

    def _held(self, key: str, path: str, flags: int = os.O_RDONLY) -> int:
        if key not in self._fds:
            self._fds[key] = self.open_proc(path, flags)
        return self._fds[key]

    def _shares(self, kind: str) -> bool:
        """True if the process is in scplan's own namespace of this kind. Cached."""
        if kind not in self._shared:
            try:
                there = namespace_id(f"ns/{kind}", dir_fd=self._fds["proc"])
            except OSError as error:
                raise self._unreadable("readlink", f"ns/{kind}", error) from None
            self._shared[kind] = there == self.host.namespace_id(kind)
        return self._shared[kind]

    # network

    @property
    def netns_fd(self) -> int:
        return self._held("net", "ns/net")

    @property
    def shares_host_network(self) -> bool:
        return self._shares("net")

    @property
    def rtnl(self) -> Rtnl:
        """rtnetlink socket inside the container's network namespace."""
        if self._rtnl is None:
            from scplan.linux.network.netlink import Rtnl, open_socket

            try:
                # setns(2) back into scplan's own network namespace takes CAP_SYS_ADMIN in its owner, a user namespace.
                if self.host.owns_network:
                    self._rtnl = Rtnl(socket_in(self.netns_fd, self.host.netns_fd, open_socket))
                else:
                    self._rtnl = Rtnl(socket_apart(self.netns_fd, open_socket))
            except KernelError as error:
                if error.errno != errno.EPERM:
                    raise
                hint = "run scplan as root; rootless containers of podman also let `podman unshare scplan` in"
                raise KernelError(error.operation, errno.EPERM, hint=hint) from None
        return self._rtnl

    # files

    @property
    def root_fd(self) -> int:
        """O_PATH fd of the container's root directory."""
        process_root = self._held("root", "root", os.O_PATH | os.O_DIRECTORY)
        if not self._root:
            return process_root
        if "own root" not in self._fds:
            # The runtime made this path, and no process of the container runs yet: only the host could redirect it.
            try:
                fd = openat2(process_root, self._root, os.O_PATH | os.O_DIRECTORY, resolve=IN_ROOT)
            except OSError as error:
                raise KernelError.from_os(f"openat2({self._root})", error) from None
            self._fds["own root"] = fd
            self._refuse_unmounted_root()
        return self._fds["own root"]

    def _refuse_unmounted_root(self) -> None:
        """Raise ScplanError for a directory that is not the container's own: its runtime mounts its root for it alone.

        Files made in any other directory would be made on the host.
        """
        point = escape(self._root)
        there = parse_mountinfo(self.read_proc("mountinfo"), frozenset([point]))
        on_host = parse_mountinfo(self.host.mountinfo(), frozenset([point]))
        if len(there) <= len(on_host):
            raise ScplanError(
                f"container {self.name}: {self._root} is not its root directory",
                detail="nothing is mounted there in its mount namespace that the host has not mounted there too",
                hint="the runtime, or whoever called the hook for it, told another container's root, or the host's",
            )

    @property
    def shares_host_mounts(self) -> bool:
        return self._shares("mnt")

    def status(self, path: str) -> FileStatus | None:
        """Status of a path of the container (of a symlink itself); None if absent. Never waits for long."""
        return self.host.lookup.status(self.root_fd, path, container=self.name)

    def mounts(self, only: frozenset[bytes] | None = None, *, below: bool = False) -> list[Mount]:
        """Mounts below the container's root, which is "/" in their mount points; parameters as in parse_mountinfo."""
        if not self._root:
            return parse_mountinfo(self.read_proc("mountinfo"), only, below=below)
        prefix = escape(self._root)
        inside = None if only is None else frozenset(prefix + point.removesuffix(b"/") for point in only)
        mounts = parse_mountinfo(self.read_proc("mountinfo"), inside, below=below)
        found = [mount for mount in mounts if f"{mount.point}/".startswith(f"{self._root}/")]
        return [mount._replace(point=mount.point.removeprefix(self._root) or "/") for mount in found]

    @property
    def mount_owner_fd(self) -> int | None:
        """fd of the user namespace that owns the container's mounts; None if it is scplan's own."""
        if "mnt owner" not in self._fds:
            namespace_fd = self._held("mnt", "ns/mnt")
            self._fds["mnt owner"] = owner_of_namespace(namespace_fd, name=f"mounts of container {self.name}")
        owner = self._fds["mnt owner"]
        return owner if os.fstat(owner).st_ino != self.host.namespace_id("user") else None

    # steps: work inside the container, which may hang on a file system that the container serves

    def bounded(self, work: Callable[..., T], *fds: int, what: str) -> T:
        """Result of `work(container, *fds)`: called in the stepper, with this container opened there and a time limit.

        `work` is a function of a module, or a functools.partial of one, because it is pickled. `what` names the work in
        errors. Raises ScplanError and OSError as `work` does, and KernelError ETIMEDOUT if `work` hangs.
        """
        # Open the root now: the process could take another root before the stepper opens it. chroot(2), pivot_root(2)
        _ = self.root_fd
        step = partial(_take_step, self._pinned(), work)
        return self.host.stepper.take(step, [*self._fds.values(), *fds], what=what)

    def _pinned(self) -> _Pinned:
        return _Pinned(
            self.name,
            self.pid,
            self.start_time,
            self.runtime,
            self._root,
            tuple(self._fds),
            self._shared,
            self._id_maps,
        )

    @classmethod
    def _of(cls, pinned: _Pinned, fds: Sequence[int], host: Host) -> Container:
        """The same container in the stepper, made from copies of its fds: nothing is looked up again."""
        made = cls.__new__(cls)
        made.name, made.pid, made.start_time, made.runtime, made._root, keys, made._shared, made._id_maps = pinned
        made.host = host
        made._fds = dict(zip(keys, fds, strict=True))
        made._rtnl = None
        made._cgroups = None
        made._cgroup = ""
        return made

    def apart(self, work: Callable[..., T], *fds: int, what: str) -> T:
        """Result of `work(container, *fds)` in a child of its own, for work that enters a user namespace.

        A process can't return from a user namespace: inside, it has no capabilities in the parent. user_namespaces(7)
        """
        # A request to stop waits for the child, which must have ended before its work is undone.
        with stop_requests_wait():
            return Child(partial(work, self, *fds), what=what).result()

    def refuse_host_mounts(self) -> None:
        """Raise ScplanError if the container has no mount namespace or no root of its own."""
        if self.shares_host_mounts:
            raise ScplanError(
                f"container {self.name} shares the host's mount namespace",
                hint="what is mounted or made there would be the host's; start it with a mount namespace of its own",
            )
        found = os.fstat(self.root_fd)
        if (found.st_dev, found.st_ino) == self.host.root:
            raise ScplanError(
                f"container {self.name} has the host's root directory",
                hint="what is made in it would be made on the host; start it with a root of its own",
            )

    def check_enterable(self) -> None:
        """Check that a step can enter the container. Raises ScplanError, and ContainerGone if the process has ended."""
        self.refuse_host_mounts()
        self._held("mnt", "ns/mnt")
        self.check_alive()

    def enter(self) -> int:
        """Move this process into the container's mount namespace and root; return the fd of the root.

        For steps: the process keeps scplan's privileges, and executes nothing of the container.
        """
        namespace_fd, root_fd = self._held("mnt", "ns/mnt"), self.root_fd
        setns(namespace_fd, CLONE_NEWNS, name=f"the mount namespace of container {self.name}")
        forbid_imports()
        # setns() takes the root of the namespace (mntns_install() of fs/namespace.c), which need not be the process's.
        os.fchdir(root_fd)
        os.chroot(".")
        os.umask(0)
        return root_fd

    @contextmanager
    def mounts_entered(self) -> Iterator[None]:
        """Keep this process in the container's mount namespace during the block, which must use no paths."""
        home_fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        home_root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        setns(self._held("mnt", "ns/mnt"), CLONE_NEWNS, name=f"the mount namespace of container {self.name}")
        try:
            yield
        finally:
            # setns() also sets the working directory and the root of the process: both are restored by fd.
            setns(home_fd, CLONE_NEWNS, name="scplan's own mount namespace")
            os.fchdir(home_root_fd)
            os.chroot(".")
            os.close(home_fd)
            os.close(home_root_fd)

    def as_its_root(self, work: Callable[[Container], T], *, what: str) -> T:
        """Result of `work(container)`: called as in `bounded`, with the ids of the container's root.

        A new file on a file system of a user namespace must have an owner that is mapped there, else the kernel refuses
        it (EOVERFLOW). Raises ScplanError if the container shares the host's mount namespace.
        """
        self.refuse_host_mounts()
        if self.has_user_namespace:
            return self.apart(partial(_as_its_root, work=work), what=what)
        return self.bounded(partial(_unmasked, work=work), what=what)

    # ids

    @property
    def has_user_namespace(self) -> bool:
        return not self._shares("user")

    @property
    def userns_fd(self) -> int:
        return self._held("user", "ns/user")

    def host_id(self, kind: str, inside: int) -> int:
        """Host's id for an id of the container; `kind` is "uid" or "gid". Raises ScplanError if it is not mapped."""
        for first, outside, count in self._id_map(kind):
            if first <= inside < first + count:
                return outside + inside - first
        raise ScplanError(
            f"container {self.name}: {kind} {inside} is not mapped in its user namespace",
            hint=f"choose an id that /proc/{self.pid}/{kind}_map has",
        )

    def inside_id(self, kind: str, outside: int) -> int:
        """Container's id for an id of the host; if not mapped, the overflow id (65534), as the kernel shows it."""
        if not self.has_user_namespace:
            return outside
        for first, start, count in self._id_map(kind):
            if start <= outside < start + count:
                return first + outside - start
        return OVERFLOW_ID

    def maps(self, found: FileStatus | os.stat_result) -> bool:
        """True if the container's root may change the file's owner and mode: its uid and gid are both mapped.

        See capable_wrt_inode_uidgid() of kernel/capability.c.
        """
        owner = {"uid": found.st_uid, "gid": found.st_gid}
        return all(
            any(start <= outside < start + count for _, start, count in self._id_map(kind))
            for kind, outside in owner.items()
        )

    def may_make_in(self, directory: str) -> bool:
        """True if the container's root may make files in a directory of the host that is mounted in the container."""
        return self.may_make_at(os.stat(directory))

    def may_make_at(self, directory: FileStatus | os.stat_result) -> bool:
        """True if the container's root may make files in a directory. capabilities(7), CAP_DAC_OVERRIDE."""
        if not self.has_user_namespace or self.maps(directory):
            return True
        if self.inside_id("uid", directory.st_uid) == 0:
            return bool(directory.st_mode & stat.S_IWUSR)
        if self.inside_id("gid", directory.st_gid) == 0:
            return bool(directory.st_mode & stat.S_IWGRP)
        return bool(directory.st_mode & stat.S_IWOTH)

    def _id_map(self, kind: str) -> list[tuple[int, int, int]]:
        if not self.has_user_namespace:
            # Read in its own user namespace, uid_map shows the ids of the parent, which may be others.
            # user_namespaces(7)
            return [(0, 0, 1 << 32)]
        if kind not in self._id_maps:
            rows = [line.split() for line in self.read_proc(f"{kind}_map").splitlines()]
            self._id_maps[kind] = [(int(row[0]), int(row[1]), int(row[2])) for row in rows if len(row) == 3]
        return self._id_maps[kind]

    # cgroups

    def cgroup_path(self, controller: str) -> str:
        """Path of the cgroup that the runtime made for the container, in the hierarchy of a v1 controller.

        The container's first process may be in a cgroup below: init.scope, with systemd inside. "" names the v2
        hierarchy.
        """
        if self._cgroups is None:
            of_process = _parse_cgroups(self.read_proc("cgroup"))
            inside = {} if self._cgroup else self._cgroups_inside()
            self._cgroups = {
                name: self._own_part(name, path, inside.get(name, "/")) for name, path in of_process.items()
            }
        try:
            path = self._cgroups[controller]
        except KeyError:
            raise ScplanError(
                f"container {self.name}: this host has no cgroup v1 controller {controller!r}",
                hint="`scplan doctor` lists the controllers of this host",
            ) from None
        if ".." in path and ".." in path.split("/"):
            # The path is relative to the root of scplan's cgroup namespace (cgroup_namespaces(7)): joined to a mount
            # point, it would name another cgroup.
            raise ScplanError(
                f"container {self.name}: its cgroup {path} is outside of scplan's cgroup namespace",
                hint="run scplan in the host's cgroup namespace",
            )
        return path

    def _own_part(self, controller: str, path: str, inside: str) -> str:
        """Leading part of the process's cgroup path that is the container's own cgroup.

        If the runtime's state names a cgroup: the first part that ends with that name, and does not hold scplan itself.
        Else: the root of the process's cgroup namespace, below which its path is `inside`. A container can make cgroups
        of any name, but only below its own.
        """
        if not self._cgroup:
            return path if ".." in inside.split("/") else path.removesuffix(inside.rstrip("/")) or "/"
        parts, end = path.strip("/").split("/"), self._cgroup.split("/")
        own = f"{self.host.own_cgroups.get(controller, '')}/"
        for count in range(len(end), len(parts) + 1):
            found = "/" + "/".join(parts[:count])
            if ends_in_cgroup(parts[:count], end) and not own.startswith(f"{found}/"):
                return found
        return path

    def _cgroups_inside(self) -> dict[str, str]:
        """Cgroups of the process by controller, as its own cgroup namespace shows them.

        Empty if that is scplan's namespace, or may not be entered. Source: cgroup_namespaces(7).
        """
        try:
            if self._shares("cgroup"):
                return {}
            namespace_fd, home_fd = self._held("cgroup", "ns/cgroup"), self.host.cgroupns_fd
        except KernelError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT):
                raise
            return {}  # only root may open ns/cgroup; anybody may read /proc/PID/cgroup
        setns(namespace_fd, CLONE_NEWCGROUP, name=f"the cgroup namespace of container {self.name}")
        try:
            return _parse_cgroups(self.read_proc("cgroup"))
        finally:
            setns(home_fd, CLONE_NEWCGROUP, name="scplan's own cgroup namespace")


def _parse_cgroups(text: bytes) -> dict[str, str]:
    """Cgroup paths by controller, from the text of /proc/PID/cgroup."""
    found = {}
    # A cgroup's name may hold colons and more, but no newline: cgroup_mkdir() of kernel/cgroup/cgroup.c refuses it.
    for line in os.fsdecode(text).rstrip("\n").split("\n"):
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            found[name] = path
    return found


class _Pinned(NamedTuple):
    """State of a container that is sent to the stepper. `keys` name the accompanying fds, in their order."""

    name: str
    pid: int
    start_time: int
    runtime: str
    root: str
    keys: tuple[str, ...]
    shared: dict[str, bool]
    id_maps: dict[str, list[tuple[int, int, int]]]


def _take_step(pinned: _Pinned, work: Callable[..., T], fds: Sequence[int]) -> T:
    """Call `work` in the stepper. Each step gets a new Host: mounts that an earlier one has read may have changed."""
    from scplan.linux.host import Host

    count = len(pinned.keys)
    with Host() as host:
        return work(Container._of(pinned, fds[:count], host), *fds[count:])


def _unmasked(container: Container, work: Callable[[Container], T]) -> T:
    os.umask(0)
    return work(container)


def _as_its_root(container: Container, work: Callable[[Container], T]) -> T:
    os.umask(0)
    # Before entering: many user namespaces deny setgroups() to all processes, even with no groups to drop.
    # user_namespaces(7), "setgroups".
    if os.getgroups():
        os.setgroups([])
    setns(container.userns_fd, CLONE_NEWUSER, name=f"the user namespace of container {container.name}")
    # setns() gives all capabilities in the namespace, but keeps the ids, which may not be mapped there.
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    return work(container)

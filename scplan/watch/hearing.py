"""Listens for events of running containers, and of the host's links that belong to them."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable

from scplan.errors import ContainerGone, KernelError
from scplan.kinds.kind import Hears
from scplan.linux.closing import Closing
from scplan.linux.host import Host
from scplan.linux.network.netlink.listening import OF_THE_HOST, changed_links, open_listener
from scplan.linux.processes.life import Life
from scplan.watch.attend import Key
from scplan.watch.poller import Poller
from scplan.watch.rest import Rest
from scplan.watch.watched import Watched

_LOST_EVERY_S = 60.0


class Hearing(Closing):
    """Events of the lives of containers, through fds. Calls a hint with the keys of the containers concerned.

    `hint_of_life` is for ends, `hint_inside` for changes of the container's network or mounts, or of its host links.
    """

    def __init__(
        self,
        poller: Poller,
        hint_of_life: Callable[[Iterable[Key]], None],
        hint_inside: Callable[[Iterable[Key]], None],
        rest: Rest,
        complain: Callable[[KernelError | OSError], None],
        host: Host,
    ) -> None:
        self._poller, self._rest, self._complain, self._host = poller, rest, complain, host
        self._hint_of_life, self._hint_inside = hint_of_life, hint_inside
        self._links: dict[str, set[Key]] = {}
        self._living: dict[Key, Watched] = {}
        self._lost_s = float("-inf")
        self._host_links = open_listener(OF_THE_HOST)
        poller.add(self._host_links.fileno(), self._heard_links)

    def close(self) -> None:
        self._host_links.close()
        for one in list(self._living.values()):
            self.stop(one)

    def start(self, one: Watched) -> bool:
        """Listens for events of the container's current life; True if that is new."""
        assert one.facts is not None
        wanted = (one.facts.pid, one.facts.start_time, one.hears, one.host_links)
        if one.life is not None and one.heard_of == wanted:
            return False
        self.stop(one)
        network, mounts = Hears.NETWORK in one.hears, Hears.MOUNTS in one.hears
        try:
            one.life = Life(one.facts.pid, one.facts.start_time, self._host.netns_fd, network=network, mounts=mounts)
            one.heard_of = wanted
            self._listen(one, one.life)
        except ContainerGone:
            self.stop(one)
            return True  # the container has ended since its check
        except (KernelError, OSError) as error:
            self.stop(one)
            one.is_unheard = True
            self._complain(error)
            return False
        return True

    def stop(self, one: Watched) -> None:
        """Stops listening, and closes the fds that keep the container's namespaces alive. namespaces(7)"""
        self._living.pop(one.key, None)
        for name in one.heard_of[3] if one.heard_of else ():
            keys = self._links.get(name, set())
            keys.discard(one.key)
            if not keys:
                self._links.pop(name, None)
        one.heard_of = None
        if one.life is not None:
            for fd in one.life.fds:
                self._poller.remove(fd)
            one.life.close()
            one.life = None

    def arm(self, one: Watched) -> None:
        """Enables the container's next event; an event since its turn began counts at once."""
        for fd in one.life.fds if one.life else ():
            self._poller.arm(fd)

    def _listen(self, one: Watched, life: Life) -> None:
        self._living[one.key] = one
        self._poller.add(life.ended_fd, lambda: self._ended(one))
        if life.network is not None:
            self._poller.add(life.network.fileno(), lambda: self._hint_inside([one.key]))
        if life.mounts_fd is not None:
            # mountinfo is always readable; a change of the mounts is a priority event. proc_pid_mounts(5)
            self._poller.add(life.mounts_fd, lambda: self._hint_inside([one.key]), select.EPOLLPRI)
        for name in one.host_links:
            self._links.setdefault(name, set()).add(one.key)

    def _ended(self, one: Watched) -> None:
        self.stop(one)
        self._hint_of_life([one.key])

    def _heard_links(self) -> None:
        names, lost = changed_links(self._host_links)
        now = time.monotonic()
        if lost and now - self._lost_s > _LOST_EVERY_S:
            # Rate-limited: a container that flaps its end of a veth pair causes events of the host's end, too.
            self._lost_s = now
            names = set(self._links)
        self._hint_inside(key for name in names for key in self._links.get(name, ()))
        self._rest.arm(self._host_links.fileno())

"""JSON over the socket of an engine's daemon: responses of docker, incus and lxd."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from scplan.errors import EngineUnreachable, KernelError, ScplanError
from scplan.linux.local_socket import http_get
from scplan.runtimes.state_files import parse

T = TypeVar("T")
NOT_FOUND = 404
_ERRORS, _OWN_ERRORS = 400, 500
_PROBE_S = 1.0


def get(socket: str, target: str) -> tuple[int, Any]:
    """Status and JSON of a response; statuses from 400 on raise no error.

    Raises KernelError if nobody answers in time, RecordDamaged if the response is not JSON.
    """
    status, body = http_get(socket, target)
    return status, parse(body, f"{socket}: {target}")


def get_one(socket: str, target: str) -> Any:
    """JSON of a response; None for status 404.

    Raises ScplanError for other statuses from 400 on: EngineUnreachable from 500 on.
    """
    status, answer = get(socket, target)
    if status == NOT_FOUND:
        return None
    if status >= _ERRORS:
        kind = EngineUnreachable if status >= _OWN_ERRORS else ScplanError
        raise kind(f"{socket}: GET {target}: status {status}", detail=said(answer))
    return answer


def said(answer: Any) -> str:
    """The error message in a daemon's response; "" if it has none."""
    message = (answer.get("message") or answer.get("error")) if isinstance(answer, dict) else None
    return message if isinstance(message, str) else ""


def is_plain(reference: str) -> bool:
    """True if `reference` needs no escaping in a URL; engines allow no other names and IDs."""
    return reference.isascii() and all(letter.isalnum() or letter in "_.-" for letter in reference)


def existing(paths: list[str]) -> list[str]:
    """Existing paths, sorted; a socket with several names is listed once."""
    return sorted({os.path.realpath(path): path for path in paths if os.path.exists(path)}.values())


class Daemons:
    """Daemons of an engine, by socket. A daemon that hangs is queried once.

    `probe` is an HTTP target that a working daemon answers at once, even while it works on a container.
    """

    def __init__(self, engine: str, probe: str) -> None:
        self._engine, self._probe = engine, probe
        self._hanging: dict[str, str] = {}

    @contextmanager
    def reaching(self, socket: str) -> Iterator[None]:
        """Raises EngineUnreachable, which names the engine, if its daemon does not answer within the block."""
        if socket in self._hanging:
            raise EngineUnreachable.at(self._engine, socket, self._hanging[socket], errno.ETIMEDOUT)
        try:
            yield
        except KernelError as error:
            # Docker does not answer about a starting container, but still about all others: check by the probe.
            if error.errno == errno.ETIMEDOUT and not self._answers(socket):
                self._hanging[socket] = error.said
            raise EngineUnreachable.at(self._engine, socket, error.said, error.errno) from None

    def check(self, sockets: Sequence[str]) -> None:
        """Raises EngineUnreachable if none of the sockets exists, or a daemon does not answer."""
        for socket in existing(list(sockets)) or sockets[:1]:
            with self.reaching(socket):
                http_get(socket, self._probe)

    def from_each(self, sockets: Sequence[str], ask: Callable[[str], list[T]]) -> list[T]:
        """Results of `ask` for all existing sockets, in one list.

        Raises EngineUnreachable if no socket exists, or if there is no result and a daemon did not answer.
        """
        there = existing(list(sockets))
        if sockets and not there:
            raise EngineUnreachable.at(self._engine, sockets[0], "there is no such socket", errno.ENOENT)
        found: list[T] = []
        silent: list[EngineUnreachable] = []
        for socket in there:
            try:
                with self.reaching(socket):
                    found += ask(socket)
            except EngineUnreachable as error:
                silent.append(error)
        if silent and not found:
            raise silent[0]
        return found

    def _answers(self, socket: str) -> bool:
        try:
            http_get(socket, self._probe, timeout_s=_PROBE_S)
        except (KernelError, EngineUnreachable):
            return False
        return True

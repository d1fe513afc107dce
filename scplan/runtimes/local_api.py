"""JSON over the socket of an engine's daemon: what docker, incus and lxd answer."""

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
    """Status and JSON of an answer; no error is raised for statuses from 400 on.

    Raises KernelError when nobody answers in time, RecordDamaged for what is no JSON.
    """
    status, body = http_get(socket, target)
    return status, parse(body, f"{socket}: {target}")


def get_one(socket: str, target: str) -> Any:
    """The JSON of an answer; None when the daemon knows no such thing. Raises ScplanError when it refuses."""
    status, answer = get(socket, target)
    if status == NOT_FOUND:
        return None
    if status >= _ERRORS:
        kind = EngineUnreachable if status >= _OWN_ERRORS else ScplanError
        raise kind(f"{socket}: GET {target}: status {status}", detail=said(answer))
    return answer


def said(answer: Any) -> str:
    """What a daemon says about an error."""
    message = (answer.get("message") or answer.get("error")) if isinstance(answer, dict) else None
    return message if isinstance(message, str) else ""


def is_plain(reference: str) -> bool:
    """Whether it can be the name or ID of a container in a URL as it is; engines have no other names."""
    return reference.isascii() and all(letter.isalnum() or letter in "_.-" for letter in reference)


def existing(paths: list[str]) -> list[str]:
    """Those paths that are there, each socket once even when it has several names."""
    return sorted({os.path.realpath(path): path for path in paths if os.path.exists(path)}.values())


class Daemons:
    """The daemons of an engine, by their sockets; one that hangs is asked once.

    `probe` is a target that a working daemon answers at once, whatever it does to a container just now.
    """

    def __init__(self, engine: str, probe: str) -> None:
        self._engine, self._probe = engine, probe
        self._hanging: dict[str, str] = {}

    @contextmanager
    def reaching(self, socket: str) -> Iterator[None]:
        """Raises EngineUnreachable, which names the engine, where nobody answers at its socket."""
        if socket in self._hanging:
            raise EngineUnreachable.at(self._engine, socket, self._hanging[socket], errno.ETIMEDOUT)
        try:
            yield
        except KernelError as error:
            # Docker does not answer about a container that is being started, but about all others.
            if error.errno == errno.ETIMEDOUT and not self._answers(socket):
                self._hanging[socket] = error.said
            raise EngineUnreachable.at(self._engine, socket, error.said, error.errno) from None

    def check(self, sockets: Sequence[str]) -> None:
        """Raises EngineUnreachable where none of the sockets is there, or nobody answers at one of them."""
        for socket in existing(list(sockets)) or sockets[:1]:
            with self.reaching(socket):
                http_get(socket, self._probe)

    def from_each(self, sockets: Sequence[str], ask: Callable[[str], list[T]]) -> list[T]:
        """What is found at all sockets of an engine.

        Raises EngineUnreachable where nothing is found, and one of them did not answer, or none is there.
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

"""A file system that never answers: fuse(4), mounted by hand inside a container, after the handshake.

The process that has /dev/fuse open lives as long as the block; its end makes every request fail.
"""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.containers.container import Container
from tests.hostile.attacker import MNT_DETACH, enter, mount, once, umount

_IN = struct.Struct("IIQQIIIHH")
_OUT = struct.Struct("IiQ")
_INIT_OUT = struct.Struct("IIIIHHIIHH32x")
_FUSE_INIT = 26
_BUFFER_BYTES = 1 << 17


@contextmanager
def hanging(container: Container, target: str, *, reads: bool) -> Iterator[None]:
    """Mounts it inside. With `reads` requests are taken and never answered, even after SIGKILL; else not taken."""
    ready, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ready)
            opened: list[int] = []
            # It must be opened in the user namespace that mounts it.
            enter(container, lambda: opened.append(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)))
            _serve(opened[0], target, writer, reads=reads)
        finally:
            os._exit(1)
    os.close(writer)
    try:
        with os.fdopen(ready, "rb") as answers:
            if answers.read(1) != b"!":
                raise RuntimeError("the file system could not be mounted")
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with suppress(RuntimeError):
            once(container, lambda: umount(target, MNT_DETACH))


def _serve(fuse: int, target: str, ready: int, *, reads: bool) -> None:
    mount("hang", target, "fuse", options=f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other")
    request = os.read(fuse, _BUFFER_BYTES)
    _, opcode, unique, *_ = _IN.unpack_from(request)
    assert opcode == _FUSE_INIT
    body = _INIT_OUT.pack(7, 31, 1 << 16, 0, 16, 12, 4096, 0, 0, 0)
    os.write(fuse, _OUT.pack(_OUT.size + len(body), 0, unique) + body)
    os.write(ready, b"!")
    while True:
        if reads:
            os.read(fuse, _BUFFER_BYTES)
        else:
            time.sleep(60)

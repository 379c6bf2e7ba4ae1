"""
Memory that outlives this process: files and pipes without a name, which the service manager keeps.
"""

from __future__ import annotations

import fcntl
import os


def sealedFile(data: bytes) -> int:
    """A file in memory that nobody can change any more, and that only descriptors lead to."""
    made = os.memfd_create("ccproxy-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(made, 0o600)
        with open(made, "wb", closefd=False) as file:
            file.write(data)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(made, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(made)
        raise
    return made


def contentsOf(descriptor: int) -> bytes:
    """What a file has, from its beginning."""
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        return file.read()


def waitingIn(descriptor: int) -> bytes:
    """
    What is in a pipe. It stays there, since this process may die before it has a journal of its
    own.
    """
    os.set_blocking(descriptor, False)
    try:
        found = os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return b""
    if found:
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK)
        with open(again, "wb", buffering=0) as pipe:
            pipe.write(found)
    return found

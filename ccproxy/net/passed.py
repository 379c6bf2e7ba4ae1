"""
Descriptors that the service manager passes to this process: those that an earlier one let it keep.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, MutableMapping
from contextlib import suppress

import attrs

#: What the names of our kept descriptors begin with. No unit has such a name, by which systemd
#: calls the sockets that it makes itself.
PREFIX = "/"
#: The first descriptor that is passed.
FIRST = 3


@attrs.frozen
class Passed:
    """
    A descriptor that was kept.

    @ivar name: the name under which it was, without L{PREFIX}.
    @ivar inode: what tells it from all others, in every process.
    """

    descriptor: int
    name: str
    inode: int

    def asSocket(self) -> socket.socket | None:
        """The socket that it is, or L{None} if it is no UNIX stream socket. It is taken over."""
        try:
            made = socket.socket(fileno=self.descriptor)
        except OSError:
            return None
        if made.family != socket.AF_UNIX or made.type != socket.SOCK_STREAM:
            made.detach()
            return None
        made.setblocking(False)
        return made

    def close(self, ofUse: bool = False) -> None:
        """
        Close it.

        @param ofUse: the same socket is in use by another descriptor; else its peer learns that
            this is the end, which it does not by a mere close while others keep the socket.
        """
        made = None if ofUse else self.asSocket()
        if made is None:
            os.close(self.descriptor)
        else:
            endAndClose(made)


def endAndClose(closing: socket.socket) -> None:
    """Close a socket of which others may have descriptors: its peer is told the end."""
    with suppress(OSError):
        closing.shutdown(socket.SHUT_RDWR)
    closing.close()


def inodeOf(descriptor: int) -> int:
    """What tells a socket from all others, in every process; 0 for one that is closed."""
    if descriptor < 0:
        return 0
    return os.fstat(descriptor).st_ino


def takePassed(environment: MutableMapping[str, str]) -> list[Passed]:
    """
    Take those of the passed descriptors that are ours, and leave the others, a listening socket of
    a systemd unit, to who asks next.

    @param environment: that of the process, from which they vanish.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environment.get("LISTEN_FDS", "")
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    if not count.isdecimal() or len(names) != int(count):
        return []
    taken = []
    for at, name in enumerate(names):
        if name.startswith(PREFIX):
            descriptor = FIRST + at
            with suppress(OSError):
                os.set_inheritable(descriptor, False)
                taken.append(Passed(descriptor, name[len(PREFIX) :], inodeOf(descriptor)))
    others = _others(names)
    environment["LISTEN_FDS"] = str(len(others))
    environment["LISTEN_FDNAMES"] = ":".join(others)
    return taken


def _others(names: Iterable[str]) -> list[str]:
    # The manager passes its own sockets before all that it keeps.
    return [name for name in names if not name.startswith(PREFIX)]

"""
Descriptors that come with the bytes of a connection (SCM_RIGHTS).
"""

from __future__ import annotations

import os
import socket
from array import array
from collections import OrderedDict
from socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_PEEK, SCM_RIGHTS, SOL_SOCKET
from typing import Any

from .passed import inodeOf

#: How many descriptors are held until somebody wants them.
MOST_HELD = 16
_SPACE = CMSG_SPACE(4 * 4)


class Received:
    """
    Descriptors that have come, by their inodes. The oldest go when there are too many.
    """

    def __init__(self) -> None:
        self._held: OrderedDict[int, int] = OrderedDict()

    def add(self, descriptor: int) -> None:
        """One has come; perhaps not for the first time, since looking at bytes copies it."""
        inode = inodeOf(descriptor)
        if inode in self._held:
            os.close(descriptor)
            return
        self._held[inode] = descriptor
        if len(self._held) > MOST_HELD:
            os.close(self._held.popitem(last=False)[1])

    def take(self, inode: int) -> int | None:
        """The descriptor with this inode, if it has come; it is the caller's now."""
        return self._held.pop(inode, None)

    def close(self) -> None:
        """Nobody wants those that are left."""
        while self._held:
            os.close(self._held.popitem()[1])


class RightsSocket(socket.socket):
    """A socket with whose bytes descriptors may come, which go to a L{Received}."""

    received: Received

    @classmethod
    def make(cls, plain: socket.socket, received: Received) -> RightsSocket:
        """
        @param plain: a connected socket, which becomes this one.
        """
        made = cls(fileno=plain.detach())
        made.received = received
        return made

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive, and the descriptors too when the bytes are looked at."""
        if not flags & MSG_PEEK:
            return super().recv_into(buffer, nbytes, flags)
        count, messages, _, _ = self.recvmsg_into([buffer], _SPACE, flags | MSG_CMSG_CLOEXEC)
        for level, kind, data in messages:
            if level == SOL_SOCKET and kind == SCM_RIGHTS:
                for descriptor in array("i", data[: len(data) - len(data) % 4]):
                    self.received.add(descriptor)
        return count

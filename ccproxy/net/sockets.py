"""
Stream sockets as Linux shows them: whether the peer has gone, and what of the input was used.
"""

from __future__ import annotations

import select
import socket
from contextlib import suppress
from socket import SOL_SOCKET

#: A socket option that is not in Python's module: the offset at which peeking begins.
SO_PEEK_OFF = 42
NO_OFFSET = -1
#: Offsets that no amount of input reaches.
MARKS = (1 << 28, 1 << 29)


def skipUsed(kept: socket.socket, mark: int = 0, journalled: int = 0) -> int:
    """
    Take from a socket what a process that has died has used of its input.

    @param mark: which input its journal speaks of, as
        L{StreamTransport.mark <ccproxy.net.transport.StreamTransport.mark>} has it.
    @param journalled: how many bytes of that it has used, as the journal says.
    @return: how many bytes that was.
    """
    left = kept.getsockopt(SOL_SOCKET, SO_PEEK_OFF)
    kept.setsockopt(SOL_SOCKET, SO_PEEK_OFF, NO_OFFSET)
    if left in MARKS:
        left = journalled if left == mark else 0
    skipped = 0
    with suppress(BlockingIOError):
        while skipped < left and (data := kept.recv(left - skipped)):
            skipped += len(data)
    return skipped


def hungUp(fd: int) -> bool:
    """
    Return whether the peer of a stream socket has closed both directions, or a listening socket
    was shut down.

    @param fd: the socket's descriptor.
    """
    return bool(polled(fd, 0))


def polled(fd: int, events: int) -> list[tuple[int, int]]:
    """Return what C{poll} says now about a descriptor, a hang-up included."""
    poll = select.poll()
    poll.register(fd, events)
    return poll.poll(0)

"""
Connecting to a UNIX socket: to an agent's channel, above all.
"""

from __future__ import annotations

import os
import socket
from typing import cast

from twisted.internet.interfaces import IProtocol, IReactorTime
from twisted.internet.task import deferLater

from ..errors import CCProxyError
from .buffered import IBufferedProtocol
from .ordinary import attach
from .polling import Poller

#: Seconds between two tries to connect to a socket whose queue is full.
RETRY_INTERVAL = 0.05


class CannotConnect(CCProxyError):
    """The connection cannot be made; the text names the path and the reason."""


async def connectUNIX(
    poller: Poller, path: str, protocol: IProtocol | IBufferedProtocol, timeout: float
) -> None:
    """
    Connect a protocol to an AF_UNIX stream socket; C{makeConnection} has been called then.

    A socket whose queue of waiting connections is full is tried again.

    @param timeout: for how long, in seconds.
    @raise CannotConnect: it cannot be done.
    """
    clock = cast(IReactorTime, poller.reactor)
    deadline = clock.seconds() + timeout
    try:
        connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connecting.setblocking(False)
            while not _connected(connecting, path):
                if clock.seconds() >= deadline:
                    raise CannotConnect(
                        f"cannot connect to {path}: its queue of waiting connections has been "
                        f"full for {timeout:g} s"
                    )
                await deferLater(clock, RETRY_INTERVAL)
            attach(poller, connecting, path, protocol)
        except BaseException:
            connecting.close()
            raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise CannotConnect(f"cannot connect to {path}: {reason}") from error


def _connected(connecting: socket.socket, path: str) -> bool:
    try:
        connecting.connect(path)
    except BlockingIOError:
        return False
    return True

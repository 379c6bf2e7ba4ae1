"""
The admin socket itself: who may connect, and how many.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger

from ..net.binding import ListeningSocket, bind, peerUser
from ..net.listening import UNIXListener
from ..net.polling import Poller
from ..net.rights import Received, RightsSocket

#: The mode of the socket: its owner alone. Root may open it all the same.
MODE = 0o600
#: The most connections at a time.
MAX_CONNECTIONS = 128


class LazyFactory(ServerFactory):
    """
    Makes the factory that it stands for when the first connection comes: what that imports costs
    nothing before.
    """

    noisy = False

    def __init__(self, make: Callable[[], ServerFactory]) -> None:
        """
        @param make: makes that factory.
        """
        self._make = make
        self._made: ServerFactory | None = None

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """A connection comes."""
        if self._made is None:
            self._made = self._make()
        return self._made.buildProtocol(addr)


class AdminListener(UNIXListener):
    """
    Accepts connections of root and of the daemon's own user.
    """

    _log = Logger()

    def __init__(
        self,
        poller: Poller,
        path: str,
        factory: ServerFactory,
        received: Received,
        directoryGroup: str | None = None,
    ) -> None:
        """
        @param received: where descriptors go that come with requests.
        @param directoryGroup: the group of the socket's directory, if that is made here.
        """
        super().__init__(poller, path, factory, mode=MODE)
        self._received = received
        self._directoryGroup = directoryGroup

    def _open(self) -> ListeningSocket:
        return bind(self.path, MODE, directoryGroup=self._directoryGroup)

    def _connect(self, connection: socket.socket) -> None:
        user = peerUser(connection)
        if user in (0, os.geteuid()):
            super()._connect(RightsSocket.make(connection, self._received))
            return
        self._log.warn("user {uid} may not use the admin socket", event="admin-refused", uid=user)
        error = "the admin socket is for root and the user of the daemon only"
        _close(connection, "403 Forbidden", error)

    def _refuse(self, connection: socket.socket) -> None:
        _close(
            connection,
            "503 Service Unavailable",
            f"{MAX_CONNECTIONS} connections to the admin socket are open, as many as there may be;"
            " try again when one has been closed",
        )


def _close(connection: socket.socket, status: str, error: str) -> None:
    """Close a connection that is not served, with the reason."""
    text = f'{{"error":"{error}"}}\n'
    answer = (
        f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(text)}\r\n\r\n{text}"
    )
    # A peer that has hung up already needs no answer.
    with suppress(OSError):
        connection.send(answer.encode(), socket.MSG_DONTWAIT)
    connection.close()

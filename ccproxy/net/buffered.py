"""
The faster door from a transport to its protocol.
"""

from __future__ import annotations

from typing import Any

from twisted.python.failure import Failure
from zope.interface import Interface


class IBufferedProtocol(Interface):
    """
    A protocol that reads from the transport's own buffer and uses as much as it can.
    """

    def makeConnection(transport: Any) -> None:
        """
        The connection begins.

        @param transport: a L{ccproxy.net.transport.StreamTransport}.
        """

    def bufferReceived(data: memoryview) -> int:
        """
        Bytes have come; they begin where the last call stopped. The view can be written to.

        @param data: valid during the call only.
        @return: how many bytes were used. The rest is offered again when more has come, or after
            C{resumeReading} if reading has been paused meanwhile.
        """

    def writable() -> None:
        """There is room again, after a short C{send}."""

    def drained() -> None:
        """The peer has read all: the answer to C{notifyDrained}."""

    def peerGone() -> None:
        """The peer has hung up, while reading is paused or after the end of its input."""

    def readConnectionLost() -> None:
        """Nothing more will come. The protocol closes the connection when it wants."""

    def connectionLost(reason: Failure) -> None:
        """
        The connection is closed: by the protocol, or because it could not go on.

        @param reason: why.
        """

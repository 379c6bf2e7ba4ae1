"""
The seams: what the pure core needs of the world, and what it offers to it.

Everything else in ccproxy calls plain classes and callables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zope.interface import Attribute, Interface

from .wire.decoder import Buffer


class IConnection(Interface):
    """
    What the core needs of a stream connection, to a client or to an agent's channel.

    Bytes that a connection has taken are never taken back; bytes that it has not taken stay with
    the core, which bounds them, and can give them to another connection.
    """

    peer: str = Attribute("Who is at the other end, for logs: C{pid=17 uid=0}, or a path.")

    def send(data: Sequence[Buffer]) -> int:
        """
        Hand over as many bytes as are taken at once.

        After a short count L{IStreamSink.writable} is called once there is room again. When the
        peer can take no more at all (a write has failed), nothing is taken and nothing is called:
        the connection is read on to its end, and only that end matters.

        @param data: buffers that follow each other; they may be reused once this returns.
        @return: how many bytes were taken.
        """

    def unsent() -> int:
        """How many of the bytes taken the peer has not read yet; 0 where nobody can tell."""

    def notifyDrained() -> None:
        """
        Call L{IStreamSink.drained} once, as soon as L{unsent} is 0, but never from within this.
        """

    def pauseReading() -> None:
        """
        Call L{IStreamSink.received} no more, until L{resumeReading}. Calling it twice is no harm.
        """

    def resumeReading() -> None:
        """Go on reading, soon: not from within this call. Calling it twice is no harm."""

    def hungUp() -> bool:
        """
        Ask now whether the peer has closed both directions, even while reading is paused: it
        sends no more and reads no more.
        """

    def readNow() -> None:
        """
        Read all that has come, to the end of the stream if it is there, before returning.

        What a peer that is there goes on sending meanwhile may be left for later. Does nothing
        while reading is paused.
        """

    def close() -> None:
        """
        Close. What was taken is still delivered; the sink hears nothing more.
        """


class IStreamSink(Interface):
    """What the core does with a connection's bytes. The shell calls it, and nobody else."""

    def received(data: memoryview) -> int:
        """
        Bytes have come.

        They begin where the last call stopped. The view is valid during the call only; what is
        used of it may be overwritten.

        @return: how many bytes were used. The rest is offered again when more has come, or after
            L{IConnection.resumeReading} if the sink has paused meanwhile.
        """

    def ended() -> None:
        """
        Nothing more will come: the end of the stream, or an error. Called once, last of all.

        The connection is closed by the sink, when it wants.
        """

    def writable() -> None:
        """There is room again, after a short L{IConnection.send}."""

    def drained() -> None:
        """The peer has read all that was taken: the answer to L{IConnection.notifyDrained}."""

    def peerGone() -> None:
        """
        The peer has closed both directions, while reading is paused or after the end of the
        stream. Bytes that it sent can still be read if reading is resumed.
        """


class IConnector(Interface):
    """How the core gets at a VM's sockets."""

    def connect(vm: Any) -> None:
        """
        Begin to connect to the VM's control, I/O and console sockets.

        Then either C{vm.connected} or C{vm.connectFailed} is called, unless C{abandon} was called
        before. It may be called from within this call.

        @param vm: a L{ccproxy.core.vm.VM}.
        """

    def abandon(vm: Any) -> None:
        """The VM is given up: close what was opened for it and not handed over, the console too."""

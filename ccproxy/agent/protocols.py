"""
The agent's channels over any Twisted transport.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..errors import RemoteProtocolError
from ..wire.messages import CONTROL_HEADER, IO_HEADER, MessageDecoder
from .agent import Agent
from .channel import Channel

#: The longest message taken from the host, in bytes: room for what the proxy may send.
MAX_MESSAGE = 2 << 20
#: How much a hypervisor hands on at once, in bytes; a strict agent sees the stream cut so.
HYPERVISOR_READ = 4096


def _nothing() -> None:
    pass


@implementer(IPushProducer)
class ChannelProtocol(Protocol):
    """
    A connection of one channel, for its whole life.

    As a producer it is what the transport pauses when the host does not read.
    """

    log = Logger()
    header: Struct
    # An ITransport that is an IConsumer and an IPushProducer too, as all of Twisted's are.
    transport: Any

    def __init__(self, agent: Agent, channel: Channel, whenLost: Callable[[], None]) -> None:
        self.agent = agent
        self.channel = channel
        self.whenLost = whenLost
        self._decoder = MessageDecoder(self.header, MAX_MESSAGE)
        self._delivering = False
        self._hungUp = False

    def connectionMade(self) -> None:
        """A host has come."""
        self.transport.registerProducer(self, True)
        self.channel.attach(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The host has gone, or was sent away."""
        self.channel.detach(self)
        self.whenLost()

    def dataReceived(self, data: bytes) -> None:
        """Hand on the messages that are whole."""
        size = HYPERVISOR_READ if self.agent.strict else len(data)
        for offset in range(0, len(data), size):
            self._decoder.feed(data[offset : offset + size])
            self._deliver()
            if self._cutHeader():
                self.agent.fail("a header came in two reads")

    def _cutHeader(self) -> bool:
        """Whether the next header is there in part, which a real cc agent does not survive."""
        mortal = self.agent.strict and self.agent.cc and not self.channel.paused
        return mortal and 0 < self._decoder.pending < self.header.size

    def _deliver(self) -> None:
        if self._delivering:
            return  # The loop below goes on with what the resumed channel takes.
        self._delivering = True
        try:
            while not (self.channel.paused or self._hungUp):
                message = self._decoder.next()
                if message is None:
                    break
                self.channel.received(message)
            self.channel.turn()
        except RemoteProtocolError as error:
            self.log.warn("embedded agent closes a channel: {error}", error=error)
            self.hangUp()
        finally:
            self._delivering = False

    # What the channel asks for.

    def send(self, data: bytes) -> None:
        """Take bytes for the host; none follow a L{hangUp}."""
        if not self._hungUp:
            self.transport.write(data)

    def pauseReading(self) -> None:
        """Read no more."""
        self.transport.pauseProducing()

    def resumeReading(self) -> None:
        """Go on with what was read, then read more."""
        self._deliver()
        if not self.channel.paused:
            self.transport.resumeProducing()

    def hangUp(self) -> None:
        """Close the connection after what was sent."""
        if not self._hungUp:
            self._hungUp = True
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    # What the transport asks for.

    def pauseProducing(self) -> None:
        """The host does not read."""
        self.channel.flowing(False)

    def resumeProducing(self) -> None:
        """The host reads again."""
        self.channel.flowing(True)

    def stopProducing(self) -> None:
        """The connection is lost, which L{connectionLost} is told as well."""


class ControlProtocol(ChannelProtocol):
    """A connection of the agent's control channel."""

    header = CONTROL_HEADER

    def __init__(self, agent: Agent, whenLost: Callable[[], None] = _nothing) -> None:
        """
        @param agent: whose channel it is. Connections of a channel may follow each other, but
            there is one at a time.
        @param whenLost: called once the connection has ended.
        """
        super().__init__(agent, agent.control, whenLost)


class IOProtocol(ChannelProtocol):
    """A connection of the agent's I/O channel."""

    header = IO_HEADER

    def __init__(self, agent: Agent, whenLost: Callable[[], None] = _nothing) -> None:
        """
        @param agent: as in L{ControlProtocol}, and so is C{whenLost}.
        """
        super().__init__(agent, agent.io, whenLost)

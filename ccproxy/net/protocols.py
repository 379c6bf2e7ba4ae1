"""
The protocols of the daemon's connections: clients, and the two channels of an agent.

They are thin: what the bytes mean is the core's business.
"""

from __future__ import annotations

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from ..core.registry import Registry
from ..core.requests import connect
from ..interfaces import IConnection, IStreamSink
from .adapter import SinkProtocol


class ClientProtocol(SinkProtocol):
    """A connection of a runtime or a shim."""

    def __init__(self, registry: Registry, url: str = "") -> None:
        self._registry = registry
        self._url = url
        self.clock = registry.context.clock

    def makeSink(self, connection: IConnection) -> IStreamSink:
        """The core's client."""
        return connect(self._registry, connection, self._url)


class ProxyFactory(Factory):
    """Makes a L{ClientProtocol} for each connection to the client socket."""

    noisy = False

    def __init__(self, registry: Registry, url: str = "") -> None:
        """
        @param url: the URL of the socket, if it is another than the registry's.
        """
        self._registry = registry
        self._url = url

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """One for each connection, too many included: the core tells those so."""
        return ClientProtocol(self._registry, self._url)


@implementer(IStreamSink)
class _NoSink:
    """What a channel has before its VM knows it: it is not read."""

    def received(self, data: memoryview) -> int:
        return 0

    def ended(self) -> None:
        pass

    def writable(self) -> None:
        pass

    def drained(self) -> None:
        pass

    def peerGone(self) -> None:
        pass


class AgentChannel(SinkProtocol):
    """
    A connection to an agent's channel: not read until L{begin} says who wants to know.
    """

    def __init__(self, registry: Registry) -> None:
        self.clock = registry.context.clock

    def makeSink(self, connection: IConnection) -> IStreamSink:
        """None yet."""
        connection.pauseReading()
        return _NoSink()

    def begin(self, sink: IStreamSink) -> None:
        """Start reading."""
        self.sink = sink
        self.connection.resumeReading()


class ControlChannel(AgentChannel):
    """The channel of commands and answers."""


class IOChannel(AgentChannel):
    """The channel of all processes' input and output."""

"""
Tests for L{ccproxy.agent.protocols}: the channels over any transport.
"""

from __future__ import annotations

import json
from typing import Any

import attrs
from hypothesis import given, strategies
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ccproxy.agent.agent import STDIN_LIMIT, Agent
from ccproxy.agent.payloads import (
    File,
    KillContainer,
    NewContainer,
    Process,
    PsContainer,
    StartPod,
    WinSize,
)
from ccproxy.agent.protocols import MAX_MESSAGE, ChannelProtocol, ControlProtocol, IOProtocol
from ccproxy.test.agent.doubles import FakeMachine, FakeRunning, jsonOf, newcontainer
from ccproxy.wire.codes import ControlCode, Dialect
from ccproxy.wire.messages import CONTROL_HEADER, IO_HEADER, encodeControl, encodeIO

READY, ACK = encodeControl(ControlCode.READY), encodeControl(ControlCode.ACK)
PING = encodeControl(ControlCode.PING)


class Line:
    """An agent with both channels on string transports, and a container on 3 and 4."""

    def __init__(self, dialect: Dialect = Dialect.CC, strict: bool = False) -> None:
        self.machine = FakeMachine()
        self.agent = Agent(dialect, self.machine, strict)
        self.lost: list[ChannelProtocol] = []
        self.control, self.controlTransport = self.connect(ControlProtocol)
        self.io, self.ioTransport = self.connect(IOProtocol)
        start = encodeControl(ControlCode.STARTPOD, jsonOf({"shareDir": "s"}))
        container = jsonOf(newcontainer())
        self.control.dataReceived(start + encodeControl(ControlCode.NEWCONTAINER, container))
        self.controlTransport.clear()

    def connect(
        self, kind: type[ControlProtocol] | type[IOProtocol]
    ) -> tuple[ChannelProtocol, StringTransport]:
        """Connect a channel."""
        protocol = kind(self.agent, lambda: self.lost.append(protocol))
        transport = StringTransport()
        protocol.makeConnection(transport)
        return protocol, transport

    @property
    def running(self) -> FakeRunning:
        """The container's first program."""
        return self.machine.running[0]


class StreamTests(SynchronousTestCase):
    """How messages are read."""

    def test_anySplit(self) -> None:
        """A stream cut anywhere means the same."""
        stream = b"".join(encodeIO(3, b"%d;" % n) for n in range(20))
        for size in (1, 2, 3, 5, 11, 12, 13, 14, 50, len(stream)):
            line = Line()
            for offset in range(0, len(stream), size):
                line.io.dataReceived(stream[offset : offset + size])
            self.assertEqual(b"".join(line.running.stdin), b"".join(b"%d;" % n for n in range(20)))

    def test_order(self) -> None:
        """Commands are answered in order, those behind a slow one after it."""
        line = Line()
        line.control.dataReceived(PING + encodeControl(ControlCode.DESTROYPOD) + PING + b"\0\0")
        self.assertEqual(line.controlTransport.value(), ACK)
        self.assertEqual(line.controlTransport.producerState, "paused")
        line.running.end(0)
        self.assertEqual(line.controlTransport.value(), ACK * 3)
        self.assertEqual(line.controlTransport.producerState, "producing")
        line.control.dataReceived(PING[2:])
        self.assertEqual(line.controlTransport.value(), ACK * 4)

    def test_garbage(self) -> None:
        """Bytes that are no message close their channel, and only that."""
        for bad in (7, MAX_MESSAGE + 1, 0, 0xFFFFFFFF):
            line = Line()
            line.control.dataReceived(PING + CONTROL_HEADER.pack(ControlCode.PING, bad) + PING)
            self.assertEqual(line.controlTransport.value(), ACK)
            self.assertTrue(line.controlTransport.disconnecting)
            self.assertFalse(line.ioTransport.disconnecting)
            line.control.dataReceived(PING)
            self.assertEqual(line.controlTransport.value(), ACK)
            line.io.dataReceived(IO_HEADER.pack(3, bad))
            self.assertTrue(line.ioTransport.disconnecting)
            self.assertFalse(line.agent.off)

    def test_silentAfterEnd(self) -> None:
        """After the agent's end nothing more is said, of processes that are killed then."""
        line = Line(Dialect.HYPERSTART0, strict=True)
        line.io.dataReceived(encodeIO(3, b"x" * 5000))
        self.assertTrue(line.agent.off)
        line.ioTransport.clear()
        line.running.end(-9)
        self.assertEqual(line.controlTransport.value(), b"")
        self.assertEqual(line.ioTransport.value(), b"")

    def test_reconnect(self) -> None:
        """The next connection starts anew, without another READY."""
        line = Line()
        line.control.dataReceived(PING[:5])
        line.control.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(line.lost, [line.control])
        control, transport = line.connect(ControlProtocol)
        control.dataReceived(PING)
        self.assertEqual(transport.value(), ACK)


class FlowTests(SynchronousTestCase):
    """Backpressure both ways."""

    def test_producer(self) -> None:
        """Each connection is its transport's producer."""
        line = Line()
        for protocol, transport in (
            (line.control, line.controlTransport),
            (line.io, line.ioTransport),
        ):
            verifyObject(IPushProducer, protocol)
            self.assertIs(transport.producer, protocol)
            self.assertTrue(transport.streaming)

    def test_output(self) -> None:
        """A full transport stops the programs' output, the loss of the connection as well."""
        line = Line()
        self.assertTrue(line.running.flowing)
        line.io.pauseProducing()
        self.assertFalse(line.running.flowing)
        line.io.resumeProducing()
        self.assertTrue(line.running.flowing)
        line.io.stopProducing()
        line.io.connectionLost(Failure(ConnectionDone()))
        self.assertFalse(line.running.flowing)
        line.connect(IOProtocol)
        self.assertTrue(line.running.flowing)

    def test_stdin(self) -> None:
        """A program that does not read stops the I/O channel, for a later connection too."""
        line = Line()
        line.running.reads = False
        line.io.dataReceived(encodeIO(3, b"x" * (STDIN_LIMIT + 1)))
        self.assertEqual(line.ioTransport.producerState, "paused")
        line.io.connectionLost(Failure(ConnectionDone()))
        _, transport = line.connect(IOProtocol)
        self.assertEqual(transport.producerState, "paused")
        line.running.reads = True
        line.running.flush()
        self.assertEqual(transport.producerState, "producing")

    def test_unreadAnswers(self) -> None:
        """A host that does not read its answers is not read."""
        line = Line()
        line.control.pauseProducing()
        self.assertEqual(line.controlTransport.producerState, "paused")
        line.control.dataReceived(PING)
        self.assertEqual(line.controlTransport.value(), b"")
        line.control.resumeProducing()
        self.assertEqual(line.controlTransport.value(), ACK)
        self.assertEqual(line.controlTransport.producerState, "producing")


class StrictTests(SynchronousTestCase):
    """The cc agent's weakness: a header that comes in two reads of at most 4096 bytes."""

    def test_wholeReads(self) -> None:
        """Whole headers do no harm, even where a body goes on in the next read."""
        line = Line(strict=True)
        line.io.dataReceived(encodeIO(3, b"x" * 4084) * 3)
        line.io.dataReceived(encodeIO(3, b"x" * 8000)[:4096])
        line.io.dataReceived(encodeIO(3, b"x" * 8000)[4096:])
        line.control.dataReceived(PING)
        self.assertFalse(line.agent.off)
        self.assertEqual(len(b"".join(line.running.stdin)), 3 * 4084 + 8000)

    def test_cutHeader(self) -> None:
        """The agent dies of a header in two reads, on either channel."""
        across = encodeIO(3, b"x" * 4078) + encodeIO(3, b"y") * 2
        for strict in (True, False):
            for ioData, controlData in ((across, b""), (b"\0", b""), (b"", PING[:7])):
                line = Line(strict=strict)
                if ioData:
                    line.io.dataReceived(ioData)
                if controlData:
                    line.control.dataReceived(controlData)
                self.assertEqual(line.agent.off, strict)
                self.assertEqual(line.controlTransport.disconnecting, strict)
                self.assertEqual(line.ioTransport.disconnecting, strict)

    def test_hyperstart(self) -> None:
        """hyperstart does not mind."""
        line = Line(Dialect.HYPERSTART0, strict=True)
        line.io.dataReceived(b"\0")
        self.assertFalse(line.agent.off)


KEYS = strategies.sampled_from(
    sorted(
        {
            field.name
            for cls in (NewContainer, Process, StartPod, KillContainer, WinSize, PsContainer, File)
            for field in attrs.fields(cls)
        }
    )
)
VALUES: strategies.SearchStrategy[Any] = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers(-(2**70), 2**70)
    | strategies.sampled_from(["c", "x", "", "json", "table", "/f"])
    | strategies.text(max_size=4),
    lambda inner: (
        strategies.lists(inner, max_size=3) | strategies.dictionaries(KEYS, inner, max_size=5)
    ),
    max_leaves=12,
)
BODIES = strategies.binary(max_size=20) | VALUES.map(lambda value: json.dumps(value).encode())
COMMANDS = strategies.builds(encodeControl, strategies.integers(0, 30), BODIES)


class GarbageTests(SynchronousTestCase):
    """Whatever comes, the agent answers it or closes, and raises nothing."""

    @given(
        strategies.sampled_from([Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1]),
        strategies.booleans(),
        strategies.lists(COMMANDS | strategies.binary(max_size=30), max_size=6),
        strategies.lists(strategies.binary(max_size=30), max_size=3),
    )
    def test_anything(
        self, dialect: Dialect, strict: bool, commands: list[bytes], stdin: list[bytes]
    ) -> None:
        """Commands of any kind, and bytes that are none."""
        line = Line(dialect, strict)
        for data in filter(None, commands):
            line.control.dataReceived(data)
        for data in filter(None, stdin):
            line.io.dataReceived(data)

"""
The shim in memory: what it makes of a proxy that is played by the test.
"""

from __future__ import annotations

import json
import signal

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPullProducer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from ...errors import CCProxyError, ConnectionClosed, ProxyError
from ...net.client import IProcessOutput, ProxyClient
from ...shim.attending import NoProxy, Shim
from ...shim.stdio import FULL, IInput, IOutput
from ...wire.codes import Command, FrameType, Stream
from ...wire.frames import (
    Frame,
    FrameDecoder,
    encodeFrame,
    encodeProcessExited,
    encodeStream,
)

SIZE = (80, 24)


@implementer(IInput)
class TypedInput:
    """A stdin that the test types."""

    def __init__(self) -> None:
        self.waiting: Deferred[bytes] | None = None

    def read(self) -> Deferred[bytes]:
        assert self.waiting is None
        self.waiting = Deferred()
        return self.waiting

    def type(self, data: bytes) -> None:
        waiting, self.waiting = self.waiting, None
        assert waiting is not None, "nobody reads"
        waiting.callback(data)


@implementer(IOutput)
class KeptOutput:
    """An output whose reader is the test."""

    def __init__(self) -> None:
        self.data = b""
        self.unwritten = 0
        self.slow = False
        self._flushing: list[Deferred[None]] = []

    @property
    def full(self) -> bool:
        return self.unwritten > FULL

    def write(self, data: bytes) -> None:
        self.data += data
        if self.slow:
            self.unwritten += len(data)

    def flushed(self) -> Deferred[None]:
        if not self.unwritten:
            return succeed(None)
        self._flushing.append(Deferred())
        return self._flushing[-1]

    def flush(self) -> None:
        self.unwritten = 0
        flushing, self._flushing = self._flushing, []
        for waiter in flushing:
            waiter.callback(None)


class PulledTransport(StringTransport):
    """A transport that asks for more when the test has taken what was written."""

    def registerProducer(self, producer: object, streaming: bool) -> None:
        super().registerProducer(producer, streaming)
        self.pull()

    def pull(self) -> None:
        if self.producer is not None:
            IPullProducer(self.producer).resumeProducing()


class Link:
    """One connection, with the test as the proxy."""

    def __init__(self, client: ProxyClient) -> None:
        self.client = client
        self.transport = PulledTransport()
        client.makeConnection(self.transport)

    def sent(self, drain: bool = True) -> list[Frame]:
        """The frames sent since the last call; with C{drain} they have reached the socket."""
        decoder = FrameDecoder()
        decoder.feed(self.transport.value())
        self.transport.clear()
        frames = list(iter(decoder.next, None))
        if drain and frames:
            self.transport.pull()
        return frames

    def stdin(self) -> list[bytes]:
        """The stdin frames among them."""
        return [frame.payload for frame in self.sent() if frame.type is FrameType.STREAM]

    def signals(self) -> list[dict[str, int]]:
        """The signals among them."""
        return [
            json.loads(frame.payload)
            for frame in self.sent()
            if frame.type is FrameType.COMMAND and frame.opcode == Command.SIGNAL
        ]

    def receive(self, data: bytes) -> None:
        self.client.dataReceived(data)

    def answer(self, command: Command, error: str = "") -> None:
        payload = json.dumps({"msg": error}).encode() if error else b""
        self.receive(encodeFrame(FrameType.RESPONSE, command, payload, bool(error)))

    def lose(self) -> None:
        self.client.connectionLost(Failure(ConnectionDone()))


class ShimTestCase(SynchronousTestCase):
    """A shim that has been told its token."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.stdin, self.stdout, self.stderr = TypedInput(), KeptOutput(), KeptOutput()
        self.links: list[Link] = []
        self.absent = False
        self.shim = Shim(self.clock, self.connect, self.stdin, self.stdout, self.stderr)
        self.refusals: list[tuple[int, str]] = []
        self.shim.refused = lambda number, error: self.refusals.append((number, str(error)))
        self.connecting = Deferred.fromCoroutine(self.shim.connect("secret"))

    def connect(self, output: IProcessOutput) -> Deferred[ProxyClient]:
        if self.absent:
            return fail(NoProxy("nobody"))
        link = Link(ProxyClient(output, self.clock))
        self.links.append(link)
        return succeed(link.client)

    @property
    def link(self) -> Link:
        """The last connection."""
        return self.links[-1]

    def claim(self) -> None:
        """Let the shim have its token."""
        [frame] = self.link.sent()
        self.assertEqual((frame.opcode, json.loads(frame.payload)["token"]), (4, "secret"))
        self.link.answer(Command.CONNECT_SHIM)

    def assertLeft(self) -> None:
        """The last frame is a DisconnectShim; carry it out."""
        self.assertEqual(self.link.sent()[-1].opcode, Command.DISCONNECT_SHIM)
        self.link.lose()


class ClaimTests(ShimTestCase):
    """How it gets its token."""

    def test_interfaces(self) -> None:
        verifyObject(IProcessOutput, self.shim)
        verifyObject(IPullProducer, self.shim)
        verifyObject(IInput, self.stdin)
        verifyObject(IOutput, self.stdout)

    def test_nothingBeforeTheAnswer(self) -> None:
        """Stdin is not touched before the token is ours."""
        self.assertIsNone(self.stdin.waiting)
        self.assertNoResult(self.connecting)
        self.claim()
        self.successResultOf(self.connecting)
        self.assertIsNotNone(self.stdin.waiting)

    def test_refused(self) -> None:
        self.link.answer(Command.CONNECT_SHIM, "unknown token: secret")
        self.failureResultOf(self.connecting, ProxyError)
        self.assertTrue(self.link.transport.disconnecting)
        self.assertNoResult(self.shim.finished)

    def test_nobody(self) -> None:
        """Without a proxy in the beginning there is nothing to wait for."""
        self.absent = True
        self.failureResultOf(Deferred.fromCoroutine(self.shim.connect("secret")), NoProxy)
        self.link.answer(Command.CONNECT_SHIM)


class AttendingTests(ShimTestCase):
    """What it does while its process runs."""

    def setUp(self) -> None:
        super().setUp()
        self.shim.windowSize = lambda: SIZE
        self.claim()

    def test_stdin(self) -> None:
        """One frame at a time: the next one when the last is in the socket."""
        self.link.answer(Command.SIGNAL)
        self.link.sent()
        self.stdin.type(b"x" * 10000)
        self.assertIsNone(self.stdin.waiting)
        self.assertEqual([len(data) for data in self.link.stdin()], [8192])
        self.assertEqual([len(data) for data in self.link.stdin()], [1808])
        self.stdin.type(b"y")
        self.assertEqual(self.link.stdin(), [b"y"])
        self.stdin.type(b"")
        self.assertEqual(self.link.stdin(), [b""])
        self.assertEqual(self.link.stdin(), [])
        self.assertIsNone(self.stdin.waiting)

    def test_stdinNotTaken(self) -> None:
        """What the proxy does not take stops the reading of stdin."""
        self.stdin.type(b"x")
        self.stdin.type(b"y")
        self.assertIsNone(self.stdin.waiting)

    def test_endOfTerminal(self) -> None:
        self.link.sent()
        self.shim.endOfInput = b"\x04"
        self.stdin.type(b"")
        self.assertEqual(self.link.stdin() + self.link.stdin(), [b"\x04", b""])

    def test_output(self) -> None:
        self.link.receive(encodeStream(Stream.STDOUT, b"out") + encodeStream(Stream.STDERR, b"er"))
        self.assertEqual((self.stdout.data, self.stderr.data), (b"out", b"er"))

    def test_slowOutput(self) -> None:
        """A reader that takes no more stops the reading of the proxy."""
        self.stderr.slow = True
        self.link.receive(encodeStream(Stream.STDERR, b"x" * (FULL + 1)))
        self.assertEqual(self.link.transport.producerState, "paused")
        self.link.receive(encodeStream(Stream.STDERR, b"y"))
        self.stderr.flush()
        self.assertEqual(self.link.transport.producerState, "producing")

    def test_signals(self) -> None:
        """The size of the terminal goes first, then what is forwarded."""
        self.shim.forward(signal.SIGTERM)
        self.shim.forward(signal.SIGWINCH)
        window = {"signalNumber": 28, "columns": 80, "rows": 24}
        terminate = {"signalNumber": 15, "columns": None, "rows": None}
        self.assertEqual(self.link.signals(), [window, terminate, window])

    def test_noSize(self) -> None:
        """A terminal that does not know its size is left alone."""
        self.link.sent()
        self.shim.windowSize = lambda: None
        self.shim.forward(signal.SIGWINCH)
        self.assertEqual(self.link.signals(), [])

    def test_signalRefused(self) -> None:
        self.link.answer(Command.SIGNAL)
        self.shim.forward(signal.SIGTERM)
        self.link.answer(Command.SIGNAL, "no")
        self.assertEqual(self.refusals, [(15, "no")])

    def test_log(self) -> None:
        self.link.sent()
        self.shim.log("odd", "pod")
        [frame] = self.link.sent()
        self.assertEqual(
            json.loads(frame.payload),
            {"source": "shim", "level": "warn", "msg": "odd", "containerId": "pod"},
        )

    def test_exit(self) -> None:
        self.link.receive(encodeStream(Stream.STDOUT, b"last") + encodeProcessExited(7))
        self.assertNoResult(self.shim.finished)
        self.assertLeft()
        self.assertEqual(self.successResultOf(self.shim.finished), 7)
        self.assertEqual(self.stdout.data, b"last")

    def test_exitWaitsForReaders(self) -> None:
        """The proxy keeps the status until all output is written."""
        self.link.sent()
        self.stdout.slow = True
        self.link.receive(encodeStream(Stream.STDOUT, b"last") + encodeProcessExited(7))
        self.clock.advance(1000)
        self.shim.forward(signal.SIGUSR1)
        self.assertEqual(self.link.sent(), [])
        self.stdout.flush()
        self.assertLeft()
        self.assertEqual(self.successResultOf(self.shim.finished), 7)

    def test_impatience(self) -> None:
        """After the exit, SIGTERM ends the wait for a reader."""
        self.stdout.slow = True
        self.link.receive(encodeStream(Stream.STDOUT, b"last") + encodeProcessExited(7))
        self.shim.forward(signal.SIGTERM)
        self.assertEqual(self.successResultOf(self.shim.finished), 7)

    def test_impatienceWhenFull(self) -> None:
        """The same when the status has not been read, behind output that nobody reads."""
        self.link.answer(Command.SIGNAL)
        self.stdout.slow = True
        self.link.receive(encodeStream(Stream.STDOUT, b"x" * (FULL + 1)))
        self.shim.forward(signal.SIGTERM)
        self.link.answer(Command.SIGNAL, "process has exited")
        self.assertLeft()
        self.assertEqual(self.successResultOf(self.shim.finished), 143)
        self.assertEqual(self.refusals, [])

    def test_impatienceUnread(self) -> None:
        """When nobody reads the output, the second signal of a kind ends the shim alone."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self.shim.forward(number)
            self.link.answer(Command.SIGNAL)
        self.shim.unread()
        self.link.answer(Command.SIGNAL)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR1, signal.SIGINT):
            self.shim.forward(number)
            self.link.answer(Command.SIGNAL)
        self.assertNoResult(self.shim.finished)
        self.shim.forward(signal.SIGINT)
        self.assertLeft()
        self.assertEqual(self.successResultOf(self.shim.finished), 130)

    def test_disconnectNotCarriedOut(self) -> None:
        """A proxy that does not answer DisconnectShim is left to itself."""
        self.link.receive(encodeProcessExited(7))
        self.clock.advance(2)
        self.assertEqual(self.successResultOf(self.shim.finished), 7)
        self.assertTrue(self.link.transport.disconnecting)

    def test_giveUp(self) -> None:
        self.shim.giveUp(130)
        self.assertLeft()
        self.assertEqual(self.successResultOf(self.shim.finished), 130)

    def test_leave(self) -> None:
        left = Deferred.fromCoroutine(self.shim.leave())
        self.assertLeft()
        self.successResultOf(left)
        self.assertNoResult(self.shim.finished)


class RejoiningTests(ShimTestCase):
    """What it does when the connection is lost."""

    def setUp(self) -> None:
        super().setUp()
        self.claim()
        self.first = self.link

    def test_rejoin(self) -> None:
        self.first.lose()
        self.claim()
        self.link.receive(encodeStream(Stream.STDOUT, b"more") + encodeProcessExited(7))
        self.assertLeft()
        self.assertEqual(self.successResultOf(self.shim.finished), 7)
        self.assertEqual(self.stdout.data, b"more")

    def test_retry(self) -> None:
        self.absent = True
        self.first.lose()
        for _ in range(99):
            self.clock.advance(0.1)
        self.absent = False
        self.assertEqual(len(self.links), 1)
        self.clock.advance(0.1)
        self.claim()
        self.assertNoResult(self.shim.finished)

    def test_retryEnds(self) -> None:
        self.absent = True
        self.first.lose()
        for _ in range(110):
            self.clock.advance(0.1)
        error = self.failureResultOf(self.shim.finished, ConnectionClosed).value
        self.assertIn("within 10 s: nobody", str(error))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_lostAgain(self) -> None:
        """A connection that ends before the token is claimed is no end."""
        self.first.lose()
        self.link.lose()
        self.clock.advance(0.1)
        self.assertEqual(len(self.links), 3)
        self.claim()
        self.assertIsNotNone(self.stdin.waiting)

    def test_claimedStill(self) -> None:
        """The proxy may hold the old connection for alive for a while."""
        self.first.lose()
        self.link.answer(Command.CONNECT_SHIM, "token already claimed: secret")
        self.clock.advance(0.1)
        self.claim()

    def test_refused(self) -> None:
        """A token that is unknown now stays unknown."""
        self.first.lose()
        self.link.answer(Command.CONNECT_SHIM, "unknown token: secret")
        error = self.failureResultOf(self.shim.finished, CCProxyError).value
        self.assertEqual(str(error), "unknown token: secret")

    def test_stdinNotInSocket(self) -> None:
        """A frame that was not wholly written is sent again; one that was is not."""
        self.stdin.type(b"first")
        self.first.sent()
        self.stdin.type(b"second")
        self.first.sent(drain=False)
        self.first.lose()
        self.stdin.type(b"third")
        self.claim()
        self.assertEqual(self.link.stdin(), [b"secondthird"])

    def test_endAgain(self) -> None:
        """The end of stdin is told to each connection: twice is no harm."""
        self.stdin.type(b"")
        self.assertEqual(self.first.stdin(), [b""])
        self.first.lose()
        self.claim()
        self.assertEqual(self.link.stdin(), [b""])

    def test_signalsAgain(self) -> None:
        """Signals without an answer, and those that come meanwhile, are not lost."""
        self.shim.forward(signal.SIGTERM)
        self.absent = True
        self.first.lose()
        self.shim.forward(signal.SIGUSR1)
        self.absent = False
        self.clock.advance(0.1)
        self.claim()
        self.assertEqual([each["signalNumber"] for each in self.link.signals()], [15, 10])

    def test_stillFull(self) -> None:
        """An output that was full before the loss holds up the new connection too."""
        self.stdout.slow = True
        self.first.receive(encodeStream(Stream.STDOUT, b"x" * (FULL + 1)))
        self.first.lose()
        self.claim()
        self.assertEqual(self.link.transport.producerState, "paused")
        self.stdout.flush()
        self.assertEqual(self.link.transport.producerState, "producing")

    def test_giveUpMeanwhile(self) -> None:
        self.absent = True
        self.first.lose()
        self.shim.giveUp(130)
        self.clock.advance(0.1)
        self.assertEqual(self.successResultOf(self.shim.finished), 130)
        self.assertEqual(self.clock.getDelayedCalls(), [])

"""
P21: a deadline is missed only when all input that came in time has been read.
L{ccproxy.net.deadlines}, under each reactor, and a search for waits without it.
"""

from __future__ import annotations

import ast
import asyncio
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorTime
from twisted.internet.pollreactor import PollReactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

import ccproxy

from ...net.binding import bind
from ...net.deadlines import MIN_ROUNDS, Deadlines
from ...net.listening import UNIXListener
from ...net.ordinary import attach
from ...net.polling import Poller
from ...net.reactor import LedReactor
from ...service import join as joining
from ...shim import guard as guarding
from ...wire.codes import Command, FrameType, Notification, Stream
from ...wire.frames import encodeFrame
from ..sockets import RecordingProtocol

#: More connections and bytes than a poller or a reactor deals with in one round.
MANY, MUCH = 100, 150_000
#: Functions that use a reactor's own timers, for intervals and for postponed work.
INTERVALS = {
    "agent/guest.py": "end",
    "agent/guestports.py": "_look",
    "core/context.py": "later",  # the clock that it is given is Deadlines
    "net/adapter.py": "lookForHangup _lookForHangup _callSoon",
    "net/connectunix.py": "connectUNIX",  # tries again before it gives up
    "net/deadlines.py": "_arm _begin _round",
    "net/listening.py": "startListening _turnAway",
    "net/notify.py": "_again",
    "net/polling.py": "waitForRest _continueSoon",
    "persist/store.py": "_confirmSoon",
    "admin/api.py": "stop restartDaemon",
    "admin/events.py": "put begin _sayAlive",
    "admin/gradual.py": "_proceed",
    "admin/looplag.py": "start",
    "admin/profiling.py": "start",
    "admin/web.py": "finish",  # with the deadlines of its channel
    "service/dumping.py": "_dump",
    "service/proxy.py": "_look",
    "service/ksm.py": "_enter stopService",  # waits for a thread, whose calls come first
    "service/pod.py": "_unregistered _check",
    "service/pods.py": "startService _check",
    "service/systemd.py": "_live",
    "shim/attending.py": "_rejoin",  # tries again before it gives up
    "shim/local.py": "settle",  # waits for a thread, whose calls come first
    "ctl/top.py": "_watch",
}


class HeldUpTests(SynchronousTestCase):
    """A reactor that did not turn for a while."""

    kinds: tuple[Callable[[], Any], ...] = (
        SelectReactor, PollReactor, EPollReactor, LedReactor,
        lambda: AsyncioSelectorReactor(asyncio.new_event_loop()),
    )  # fmt: skip

    def setUp(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = os.path.join(self.folder, "socket")

    def underEach(self, check: Callable[[Poller], None]) -> None:
        """Make a check with a poller under each kind of reactor."""
        for kind in self.kinds:
            poller = Poller(kind())
            reactor: Any = poller.reactor
            check(poller)
            poller.close()
            for reader in reactor.removeAll():
                reader.connectionLost(Failure(ConnectionDone()))

    def atDeadline(self, deadlines: Deadlines, reactor: Any, found: Callable[[], Any]) -> Any:
        """Let the time until a deadline pass without the reactor; what is found at it."""
        results: list[Any] = []
        deadlines.callLater(0.01, lambda: results.append(found()))
        time.sleep(0.02)
        for _ in range(10_000):
            reactor.iterate(0)
            if results:
                return results[0]
        self.fail("it is never due")

    def client(self, *data: bytes) -> None:
        """Connect to the path, and send."""
        client = socket.socket(socket.AF_UNIX)
        self.addCleanup(client.close)
        client.connect(self.path)
        client.sendall(b"".join(data))

    def test_sockets(self) -> None:
        """All that waits in sockets is read first."""

        def check(poller: Poller) -> None:
            protocols = []
            for _ in range(MANY):
                ours, theirs = socket.socketpair()
                self.addCleanup(theirs.close)
                protocols.append(RecordingProtocol())
                attach(poller, ours, "the peer", protocols[-1])
                theirs.sendall(bytes(MUCH))
            found = self.atDeadline(
                poller.deadlines,
                poller.reactor,
                lambda: [len(protocol.sink.data) for protocol in protocols],
            )
            self.assertEqual(found, [MUCH] * MANY, poller.reactor)

        self.underEach(check)

    def test_backlog(self) -> None:
        """All that wait to be accepted are accepted first, and what they have sent is read."""

        def check(poller: Poller) -> None:
            protocols: list[RecordingProtocol] = []

            class Recording(Factory):
                def buildProtocol(self, addr: object) -> Any:
                    protocols.append(RecordingProtocol())
                    return protocols[-1]

            listener = UNIXListener(poller, self.path, Recording())
            listener.startListening()
            for _ in range(MANY):
                self.client(b"here")
            found = self.atDeadline(
                poller.deadlines,
                poller.reactor,
                lambda: [protocol.sink.data for protocol in protocols],
            )
            self.assertEqual(found, [b"here"] * MANY, poller.reactor)
            listener.stopListening()

        self.underEach(check)

    def test_flood(self) -> None:
        """Input without an end puts nothing off for ever."""

        def check(poller: Poller) -> None:
            ours, theirs = socket.socketpair()
            self.addCleanup(theirs.close)
            attach(poller, ours, "the peer", RecordingProtocol(lambda data: theirs.send(b"x")))
            theirs.send(b"x")
            self.atDeadline(poller.deadlines, poller.reactor, lambda: None)

        self.underEach(check)

    def test_reactors(self) -> None:
        """Input that the reactor itself reads counts as well: a pending connection and its data."""

        def check(poller: Poller) -> None:
            received: list[bytes] = []

            class Receiving(Protocol):
                def dataReceived(self, data: bytes) -> None:
                    received.append(data)

            reactor: Any = poller.reactor
            port = reactor.listenUNIX(self.path, Factory.forProtocol(Receiving))
            self.client(bytes(MUCH))
            found = self.atDeadline(Deadlines(reactor), reactor, lambda: len(b"".join(received)))
            self.assertEqual(found, MUCH, reactor)
            port.stopListening()
            reactor.iterate(0)

        self.underEach(check)


class DeadlinesTests(SynchronousTestCase):
    """As a clock."""

    def setUp(self) -> None:
        self.reactor = Clock()
        self.clock = Deadlines(self.reactor)
        self.calls: list[object] = []

    def test_interface(self) -> None:
        """It keeps time as Twisted wants it."""
        verifyObject(IReactorTime, self.clock)

    def test_order(self) -> None:
        """Calls come in the order of their times, with their arguments, and no sooner."""
        for delay in (3, 1, 2):
            self.clock.callLater(delay, self.calls.append, delay)
        self.reactor.advance(0.5)
        self.assertEqual(self.calls, [])
        self.reactor.advance(2)
        self.assertEqual(self.calls, [1, 2])
        self.reactor.advance(1)
        self.assertEqual(self.calls, [1, 2, 3])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_met(self) -> None:
        """A call that is cancelled or delayed while the input is read does not happen."""
        met = self.clock.callLater(1, self.calls.append, "met")
        later = self.clock.callLater(1, self.calls.append, "later")
        self.reactor.callLater(1, met.cancel)
        self.reactor.callLater(1, later.reset, 5)
        self.reactor.advance(1)
        self.assertEqual((self.calls, met.active(), later.active()), ([], False, True))
        self.reactor.advance(5)
        self.assertEqual(self.calls, ["later"])

    def test_dueMeanwhile(self) -> None:
        """A call that falls due while input is read for another waits for its own round."""
        poller = Busy(self.reactor, 0.01)
        clock = Deadlines(self.reactor, poller)
        for delay in (1, 1 + 0.01 * MIN_ROUNDS):
            clock.callLater(delay, lambda: self.calls.append(poller.asked))
        self.reactor.advance(1)
        self.assertEqual(self.calls, [MIN_ROUNDS + 7, 2 * (MIN_ROUNDS + 7)])

    def test_cancelled(self) -> None:
        """Cancelled calls leave nothing behind, one by one or all."""
        waits = [self.clock.callLater(100, self.calls.append, n) for n in range(1000)]
        for wait in waits[1:]:
            wait.cancel()
            self.clock.callLater(200, self.calls.append, None).cancel()
        self.assertEqual(self.clock.getDelayedCalls(), waits[:1])
        self.assertLess(len(self.clock._calls), 200)
        waits[0].cancel()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_changed(self) -> None:
        """A call can be made sooner and later."""
        wait = self.clock.callLater(10, self.calls.append, 1)
        self.clock.callLater(20, self.calls.append, 2)
        wait.reset(30)
        self.reactor.advance(25)
        self.assertEqual(self.calls, [2])
        wait.reset(1)
        self.reactor.advance(1)
        self.assertEqual(self.calls, [2, 1])

    def test_failing(self) -> None:
        """A call that raises an exception keeps no other from being made."""
        self.clock.callLater(1, lambda: 1 / 0)
        self.clock.callLater(1, self.calls.append, 1)
        self.reactor.advance(1)
        self.clock.callLater(1, self.calls.append, 2)
        self.reactor.advance(1)
        self.assertEqual(self.calls, [1, 2])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_twisted(self) -> None:
        """Twisted's own deadlines can use it."""

        class Connection(TimeoutMixin):
            def timeoutConnection(_) -> None:
                self.calls.append("idle")

        connection: Any = Connection()
        connection.callLater = self.clock.callLater
        connection.setTimeout(5)
        waiting: Deferred[None] = Deferred()
        waiting.addTimeout(7, self.clock)
        self.reactor.advance(4)
        connection.resetTimeout()
        self.reactor.advance(4)
        self.failureResultOf(waiting, TimeoutError)
        self.assertEqual(self.calls, [])
        self.reactor.advance(1)
        self.assertEqual(self.calls, ["idle"])

    def test_rounds(self) -> None:
        """A poller that always finds something gets as many rounds as it needs, and no more."""

        poller = Busy(self.reactor)
        Deadlines(self.reactor, poller).callLater(1, self.calls.append, 1)
        self.reactor.advance(1)
        self.assertEqual((self.calls, poller.asked), ([1], MIN_ROUNDS + 7))


class Busy:
    """A poller that always finds something, in no time or in more."""

    asked = 0

    def __init__(self, clock: Clock, takes: float = 0.0) -> None:
        self._clock = clock
        self._takes = takes

    def quiet(self) -> bool:
        self.asked += 1
        self._clock.rightNow += self._takes
        return False

    def maxRounds(self) -> int:
        return 7


class BlockingTests(SynchronousTestCase):
    """Waits without a reactor, in a process that is held up past the deadline."""

    def setUp(self) -> None:
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        self.path = os.path.join(folder, "peer")
        self.answered = threading.Event()
        self.received = b""

    def heldUp(self, module: ModuleType, answer: bytes) -> None:
        """
        Hold up a module's waiting until a peer has answered, and let its time be over then.

        @param answer: what the peer sends when it has been sent something.
        """
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(self.path)
        listening.listen()
        listening.settimeout(60)

        def serve() -> None:
            with listening, listening.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                self.answered.set()
                connection.settimeout(60)
                while data := connection.recv(4096):
                    self.received += data

        peer = threading.Thread(target=serve)
        peer.start()
        self.addCleanup(peer.join)
        times = iter([0.0])

        def monotonic() -> float:
            now = next(times, 1e9)
            if now:
                self.answered.wait(60)
            return now

        self.patch(module, "time", SimpleNamespace(monotonic=monotonic))
        self.peer = peer

    def test_join(self) -> None:
        """A pod takes a daemon's answer that has come in time."""
        self.heldUp(joining, b"HTTP/1.1 200 OK\r\n\r\n")
        pod = bind(self.path + ".pod")
        self.addCleanup(pod.close)
        joining.join(pod, self.path)

    def test_guard(self) -> None:
        """The guard takes an end of the process that has come in time, behind much output."""
        output = encodeFrame(FrameType.STREAM, Stream.STDOUT, bytes(1 << 16))
        ended = encodeFrame(FrameType.NOTIFICATION, Notification.PROCESS_EXITED, b"\7")
        self.heldUp(guarding, output + ended)
        guarding._kill(self.path, "token")
        self.peer.join(60)
        last = encodeFrame(FrameType.COMMAND, Command.DISCONNECT_SHIM)
        self.assertTrue(self.received.endswith(last), self.received)


class UseTests(SynchronousTestCase):
    """The source of the package, without its tests."""

    def test_timers(self) -> None:
        """P21: no deadline is a reactor's own timer."""
        package = Path(ccproxy.__file__).parent
        found = set()
        for path in sorted(package.rglob("*.py")):
            module = str(path.relative_to(package))
            if not module.startswith("test"):
                uses = _timers(ast.parse(path.read_text()), "")
                found |= {(module, function) for function in uses}
        for module, functions in INTERVALS.items():
            found -= {(module, function) for function in functions.split()}
        self.assertEqual(found, set(), "use ccproxy.net.deadlines, or list them as intervals")

    def test_loops(self) -> None:
        """P21: no loop ends by the time before it has looked once more."""
        package = Path(ccproxy.__file__).parent
        found = []
        for path in sorted(package.rglob("*.py")):
            module = str(path.relative_to(package))
            if not module.startswith("test"):
                for node in ast.walk(ast.parse(path.read_text())):
                    if isinstance(node, ast.While):
                        condition = ast.unparse(node.test)
                        if "monotonic()" in condition or "seconds()" in condition:
                            found.append((module, condition))
        self.assertEqual(found, [])


def _timers(node: ast.AST, function: str) -> Iterator[str]:
    """The functions that use timers of what is not called deadlines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        function = node.name
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        clock: ast.AST | None = None
        if name == "callLater" and isinstance(node.func, ast.Attribute):
            clock = node.func.value
        elif name in ("deferLater", "addTimeout") and node.args:
            clock = node.args[name == "addTimeout"]
        if clock is not None and not _isDeadlines(clock):
            yield function
    for child in ast.iter_child_nodes(node):
        yield from _timers(child, function)


def _isDeadlines(clock: ast.AST) -> bool:
    text = ast.unparse(clock)
    return "eadlines" in text or text.endswith("context.clock")

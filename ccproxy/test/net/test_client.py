"""
The client library, against bytes.
"""

from __future__ import annotations

import json
import socket
from typing import TypeVar

from msgspec import Raw
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from ...errors import (
    ConnectionClosed,
    DeadlineExceeded,
    LocalProtocolError,
    ProxyError,
    RemoteProtocolError,
)
from ...net.address import socketPath
from ...net.client import IOStreams, IProcessOutput, ProxyClient
from ...wire import payloads
from ...wire.codes import Command, FrameType, Stream
from ...wire.frames import (
    Frame,
    FrameDecoder,
    encodeFrame,
    encodeProcessExited,
    encodeStream,
)
from ...wire.starts import ExecCommand, NewContainer, Process


@implementer(IProcessOutput)
class Recorder:
    """An output that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, bytes | int]] = []

    def stdout(self, data: bytes) -> None:
        self.events.append(("stdout", data))

    def stderr(self, data: bytes) -> None:
        self.events.append(("stderr", data))

    def exited(self, status: int) -> None:
        self.events.append(("exited", status))


def response(command: Command, payload: bytes = b"", error: bool = False) -> bytes:
    return encodeFrame(FrameType.RESPONSE, command, payload, error)


T = TypeVar("T")


class ClientTestCase(SynchronousTestCase):
    """A connected client whose bytes are looked at."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.output = Recorder()
        self.client = ProxyClient(self.output, self.clock)
        self.transport = StringTransport()
        self.client.makeConnection(self.transport)

    def sent(self) -> list[Frame]:
        """The frames sent since the last call."""
        decoder = FrameDecoder()
        decoder.feed(self.transport.value())
        self.transport.clear()
        return list(iter(decoder.next, None))

    def lose(self, error: type[Exception] = ConnectionDone) -> None:
        self.client.connectionLost(Failure(error()))


class CommandTests(ClientTestCase):
    """Commands and their answers."""

    def check(self, answer: Deferred[T], command: Command, payload: bytes, reply: bytes = b"") -> T:
        [frame] = self.sent()
        self.assertEqual((frame.type, frame.opcode), (FrameType.COMMAND, command))
        self.assertEqual(json.loads(frame.payload), json.loads(payload))
        self.assertNoResult(answer)
        self.client.dataReceived(response(command, reply))
        return self.successResultOf(answer)

    def test_registerVM(self) -> None:
        result = self.check(
            self.client.registerVM("pod", "/ctl", "/io", numIOStreams=2),
            Command.REGISTER_VM,
            b'{"containerId":"pod","ctlSerial":"/ctl","ioSerial":"/io",'
            b'"console":null,"numIOStreams":2}',
            b'{"io": {"URL": "unix:///p", "tokens": ["a", "b"]}}',
        )
        self.assertEqual(result, IOStreams("unix:///p", ["a", "b"]))

    def test_attachVMWithoutTokens(self) -> None:
        """C{null} for no tokens becomes an empty list, and C{url} may have its other spelling."""
        result = self.check(
            self.client.attachVM("pod"),
            Command.ATTACH_VM,
            b'{"containerId":"pod","numIOStreams":0}',
            b'{"io": {"url": "unix:///p", "tokens": null}}',
        )
        self.assertEqual(result, IOStreams("unix:///p", []))

    def test_attachVMEmptyAnswer(self) -> None:
        self.assertEqual(
            self.check(
                self.client.attachVM("pod"),
                Command.ATTACH_VM,
                b'{"containerId":"pod","numIOStreams":0}',
            ),
            IOStreams("", []),
        )

    def test_malformedAnswer(self) -> None:
        """An answer of the wrong form fails its command."""
        answer = self.client.attachVM("pod")
        self.client.dataReceived(response(Command.ATTACH_VM, b'{"io": 7}'))
        error = self.failureResultOf(answer, RemoteProtocolError).value
        self.assertIn("AttachVM", str(error))

    def test_unregisterVM(self) -> None:
        self.assertIsNone(
            self.check(
                self.client.unregisterVM("pod"), Command.UNREGISTER_VM, b'{"containerId":"pod"}'
            )
        )

    def test_hyper(self) -> None:
        """What the agent answered comes as it stands."""
        self.assertEqual(
            self.check(
                self.client.hyper("ping"),
                Command.HYPER,
                b'{"hyperName":"ping","tokens":null}',
                b"\0\xff",
            ),
            b"\0\xff",
        )

    def test_hyperData(self) -> None:
        """Data is bytes of JSON, or anything that becomes JSON."""
        for data in (b'{"id": 1}', Raw(b'{"id": 1}')):
            self.client.hyper("newcontainer", data, ["t"])
            self.assertIn(b'"data":{"id": 1}', self.transport.value())
            self.client.dataReceived(response(Command.HYPER))
            self.transport.clear()
        self.check(
            self.client.hyper("newcontainer", {"id": None}, ["t"]),
            Command.HYPER,
            b'{"hyperName":"newcontainer","tokens":["t"],"data":{"id":null}}',
        )

    def test_shim(self) -> None:
        self.check(self.client.connectShim("t"), Command.CONNECT_SHIM, b'{"token":"t"}')
        self.check(
            self.client.signal(2),
            Command.SIGNAL,
            b'{"signalNumber":2,"columns":null,"rows":null}',
        )
        self.check(
            self.client.signal(28, 80, 24),
            Command.SIGNAL,
            b'{"signalNumber":28,"columns":80,"rows":24}',
        )

    def test_shimWithoutOutput(self) -> None:
        self.assertRaises(LocalProtocolError, ProxyClient().connectShim, "t")

    def test_disconnectShim(self) -> None:
        """DisconnectShim is acknowledged by the end of the connection."""
        answer = self.client.disconnectShim()
        [frame] = self.sent()
        self.assertEqual((frame.opcode, frame.payload), (Command.DISCONNECT_SHIM, b""))
        self.lose()
        self.successResultOf(answer)

    def test_disconnectShimRefused(self) -> None:
        answer = self.client.disconnectShim()
        self.client.dataReceived(
            response(Command.DISCONNECT_SHIM, b'{"msg": "client isn\'t a shim"}', error=True)
        )
        self.failureResultOf(answer, ProxyError)

    def test_disconnectShimUnknown(self) -> None:
        """A connection that breaks does not acknowledge."""
        answer = self.client.disconnectShim()
        self.lose(ConnectionLost)
        self.failureResultOf(answer, ConnectionClosed)

    def test_error(self) -> None:
        answer = self.client.attachVM("pod")
        self.client.dataReceived(
            response(Command.ATTACH_VM, b'{"msg": "unknown containerID: pod"}', error=True)
        )
        error = self.failureResultOf(answer, ProxyError).value
        self.assertEqual(str(error), "unknown containerID: pod")

    def test_malformedError(self) -> None:
        answer = self.client.attachVM("pod")
        self.client.dataReceived(response(Command.ATTACH_VM, b"no\xff", error=True))
        self.assertEqual(str(self.failureResultOf(answer, ProxyError).value), "no\ufffd")

    def test_order(self) -> None:
        """Commands can be sent without waiting; each gets its own answer, cut anywhere."""
        answers = [self.client.hyper("ping") for _ in range(3)]
        data = b"".join(response(Command.HYPER, b"%d" % n) for n in range(3))
        for position in range(len(data)):
            self.client.dataReceived(data[position : position + 1])
        self.assertEqual([self.successResultOf(each) for each in answers], [b"0", b"1", b"2"])

    def test_cancel(self) -> None:
        """The answer to a cancelled command is not taken for the next one's."""
        first, second = self.client.hyper("ping"), self.client.hyper("ping")
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.client.dataReceived(response(Command.HYPER, b"0") + response(Command.HYPER, b"1"))
        self.assertEqual(self.successResultOf(second), b"1")

    def test_timeout(self) -> None:
        late, other = self.client.hyper("ping", timeout=5), self.client.hyper("ping")
        self.clock.advance(5)
        error = self.failureResultOf(late, DeadlineExceeded).value
        self.assertEqual(str(error), "no answer to Hyper within 5 s")
        self.client.dataReceived(response(Command.HYPER, b"0") + response(Command.HYPER, b"1"))
        self.assertEqual(self.successResultOf(other), b"1")

    def test_timeoutNotReached(self) -> None:
        """An answer in time leaves no call behind."""
        self.client.hyper("ping", timeout=5)
        self.client.dataReceived(response(Command.HYPER))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_timeoutWithoutClock(self) -> None:
        client = ProxyClient()
        client.makeConnection(StringTransport())
        self.assertRaises(LocalProtocolError, client.hyper, "ping", timeout=1)

    def test_notUTF8(self) -> None:
        """A text that is not UTF-8 cannot be sent; nothing waits for an answer then."""
        client, transport = self.client, self.transport
        for send in (client.attachVM, client.unregisterVM, client.connectShim):
            error = self.assertRaises(LocalProtocolError, send, "caf\udce9")
            self.assertIn(r"'caf\udce9' is not UTF-8", str(error))
        self.assertRaises(LocalProtocolError, client.hyper, "ping", {"id": "\udce9"})
        self.assertEqual(transport.value(), b"")
        answer = client.hyper("ping")
        client.dataReceived(response(Command.HYPER))
        self.assertEqual(self.successResultOf(answer), b"")

    def test_lost(self) -> None:
        answers = [self.client.hyper("ping"), self.client.unregisterVM("pod")]
        closed = self.client.whenClosed()
        self.lose(ConnectionLost)
        for answer in answers:
            self.failureResultOf(answer, ConnectionClosed)
        self.successResultOf(closed)
        self.failureResultOf(self.client.hyper("ping"), ConnectionClosed)
        self.successResultOf(self.client.whenClosed())

    def test_notConnected(self) -> None:
        self.failureResultOf(ProxyClient().hyper("ping"), ConnectionClosed)


class StreamTests(ClientTestCase):
    """Streams, notifications and flow."""

    def test_interfaces(self) -> None:
        verifyObject(IPushProducer, self.client)
        verifyObject(IProcessOutput, self.output)

    def test_output(self) -> None:
        self.client.dataReceived(
            encodeStream(Stream.STDOUT, b"out")
            + encodeStream(Stream.STDERR, b"err")
            + encodeProcessExited(7)
        )
        self.assertEqual(
            self.output.events, [("stdout", b"out"), ("stderr", b"err"), ("exited", 7)]
        )

    def test_exitStatusOfNoByte(self) -> None:
        """An exit status that is not one byte ends the wait all the same, and is no success."""
        for payload in (b"", b"\0\0"):
            self.client.dataReceived(encodeFrame(FrameType.NOTIFICATION, 0, payload))
        self.assertEqual(self.output.events, [("exited", 255), ("exited", 255)])

    def test_unknownOutput(self) -> None:
        """Streams and notifications of a later version are passed over."""
        self.client.dataReceived(
            encodeFrame(FrameType.STREAM, 9, b"x") + encodeFrame(FrameType.NOTIFICATION, 9)
        )
        self.assertEqual(self.output.events, [])
        self.assertFalse(self.transport.disconnected)

    def test_stdin(self) -> None:
        """Stdin is cut into frames; only C{closeStdin} sends an empty one."""
        self.client.sendStdin(b"")
        self.client.sendStdin(b"x" * 8193)
        self.client.closeStdin()
        self.assertEqual([len(frame.payload) for frame in self.sent()], [8192, 1, 0])

    def test_log(self) -> None:
        self.client.log("warn", "odd", "shim", "pod")
        [frame] = self.sent()
        self.assertEqual((frame.type, frame.opcode), (FrameType.STREAM, Stream.LOG))
        self.assertEqual(
            payloads.decode(payloads.LogEntry, frame.payload),
            payloads.LogEntry("shim", "warn", "odd", "pod"),
        )

    def test_flow(self) -> None:
        self.client.pauseProducing()
        self.assertEqual(self.transport.producerState, "paused")
        self.client.resumeProducing()
        self.assertEqual(self.transport.producerState, "producing")
        self.client.stopProducing()
        self.assertTrue(self.transport.disconnecting)

    def test_close(self) -> None:
        closed = self.client.close()
        self.assertTrue(self.transport.disconnecting)
        self.assertNoResult(closed)
        self.lose()
        self.successResultOf(closed)

    def test_afterTheEnd(self) -> None:
        """A connection that has ended takes everything and does nothing."""
        self.lose()
        self.client.sendStdin(b"x")
        self.client.pauseProducing()
        self.client.resumeProducing()
        self.client.dataReceived(encodeStream(Stream.STDOUT, b"out"))
        self.successResultOf(self.client.close())
        self.assertEqual(self.sent(), [])
        self.assertEqual(self.output.events, [])


class BadProxyTests(ClientTestCase):
    """What breaks the protocol ends the connection, with the reason for all that wait."""

    def check(self, data: bytes, reason: str) -> None:
        answer = self.client.hyper("ping")
        self.client.dataReceived(data + encodeStream(Stream.STDOUT, b"more"))
        error = self.failureResultOf(answer, ConnectionClosed).value
        self.assertIn(reason, str(error))
        self.assertTrue(self.transport.disconnected)
        self.assertEqual(self.output.events, [])

    def test_version(self) -> None:
        self.check(b"\0\x09" + bytes(10), "version 9")

    def test_otherAnswer(self) -> None:
        self.check(response(Command.ATTACH_VM), "opcode 2")

    def test_command(self) -> None:
        self.check(encodeFrame(FrameType.COMMAND, Command.HYPER), "command frame")

    def test_streamForRuntime(self) -> None:
        """A connection that is no shim gets no streams."""
        self.client.output = None
        self.check(encodeStream(Stream.STDOUT, b"x"), "stream frame")


class SocketTransport(StringTransport):
    """A transport that has a socket, which it does not read."""

    def __init__(self, handle: socket.socket) -> None:
        super().__init__()
        self.handle = handle

    def getHandle(self) -> socket.socket:
        return self.handle


class SalvageTests(SynchronousTestCase):
    """What came before a write failed is not lost."""

    def test_failedWrite(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        output = Recorder()
        client = ProxyClient(output)
        client.makeConnection(SocketTransport(ours))
        answer = client.signal(15)
        theirs.sendall(
            response(Command.SIGNAL) + encodeStream(Stream.STDOUT, b"last") + encodeProcessExited(3)
        )
        theirs.close()
        ours.shutdown(socket.SHUT_RDWR)
        ours.close()
        client.connectionLost(Failure(ConnectionLost()))
        self.successResultOf(answer)
        self.assertEqual(output.events, [("stdout", b"last"), ("exited", 3)])


class AddressTests(SynchronousTestCase):
    """The names of sockets."""

    def test_forms(self) -> None:
        self.assertEqual(socketPath("unix:///run/p.sock"), "/run/p.sock")
        self.assertEqual(socketPath("/run/p.sock"), "/run/p.sock")
        self.assertEqual(socketPath("/" + "x" * 106), "/" + "x" * 106)

    def test_refused(self) -> None:
        for url in ("", "unix://", "tcp://localhost:1", "a\0b", "/" + "é" * 54):
            self.assertRaises(ValueError, socketPath, url)


class StartTests(SynchronousTestCase):
    """The data of newcontainer and execcmd."""

    def test_newContainer(self) -> None:
        process = Process.make(["sh", "-c", "x"], {"A": "b"}, "/tmp", terminal=True)
        self.assertEqual(
            json.loads(payloads.encode(NewContainer("c", "rootfs", "image", process))),
            {
                "id": "c",
                "rootfs": "rootfs",
                "image": "image",
                "process": {
                    "args": ["sh", "-c", "x"],
                    "terminal": True,
                    "envs": [{"env": "A", "value": "b"}],
                    "workdir": "/tmp",
                },
            },
        )

    def test_absent(self) -> None:
        """What is not given is not sent: hyperstart would refuse C{null}."""
        self.assertEqual(
            json.loads(payloads.encode(ExecCommand("c", Process.make(["sh"])))),
            {"container": "c", "process": {"args": ["sh"], "terminal": False}},
        )

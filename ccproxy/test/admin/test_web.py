"""
Tests for L{ccproxy.admin.web}.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ...admin.calls import Call, Outflow, Refused, Reply, Stream
from ...admin.listening import MAX_CONNECTIONS
from ...admin.web import FAREWELL, IDLE_TIMEOUT, MAX_BODY, AdminSite


class EndlessTransport(StringTransport):
    """A transport that can be aborted."""

    aborted = False

    def abortConnection(self) -> None:
        """Close at once."""
        self.aborted = True


class PlainStream:
    """An answer without an end, that notes what it is told."""

    type = "text/event-stream"

    def __init__(self) -> None:
        self.outflow: Any = None
        self.told: list[str] = []

    def begin(self, outflow: Outflow) -> None:
        """See L{Stream.begin}."""
        self.outflow = outflow

    def pause(self) -> None:
        """See L{Stream.pause}."""
        self.told.append("pause")

    def resume(self) -> None:
        """See L{Stream.resume}."""
        self.told.append("resume")

    def gone(self) -> None:
        """See L{Stream.gone}."""
        self.told.append("gone")


class WebTests(SynchronousTestCase):
    """
    Requests become calls, and answers responses.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.calls: list[tuple[str, str, Call]] = []
        self.answer: Reply | Stream | Exception = Reply.json({"well": True})
        self.channel = AdminSite(self.respond, self.clock).buildProtocol(None)
        self.transport = EndlessTransport()
        self.channel.makeConnection(self.transport)

    def respond(self, method: str, path: str, call: Call) -> Reply | Stream:
        """Answer, as the test says."""
        self.calls.append((method, path, call))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def ask(self, data: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
        """Send a request; the first line, the headers and the body of the response."""
        self.transport.clear()
        self.channel.dataReceived(data)
        head, _, body = self.transport.value().partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        return first, dict(line.split(b": ", 1) for line in lines), body

    def test_get(self) -> None:
        """Path and query are taken apart and unquoted; the answer is JSON with its length."""
        first, headers, body = self.ask(b"GET /v1/a%20b?vm=x%2Fy&vm=z HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertEqual(first, b"HTTP/1.1 200 OK")
        self.assertEqual(headers[b"Content-Type"], b"application/json")
        self.assertEqual(int(headers[b"Content-Length"]), len(body))
        self.assertEqual(json.loads(body), {"well": True})
        self.assertEqual(self.calls, [("GET", "/v1/a b", Call({}, {"vm": "z"}, b""))])

    def test_again(self) -> None:
        """A connection serves one request after the other, also when they come at once."""
        self.channel.dataReceived(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n")
        self.assertEqual([path for _, path, _ in self.calls], ["/1", "/2"])
        self.assertEqual(self.transport.value().count(b"200 OK"), 2)
        self.assertFalse(self.transport.disconnecting)

    def test_head(self) -> None:
        """HEAD is a GET whose body is left out."""
        first, headers, body = self.ask(b"HEAD / HTTP/1.1\r\n\r\n")
        self.assertEqual((first, body), (b"HTTP/1.1 200 OK", b""))
        self.assertEqual(self.calls[0][0], "GET")
        self.assertEqual(int(headers[b"Content-Length"]), 14)

    def test_body(self) -> None:
        """The body reaches the call as it is, whatever its type is said to be."""
        for kind in (
            b"application/json",
            b"application/x-www-form-urlencoded",
            b"multipart/form-data",
        ):
            self.ask(b"PUT / HTTP/1.1\r\nContent-Type: %s\r\nContent-Length: 3\r\n\r\na=b" % kind)
            self.ask(b"POST / HTTP/1.1\r\nContent-Type: %s\r\nContent-Length: 3\r\n\r\na=b" % kind)
        self.assertEqual({call.body for *_, call in self.calls}, {b"a=b"})
        self.assertEqual([dict(call.query) for *_, call in self.calls], [{}] * 6)

    def test_longBody(self) -> None:
        """A body beyond the limit is refused and not kept, with a length told before or not."""
        size = MAX_BODY + 1
        first, *_ = self.ask(
            b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (size, b"x" * size)
        )
        self.assertIn(b"413", first)
        chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
        first, *_ = self.ask(
            b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 5 + b"0\r\n\r\n"
        )
        self.assertIn(b"413", first)
        self.assertEqual(self.calls, [])
        self.channel.dataReceived(b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (size * 9))
        for _ in range(8):
            self.channel.dataReceived(b"x" * size)
        self.assertLess(self.channel.requests[0].content.tell(), size)

    def test_badText(self) -> None:
        """What is no UTF-8 is refused."""
        for path in (b"/%ff", b"/?a=%ff", b"/?%ff=a"):
            self.assertIn(b"400", self.ask(b"GET %s HTTP/1.1\r\n\r\n" % path)[0])
        self.assertEqual(self.calls, [])

    def test_refused(self) -> None:
        """A refusal is an answer with its status and its text."""
        self.answer = Refused(409, "not now")
        first, _, body = self.ask(b"GET / HTTP/1.1\r\n\r\n")
        self.assertEqual(
            (first, json.loads(body)), (b"HTTP/1.1 409 Conflict", {"error": "not now"})
        )

    def test_bug(self) -> None:
        """An error of ours is logged, and costs nobody else anything."""
        self.answer = ZeroDivisionError()
        first, *_ = self.ask(b"GET / HTTP/1.1\r\n\r\n")
        self.assertIn(b"500", first)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_idle(self) -> None:
        """A connection on which nothing is asked is closed."""
        self.clock.advance(IDLE_TIMEOUT)
        self.assertTrue(self.transport.disconnecting)

    def test_tooMany(self) -> None:
        """There are only so many connections; one that ends makes room."""
        site = AdminSite(self.respond, self.clock)
        channels = [site.buildProtocol(None) for _ in range(MAX_CONNECTIONS)]
        self.assertIsNone(site.buildProtocol(None))
        channels[0].makeConnection(EndlessTransport())
        channels[0].connectionLost(Failure(ConnectionDone()))
        self.assertIsNotNone(site.buildProtocol(None))

    def begin(self, request: bytes = b"GET / HTTP/1.1\r\n\r\n") -> PlainStream:
        """Ask for an answer without an end."""
        stream = self.answer = PlainStream()
        self.ask(request)
        return stream

    def test_stream(self) -> None:
        """An answer without an end comes piece by piece, for as long as it takes."""
        stream = self.begin()
        self.assertIn(b"text/event-stream", self.transport.value())
        self.transport.clear()
        self.clock.advance(IDLE_TIMEOUT * 2)
        stream.outflow.write(b"more")
        self.assertEqual(self.transport.value(), b"4\r\nmore\r\n")
        self.assertFalse(self.transport.disconnecting)

    def test_slowStream(self) -> None:
        """It is told when the peer does not read, and when it does again."""
        stream = self.begin()
        assert self.transport.producer is not None
        self.transport.producer.pauseProducing()
        self.transport.producer.resumeProducing()
        self.assertEqual(stream.told, ["pause", "resume"])

    def test_finishedStream(self) -> None:
        """One that finishes closes the connection, by force after a while."""
        stream = self.begin()
        stream.outflow.finish()
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(stream.told, ["gone"])
        self.clock.advance(FAREWELL)
        self.assertTrue(self.transport.aborted)

    def test_takenStream(self) -> None:
        """There is no force where the rest was taken in time."""
        stream = self.begin()
        stream.outflow.finish()
        self.channel.connectionLost(Failure(ConnectionDone()))
        self.clock.advance(FAREWELL)
        self.assertFalse(self.transport.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_lostStream(self) -> None:
        """It is told once that the peer has gone."""
        stream = self.begin()
        self.channel.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(stream.told, ["gone"])

    def test_headOfStream(self) -> None:
        """HEAD of it ends at once."""
        stream = self.begin(b"HEAD / HTTP/1.1\r\n\r\n")
        self.assertIsNone(stream.outflow)
        self.assertTrue(self.transport.disconnecting)

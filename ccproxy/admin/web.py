"""
HTTP for the admin socket: requests become calls, and answers become responses.

Only L{twisted.web.http} is used of L{twisted.web}: there are no pages here, but a table of routes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.internet.interfaces import IAddress, IPushProducer
from twisted.internet.protocol import ServerFactory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request
from zope.interface import implementer

from ..core.context import Wait, cancel
from .calls import Call, Refused, Reply, Stream
from .listening import MAX_CONNECTIONS

#: The longest body of a request, in bytes.
MAX_BODY = 64 << 10
#: Seconds after which an idle connection is closed.
IDLE_TIMEOUT = 60.0
#: Seconds that a finished stream's peer has to take the rest of it.
FAREWELL = 10.0

#: Answers a call: the method, the path, and the rest of it.
Respond = Callable[[str, str, Call], Reply | Stream]


@implementer(IPushProducer)
class AdminRequest(Request):
    """
    One request.
    """

    _log = Logger()
    _stream: Stream | None = None
    _size = 0

    def __init__(self, channel: HTTPChannel, respond: Respond) -> None:
        """
        @param respond: what answers it.
        """
        super().__init__(channel)
        self._respond = respond

    def gotLength(self, length: int | None) -> None:
        """The header is complete. The body is short, so it stays in memory, and is JSON only."""
        self.requestHeaders.removeHeader("Content-Type")
        super().gotLength(0)

    def handleContentChunk(self, data: bytes) -> None:
        """Keep a part of the body, as long as it is short."""
        self._size += len(data)
        if self._size <= MAX_BODY:
            super().handleContentChunk(data)

    def process(self) -> None:
        """The request is here."""
        try:
            answer = self._answer()
        except Refused as refused:
            answer = Reply.refusing(refused)
        except Exception:
            self._log.failure("admin request {uri} failed", event="admin-failed", uri=self.uri)
            answer = Reply.refusing(
                Refused(500, "an error of ccproxy itself; its log has the traceback")
            )
        if isinstance(answer, Reply):
            self._send(answer)
        else:
            self._begin(answer)

    def _answer(self) -> Reply | Stream:
        if self._size > MAX_BODY:
            raise Refused(413, f"the body is longer than {MAX_BODY} bytes")
        try:
            path = unquote_to_bytes(self.path).decode()
            query = {name.decode(): values[-1].decode() for name, values in self.args.items()}
            method = self.method.decode("ascii")
        except UnicodeDecodeError:
            raise Refused(400, "the request is no valid UTF-8") from None
        assert self.content is not None
        body = self.content.read()
        return self._respond("GET" if method == "HEAD" else method, path, Call({}, query, body))

    def _send(self, reply: Reply) -> None:
        self.setResponseCode(reply.status)
        self.setHeader("Content-Type", reply.type)
        self.setHeader("Content-Length", str(len(reply.body)))
        for name, value in reply.headers.items():
            self.setHeader(name, value)
        self.write(reply.body)
        self.finish()

    # -- answers without an end

    def _begin(self, stream: Stream) -> None:
        self.setHeader("Content-Type", stream.type)
        self.setHeader("Cache-Control", "no-store")
        # It has no end that could be told, so nothing can follow it.
        self.setHeader("Connection", "close")
        self.channel.persistent = False
        if self.method == b"HEAD":
            self.finish()
            return
        self._stream = stream
        self.notifyFinish().addBoth(self._finished)
        self.registerProducer(self, True)
        self.write(b"")
        stream.begin(self)

    def finish(self) -> None:
        """See L{ccproxy.admin.calls.Outflow.finish}."""
        if self._stream is not None:
            channel: Any = self.channel
            self.unregisterProducer()
            channel.farewell = channel.callLater(FAREWELL, channel.transport.abortConnection)
        super().finish()

    def _finished(self, result: object) -> None:
        if self._stream is not None:
            self._stream.gone()

    def pauseProducing(self) -> None:
        """The peer does not read."""
        if self._stream is not None:
            self._stream.pause()

    def resumeProducing(self) -> None:
        """The peer reads."""
        if self._stream is not None:
            self._stream.resume()

    def stopProducing(self) -> None:
        """The connection has ended; L{_finished} is told."""


class AdminChannel(HTTPChannel):
    """
    One connection.

    @ivar farewell: the end of the time in which the last of a stream is taken.
    """

    farewell: Wait | None = None

    def __init__(self, channels: set[AdminChannel]) -> None:
        """
        @param channels: where it is as long as it is open.
        """
        super().__init__()
        self._channels = channels
        channels.add(self)

    def lineLengthExceeded(self, line: bytes) -> None:
        """This is no HTTP. The transport's own end of it would wait for an answer's end."""
        self.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection has ended."""
        cancel(self.farewell)
        self._channels.discard(self)
        super().connectionLost(reason)


class AdminSite(ServerFactory):
    """
    Makes the connections' protocols.
    """

    noisy = False

    def __init__(self, respond: Respond, deadlines: Any) -> None:
        """
        @param respond: what answers requests.
        @param deadlines: measures idle times: an
            L{IReactorTime<twisted.internet.interfaces.IReactorTime>}.
        """
        self._respond = respond
        self._deadlines = deadlines
        self._channels: set[AdminChannel] = set()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """A new connection, which is closed at once if there are too many."""
        if len(self._channels) >= MAX_CONNECTIONS:
            return None
        channel: Any = AdminChannel(self._channels)
        channel.factory = self
        channel.requestFactory = lambda channel, queued: AdminRequest(channel, self._respond)
        channel.callLater = self._deadlines.callLater
        channel.timeOut = IDLE_TIMEOUT
        return channel

    def log(self, request: Request) -> None:
        """There is no log of accesses."""

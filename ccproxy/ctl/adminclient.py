"""
Asking the daemon, with HTTP over its admin socket.

Nothing here trusts the answer: its length is bounded, every wait has a deadline, and whatever the
daemon says in an error is shown without control characters.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Coroutine, Mapping
from io import BytesIO
from typing import Any
from urllib.parse import urlencode

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ..errors import CCProxyError
from ..net.deadlines import Deadlines
from .printable import printable

#: How long to wait for an answer that is no stream, in seconds.
ANSWER_TIMEOUT = 15.0
#: The longest answer that is no stream, in bytes: a dump of all limits' worth of VMs is far below.
LONGEST_ANSWER = 256 << 20

_FORBIDDEN = 403


class AdminError(CCProxyError):
    """
    The daemon did not do what it was asked.

    @cvar status: the exit status that says so.
    """

    status = 1


class NoDaemon(AdminError):
    """Nobody answers at the admin socket."""

    status = 3


class Broken(AdminError):
    """The connection was lost before the end of the answer."""


class NotPermitted(AdminError):
    """This user may not ask."""

    status = 4


class AdminClient:
    """
    The daemon behind an admin socket.

    @ivar path: the socket.
    @ivar reactor: what it runs on.
    """

    def __init__(self, reactor: Any, path: str) -> None:
        """
        @param path: the admin socket.
        """
        # A command line that is wrong, or asks for help, shall not wait for these.
        from twisted.internet.endpoints import UNIXClientEndpoint
        from twisted.web.client import Agent
        from twisted.web.iweb import IAgentEndpointFactory

        @implementer(IAgentEndpointFactory)
        class Socket:
            """The one place where all URLs lead."""

            def endpointForURI(self, uri: object) -> UNIXClientEndpoint:
                """The admin socket."""
                return UNIXClientEndpoint(reactor, path, timeout=ANSWER_TIMEOUT)

        self.path = path
        self.reactor = reactor
        self._deadlines = Deadlines(reactor)
        self._agent = Agent.usingEndpointFactory(reactor, Socket())

    async def get(self, path: str, **query: object) -> Any:
        """
        What is there, out of JSON.

        @raise AdminError: it cannot be had.
        """
        return await self.ask("GET", _withQuery(path, query))

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        """
        Send a request.

        @param body: what to send as JSON, if anything.
        @return: the answer, out of JSON, or L{None} if it is empty.
        @raise AdminError: it was refused, or not answered in time.
        """
        chunks: list[bytes] = []
        length = 0

        def gather(data: bytes) -> None:
            nonlocal length
            length += len(data)
            if length > LONGEST_ANSWER:
                raise AdminError(f"the answer to {path} has more than {LONGEST_ANSWER} bytes")
            chunks.append(data)

        async def exchange() -> None:
            response = await self._request(method, path, body)
            await self._take(response, path, gather)

        await self._inTime(exchange(), path)
        return _parsed(b"".join(chunks), path)

    async def stream(self, path: str, receive: Callable[[bytes], None], **query: object) -> None:
        """
        Take what comes until it ends, with no deadline but that of the beginning.

        @param receive: called with each piece; what it raises ends the stream.
        @raise AdminError: it does not begin, or breaks off.
        """
        response = await self._inTime(self._request("GET", _withQuery(path, query)), path)
        await self._take(response, path, receive)

    def _inTime(self, work: Coroutine[Any, Any, Any], path: str) -> Deferred[Any]:
        def late(result: Any, timeout: float) -> Failure:
            return Failure(
                AdminError(
                    f"the daemon at {self.path} has not answered {path} within {timeout:g} s: "
                    "it hangs, or is stopped; look at its log and its processor time"
                )
            )

        return Deferred.fromCoroutine(work).addTimeout(ANSWER_TIMEOUT, self._deadlines, late)

    async def _request(self, method: str, path: str, body: object = None) -> Any:
        """
        Send a request, and wait for the beginning of its response.

        @raise AdminError: there is none, or it is a refusal.
        """
        from twisted.web.client import FileBodyProducer, RequestTransmissionFailed, ResponseFailed
        from twisted.web.http_headers import Headers

        fields = Headers({"User-Agent": ["ccproxyctl"]})
        producer = None
        if body is not None:
            fields.addRawHeader("Content-Type", "application/json")
            producer = FileBodyProducer(BytesIO(json.dumps(body).encode()))
        url = f"http://ccproxy{path}".encode()
        try:
            response = await self._agent.request(method.encode(), url, fields, producer)
        except ConnectError as error:
            raise self._unreachable(error) from None
        except (RequestTransmissionFailed, ResponseFailed) as error:
            raise self._broken(path, error.reasons) from None
        if response.code >= 300:
            await self._refuse(response, path)
        return response

    async def _take(self, response: Any, path: str, receive: Callable[[bytes], None]) -> None:
        from twisted.web.client import ResponseFailed

        body = _Body(receive)
        response.deliverBody(body)
        try:
            await body.done
        except ResponseFailed as error:
            raise self._broken(path, error.reasons) from None

    async def _refuse(self, response: Any, path: str) -> None:
        """
        @raise AdminError: always, with the reason that the response gives.
        """
        text = b""

        def gather(data: bytes) -> None:
            nonlocal text
            text = (text + data)[:8192]

        await self._take(response, path, gather)
        try:
            reason = str(json.loads(text)["error"])
        except (ValueError, KeyError, TypeError):
            reason = f"{path} was answered with {response.code} {response.phrase.decode('latin-1')}"
        kind = NotPermitted if response.code == _FORBIDDEN else AdminError
        raise kind(printable(reason))

    def _broken(self, path: str, reasons: list[Failure]) -> AdminError:
        why = printable("; ".join(reason.getErrorMessage() for reason in reasons))
        return Broken(
            f"the connection to the daemon at {self.path} was lost before the end of the answer "
            f"to {path} ({why}): it has ended, or what listens there is no ccproxy"
        )

    def _unreachable(self, error: ConnectError) -> AdminError:
        reason = os.strerror(error.osError) if error.osError else str(error)
        if error.osError in (errno.EACCES, errno.EPERM):
            return NotPermitted(
                f"this user may not open the admin socket {self.path} ({reason}): "
                "only root and the daemon's own user may; try sudo"
            )
        return NoDaemon(
            f"no daemon answers at the admin socket {self.path} ({reason}): start one without "
            "--no-admin, or name its socket with --admin-socket or in CCPROXY_ADMIN_SOCKET"
        )


class _Body(Protocol):
    """Takes the body of a response."""

    def __init__(self, receive: Callable[[bytes], None]) -> None:
        self.done: Deferred[Any] = Deferred(lambda done: self._leave())
        self._receive = receive

    def _leave(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        """A piece of it has come."""
        if self.done.called:
            return
        try:
            self._receive(data)
        except Exception:
            self._end(Failure())
            self._leave()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It has ended, or broken off."""
        from twisted.web.client import ResponseDone
        from twisted.web.http import PotentialDataLoss

        # Without a length, the end of the connection is the end of the body.
        self._end(None if reason.check(ResponseDone, PotentialDataLoss) else reason)

    def _end(self, result: Failure | None) -> None:
        if not self.done.called:
            self.done.callback(result)


def _withQuery(path: str, query: Mapping[str, object]) -> str:
    # What is no UTF-8 on the command line is refused by the daemon.
    return f"{path}?{urlencode(query, errors='surrogateescape')}" if query else path


def _parsed(text: bytes, path: str) -> Any:
    try:
        return json.loads(text) if text.strip() else None
    except ValueError as error:
        raise AdminError(
            f"the answer to {path} is no JSON ({error}): what listens there is no ccproxy"
        ) from None

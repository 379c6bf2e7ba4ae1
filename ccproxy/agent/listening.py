"""
A UNIX socket that serves one client after the other, as a hypervisor's character device does.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IReadDescriptor
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..core.context import cancel
from ..net.deadlines import Deadlines
from ..wire.codes import MAX_PATH
from .protocols import ChannelProtocol

#: How many clients can wait for their turn.
BACKLOG = 8
#: Seconds between two looks whether the client has hung up, and between two tries to accept one.
INTERVAL = 0.5
#: Seconds that a client has to read the rest when the port is closed.
LINGER = 2.0


@implementer(IReadDescriptor)
class SerialPort(Factory):
    """
    Listens on a path. While a client is connected, the next one waits in the backlog, and what
    it sends meanwhile waits with it.
    """

    log = Logger()

    def __init__(
        self, reactor: Any, path: str, build: Callable[[Callable[[], None]], ChannelProtocol]
    ) -> None:
        """
        Start to listen. The socket's mode is 0600; one that nobody listens on is replaced.

        @param reactor: polls the socket and adopts its connections (IReactorSocket).
        @param build: makes the protocol of a connection; it is given what the protocol calls
            once the connection has ended.
        @raise OSError: the path cannot be listened on.
        """
        self.reactor = reactor
        self.path = path
        self._build = build
        self._client: ChannelProtocol | None = None
        self._listening = True
        self._closed: list[Deferred[None]] = []
        self._socket = _listen(path)
        self._inode = _inode(path)
        self._watch = LoopingCall(self._look)
        self._watch.clock = reactor
        reactor.addReader(self)

    def fileno(self) -> int:
        """The listening socket's descriptor, -1 once it is closed."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """How Twisted's log calls it."""
        return "embedded agent"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor is done with the socket."""
        self.close()

    def doRead(self) -> None:
        """A client waits."""
        try:
            client, _ = self._socket.accept()
            with client:
                client.setblocking(False)
                self.reactor.adoptStreamConnection(client.fileno(), socket.AF_UNIX, self)
        except BlockingIOError:
            return
        except OSError as error:
            self.log.error(
                "embedded agent cannot accept on {path}: {error}", path=self.path, error=error
            )
        # Accept no other until this one has gone; after an error, not at once.
        self.reactor.removeReader(self)
        if not self._watch.running:
            watching = self._watch.start(INTERVAL, now=False)
            watching.addErrback(lambda reason: self.log.failure("watching a channel", reason))

    def buildProtocol(self, addr: IAddress | None) -> ChannelProtocol:
        """The protocol of the client that was accepted."""
        self._client = self._build(self._gone)
        return self._client

    def _gone(self) -> None:
        self._client = None
        if self._watch.running:
            self._watch.stop()
        if self._listening:
            self.reactor.addReader(self)
        closed, self._closed = self._closed, []
        for deferred in closed:
            deferred.callback(None)

    def _look(self) -> None:
        """
        Notice a client that hung up while its channel is not read: Twisted would do so only
        when the channel is read again, and the next client would wait for that.
        """
        if self._client is None:
            self._gone()
        elif self._client.channel.paused:
            transport: Any = self._client.transport
            poll = select.poll()
            poll.register(transport.fileno(), 0)
            if poll.poll(0):
                transport.abortConnection()

    def close(self) -> Deferred[None]:
        """
        Stop to listen, remove the socket's file if it is still ours, hang up.

        @return: fires when the client has taken all that it was sent, or after
            L{LINGER} seconds.
        """
        if self._listening:
            self._listening = False
            self.reactor.removeReader(self)
            self._socket.close()
            if _inode(self.path) == self._inode:
                os.unlink(self.path)
        if self._client is None:
            self._gone()
            return succeed(None)
        self._client.hangUp()
        transport: Any = self._client.transport
        deadline = Deadlines(self.reactor).callLater(LINGER, transport.abortConnection)
        closed: Deferred[None] = Deferred()
        closed.addCallback(lambda _: cancel(deadline))
        self._closed.append(closed)
        return closed


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _listen(path: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if len(os.fsencode(path)) > MAX_PATH:
            raise OSError(errno.ENAMETOOLONG, f"longer than {MAX_PATH} bytes")
        _removeDead(path)
        # The file takes its mode from the socket, so it never has another.
        os.fchmod(listening.fileno(), 0o600)
        listening.bind(path)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise OSError(error.errno, f"cannot listen on {path!r}: {error.strerror}") from None
    return listening


def _removeDead(path: str) -> None:
    """Remove a socket that its owner has left behind."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
    except (FileNotFoundError, BlockingIOError):
        return

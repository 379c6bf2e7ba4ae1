"""
Accepting connections to a UNIX socket.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IListeningPort, IProtocolFactory
from twisted.logger import Logger
from zope.interface import implementer

from .binding import (
    BACKLOG,
    CannotListen,
    ListeningSocket,
    bind,
    credentials,
    passedSocket,
    socketFile,
)
from .ordinary import attach
from .polling import Poller
from .sockets import hungUp

#: Seconds until the next try when not even one descriptor is left to turn a client away with.
STARVED_INTERVAL = 1.0

_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_NO_ROOM = (*_NO_DESCRIPTORS, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC)


@implementer(IListeningPort)
class UNIXListener:
    """
    Accepts connections to a path, or to the socket that systemd has passed instead.

    Out of descriptors, it turns clients away at once instead of letting them wait: one descriptor
    is kept in reserve for that.

    A socket that was taken over and that clients do not find at its path, because its file was
    removed or renamed or another path is configured, is replaced by a new one. Clients that had
    connected to it are served.

    @ivar path: where it listens; that of a passed socket once it listens.
    @ivar whenRevoked: called when another process that has the socket has shut it down.
    """

    _log = Logger()

    def __init__(
        self,
        poller: Poller,
        path: str,
        factory: IProtocolFactory,
        mode: int = 0o660,
        group: str | int | None = None,
        taken: ListeningSocket | None = None,
        replaces: bool = True,
    ) -> None:
        """
        @param poller: the poller of the connections.
        @param factory: makes their protocols; it refuses one by making none.
        @param mode: see L{bind}.
        @param group: see L{bind}.
        @param taken: the socket of the process whose place this one takes.
        @param replaces: make a new socket if the file of C{taken} is lost.
        """
        self.path = path
        self._poller = poller
        self._factory = factory
        self._mode = mode
        self._group = group
        self._listening: ListeningSocket | None = None
        self._file: tuple[int, int] | None = None
        self._root: tuple[int, int] | None = None
        self._taken = taken
        self._replaces = replaces
        self._left: ListeningSocket | None = None
        self.whenRevoked: Callable[[], object] = lambda: None
        self._reserve: int | None = None
        self._starved = False
        self._again: IDelayedCall | None = None

    def startListening(self) -> None:
        """
        Start accepting.

        @raise CannotListen: it cannot be done.
        """
        self._listening = self._open()
        self.path = self._listening.path
        self._file = self.made or (socketFile(self.path) if self.path else None)
        self._root = socketFile("/")
        self._reserve = _reserve()
        self._factory.doStart()
        self._watch()
        if self._left is not None:
            self._poller.reactor.callLater(0, self._acceptLeft)

    def _watch(self) -> None:
        self._poller.watch(self.fileno(), self.accept)

    def hold(self) -> None:
        """Let those who connect wait, until L{goOn}."""
        self._poller.unwatch(self.fileno())

    def goOn(self) -> None:
        """Accept those who wait, and all others, unless this has stopped meanwhile."""
        if self._listening is not None:
            self._watch()

    def _open(self) -> ListeningSocket:
        """
        @raise CannotListen: there can be no socket.
        """
        passed, taken = passedSocket(os.environ), self._taken
        self._taken = None
        path = os.path.abspath(self.path)
        if taken is None:
            return passed or bind(path, self._mode, self._group)
        if passed is None and taken.path == path and not (self._replaces and taken.isLost):
            return taken
        try:
            made = passed or bind(path, self._mode, self._group)
        except CannotListen as problem:
            # Connected clients must not suffer for it.
            self._log.error(
                "clients that are not connected yet cannot connect any more: {problem}",
                event="socket-lost",
                problem=problem,
            )
            return taken
        self._log.warn(
            "listening on {path} anew: the socket of the process before, {old}, is not there any"
            " more",
            event="socket-replaced",
            path=made.path,
            old=taken.path,
        )
        self._left = taken
        return made

    def _acceptLeft(self) -> None:
        """Serve those who have connected to the socket that was replaced."""
        left, self._left = self._left, None
        if left is not None:
            with suppress(OSError):
                for _ in range(BACKLOG + 1):
                    self.serve(left.socket.accept()[0])
            left.close()

    @property
    def made(self) -> tuple[int, int] | None:
        """What tells the file at its path from others, if we have made it."""
        return None if self._listening is None else self._listening.made

    def give(self, uid: int, gid: int) -> None:
        """Give what was made to listen to another user. See L{ListeningSocket.give}."""
        if self._listening is not None:
            self._listening.give(uid, gid)

    def whereabouts(self) -> str | None:
        """
        Return where the file of the socket is now: at L{path}, or under another name in the same
        folder. L{None} if it is in neither place: no client can connect. If
        this process cannot tell, in another root folder or without a right to that one: L{path}.
        """
        if self._file is None or socketFile(self.path) == self._file:
            return self.path
        if socketFile("/") != self._root:
            return self.path
        try:
            with os.scandir(os.path.dirname(self.path)) as entries:
                for entry in entries:
                    if entry.inode() == self._file[1] and socketFile(entry.path) == self._file:
                        entry.path.encode()  # clients are told the path in JSON
                        return entry.path
        except PermissionError:
            return self.path
        except (OSError, UnicodeEncodeError):
            pass
        return None

    def stopListening(self) -> Deferred[None]:
        """Stop, and remove the socket's path if we made it. Connections go on."""
        listening, self._listening = self._listening, None
        if listening is not None:
            self._poller.unwatch(listening.socket.fileno())
            if self._again is not None:
                self._again.cancel()
                self._again = None
            listening.close()
            if self._left is not None:
                self._left.close()
                self._left = None
            if self._reserve is not None:
                os.close(self._reserve)
                self._reserve = None
            self._factory.doStop()
        return succeed(None)

    def getHost(self) -> UNIXAddress:
        """Where it listens."""
        return UNIXAddress(self.path or None)

    def fileno(self) -> int:
        """The listening socket's descriptor, -1 while it does not listen."""
        return -1 if self._listening is None else self._listening.socket.fileno()

    def accept(self) -> None:
        """Accept a connection that has come; for the next one the poller calls again."""
        assert self._listening is not None
        try:
            connection = self._listening.socket.accept()[0]
        except OSError as error:
            if error.errno in _NO_ROOM:
                self._turnAway(self._listening.socket, error)
            elif hungUp(self._listening.socket.fileno()):
                # accept() itself does not tell, and epoll would report input for ever.
                self._revoked(self._listening)
            # Else it is gone before it was accepted.
            return
        self._starved = False
        self.serve(connection)

    def _revoked(self, listening: ListeningSocket) -> None:
        """Stop watching a socket that another process has shut down."""
        self._poller.unwatch(listening.socket.fileno())
        self._log.warn(
            "no client can connect to {path} any more: another process has shut the socket down",
            event="socket-lost",
            path=self.path,
        )
        listening.disown()
        self.whenRevoked()

    def serve(self, connection: socket.socket) -> None:
        """Serve a connected socket, as if it had been accepted here."""
        try:
            self._connect(connection)
        except Exception:
            connection.close()
            self._log.failure("a connection could not be served", event="connection-failed")

    def _connect(self, connection: socket.socket) -> None:
        protocol = self._factory.buildProtocol(UNIXAddress(None))
        if protocol is None:
            self._refuse(connection)
        else:
            attach(self._poller, connection, credentials(connection), protocol)

    def _refuse(self, connection: socket.socket) -> None:
        """The factory has no protocol for it."""
        connection.close()

    def _turnAway(self, listening: socket.socket, error: OSError) -> None:
        """No descriptor is left for the next connection: close it, which takes one for a moment."""
        if not self._starved:
            self._starved = True
            self._log.error(
                "clients are turned away: {error}; raise the limit of open files (LimitNOFILE=)",
                event="clients-turned-away",
                error=error.strerror,
            )
        if self._reserve is not None:
            os.close(self._reserve)
            with suppress(OSError):
                listening.accept()[0].close()
            self._reserve = _reserve()
        if self._reserve is None:
            # Even that one is gone. The poller would call again at once, and for nothing.
            self._poller.unwatch(listening.fileno())
            self._again = self._poller.reactor.callLater(STARVED_INTERVAL, self._resume)

    def _resume(self) -> None:
        self._again = None
        self._reserve = _reserve()
        self._watch()


def _reserve() -> int | None:
    try:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None

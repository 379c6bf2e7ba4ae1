"""
The shim: stands on this side for a process in a VM.

What the proxy does not take of stdin stops the reading of stdin; what the readers of stdout and
stderr do not take stops the reading of the proxy. A connection that ends before the process does
is made again, with the same token; what was not wholly given to the old one is sent again.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer, IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from ..errors import CCProxyError, ConnectionClosed, DeadlineExceeded, ProxyError
from ..net.client import STDIN_FRAME, IProcessOutput, ProxyClient
from .stdio import IInput, IOutput

#: For how long a lost connection is tried again, and how often, in seconds.
REJOIN_TIME = 10.0
REJOIN_PAUSE = 0.1
#: How long to wait for the answer to ConnectShim, and for the end after DisconnectShim, in seconds.
CLAIM_TIMEOUT = 10.0
LEAVE_TIMEOUT = 2.0
#: How long to wait for the answer to a signal, in seconds; the proxy gives up sooner.
SIGNAL_TIMEOUT = 60.0
#: Once the process has ended these end the shim, though its output is not all taken yet; when
#: nobody reads the output any more, the second of a kind does.
_IMPATIENT = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
#: The error for a signal to a process that has ended.
_EXITED = "process has exited"


class NoProxy(CCProxyError):
    """Nobody answers at the proxy's address."""


@implementer(IProcessOutput, IPullProducer)
class Shim:
    """
    One process's shim.

    @ivar finished: fires with the process's exit status when all its output is written; fails
        with L{ConnectionClosed} or L{ProxyError} if the proxy is lost for good.
    """

    def __init__(
        self,
        clock: IReactorTime,
        connect: Callable[[IProcessOutput], Deferred[ProxyClient]],
        stdin: IInput,
        stdout: IOutput,
        stderr: IOutput,
    ) -> None:
        """
        @param clock: measures all waits.
        @param connect: connects to the proxy; fails with L{NoProxy}.
        """
        self.finished: Deferred[int] = Deferred()
        #: Sent before the end of stdin: a terminal ends with a key, not by being closed.
        self.endOfInput = b""
        #: The size of the terminal in columns and rows, if there is one.
        self.windowSize: Callable[[], tuple[int, int] | None] = lambda: None
        #: Called with a signal that the proxy could not deliver, and its reason.
        self.refused: Callable[[int, CCProxyError], None] = lambda number, error: None
        self._clock = clock
        self._connect = connect
        self._stdin = stdin
        self._stdout = stdout
        self._stderr = stderr
        self._token = ""
        self._client: ProxyClient | None = None
        self._paused = False
        self._ending = False
        self._status: int | None = None
        #: Whether nobody reads its output any more, and which signals to end came after that.
        self._unread = False
        self._urged: set[int] = set()
        #: Signals to be sent as soon as there is a connection; a dict keeps their order.
        self._signals: dict[int, None] = {}
        #: Stdin that was read and not sent yet, and the frame whose bytes are not all in the
        #: socket yet: C{b""} is the end. The proxy has no use for a frame that is cut.
        self._held = b""
        self._frame: bytes | None = None
        self._reading = False
        self._inputEnded = False
        self._endSent = False

    # The connection

    async def connect(self, token: str) -> None:
        """
        Become the shim of a token's process.

        @raise NoProxy: nobody answers.
        @raise ProxyError: the proxy does not accept the token.
        """
        self._token = token
        self.forward(signal.SIGWINCH)
        await self._claim()

    async def leave(self) -> None:
        """Give up the token: the process will never be started, or may go on alone."""
        self._ending = True
        client, self._client = self._client, None
        if client is None:
            return
        client.unregisterProducer()
        client.resumeProducing()
        # If the proxy has gone, or answers nothing more, there is nothing left to give up.
        with suppress(CCProxyError):
            await client.disconnectShim(LEAVE_TIMEOUT)
        client.stopProducing()

    def giveUp(self, status: int) -> bool:
        """
        End without waiting for the process, or for who reads the output of one that has ended.

        @param status: what L{finished} fires with, unless the process has ended.
        @return: whether the process may run on.
        """
        if self._status is not None:
            self._finish(self._status)
            return False
        if not self._ending:
            self._conclude(status)
        return True

    def log(self, message: str, containerId: str) -> None:
        """Put a warning into the proxy's log, if there is a connection."""
        if self._client is not None:
            self._client.log("warn", message, "shim", containerId)

    async def _claim(self) -> None:
        client: ProxyClient = await self._connect(self)
        try:
            await client.connectShim(self._token, CLAIM_TIMEOUT)
        except CCProxyError:
            client.stopProducing()
            raise
        self._client = client
        if self._paused:
            client.pauseProducing()
        self._endSent = False
        client.registerProducer(self, False)
        client.whenClosed().addCallback(self._lost).addErrback(self._fail)
        self._sendSignals()

    def _lost(self, ignored: None) -> None:
        if self._ending:
            return
        self._client = None
        if self._frame is not None:
            self._held = self._frame + self._held
            self._frame = None
        Deferred.fromCoroutine(self._rejoin()).addErrback(self._fail)

    async def _rejoin(self) -> None:
        deadline = self._clock.seconds() + REJOIN_TIME
        reason: CCProxyError
        while not self._ending:
            try:
                return await self._claim()
            except (NoProxy, ConnectionClosed, DeadlineExceeded) as error:
                reason = error
            except ProxyError as error:
                # It may not have noticed yet that our old connection is gone.
                if not str(error).startswith("token already claimed"):
                    raise
                reason = error
            if self._clock.seconds() >= deadline:
                raise ConnectionClosed(
                    f"the proxy was lost and did not come back within {REJOIN_TIME:g} s: {reason}"
                )
            await deferLater(self._clock, REJOIN_PAUSE)

    # The end

    def exited(self, status: int) -> None:
        """The process has ended; all its output was handed over before."""
        if not self._ending:
            self._status = status
            self._conclude(status, self._stdout, self._stderr)

    def _conclude(self, status: int, *outputs: IOutput) -> None:
        self._ending = True

        async def conclude() -> None:
            for output in outputs:
                await output.flushed()
            await self.leave()
            self._finish(status)

        Deferred.fromCoroutine(conclude()).addErrback(self._fail)

    def _finish(self, status: int) -> None:
        if not self.finished.called:
            self.finished.callback(status)

    def _fail(self, reason: Failure) -> None:
        self._ending = True
        if not self.finished.called:
            self.finished.errback(reason)

    # Output

    def stdout(self, data: bytes) -> None:
        """The process has written to its stdout."""
        self._write(self._stdout, data)

    def stderr(self, data: bytes) -> None:
        """The process has written to its stderr."""
        self._write(self._stderr, data)

    def _write(self, output: IOutput, data: bytes) -> None:
        if self._ending:
            return
        output.write(data)
        if output.full and not self._paused:
            self._paused = True
            if self._client is not None:
                self._client.pauseProducing()
            output.flushed().addCallback(self._flushed).addErrback(self._fail)

    def _flushed(self, ignored: None) -> None:
        self._paused = False
        if self._client is not None:
            self._client.resumeProducing()

    # Stdin: a pull producer, which is asked for more when everything is in the socket

    def resumeProducing(self) -> None:
        """All that was sent is in the socket."""
        self._frame = None
        self._sendStdin()

    def stopProducing(self) -> None:
        """The connection has ended, which L{_lost} deals with."""

    def _sendStdin(self) -> None:
        if self._client is None or self._ending:
            return
        if self._frame is None:
            if self._held:
                self._frame, self._held = self._held[:STDIN_FRAME], self._held[STDIN_FRAME:]
                self._client.sendStdin(self._frame)
            elif self._inputEnded and not self._endSent:
                self._endSent = True
                self._frame = b""
                self._client.closeStdin()
        if not self._held and not self._reading and not self._inputEnded:
            self._reading = True
            self._stdin.read().addCallback(self._read).addErrback(self._fail)

    def _read(self, data: bytes) -> None:
        self._reading = False
        if not data:
            self._inputEnded = True
        self._held += data or self.endOfInput
        self._sendStdin()

    # Signals

    def unread(self) -> None:
        """
        Nobody reads the process's output any more: it gets SIGPIPE.

        What it has started may go on to write even when it has ended, and hold up its status.
        """
        self._unread = True
        self.forward(signal.SIGPIPE)

    def forward(self, number: int) -> None:
        """
        Send a signal to the process, as soon as that is possible.

        @param number: the signal; SIGWINCH goes with the size of the terminal, if it has one.
        """
        if self._status is not None:
            if number in _IMPATIENT:
                self._finish(self._status)
        elif number in self._urged:
            self.giveUp(128 + number)
        elif not self._ending:
            if self._unread and number in _IMPATIENT:
                self._urged.add(number)
            self._signals[number] = None
            self._sendSignals()

    def _sendSignals(self) -> None:
        if self._client is None:
            return
        signals, self._signals = self._signals, {}
        for number in signals:
            columns, rows = None, None
            if number == signal.SIGWINCH:
                size = self.windowSize()
                if size is None:
                    continue
                columns, rows = size
            answer = self._client.signal(number, columns, rows, SIGNAL_TIMEOUT)
            answer.addErrback(self._signalFailed, number).addErrback(self._fail)

    def _signalFailed(self, reason: Failure, number: int) -> None:
        error = reason.value
        assert isinstance(error, CCProxyError)
        if isinstance(error, ConnectionClosed):
            # Better twice than never.
            self._signals[number] = None
        elif self._paused and number in _IMPATIENT and _EXITED in str(error):
            # The status is behind output that nobody reads.
            self.giveUp(128 + number)
        elif not self._ending:
            self.refused(number, error)

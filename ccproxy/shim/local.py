"""
A shim on this process's own stdin, stdout, stderr, terminal and signals.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Any

from twisted.internet import defer
from twisted.internet.error import ConnectError

from ..net.client import ProxyClient, connectUNIX
from .attending import NoProxy, Shim
from .signals import Catching
from .stdio import InputReader, OutputWriter
from .terminal import Terminal, inBackground, terminalOf

#: How long to wait for the reader of our own messages, in seconds.
SETTLE_TIMEOUT = 1.0
#: A second Ctrl-C this many seconds after the one before is meant for ourselves.
INSIST_INTERVAL = 3.0


def reach(reactor: Any, path: str, output: object | None = None) -> defer.Deferred[ProxyClient]:
    """
    Connect to the proxy.

    @param path: its socket.
    @param output: an L{IProcessOutput<ccproxy.net.client.IProcessOutput>}, for a shim.
    @raise NoProxy: nobody answers there; the text says what to do.
    """

    async def connecting() -> ProxyClient:
        try:
            client: ProxyClient = await connectUNIX(reactor, path, output)
        except ConnectError as error:
            reason = os.strerror(error.osError) if error.osError else str(error)
            if error.osError == errno.EACCES:
                raise NoProxy(
                    f"this user may not open the proxy's socket {path} ({reason}): "
                    "its mode and group say who may, and those of its folder"
                ) from None
            raise NoProxy(
                f"no proxy answers at {path} ({reason}): start one, "
                "or name its socket with --url or in CCPROXY_SOCKET"
            ) from None
        return client

    return defer.Deferred.fromCoroutine(connecting())


class LocalShim:
    """
    A shim, and what it needs of this process for as long as the context lasts.

    If nobody reads stdout or stderr any more, the process gets SIGPIPE, as if it had written to
    that pipe itself. What it does then is its own decision; its further output is dropped.

    The terminal is left alone while another process group has the foreground.

    @ivar shim: the shim.
    @ivar insisted: called in the place of a SIGINT that follows another one within
        L{INSIST_INTERVAL}; without it, all of them go to the process.
    @ivar lost: whether output of the process could not be written, though it has a reader.
    @ivar tell: shows a message to a person: on stderr, unless it is replaced.
    """

    def __init__(self, reactor: Any, path: str, raw: bool, signals: Iterable[int]) -> None:
        """
        @param path: the proxy's socket.
        @param raw: make the terminal raw, if stdin is one.
        @param signals: the signals to forward.
        """
        self._stderr = stderr = OutputWriter(reactor, 2, self._outputFailed)
        self.shim = Shim(
            reactor,
            lambda output: reach(reactor, path, output),
            InputReader(reactor, 0, self._returned),
            OutputWriter(reactor, 1, self._outputFailed),
            stderr,
        )
        self._reactor = reactor
        self._signals = signals
        self._raw = Terminal(0) if raw and os.isatty(0) else None
        self._stack = ExitStack()
        self._taken = False
        self.lost = False
        self._interrupted = -INSIST_INTERVAL
        self.insisted: Callable[[], None] | None = None
        terminal = terminalOf(0, 1, 2)
        if terminal is not None:
            self.shim.windowSize = terminal.size
        lineEnd = "\r\n" if self._raw else "\n"
        self.tell: Callable[[str], None] = lambda text: stderr.write(
            f"ccproxyctl: {text}{lineEnd}".encode(errors="replace")
        )

    def __enter__(self) -> LocalShim:
        if self._raw is not None:
            self._stack.callback(self._raw.restore)
        self._stack.callback(signal.signal, signal.SIGTTIN, signal.SIG_DFL)
        signal.signal(signal.SIGTTIN, signal.SIG_IGN)
        self._stack.enter_context(Catching(self._signals, self._caught))
        return self

    def takeTerminal(self) -> None:
        """Make the terminal raw, as soon and whenever we are in the foreground."""
        self._taken = True
        self._returned()

    def _returned(self) -> None:
        if self._raw is not None and self._taken and not inBackground(0):
            self._raw.makeRaw()

    def __exit__(self, *unused: object) -> None:
        self._stack.close()

    async def settle(self) -> None:
        """Wait until messages are shown, unless nobody reads them."""
        with suppress(defer.TimeoutError):
            await self._stderr.flushed().addTimeout(SETTLE_TIMEOUT, self._reactor)

    def _caught(self, number: int) -> None:
        self._reactor.callFromThread(self._forward, number)

    def _forward(self, number: int) -> None:
        if number == signal.SIGCONT:
            # We were stopped, and the shell has used the terminal.
            self._returned()
            self.shim.forward(signal.SIGWINCH)
        elif number == signal.SIGINT and self.insisted is not None:
            before, self._interrupted = self._interrupted, time.monotonic()
            if self._interrupted - before < INSIST_INTERVAL:
                self.insisted()
                return
        self.shim.forward(number)

    def _outputFailed(self, error: OSError) -> None:
        if error.errno == errno.EPIPE:
            self.shim.unread()
        else:
            self.lost = True
            self.tell(f"the process's output is lost from here on: {error.strerror}")

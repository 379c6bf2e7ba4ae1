"""
C{ccproxyctl top}: the VMs by their throughput, live on a terminal.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from ..shim.stdio import InputReader
from ..shim.terminal import Terminal
from .adminclient import AdminClient, AdminError
from .arguments import seconds
from .asking import ask, askingParser
from .topview import ORDERS, Rates, View

#: Another screen, without a cursor; and the one that was there before, with it.
_ENTER = b"\x1b[?1049h\x1b[?25l"
_LEAVE = b"\x1b[?25h\x1b[?1049l"
_HEADING = "\x1b[7m{}\x1b[m"
#: How many lines are above the VMs; the last of them is the heading.
_ABOVE = 3
#: A key, out of those that have come together while nobody looked.
_KEY = re.compile(r"\x1b\[[0-9;]*.|\x1bO.|.", re.DOTALL)
#: What arrow and page keys send, and by how many lines or pages they scroll.
_SCROLLING = {"\x1b[A": -1, "\x1bOA": -1, "\x1b[B": 1, "\x1bOB": 1}
_PAGING = {"\x1b[5~": -1, "\x1b[6~": 1}
_DEFAULT_SIZE = (80, 24)
#: What would end the process, and must not before the terminal is put back.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Screen:
    """
    The terminal, as a context in which it has another screen and no echo.

    Whatever signal ends or stops the process, the terminal is put back before.
    """

    def __init__(self, resized: Callable[[], object]) -> None:
        """
        @param resized: called, wherever the program is just then, when what is shown must be
            drawn again.
        """
        self._terminal = Terminal(0)
        self._resized = resized

    def __enter__(self) -> Screen:
        for number in _ENDING:
            signal.signal(number, self._end)
        signal.signal(signal.SIGTSTP, self._stop)
        signal.signal(signal.SIGWINCH, lambda number, frame: self._resized())
        self._begin()
        return self

    def __exit__(self, *unused: object) -> None:
        self._leave()

    def size(self) -> tuple[int, int]:
        """Its columns and rows."""
        return self._terminal.size() or _DEFAULT_SIZE

    def draw(self, view: View) -> None:
        """Show what is to be seen, and nothing else."""
        columns, rows = self.size()
        # A line that fills the last column leaves the cursor where terminals differ.
        lines = view.lines(columns - 1, rows)
        for heading in lines[_ABOVE - 1 : _ABOVE]:
            lines[_ABOVE - 1] = _HEADING.format(heading.ljust(columns - 1))
        text = "\x1b[H" + "\x1b[K\r\n".join(lines) + "\x1b[K\x1b[J"
        self._write(text.encode(errors="replace"))

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(1, data) :]

    def _begin(self) -> None:
        self._terminal.makeKeyed()
        self._write(_ENTER)

    def _leave(self) -> None:
        self._terminal.restore()
        self._write(_LEAVE)

    def _end(self, number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        try:
            self._leave()
        finally:
            os.kill(os.getpid(), number)

    def _stop(self, number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        self._leave()
        os.kill(os.getpid(), number)
        # Here it goes on, some day.
        signal.signal(number, self._stop)
        self._begin()
        self._resized()


class Top:
    """
    The loop: ask, show, wait, and hear what is typed.
    """

    def __init__(self, reactor: Any, client: AdminClient, interval: float) -> None:
        """
        @param interval: seconds between two looks.
        """
        self._reactor = reactor
        self._client = client
        self._interval = interval
        self._rates = Rates()
        self._view = View()
        self._screen = Screen(lambda: reactor.callFromThread(self._draw))
        self._over: Deferred[None] = Deferred()

    async def run(self) -> None:
        """
        Watch until somebody has seen enough.

        @raise AdminError: the daemon cannot be asked at all.
        """
        await self._look()
        with self._screen:
            self._draw()
            for work in (self._watch(), self._listen()):
                Deferred.fromCoroutine(work).addErrback(self._fail)
            await self._over

    def _fail(self, reason: Any) -> None:
        if not self._over.called:
            self._over.errback(reason)

    async def _look(self) -> None:
        self._view.status = await self._client.get("/v1/status")
        vms = await self._client.get("/v1/vms")
        self._view.rows = self._rates.rows(vms, self._reactor.seconds())
        self._view.trouble = ""

    async def _watch(self) -> None:
        while not self._over.called:
            await deferLater(self._reactor, self._interval)
            try:
                await self._look()
            except AdminError as error:
                # It may be restarted: the next look will tell.
                self._view.trouble = str(error)
            self._draw()

    def _draw(self) -> None:
        if not self._over.called:
            self._screen.draw(self._view)

    async def _listen(self) -> None:
        keys = InputReader(self._reactor, 0)
        while not self._over.called:
            pressed: bytes = await keys.read()
            # A terminal that has ended cannot say that it has seen enough.
            for key in _KEY.findall(pressed.decode("latin-1")) or ["q"]:
                if key == "q":
                    self._over.callback(None)
                    return
                self._press(key)
            self._draw()

    def _press(self, key: str) -> None:
        if key in ORDERS:
            self._view.order = key
        page = self._screen.size()[1] - _ABOVE
        self._view.first += _SCROLLING.get(key, 0) + _PAGING.get(key, 0) * page


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    parser = askingParser(
        "top",
        "Watch the VMs on a terminal: their throughput (OUT/S is what processes write, IN/S their "
        "stdin, both in bytes), the bytes that wait in the daemon, and whose output waits. It goes "
        "on when the daemon is restarted. Keys: t, b, s, n order by throughput, buffers, state or "
        "name; arrows and page keys scroll; q quits.",
    )
    parser.add_argument(
        "-i",
        "--interval",
        type=seconds(0.1, 3600),
        default=2.0,
        metavar="SECONDS",
        help="seconds between two looks (default: %(default)g)",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{top}.
    @return: the exit status.
    """
    parser = makeParser()
    options = parser.parse_args(arguments)
    if not (os.isatty(0) and os.isatty(1)) or os.environ.get("TERM", "dumb") == "dumb":
        parser.error("it needs a terminal: for a file or a pipe, there is ccproxyctl vms")

    async def work(client: AdminClient) -> None:
        await Top(client.reactor, client, options.interval).run()

    return ask(parser, options, work)

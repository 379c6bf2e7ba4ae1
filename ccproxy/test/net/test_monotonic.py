"""
P21: time is monotonic. L{ccproxy.net.monotonic}, and a search for uses of the wall clock.
"""

from __future__ import annotations

import ast
import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.base import ReactorBase
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.pollreactor import PollReactor
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

import ccproxy

from ...net.monotonic import useMonotonicTime
from ...net.reactor import LedReactor

#: Names that lead to the wall clock.
WALL_CLOCK = {
    "time.time", "time.time_ns", "time.localtime", "datetime.now", "datetime.utcnow",
    "datetime.today", "date.today", "runtime.seconds", "platform.seconds", "context.wallClock",
}  # fmt: skip
#: Uses of it: log lines, timestamps of the API, and the texts of errors.
ALLOWED = {
    ("core/control.py", "sent", "context.wallClock"),
    ("admin/service.py", "startService", "context.wallClock"),
    ("persist/trial.py", "tryRestore", "context.wallClock"),
    ("log/formats.py", "render", "time.localtime"),
    ("log/daemonlog.py", "_reportRefused", "time.time"),
    ("log/daemonlog.py", "report", "time.time"),
    ("service/proxy.py", "__init__", "time.time"),
    ("vm/hypervisor.py", "_boot", "time.time"),
}
#: Ways to a reactor, and who goes them: all make its time monotonic.
REACTORS = {
    ("agent/guest.py", "serve", "EPollReactor"),
    ("net/reactor.py", "install", "LedReactor"),
    ("service/ccproxy_command.py", "_run", "reactor"),
    ("service/making.py", "makeService", "reactor"),
    ("ctl/running.py", "runReactor", "reactor"),
}


def _asyncioReactor() -> AsyncioSelectorReactor:
    return AsyncioSelectorReactor(asyncio.new_event_loop())


class ReactorTests(SynchronousTestCase):
    """Each reactor on which the daemon can run."""

    kinds: tuple[Callable[[], Any], ...] = (
        SelectReactor, PollReactor, EPollReactor, LedReactor, _asyncioReactor,
    )  # fmt: skip

    def reactors(self) -> Iterator[Any]:
        """One of each kind, whose descriptors are closed afterwards."""
        for kind in self.kinds:
            reactor = kind()
            for reader in reactor.removeAll():
                self.addCleanup(reader.connectionLost, None)
            yield reactor
            for reader in reactor.removeAll():
                reader.connectionLost(None)

    def test_scheduled(self) -> None:
        """Timers that are scheduled already keep their delay and their order."""
        for epoch in (0.0, 5e9):
            self.patch(ReactorBase, "seconds", staticmethod(lambda epoch=epoch: epoch))
            for reactor in self.reactors():
                calls: list[int] = []
                began = time.monotonic()
                waits = [reactor.callLater(delay, calls.append, delay) for delay in (60, 0, 30)]
                reactor.timeout()  # these are in its queue, the next ones are not yet
                waits += [reactor.callLater(delay, calls.append, delay) for delay in (0, 90)]
                reactor.callLater(10, calls.append, 10).cancel()
                useMonotonicTime(reactor)
                for wait, delay in zip(waits, (60, 0, 30, 0, 90), strict=True):
                    left = wait.getTime() - began
                    self.assertTrue(delay <= left <= delay + 60, (reactor, delay, left))
                reactor.runUntilCurrent()
                self.assertEqual(calls, [0, 0], reactor)
                self.assertTrue(0 < reactor.timeout() <= 30, reactor)

    def test_new(self) -> None:
        """New timers, their changes and the reactor's own clock are monotonic; twice is once."""
        for reactor in self.reactors():
            useMonotonicTime(reactor)
            wait = reactor.callLater(1000, lambda: None)
            useMonotonicTime(reactor)
            self.assertIs(reactor.seconds, time.monotonic)
            wait.reset(2000)
            self.assertTrue(1900 < wait.getTime() - time.monotonic() <= 2000)

    def test_others(self) -> None:
        """A clock that is no reactor stays as it is."""
        clock = Clock()
        useMonotonicTime(clock)
        self.assertEqual(clock.seconds(), 0.0)


class UseTests(SynchronousTestCase):
    """The source of the package, without its tests."""

    def found(self, names: set[str]) -> set[tuple[str, str, str]]:
        """Return the uses of these names: the module, the function and the name."""
        package = Path(ccproxy.__file__).parent
        uses = set()
        for path in sorted(package.rglob("*.py")):
            module = str(path.relative_to(package))
            if not module.startswith("test/"):
                for function, name in _names(ast.parse(path.read_text()), ""):
                    if name in names:
                        uses.add((module, function, name))
        return uses

    def test_wallClock(self) -> None:
        """P21: nothing but log lines and timestamps has wall-clock time."""
        self.assertEqual(self.found(WALL_CLOCK) - ALLOWED, set())

    def test_reactors(self) -> None:
        """Whoever gets at a reactor is known, and makes its time monotonic."""
        names = {name for _, _, name in REACTORS}
        found = {use for use in self.found(names) if use[1]}
        self.assertEqual(found, REACTORS)


def _names(node: ast.AST, function: str) -> Iterator[tuple[str, str]]:
    """
    All names that are imported from other modules or looked up in something, shortened to two
    parts, with the functions that they are in.
    """
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        function = node.name
    if isinstance(node, ast.Attribute):
        owner = node.value
        last = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
        yield function, f"{last.lstrip('_')}.{node.attr}"
    elif isinstance(node, ast.ImportFrom) and node.module:
        for each in node.names:
            yield function, f"{node.module.rpartition('.')[2]}.{each.name}"
            if node.module.startswith("twisted.internet"):
                yield function, each.name
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        yield function, node.func.id
    for child in ast.iter_child_nodes(node):
        yield from _names(child, function)

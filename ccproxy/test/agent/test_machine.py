"""
Tests for L{ccproxy.agent.machine}.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from ccproxy.agent.interfaces import IMachine, IRunning, Program, StartError
from ccproxy.agent.machine import MAX_RESULT, Machine
from ccproxy.test.agent.host import reactor
from ccproxy.wire.codes import Dialect

CC = Dialect.CC


class MachineTests(TestCase):
    """The machine by itself."""

    def setUp(self) -> None:
        # What other tests have left must not close its descriptors while these are counted.
        gc.collect()
        self.machine = Machine(reactor)
        self.addCleanup(self.stop)

    def stop(self) -> Deferred[None]:
        """Stop it, with all that runs."""
        return Deferred.fromCoroutine(self.machine.stop())

    def start(self, *args: str, **more: Any) -> tuple[Any, Deferred[int]]:
        """Start a program whose output nobody wants; it, and its end."""

        class Sink:
            def output(self, stream: int, data: bytes) -> None: ...

            def stdinDrained(self) -> None: ...

            ended = None

        sink: Any = Sink()
        ended: Deferred[int] = Deferred()
        sink.ended = ended.callback
        return self.machine.start(Program(args, **more), sink), ended

    async def test_interfaces(self) -> None:
        """The machine and its programs provide what they say."""
        verifyObject(IMachine, self.machine)
        running, ended = self.start("true")
        verifyObject(IRunning, running)
        self.assertEqual(await ended, 0)
        self.assertRaises(OSError, running.signal, 9)

    async def test_startErrors(self) -> None:
        """What cannot be started says why and leaves no descriptor open."""
        before = len(os.listdir("/proc/self/fd"))
        cases: list[tuple[Callable[[], object], int, str]] = [
            (partial(self.start, "/no/such"), 127, "No such file"),
            (partial(self.start, "/etc/passwd"), 126, "Permission denied"),
            (partial(self.start, "true", workdir="/no/such"), 125, "workdir '/no/such'"),
            (partial(self.start, "nul\0byte"), 125, "null"),
            (partial(self.start, "true", environment={"A=": "x"}), 125, "environment"),
            (partial(self.start, "x" * 5_000_000), 127, "too long"),
        ]
        for terminal in (False, True):
            for start, status, text in cases:
                error = self.assertRaises(StartError, partial(start, terminal=terminal))  # type: ignore[call-arg]
                if "too long" not in text:
                    self.assertEqual(error.status, status)
                self.assertIn(text, str(error))
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    async def test_noDescriptorLeft(self) -> None:
        """A program that ends leaves no descriptor open."""
        await deferLater(reactor, 0)  # until then the reactor's own are not there
        before = len(os.listdir("/proc/self/fd"))
        for terminal in (False, True):
            _, ended = self.start("true", terminal=terminal)
            await ended
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    async def test_stop(self) -> None:
        """A stop kills what ignores SIGTERM, in the background and stopped as well."""
        _, ended = self.start(
            "/bin/sh",
            "-c",
            "trap '' TERM HUP; sleep 60 >/dev/null 2>&1 & kill -STOP $$",
            container=7,
        )
        while len(self.machine.members(7)) < 2:
            await deferLater(reactor, 0.01)
        await self.machine.stop()
        self.assertEqual(await ended, -9)
        self.assertEqual(self.machine.members(None), [])
        self.assertRaises(StartError, self.start, "true")

    async def test_strays(self) -> None:
        """A child that outlives its parent is a member still."""
        _, ended = self.start("/bin/sh", "-c", "sleep 60 >/dev/null 2>&1 &", container=7)
        await ended
        self.assertEqual(len(self.machine.members(7)), 1)
        self.assertEqual(self.machine.members(8), [])
        self.machine.signal(7, 9)
        while self.machine.members(7):
            await deferLater(reactor, 0.01)

    def test_files(self) -> None:
        """Files are written and read, but nothing that could block or is too long."""
        path = os.path.abspath(self.mktemp())
        self.machine.writeFile(path, b"content")
        self.assertEqual(self.machine.readFile(path), b"content")
        self.machine.writeFile(path, b"less")
        self.assertEqual(self.machine.readFile(path), b"less")
        self.machine.writeFile(path, b"x" * (MAX_RESULT + 1))
        self.assertRaises(OSError, self.machine.readFile, path)
        fifo = os.path.abspath(self.mktemp())
        os.mkfifo(fifo)
        for bad in (fifo, "/dev/zero", "/", "/no/such/file"):
            self.assertRaises(OSError, self.machine.readFile, bad)
            self.assertRaises(OSError, self.machine.writeFile, bad, b"x")

    async def test_psFails(self) -> None:
        """A ps that fails gives nothing."""
        got: Deferred[bytes | None] = Deferred()
        self.machine.ps(["--no-such-option"], got.callback)
        self.assertIsNone(await got)

"""
Tests of L{ccproxy.net.reactor}: a poller that leads, and all else that a reactor does.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from zope.interface.verify import verifyObject

from ...net.polling import ILedReactor, Poller
from ...net.reactor import LedReactor
from ..sockets import READ_SIZE, SocketCase

#: Seconds after which something will not happen any more.
PATIENCE = 10.0


class PipeReader:
    """A descriptor of somebody else's."""

    def __init__(self) -> None:
        self._read, self.write = os.pipe()
        self.data = b""

    def fileno(self) -> int:
        return self._read

    def doRead(self) -> None:
        self.data += os.read(self._read, 100)

    def logPrefix(self) -> str:
        return "pipe"

    def connectionLost(self, reason: object) -> None:
        os.close(self._read)
        os.close(self.write)


class LedReactorTests(SocketCase):
    """A reactor that waits in a poller."""

    def setUp(self) -> None:
        self.led: Any = LedReactor()
        self.addCleanup(self.finish)
        self.poller = Poller(self.led)
        self.addCleanup(self.poller.close)

    def finish(self) -> None:
        for reader in self.led.removeAll():
            reader.connectionLost(None)

    def iterate(self, seconds: float = PATIENCE) -> float:
        """
        An iteration.

        @return: how many seconds it took.
        """
        begun = time.monotonic()
        self.led.iterate(seconds)
        return time.monotonic() - begun

    def test_interface(self) -> None:
        """It can be led."""
        verifyObject(ILedReactor, self.led)

    def test_transports(self) -> None:
        """What comes for a transport ends the waiting, and is dealt with."""
        sink, _, peer = self.connected()
        peer.send(b"abc")
        self.assertLess(self.iterate(), PATIENCE / 2)
        self.assertEqual(sink.data, b"abc")

    def test_waits(self) -> None:
        """Where nothing comes, it waits for so long as it shall."""
        self.connected()
        self.assertGreaterEqual(self.iterate(0.05), 0.04)

    def test_leftWork(self) -> None:
        """It does not wait while there is work left from the turn before."""
        sinks = []
        self.poller.scratch = memoryview(bytearray(100))
        for _ in range(3):
            sink, _, peer = self.connected()
            peer.send(bytes(READ_SIZE))
            sinks.append(sink)
        turns = 0
        while any(len(sink.data) < READ_SIZE for sink in sinks):
            self.assertLess(self.iterate(), PATIENCE / 2)
            turns += 1
        self.assertGreater(turns, 1)

    def test_otherDescriptors(self) -> None:
        """Descriptors of others are served as ever, again and again."""
        pipe = PipeReader()
        self.led.addReader(pipe)
        for data in (b"a", b"b"):
            os.write(pipe.write, data)
            self.assertLess(self.iterate(), PATIENCE / 2)
        self.assertEqual(pipe.data, b"ab")

    def test_timers(self) -> None:
        """A timer is called."""
        calls: list[str] = []
        self.led.callLater(0.01, calls.append, "now")
        time.sleep(0.02)
        self.iterate(0)
        self.assertEqual(calls, ["now"])

    def test_threads(self) -> None:
        """A call from another thread ends the waiting."""
        calls: list[str] = []
        thread = threading.Timer(0.05, self.led.callFromThread, (calls.append, "now"))
        thread.start()
        self.assertLess(self.iterate(), PATIENCE / 2)
        thread.join()
        self.iterate(0)
        self.assertEqual(calls, ["now"])

    def test_end(self) -> None:
        """Without the poller it is a reactor like any other."""
        self.poller.close()
        self.test_otherDescriptors()

"""
Tests for L{ccproxy.agent.agent} and L{ccproxy.agent.pod}: output, standard input, and the end of a
process in each dialect.
"""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from ccproxy.agent.agent import STDIN_LIMIT
from ccproxy.test.agent.doubles import Bench, FakeHost, execcmd
from ccproxy.wire.codes import ControlCode, Dialect
from ccproxy.wire.messages import IO_HEADER

CC, H0, H1 = Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1
ALL = (CC, H0, H1)
ACK, ERROR = (ControlCode.ACK, b""), (ControlCode.ERROR, b"")
Code = ControlCode


class OutputTests(SynchronousTestCase):
    """Output, and the end of a process."""

    def test_sizes(self) -> None:
        """cc sends 1024 bytes of output at most, hyperstart 10240 with the header."""
        for dialect, most in ((CC, 1024), (H0, 10228), (H1, 10228)):
            bench = Bench(dialect)
            running = bench.newcontainer()
            data = bytes(range(256)) * 100
            running.sink.output(1, data)
            running.sink.output(2, b"x")
            *stdout, stderr = bench.io.take()
            self.assertEqual({number for number, _ in stdout}, {3})
            self.assertEqual(b"".join(body for _, body in stdout), data)
            self.assertEqual(max(len(body) for _, body in stdout), most)
            self.assertEqual(stderr, (4, b"x"))

    def test_terminal(self) -> None:
        """With a terminal all is on the one number."""
        for dialect in ALL:
            bench = Bench(dialect)
            bench.newcontainer(terminal=True).sink.output(1, b"x")
            self.assertEqual(bench.io.take(), [(3, b"x")])

    def test_end(self) -> None:
        """An empty message, then the status: in one byte, or as an event from hyperstart 1.x."""
        for returncode, cc, hyper in ((0, 0, 0), (7, 7, 7), (255, 255, 255), (-9, 137, 0)):
            for dialect, status in ((CC, cc), (H0, hyper)):
                bench = Bench(dialect)
                bench.newcontainer().end(returncode)
                self.assertEqual(bench.io.take(), [(3, b""), (3, bytes([status]))])
            bench = Bench(H1)
            bench.newcontainer(id="i").end(returncode)
            self.assertEqual(bench.io.take(), [(3, b"")])
            [(code, body)] = bench.control.take()
            event = {"container": "c", "process": "i", "event": "finished", "status": hyper}
            self.assertEqual((code, json.loads(body)), (23, event))

    def test_endWithoutId(self) -> None:
        """A process without an id is told as C{(null)}."""
        bench = Bench(H1)
        bench.newcontainer().end(0)
        [(_, body)] = bench.control.take()
        self.assertEqual(json.loads(body)["process"], "(null)")

    def test_backpressure(self) -> None:
        """No output is read while the host takes none, or while there is none."""
        for dialect in ALL:
            bench = Bench(dialect)
            first = bench.newcontainer()
            self.assertTrue(first.flowing)
            bench.agent.io.flowing(False)
            self.assertFalse(first.flowing)
            self.assertFalse(bench.execcmd().flowing)
            bench.agent.io.flowing(True)
            self.assertTrue(first.flowing)
            bench.agent.io.detach(bench.io)
            self.assertFalse(first.flowing)
            FakeHost(bench.agent.io, IO_HEADER)
            self.assertTrue(first.flowing)

    def test_controlBackpressure(self) -> None:
        """No command is taken while the host does not read answers."""
        bench = Bench(CC)
        bench.agent.control.flowing(False)
        self.assertFalse(bench.control.reading)
        bench.agent.control.flowing(True)
        self.assertTrue(bench.control.reading)


class StdinTests(SynchronousTestCase):
    """Standard input."""

    def test_order(self) -> None:
        """It goes to its process in order, and then its end."""
        for dialect in ALL:
            bench = Bench(dialect)
            running = bench.newcontainer()
            bench.stdin(3, b"a", b"b")
            self.assertEqual((running.stdin, running.closed), ([b"a", b"b"], False))
            bench.stdin(3, b"")
            self.assertTrue(running.closed)

    def test_terminalEnd(self) -> None:
        """An empty message to a terminal is ignored."""
        for dialect in ALL:
            bench = Bench(dialect)
            running = bench.newcontainer(terminal=True)
            bench.stdin(3, b"", b"x")
            self.assertEqual((running.stdin, running.closed), ([b"x"], False))

    def test_unknownNumber(self) -> None:
        """hyperstart answers stdin for an unknown number with an empty message, cc does not."""
        for dialect in ALL:
            bench = Bench(dialect)
            bench.stdin(77, b"x")
            self.assertEqual(bench.io.take(), [] if dialect is CC else [(77, b"")])

    def test_stderrNumber(self) -> None:
        """The number of a stderr takes nothing."""
        for dialect in ALL:
            bench = Bench(dialect)
            running = bench.newcontainer()
            bench.stdin(4, b"x", b"")
            self.assertEqual((running.stdin, running.closed), ([], False))
            self.assertEqual(bench.io.take(), [])

    def test_notRead(self) -> None:
        """
        The I/O channel is not read while a process does not read; output and control go on.
        """
        for dialect in ALL:
            bench = Bench(dialect)
            slow, quick = bench.newcontainer(), bench.execcmd()
            slow.reads = False
            bench.stdin(3, b"x" * STDIN_LIMIT)
            self.assertTrue(bench.io.reading)
            bench.stdin(3, b"x")
            self.assertFalse(bench.io.reading)
            bench.agree(Code.PING)
            quick.sink.output(1, b"x")
            self.assertEqual(bench.io.take(), [(5, b"x")])
            slow.reads = True
            slow.flush()
            self.assertTrue(bench.io.reading)

    def test_notReadEnded(self) -> None:
        """It is read again once that process has ended, by a host that came later too."""
        bench = Bench(CC)
        slow = bench.newcontainer()
        slow.reads = False
        bench.stdin(3, b"x" * (STDIN_LIMIT + 1))
        bench.agent.io.detach(bench.io)
        later = FakeHost(bench.agent.io, IO_HEADER)
        self.assertFalse(later.reading)
        slow.end(0)
        self.assertTrue(later.reading)


class StrictTests(SynchronousTestCase):
    """The real agents' weaknesses, where they are asked for."""

    def test_dropped(self) -> None:
        """In a burst of 512 bytes per message hyperstart loses half, of 256 nothing."""
        for strict, size, kept in ((True, 512, 0.5), (True, 256, 1), (False, 512, 1)):
            for dialect in (H0, H1):
                bench = Bench(dialect, strict)
                running = bench.newcontainer()
                bench.stdin(3, *[b"x" * size] * 64)
                self.assertEqual(len(b"".join(running.stdin)), 64 * size * kept)

    def test_notReadDropped(self) -> None:
        """A process that does not read costs its own stdin only."""
        bench = Bench(H0, strict=True)
        running = bench.newcontainer()
        running.reads = False
        bench.stdin(3, *[b"x" * 256] * 1000)
        self.assertTrue(bench.io.reading)
        self.assertEqual(running.waiting, 512)

    def test_longMessage(self) -> None:
        """A message over 4096 bytes on the I/O channel ends a hyperstart."""
        for dialect in ALL:
            for strict in (True, False):
                bench = Bench(dialect, strict)
                bench.newcontainer()
                bench.stdin(3, b"x" * 4084)
                self.assertFalse(bench.agent.off)
                bench.stdin(3, b"x" * 4085)
                self.assertEqual(bench.agent.off, strict and dialect is not CC)

    def test_withoutId(self) -> None:
        """A process without an id ends a hyperstart 1.x at the next search for one."""
        cases: dict[int, object] = {
            Code.EXECCMD: execcmd(id="x"),
            Code.WINSIZE: {"container": "c", "process": "x", "row": 1, "column": 1},
            Code.SIGNALPROCESS: {"container": "c", "process": "x", "signal": 9},
        }
        for code, data in cases.items():
            for strict, id in ((True, None), (True, "i"), (False, None)):
                bench = Bench(H1, strict)
                bench.newcontainer(**({"id": id} if id else {}))
                bench.send(code, data)
                self.assertEqual(bench.agent.off, strict and id is None)
        bench = Bench(H1, strict=True)
        bench.newcontainer(id="i")
        self.assertEqual(bench.send(Code.SIGNALPROCESS, {"container": "c", "signal": 9}), [])
        self.assertTrue(bench.agent.off)

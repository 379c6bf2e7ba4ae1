"""
Tests for L{ccproxy.agent.commands}: what each dialect answers to each other command.
"""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from ccproxy.test.agent.doubles import Bench
from ccproxy.wire.codes import ControlCode, Dialect
from ccproxy.wire.messages import Message

CC, H0, H1 = Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1
ALL = (CC, H0, H1)
ACK, ERROR = (ControlCode.ACK, b""), (ControlCode.ERROR, b"")
Code = ControlCode


class SimpleTests(SynchronousTestCase):
    """Commands that touch nothing."""

    def test_next(self) -> None:
        """hyperstart sends NEXT for each of its reads, before the answer; cc never does."""
        for dialect, nexts in ((CC, []), (H0, [8, 3]), (H1, [8, 3])):
            bench = Bench(dialect)
            bench.agent.control.received(Message(Code.PING, b"abc", 11))
            expected = [(Code.NEXT, n.to_bytes(4, "big")) for n in nexts]
            self.assertEqual(bench.control.take(), [*expected, ACK])

    def test_pingAndReady(self) -> None:
        """ping and ready are acknowledged."""
        for dialect in ALL:
            bench = Bench(dialect)
            self.assertEqual(bench.agree(Code.PING), b"")
            self.assertEqual(bench.agree(Code.READY), b"")

    def test_version(self) -> None:
        """hyperstart tells its API version, cc refuses."""
        self.assertEqual(Bench(H0).agree(Code.VERSION), (0x1092).to_bytes(4, "big"))
        self.assertEqual(Bench(H1).agree(Code.VERSION), (0x1094).to_bytes(4, "big"))
        self.assertIn(b"unknown command", Bench(CC).refuse(Code.VERSION))

    def test_onlyHyperstart(self) -> None:
        """What cc lacks."""
        cases = {
            Code.ONLINECPUMEM: b"",
            Code.SETUPINTERFACE: {"device": "eth0", "ipAddress": "1.2.3.4", "netMask": "24"},
            Code.SETUPROUTE: {"routes": [{"dest": "default"}]},
        }
        for code, data in cases.items():
            self.assertNotEqual(Bench(CC).refuse(code, data), b"")
            for dialect in (H0, H1):
                self.assertEqual(Bench(dialect).agree(code, data), b"")
        self.assertEqual(Bench(H1).agree(Code.DELETEINTERFACE, {"device": "eth0"}), b"")
        for dialect in (H0, H1):
            self.assertEqual(Bench(dialect).refuse(Code.SETUPROUTE, {"routes": None}), b"")
            self.assertEqual(Bench(dialect).refuse(Code.SETUPINTERFACE, {"odd": 1}), b"")

    def test_unknown(self) -> None:
        """Any other code is an error, with text from cc only."""
        lacking = {CC: (24, 25), H0: (23, 24, 25), H1: (23,)}
        for dialect in ALL:
            bench = Bench(dialect)
            for code in (2, 3, 5, 7, 9, 10, 13, 14, 26, 0xFFFFFFFF, *lacking[dialect]):
                self.assertEqual(bool(bench.refuse(code, {})), dialect is CC)


class SignalTests(SynchronousTestCase):
    """killcontainer, signalprocess and winsize."""

    def test_first(self) -> None:
        """killcontainer signals the first process."""
        for dialect in ALL:
            bench = Bench(dialect)
            first, second = bench.newcontainer(), bench.execcmd(id="x")
            bench.agree(Code.KILLCONTAINER, {"container": "c", "signal": 15})
            self.assertEqual((first.signals, second.signals), ([15], []))

    def test_all(self) -> None:
        """With allProcesses cc signals all of the container; hyperstart does not know it."""
        data = {"container": "c", "signal": 9, "allProcesses": True}
        bench = Bench(CC)
        bench.newcontainer()
        bench.agree(Code.KILLCONTAINER, data)
        self.assertEqual(bench.machine.signals, [(2, 9)])
        for dialect in (H0, H1):
            bench = Bench(dialect)
            first = bench.newcontainer()
            bench.agree(Code.KILLCONTAINER, data)
            self.assertEqual((bench.machine.signals, first.signals), ([], [9]))

    def test_killRefused(self) -> None:
        """An unknown container is an error; so is a bad signal, but not for hyperstart 0.x."""
        unknown, bad = {"container": "d", "signal": 9}, {"container": "c", "signal": 65}
        benches = {dialect: Bench(dialect) for dialect in ALL}
        for bench in benches.values():
            bench.newcontainer()
        for data in (unknown, bad):
            self.assertFalse(benches[CC].refuse(Code.KILLCONTAINER, data).endswith(b"\0"))
            self.assertTrue(benches[H1].refuse(Code.KILLCONTAINER, data).endswith(b"\0"))
        self.assertEqual(benches[H0].refuse(Code.KILLCONTAINER, unknown), b"")
        benches[H0].agree(Code.KILLCONTAINER, bad)

    def test_killEnded(self) -> None:
        """A container that has ended."""
        for dialect in ALL:
            bench = Bench(dialect)
            bench.newcontainer().end(0)
            bench.control.take()
            data = {"container": "c", "signal": 9}
            (bench.refuse if dialect is H1 else bench.agree)(Code.KILLCONTAINER, data)

    def test_signalprocess(self) -> None:
        """signalprocess reaches the process of that id, and only hyperstart 1.x has it."""
        bench = Bench(H1)
        first, second = bench.newcontainer(id="i"), bench.execcmd(id="x")
        bench.agree(Code.SIGNALPROCESS, {"container": "c", "process": "x", "signal": 10})
        bench.agree(Code.SIGNALPROCESS, {"container": "c", "process": "i", "signal": 12})
        self.assertEqual((first.signals, second.signals), ([12], [10]))
        for container, process in (("c", "y"), ("d", "x"), ("c", "")):
            data = {"container": container, "process": process, "signal": 10}
            self.assertEqual(bench.refuse(Code.SIGNALPROCESS, data), b"")
        second.end(0)
        bench.control.take()
        bench.refuse(Code.SIGNALPROCESS, {"container": "c", "process": "x", "signal": 10})
        for dialect in (CC, H0):
            Bench(dialect).refuse(Code.SIGNALPROCESS, data)

    def test_winsize(self) -> None:
        """winsize reaches the terminal, by number or by id."""
        for dialect in ALL:
            bench = Bench(dialect)
            running = (
                bench.newcontainer(terminal=True, id="i")
                if dialect is H1
                else (bench.newcontainer(terminal=True))
            )
            where = {"container": "c", "process": "i"} if dialect is H1 else {"seq": 3}
            self.assertEqual(bench.agree(Code.WINSIZE, {**where, "row": 24, "column": 80}), b"")
            self.assertEqual(running.size, (24, 80))

    def test_winsizeElsewhere(self) -> None:
        """An unknown number is no error, an unknown id is; no terminal is one for cc and 1.x."""
        size = {"row": 24, "column": 80}
        for dialect in (CC, H0):
            bench = Bench(dialect)
            running = bench.newcontainer()
            bench.agree(Code.WINSIZE, {"seq": 99, **size})
            data = {"seq": 3, **size}
            (bench.refuse if dialect is CC else bench.agree)(Code.WINSIZE, data)
            self.assertIsNone(running.size)
        bench = Bench(H1)
        bench.newcontainer(id="i")
        for process in ("i", "j"):
            bench.refuse(Code.WINSIZE, {"container": "c", "process": process, **size})

    def test_winsizeRange(self) -> None:
        """cc takes 16 bits only."""
        bench = Bench(CC)
        bench.newcontainer(terminal=True)
        bench.refuse(Code.WINSIZE, {"seq": 3, "row": 65536, "column": 1})


class ContainerTests(SynchronousTestCase):
    """removecontainer, pscontainer, readfile and writefile."""

    def test_remove(self) -> None:
        """A container that has ended is removed, but not by hyperstart 1.x."""
        for dialect in ALL:
            bench = Bench(dialect)
            data = {"container": "c"}
            bench.refuse(Code.REMOVECONTAINER, data)
            running = bench.newcontainer()
            bench.newcontainer("other", stdio=7, stderr=8)
            self.assertEqual(bool(bench.refuse(Code.REMOVECONTAINER, data)), dialect is CC)
            running.end(0)
            bench.control.take()
            if dialect is H1:
                bench.refuse(Code.REMOVECONTAINER, data)
            else:
                bench.agree(Code.REMOVECONTAINER, data)
                bench.newcontainer()

    def test_removeWithProcess(self) -> None:
        """For cc it still runs while any of its processes does."""
        bench = Bench(CC)
        first, second = bench.newcontainer(), bench.execcmd()
        first.end(0)
        bench.refuse(Code.REMOVECONTAINER, {"container": "c"})
        second.end(0)
        bench.agree(Code.REMOVECONTAINER, {"container": "c"})

    def test_psJson(self) -> None:
        """pscontainer gives the pids."""
        bench = Bench(CC)
        bench.newcontainer()
        bench.newcontainer("d", stdio=7, stderr=8)
        bench.execcmd()
        body = bench.agree(Code.PSCONTAINER, {"container": "c", "format": "json"})
        self.assertEqual(json.loads(body), [100, 102])

    def test_psTable(self) -> None:
        """It gives the lines of ps that are about the container; commands wait for it."""
        bench = Bench(CC)
        bench.newcontainer()
        data = {"container": "c", "format": "table", "psargs": None}
        self.assertEqual(bench.send(Code.PSCONTAINER, data), [])
        self.assertFalse(bench.control.reading)
        [(args, done)] = bench.machine.psAsked
        self.assertEqual(args, ["-ef"])
        done(b"UID PID CMD\nroot 1 init 100\nroot 100 sh\nroot 1000 x\n")
        answer = (Code.ACK, b"UID PID CMD\nroot 100 sh\n")
        self.assertEqual(bench.control.take(), [answer])
        self.assertTrue(bench.control.reading)

    def test_psRefused(self) -> None:
        """What pscontainer cannot do is an error."""
        bench = Bench(CC)
        bench.newcontainer()
        bench.refuse(Code.PSCONTAINER, {"container": "d", "format": "json"})
        bench.refuse(Code.PSCONTAINER, {"container": "c", "format": "odd"})
        for output in (None, b"", b"USER COMMAND\nroot sh\n"):
            bench.send(Code.PSCONTAINER, {"container": "c", "format": "table", "psargs": ["x"]})
            bench.machine.psAsked[-1][1](output)
            [(code, body)] = bench.control.take()
            self.assertEqual((code, body[:2]), (Code.ERROR, b"ps"))
        for dialect in (H0, H1):
            Bench(dialect).refuse(Code.PSCONTAINER, {"container": "c", "format": "json"})

    def test_files(self) -> None:
        """hyperstart writes and reads files; the content stands behind the first brace."""
        for dialect in (H0, H1):
            bench = Bench(dialect)
            bench.newcontainer()
            where = {"container": "c", "file": "/f"}
            content = b'} {"any": thing\0\xff'
            self.assertEqual(bench.agree(Code.WRITEFILE, json.dumps(where).encode() + content), b"")
            self.assertEqual(bench.machine.files, {"/f": content})
            self.assertEqual(bench.agree(Code.READFILE, where), content)
            self.assertEqual(bench.refuse(Code.READFILE, {**where, "file": "/g"}), b"")
            for code in (Code.READFILE, Code.WRITEFILE):
                bench.refuse(code, {**where, "container": "d"})
                bench.refuse(code, b"no brace")
        for code in (Code.READFILE, Code.WRITEFILE):
            Bench(CC).refuse(code, where)

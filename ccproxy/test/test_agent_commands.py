"""
Tests for L{ccproxy.agent.agent}, L{ccproxy.agent.commands} and L{ccproxy.agent.pod}: what each
dialect answers to each command, and how it tells the end of a process.
"""

from __future__ import annotations

import json
from functools import partial

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ccproxy.agent.agent import STDIN_LIMIT, Agent
from ccproxy.agent.interfaces import IMachine, IRunning, IRunningSink, Program
from ccproxy.test.agentdoubles import Bench, FakeHost, FakeMachine, execcmd, newcontainer
from ccproxy.wire.codes import ControlCode, Dialect
from ccproxy.wire.messages import CONTROL_HEADER, IO_HEADER, Message

CC, H0, H1 = Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1
ALL = (CC, H0, H1)
ACK, ERROR = (ControlCode.ACK, b""), (ControlCode.ERROR, b"")
Code = ControlCode


class ReadyTests(SynchronousTestCase):
    """READY, and the channels' comings and goings."""

    def test_once(self) -> None:
        """READY waits for the first host of the control channel, and comes never again."""
        for dialect in ALL:
            agent = Agent(dialect, FakeMachine())
            first = FakeHost(agent.control, CONTROL_HEADER)
            self.assertEqual(first.take(), [(Code.READY, b"")])
            agent.control.detach(first)
            self.assertEqual(FakeHost(agent.control, CONTROL_HEADER).take(), [])

    def test_staleAnswer(self) -> None:
        """An answer that no host was there for goes to the next one."""
        bench = Bench(CC)
        running = bench.newcontainer()
        self.assertEqual(bench.send(Code.DESTROYPOD), [])
        bench.agent.control.detach(bench.control)
        running.end(0)
        self.assertEqual(FakeHost(bench.agent.control, CONTROL_HEADER).take(), [ACK])

    def test_undecidedDialect(self) -> None:
        """An agent must be one of those that exist."""
        for dialect in (Dialect.UNKNOWN, Dialect.HYPERSTART):
            self.assertRaises(ValueError, Agent, dialect, FakeMachine())

    def test_interfaces(self) -> None:
        """The doubles and the process provide what they say."""
        bench = Bench(CC)
        running = bench.newcontainer()
        verifyObject(IMachine, bench.machine)
        verifyObject(IRunning, running)
        verifyObject(IRunningSink, running.sink)


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


class PodTests(SynchronousTestCase):
    """startpod and destroypod."""

    def test_startRefused(self) -> None:
        """cc wants a shareDir and no second startpod, and lives on."""
        bench = Bench(CC, podStarted=False)
        self.assertIn(b"shareDir", bench.refuse(Code.STARTPOD, {"hostname": "h"}))
        bench.agree(Code.STARTPOD, {"shareDir": "s"})
        self.assertIn(b"already", bench.refuse(Code.STARTPOD, {"shareDir": "s"}))
        self.assertFalse(bench.agent.off)

    def test_startFailedOff(self) -> None:
        """A failed or second startpod is an error and the end of a hyperstart's VM."""
        for dialect in (H0, H1):
            for data in ({"hostname": "h"}, {"odd": 1}, b"{"):
                bench = Bench(dialect)
                ended: list[None] = []
                bench.agent.whenOff = partial(ended.append, None)
                self.assertEqual(bench.refuse(Code.STARTPOD, data), b"")
                self.assertEqual(ended, [None])
                self.assertTrue(bench.control.hungUp and bench.io.hungUp)
                self.assertEqual(bench.send(Code.PING), [])

    def test_startWithContainers(self) -> None:
        """hyperstart starts the containers in a startpod; cc ignores them."""
        for dialect, count in ((CC, 0), (H0, 1), (H1, 1)):
            bench = Bench(dialect, podStarted=False)
            bench.agree(Code.STARTPOD, {"shareDir": "s", "containers": [newcontainer()]})
            self.assertEqual(len(bench.machine.running), count)

    def test_destroyEmpty(self) -> None:
        """Nothing runs: an ACK at once, and hyperstart powers off."""
        for dialect in ALL:
            bench = Bench(dialect)
            self.assertEqual(bench.agree(Code.DESTROYPOD), b"")
            self.assertEqual(bench.agent.off, dialect is not CC)
            self.assertEqual(bench.control.hungUp, dialect is not CC)
            self.assertEqual(bench.io.hungUp, dialect is not CC)

    def test_destroyCC(self) -> None:
        """cc waits for all processes, answers what came meanwhile after it, and lives on."""
        bench = Bench(CC)
        first, second = bench.newcontainer(), bench.execcmd()
        self.assertEqual(bench.send(Code.DESTROYPOD), [])
        self.assertFalse(bench.control.reading)
        first.end(0)
        self.assertEqual(bench.control.take(), [])
        second.end(0)
        self.assertEqual(bench.control.take(), [ACK])
        self.assertTrue(bench.control.reading)
        self.assertEqual(bench.machine.signals, [])
        bench.refuse(Code.NEWCONTAINER, newcontainer())
        bench.agree(Code.STARTPOD, {"shareDir": "s"})
        bench.newcontainer()

    def test_destroyHyperstart(self) -> None:
        """
        hyperstart sends SIGTERM to all and answers when all containers have ended, after the
        answers to later commands; then it powers off.
        """
        for dialect in (H0, H1):
            bench = Bench(dialect)
            first, second = bench.newcontainer("a"), bench.newcontainer("b", stdio=5, stderr=6)
            self.assertEqual(bench.send(Code.DESTROYPOD), [])
            self.assertEqual(bench.machine.signals, [(None, 15)])
            self.assertEqual(bench.send(Code.PING), [ACK])
            first.end(0)
            self.assertNotIn(ACK, bench.control.take())
            second.end(0)
            self.assertEqual(bench.control.take()[-1], ACK)
            self.assertTrue(bench.agent.off and bench.control.hungUp and bench.io.hungUp)

    def test_podFinished(self) -> None:
        """
        hyperstart 0.x sends code 13 with the status of each container when the last one ends;
        then its pod is gone.
        """
        bench = Bench(H0)
        first, second = bench.newcontainer("a"), bench.newcontainer("b", stdio=5, stderr=6)
        bench.execcmd("a", stdio=7, stderr=8).end(9)
        first.end(3)
        self.assertEqual(bench.control.take(), [])
        second.end(-9)
        self.assertEqual(bench.control.take(), [(13, b"\0\0\0\3\0\0\0\0")])
        self.assertEqual(bench.send(Code.NEWCONTAINER, newcontainer("d")), [ERROR])
        bench.agree(Code.STARTPOD, {"hostname": "h"})
        bench.newcontainer("a")

    def test_podNotFinished(self) -> None:
        """The others send nothing of the kind and go on."""
        for dialect in (CC, H1):
            bench = Bench(dialect)
            bench.newcontainer("a").end(3)
            self.assertNotIn(13, [code for code, _ in bench.control.take()])
            bench.newcontainer("b")


class StartTests(SynchronousTestCase):
    """newcontainer and execcmd."""

    def test_program(self) -> None:
        """What is asked for is started."""
        for dialect in ALL:
            bench = Bench(dialect)
            running = bench.newcontainer(
                args=["prog", "a b"], envs=[{"env": "A", "value": "1"}], workdir="/tmp"
            )
            self.assertEqual(
                running.program, Program(["prog", "a b"], {"A": "1"}, "/tmp", False, 2)
            )
            running = bench.execcmd(args=["other"], terminal=True)
            self.assertEqual(running.program, Program(["other"], {}, "", True, 2))

    def test_refused(self) -> None:
        """What cannot be started is refused, with text from cc only, and leaves nothing."""
        cases: list[object] = [
            newcontainer(""),
            {"id": "d", "rootfs": "r", "image": "i"},
            newcontainer("d", args=[]),
            newcontainer("d", args=[""]),
            newcontainer("d", args="sh"),
            newcontainer("c", stdio=7, stderr=8),
            newcontainer("d", stdio=3, stderr=8),
            newcontainer("d", stdio=7, stderr=4),
            newcontainer("d", stdio=7, stderr=7),
            b"garbage",
        ]
        for dialect in ALL:
            bench = Bench(dialect)
            self.assertEqual(
                bool(Bench(dialect, podStarted=False).refuse(Code.NEWCONTAINER, newcontainer())),
                dialect is CC,
            )
            bench.newcontainer("c")
            for case in cases:
                self.assertEqual(bool(bench.refuse(Code.NEWCONTAINER, case)), dialect is CC)
            bench.newcontainer("d", stdio=7, stderr=8)

    def test_execRefused(self) -> None:
        """execcmd needs a container that is known."""
        for dialect in ALL:
            bench = Bench(dialect)
            bench.newcontainer("c")
            cases: list[object] = [execcmd("d"), {"container": "c"}, execcmd("c", stdio=3), b"["]
            for case in cases:
                self.assertEqual(bool(bench.refuse(Code.EXECCMD, case)), dialect is CC)

    def test_execEnded(self) -> None:
        """For cc the container must run as well."""
        bench = Bench(CC)
        bench.newcontainer("c").end(0)
        self.assertIn(b"not running", bench.refuse(Code.EXECCMD, execcmd("c")))
        bench = Bench(H1)
        bench.newcontainer("c").end(0)
        bench.control.take()
        bench.execcmd("c")

    def test_sameProcessId(self) -> None:
        """An id in use is refused where the dialect has ids; cc takes stdio's where absent."""
        bench = Bench(CC)
        bench.newcontainer("c")
        self.assertIn(b"already", bench.refuse(Code.EXECCMD, execcmd("c", id="3")))
        bench.execcmd("c", id="x")
        bench.refuse(Code.EXECCMD, execcmd("c", stdio=7, stderr=8, id="x"))
        bench = Bench(H1)
        bench.newcontainer("c", id="i")
        bench.refuse(Code.EXECCMD, execcmd("c", id="i"))

    def test_besideInit(self) -> None:
        """hyperstart 1.x has a container of its own, beside its init."""
        bench = Bench(H1)
        bench.execcmd("hyperstart", id="x").end(4)
        event = {"container": "hyperstart", "process": "x", "event": "finished", "status": 4}
        self.assertEqual([json.loads(body) for _, body in bench.control.take()], [event])
        for dialect in (CC, H0):
            Bench(dialect).refuse(Code.EXECCMD, execcmd("hyperstart"))

    def test_withoutStderr(self) -> None:
        """hyperstart refuses a process with neither a terminal nor a stderr."""
        for dialect in (H0, H1):
            bench = Bench(dialect)
            self.assertEqual(bench.refuse(Code.NEWCONTAINER, newcontainer(stderr=0)), b"")
            bench.newcontainer(stderr=0, terminal=True)

    def test_notFoundCC(self) -> None:
        """A program that cannot be started is an error of cc, and all can be tried again."""
        bench = Bench(CC)
        bench.machine.missing["sh"] = 127
        self.assertIn(b"cannot start", bench.refuse(Code.NEWCONTAINER, newcontainer()))
        bench.newcontainer(args=["other"])
        self.assertEqual(bench.io.take(), [])

    def test_notFoundHyperstart(self) -> None:
        """hyperstart acknowledges, and then the process has ended with a status that tells."""
        bench = Bench(H0)
        bench.machine.missing["sh"] = 127
        self.assertEqual(bench.send(Code.NEWCONTAINER, newcontainer()), [ACK, (13, b"\0\0\0\x7f")])
        self.assertEqual(bench.io.take(), [(3, b""), (3, b"\x7f")])
        bench = Bench(H1)
        bench.machine.missing["sh"] = 127
        ack, (code, body) = bench.send(Code.NEWCONTAINER, newcontainer(id="i"))
        self.assertEqual((ack, code), (ACK, 23))
        self.assertEqual(json.loads(body)["status"], 127)
        self.assertEqual(bench.io.take(), [(3, b"")])


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

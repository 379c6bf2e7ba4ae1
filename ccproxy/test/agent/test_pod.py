"""
Tests for L{ccproxy.agent.agent} and L{ccproxy.agent.commands}: the pod, and how its processes are
started in each dialect.
"""

from __future__ import annotations

import json
from functools import partial

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ccproxy.agent.agent import Agent
from ccproxy.agent.interfaces import IMachine, IRunning, IRunningSink, Program, Root, Volume
from ccproxy.test.agent.doubles import Bench, FakeHost, FakeMachine, execcmd, newcontainer
from ccproxy.wire.codes import ControlCode, Dialect
from ccproxy.wire.messages import CONTROL_HEADER

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


class PodTests(SynchronousTestCase):
    """startpod and destroypod."""

    def test_startRefused(self) -> None:
        """cc wants a shareDir and no second startpod, and lives on."""
        bench = Bench(CC, podStarted=False)
        self.assertIn(b"shareDir", bench.refuse(Code.STARTPOD, {"hostname": "h"}))
        bench.agree(Code.STARTPOD, {"shareDir": "s"})
        self.assertIn(b"already", bench.refuse(Code.STARTPOD, {"shareDir": "s"}))
        self.assertFalse(bench.agent.off)

    def test_machine(self) -> None:
        """The machine hears of the pod's beginning, which it may refuse, and of its end."""
        bench = Bench(CC, podStarted=False)
        bench.machine.shares = False
        self.assertIn(b"no such tag", bench.refuse(Code.STARTPOD, {"shareDir": "s"}))
        bench.machine.shares = True
        bench.agree(Code.STARTPOD, {"hostname": "h", "shareDir": "s"})
        self.assertEqual(bench.machine.pods, [("start", "h", "s")])
        running = bench.newcontainer(args=["one"])
        self.assertEqual(bench.send(Code.DESTROYPOD), [])
        self.assertEqual(bench.machine.pods, [("start", "h", "s")])
        running.end(0)
        self.assertEqual(bench.machine.pods, [("start", "h", "s"), ("end",)])
        bench.control.take()
        bench.agree(Code.STARTPOD, {"shareDir": "s"})
        bench.agree(Code.DESTROYPOD)
        self.assertEqual(bench.machine.pods[2:], [("start", "", "s"), ("end",)])

    def test_roots(self) -> None:
        """The first program of a container comes with its root and all that it sees."""
        bench = Bench(CC)
        fsmap = [{"source": "s", "path": "/p", "readOnly": True}, {"source": "t", "path": "/q"}]
        bench.agree(Code.NEWCONTAINER, {**newcontainer("c"), "fsmap": fsmap})
        volumes = (Volume("s", "/p", True), Volume("t", "/q", False))
        self.assertEqual(bench.machine.running[-1].program.root, Root("i", "r", volumes))
        self.assertIsNone(bench.execcmd("c").program.root)

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
            root = Root("i", "r")
            self.assertEqual(
                running.program, Program(["prog", "a b"], {"A": "1"}, "/tmp", False, 2, root)
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

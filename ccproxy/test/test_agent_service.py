"""
Tests for L{ccproxy.agent.service}, L{ccproxy.agent.machine}, L{ccproxy.agent.programs},
L{ccproxy.agent.descriptors} and L{ccproxy.agent.listening}: real processes over real sockets.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from struct import Struct
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from ccproxy.agent.interfaces import IMachine, IRunning, Program, StartError
from ccproxy.agent.machine import MAX_RESULT, Machine
from ccproxy.agent.service import EmbeddedAgent
from ccproxy.test.agentdoubles import Pair, execcmd, jsonOf, newcontainer
from ccproxy.wire.codes import ControlCode, Dialect
from ccproxy.wire.messages import (
    CONTROL_HEADER,
    IO_HEADER,
    MessageDecoder,
    encodeControl,
    encodeIO,
)

reactor: Any = _reactor
CC, H0, H1 = Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1
Code = ControlCode
TIMEOUT = 20.0


class Host(Protocol):
    """
    The host's end of a channel.

    @ivar got: the messages that have come.
    @ivar closed: whether the connection has ended.
    """

    def __init__(self, header: Struct) -> None:
        self.decoder = MessageDecoder(header)
        self.transport: Any
        self.got: list[Pair] = []
        self.closed = False
        self._waiter: tuple[Callable[[], object], Deferred[None]] | None = None

    def dataReceived(self, data: bytes) -> None:
        self.decoder.feed(data)
        while (message := self.decoder.next()) is not None:
            self.got.append((message.number, message.body))
        self._look()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True
        self._look()

    def _look(self) -> None:
        if self._waiter is not None and self._waiter[0]():
            _, deferred = self._waiter
            self._waiter = None
            deferred.callback(None)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something holds of what has come."""
        if not condition():
            deferred: Deferred[None] = Deferred()
            self._waiter = condition, deferred
            deferred.addTimeout(TIMEOUT, reactor)
            await deferred

    def read(self, number: int) -> bytes:
        """What came for a number, joined."""
        return b"".join(body for n, body in self.got if n == number)


class AgentTestCase(TestCase):
    """Runs an embedded agent and is its host."""

    timeout = 60
    control: Host
    io: Host

    def setUp(self) -> None:
        # Socket paths are short, and trial's folders are not.
        self.folder = f"/tmp/ccproxy-{os.getpid()}-{id(self):x}"
        os.mkdir(self.folder)
        self.controlPath = os.path.join(self.folder, "ctl")
        self.ioPath = os.path.join(self.folder, "io")

        def removeFolder() -> None:
            os.rmdir(self.folder)  # which fails if a socket has stayed

        self.addCleanup(removeFolder)

    async def boot(self, dialect: Dialect = CC, strict: bool = False) -> None:
        """Start a VM, connect to it and start its pod."""
        self.service = EmbeddedAgent(reactor, self.controlPath, self.ioPath, dialect, strict)
        self.service.startService()
        self.addCleanup(self.stop)
        self.control = await self.connect(self.controlPath, CONTROL_HEADER)
        self.io = await self.connect(self.ioPath, IO_HEADER)
        await self.control.until(lambda: self.control.got)
        self.assertEqual(self.control.got, [(Code.READY, b"")])
        self.control.got.clear()
        await self.agree(Code.STARTPOD, {"hostname": "h", "shareDir": "s"})

    async def connect(self, path: str, header: Struct) -> Host:
        """Connect to a channel."""
        host: Host = await connectProtocol(UNIXClientEndpoint(reactor, path), Host(header))
        self.addCleanup(host.transport.abortConnection)
        return host

    async def stop(self) -> None:
        """Stop the service, which leaves nothing."""
        await self.service.stopService()
        for path in (self.controlPath, self.ioPath):
            self.assertFalse(os.path.exists(path))

    async def send(self, code: int, data: object = b"") -> Pair:
        """Send a command; its answer."""
        self.control.transport.write(encodeControl(code, jsonOf(data)))

        def answers() -> list[Pair]:
            return [pair for pair in self.control.got if pair[0] in (Code.ACK, Code.ERROR)]

        await self.control.until(answers)
        answer = answers()[0]
        self.control.got.remove(answer)
        return answer

    async def agree(self, code: int, data: object = b"") -> bytes:
        """Send a command that is answered with an ACK; its body."""
        answer, body = await self.send(code, data)
        self.assertEqual(answer, Code.ACK, body)
        return body

    async def run_(self, script: str, **process: object) -> None:
        """Run a shell script as container C{c} on 3 and 4."""
        args = ["/bin/sh", "-c", script]
        await self.agree(Code.NEWCONTAINER, newcontainer(args=args, **process))

    def stdin(self, *bodies: bytes, number: int = 3) -> None:
        """Send standard input."""
        self.io.transport.write(b"".join(encodeIO(number, body) for body in bodies))

    async def ended(self, number: int = 3) -> int:
        """Wait for the end of a process; its exit status."""
        at = (number, b"")
        got = self.io.got
        await self.io.until(lambda: at in got and got[-1] != at and got[-1][0] == number)
        self.assertEqual(got[-2], at)
        return got[-1][1][0]

    async def printed(self, text: bytes, number: int = 3) -> None:
        """Wait until something was written."""
        await self.io.until(lambda: text in self.io.read(number))


class ProcessTests(AgentTestCase):
    """Processes with pipes."""

    async def test_streams(self) -> None:
        """Output goes to its streams, and the status comes after all of it."""
        await self.boot()
        await self.run_("echo hello; echo oops >&2; exit 7")
        self.assertEqual(await self.ended(), 7)
        self.assertEqual(self.io.read(4), b"oops\n")
        self.assertEqual(self.io.read(3), b"hello\n\x07")

    async def test_stdinAndEnd(self) -> None:
        """Standard input and its end reach the process."""
        for dialect in (CC, H0):
            await self.boot(dialect)
            await self.run_("cat; echo end")
            self.stdin(b"one ", b"two ", b"")
            self.assertEqual(await self.ended(), 0)
            self.assertEqual(self.io.read(3), b"one two end\n\0")
            await self.stop()

    async def test_bulk(self) -> None:
        """Megabytes go through a process and back unchanged, quickly."""
        await self.boot()
        await self.run_("exec cat")
        data = os.urandom(1 << 16) * 128
        begun = reactor.seconds()
        self.stdin(*[data[at : at + 4084] for at in range(0, len(data), 4084)], b"")
        await self.ended()
        self.assertEqual(sha256(self.io.read(3)[:-1]).digest(), sha256(data).digest())
        self.assertLess(reactor.seconds() - begun, 10)
        self.assertLessEqual(max(len(body) for _, body in self.io.got), 1024)

    async def test_hyperstart1(self) -> None:
        """hyperstart 1.x tells the end of the output and the status on two channels."""
        await self.boot(H1)
        await self.run_("echo out; kill -9 $$", id="i")
        await self.control.until(lambda: Code.PROCESS_ASYNC_EVENT in dict(self.control.got))
        event = json.loads(dict(self.control.got)[Code.PROCESS_ASYNC_EVENT])
        self.assertEqual((event["container"], event["process"], event["status"]), ("c", "i", 0))
        await self.io.until(lambda: (3, b"") in self.io.got)
        self.assertEqual(self.io.got, [(3, b"out\n"), (3, b"")])

    async def test_podFinished(self) -> None:
        """hyperstart 0.x sends the statuses when the last container has ended."""
        await self.boot(H0)
        await self.run_("exit 3")
        await self.control.until(lambda: (13, b"\0\0\0\3") in self.control.got)

    async def test_killed(self) -> None:
        """A signal ends the process with 128 and its number in cc, with 0 in hyperstart."""
        for dialect, status in ((CC, 137), (H0, 0)):
            await self.boot(dialect)
            await self.run_("echo up; exec sleep 60")
            await self.printed(b"up")
            await self.agree(Code.KILLCONTAINER, {"container": "c", "signal": 9})
            self.assertEqual(await self.ended(), status)
            await self.stop()

    async def test_signalprocess(self) -> None:
        """signalprocess reaches a process from execcmd."""
        await self.boot(H1)
        await self.run_("exec sleep 60", id="i")
        args = [
            "/bin/sh",
            "-c",
            "trap 'echo got it; exit' USR1; echo up; while :; do sleep .1; done",
        ]
        await self.agree(Code.EXECCMD, execcmd(args=args, id="x"))
        await self.printed(b"up", 5)
        data = {"container": "c", "process": "x", "signal": signal.SIGUSR1}
        await self.agree(Code.SIGNALPROCESS, data)
        await self.printed(b"got it", 5)

    async def test_allProcesses(self) -> None:
        """allProcesses reaches children in the background and in sessions of their own."""
        await self.boot()
        script = "import os,time; os.setsid(); print('up', flush=True); time.sleep(60)"
        await self.run_(f'"{sys.executable}" -c "{script}" & wait')
        await self.printed(b"up")
        pids = json.loads(await self.agree(Code.PSCONTAINER, {"container": "c", "format": "json"}))
        self.assertEqual(len(pids), 2)
        data = {"container": "c", "signal": 9, "allProcesses": True}
        await self.agree(Code.KILLCONTAINER, data)
        self.assertEqual(await self.ended(), 137)

    async def test_heldOutput(self) -> None:
        """The end comes when every holder of the output has gone."""
        await self.boot()
        await self.run_("(sleep .3; echo late) & exit 3")
        self.assertEqual(await self.ended(), 3)
        self.assertEqual(self.io.read(3), b"late\n\x03")

    async def test_closedOutput(self) -> None:
        """A process that closes its output lives on until it exits."""
        await self.boot()
        await self.run_("exec >&- 2>&-; read line; exit 5")
        await self.agree(Code.PING)
        self.assertEqual(self.io.got, [])
        self.stdin(b"\n")
        self.assertEqual(await self.ended(), 5)

    async def test_notFound(self) -> None:
        """A program that does not exist: an error, or status 127."""
        await self.boot()
        data = newcontainer(args=["/no/such/program"])
        code, text = await self.send(Code.NEWCONTAINER, data)
        self.assertEqual(code, Code.ERROR)
        self.assertIn(b"/no/such/program", text)
        await self.stop()
        await self.boot(H0)
        await self.agree(Code.NEWCONTAINER, data)
        self.assertEqual(await self.ended(), 127)

    async def test_environment(self) -> None:
        """The environment is what was asked for and a little more, not the daemon's."""
        os.environ["CCPROXY_SECRET"] = "x"
        self.addCleanup(os.environ.pop, "CCPROXY_SECRET")
        await self.boot()
        await self.run_("env; pwd", envs=[{"env": "A", "value": "b c"}], workdir="/usr")
        await self.ended()
        lines = self.io.read(3)[:-1].decode().splitlines()
        names = {line.partition("=")[0] for line in lines[:-1]}
        self.assertEqual(
            names - {"_", "PWD", "OLDPWD", "SHLVL"}, {"A", "PATH", "HOME", "CCPROXY_CONTAINER"}
        )
        self.assertIn("A=b c", lines)
        self.assertEqual(lines[-1], "/usr")

    async def test_signalsNotIgnored(self) -> None:
        """What the daemon ignores, its programs do not."""
        before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGQUIT, before)
        await self.boot()
        await self.run_("kill -QUIT $$; echo survived")
        self.assertEqual(await self.ended(), 128 + signal.SIGQUIT)

    async def test_ps(self) -> None:
        """pscontainer lists the container's processes."""
        await self.boot()
        await self.run_("echo up; exec sleep 61")
        await self.printed(b"up")
        data = {"container": "c", "format": "table", "psargs": ["-e", "-o", "pid,args"]}
        table = await self.agree(Code.PSCONTAINER, data)
        heading, line = table.splitlines()
        self.assertIn(b"PID", heading)
        self.assertIn(b"sleep 61", line)


class FlowTests(AgentTestCase):
    """Backpressure."""

    async def test_hostDoesNotRead(self) -> None:
        """A host that does not read makes the process block; control goes on."""
        await self.boot()
        self.io.transport.pauseProducing()
        folder = self.mktemp()
        os.mkdir(folder)
        progress = Path(folder, "progress").absolute()
        script = "i=0; while :; do head -c 65536 /dev/zero; i=$((i+1)); echo $i >progress; done"
        await self.run_(script, workdir=str(progress.parent))
        last, now = "", "0"
        while now != last:
            await deferLater(reactor, 0.3)
            last, now = now, progress.read_text() if progress.exists() else ""
        self.assertLess(int(progress.read_text()), 20)
        await self.agree(Code.PING)
        self.io.transport.resumeProducing()
        await self.io.until(lambda: len(self.io.got) > 5000)

    async def test_processDoesNotRead(self) -> None:
        """
        A process that does not read its stdin stops the I/O channel's, while output and control
        go on; its end lets it go on.
        """
        await self.boot()
        await self.run_("exec sleep 60")
        await self.agree(Code.EXECCMD, execcmd(args=["cat"]))
        self.stdin(*[b"x" * 4084] * 200)
        self.stdin(b"hello", number=5)
        await self.agree(Code.EXECCMD, execcmd(args=["echo", "out"], stdio=7, stderr=8))
        await self.printed(b"out", 7)
        self.assertEqual(self.io.read(5), b"")
        await self.agree(Code.KILLCONTAINER, {"container": "c", "signal": 9})
        await self.printed(b"hello", 5)


class TerminalTests(AgentTestCase):
    """Processes with a terminal."""

    async def test_terminal(self) -> None:
        """It is the process's controlling terminal, and all output comes on one number."""
        await self.boot()
        await self.run_("tty >/dev/null && echo out >/dev/tty; echo err >&2", terminal=True)
        self.assertEqual(await self.ended(), 0)
        self.assertEqual(self.io.read(3), b"out\r\nerr\r\n\0")
        self.assertEqual(self.io.read(4), b"")

    async def test_size(self) -> None:
        """winsize sets its size and tells the process."""
        for dialect in (CC, H0):
            await self.boot(dialect)
            script = "trap 'stty size' WINCH; echo up; while :; do sleep .05; done"
            await self.run_(script, terminal=True)
            await self.printed(b"up")
            await self.agree(Code.WINSIZE, {"seq": 3, "row": 33, "column": 77})
            await self.printed(b"33 77")
            await self.stop()

    async def test_interrupt(self) -> None:
        """Ctrl-C interrupts the process, and byte 4 is the end; an empty message is nothing."""
        await self.boot()
        await self.run_("trap 'echo got INT' INT; cat; cat; echo done", terminal=True)
        self.stdin(b"up\n")
        await self.printed(b"up\r\nup\r\n")
        self.stdin(b"\x03")
        await self.printed(b"got INT")
        self.stdin(b"", b"line\n")
        await self.printed(b"line\r\nline\r\n")
        self.stdin(b"\x04")
        self.assertEqual(await self.ended(), 0)
        self.assertIn(b"done", self.io.read(3))

    async def test_jobControl(self) -> None:
        """An interactive shell has job control: Ctrl-Z stops a job, fg goes on with it."""
        await self.boot()
        envs = [{"env": "PS1", "value": "$ "}]
        await self.agree(
            Code.NEWCONTAINER, newcontainer(args=["/bin/sh", "-i"], terminal=True, envs=envs)
        )
        await self.printed(b"$ ")
        self.stdin(b"cat\n")
        self.stdin(b"hello\n")
        await self.printed(b"hello\r\nhello\r\n")
        self.stdin(b"\x1a")
        await self.io.until(lambda: b"$ " in self.io.read(3).partition(b"Stopped")[2])
        self.stdin(b"fg\n")
        await self.printed(b"fg\r\ncat\r\n")
        self.stdin(b"again\n")
        await self.printed(b"again\r\nagain\r\n")
        self.stdin(b"\x04")
        self.stdin(b"exit 9\n")
        self.assertEqual(await self.ended(), 9)
        self.assertNotIn(b"job control", self.io.read(3))


class SocketTests(AgentTestCase):
    """The two sockets."""

    async def test_mode(self) -> None:
        """Only their owner may use them."""
        await self.boot()
        for path in (self.controlPath, self.ioPath):
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)

    async def test_oneAtATime(self) -> None:
        """A second connection waits, with what it sends, until the first closes."""
        await self.boot()
        first = self.control
        self.control = await self.connect(self.controlPath, CONTROL_HEADER)
        self.control.transport.write(encodeControl(Code.PING))
        first.transport.write(encodeControl(Code.PING))
        await first.until(lambda: first.got)
        self.assertEqual(self.control.got, [])
        first.transport.loseConnection()
        await self.control.until(lambda: self.control.got)
        self.assertEqual(self.control.got, [(Code.ACK, b"")])

    async def test_goneWhilePaused(self) -> None:
        """A host that goes while its channel is not read makes room for the next one."""
        await self.boot()
        await self.run_("exec sleep 60")
        self.stdin(*[b"x" * 4084] * 200)
        await self.agree(Code.PING)
        self.io.transport.abortConnection()
        self.io = await self.connect(self.ioPath, IO_HEADER)
        await self.agree(Code.EXECCMD, execcmd(args=["echo", "out"]))
        await self.printed(b"out", 5)

    async def test_outputWaits(self) -> None:
        """Output waits while nobody is connected."""
        await self.boot()
        self.io.transport.loseConnection()
        await self.io.until(lambda: self.io.closed)
        await self.run_("echo waited; exit 4")
        self.io = await self.connect(self.ioPath, IO_HEADER)
        self.assertEqual(await self.ended(), 4)
        self.assertEqual(self.io.read(3), b"waited\n\x04")

    async def test_garbage(self) -> None:
        """Garbage closes its connection, and the next one is served."""
        await self.boot()
        self.control.transport.write(b"\0" * 100)
        await self.control.until(lambda: self.control.closed)
        self.control = await self.connect(self.controlPath, CONTROL_HEADER)
        await self.agree(Code.PING)

    async def test_powerOff(self) -> None:
        """hyperstart's destroypod ends the processes, answers, and closes all."""
        await self.boot(H0)
        await self.run_("trap 'exit 2' TERM; echo up; while :; do sleep .05; done")
        await self.printed(b"up")
        await self.agree(Code.DESTROYPOD)
        await self.control.until(lambda: self.control.closed)
        await self.io.until(lambda: self.io.closed)
        self.assertFalse(os.path.exists(self.controlPath))

    async def test_restart(self) -> None:
        """Started again, the service is another VM."""
        await self.boot()
        await self.stop()
        await self.boot()

    def test_pathTaken(self) -> None:
        """A path that cannot be listened on is a clear error, and nothing stays."""
        Path(self.ioPath).write_text("not a socket")
        service = EmbeddedAgent(reactor, self.controlPath, self.ioPath)
        error = self.assertRaises(OSError, service.startService)
        self.assertIn(self.ioPath, str(error))
        self.assertFalse(os.path.exists(self.controlPath))
        os.unlink(self.ioPath)
        service = EmbeddedAgent(reactor, "/tmp/" + "x" * 110, self.ioPath)
        self.assertRaises(OSError, service.startService)

    async def test_deadSocket(self) -> None:
        """A socket left behind is replaced, a living one is not."""
        await self.boot()
        other = EmbeddedAgent(reactor, self.controlPath, self.ioPath)
        self.assertRaises(OSError, other.startService)
        await self.agree(Code.PING)
        await self.stop()
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(self.controlPath)
        await self.boot()


class MachineTests(TestCase):
    """The machine by itself."""

    def setUp(self) -> None:
        self.machine = Machine(reactor)
        self.addCleanup(self.stop)

    async def stop(self) -> None:
        await self.machine.stop()

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

"""
Tests for L{ccproxy.agent.programs} and L{ccproxy.agent.descriptors}: real processes, over real
sockets.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from hashlib import sha256
from pathlib import Path

from twisted.internet.task import deferLater

from ccproxy.test.agent.doubles import execcmd, newcontainer
from ccproxy.test.agent.host import AgentTestCase, reactor
from ccproxy.wire.codes import ControlCode, Dialect

CC, H0, H1 = Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1
Code = ControlCode


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
        """Megabytes go through a process and back unchanged."""
        await self.boot()
        await self.run_("exec cat")
        data = os.urandom(1 << 16) * 128
        self.stdin(*[data[at : at + 4084] for at in range(0, len(data), 4084)], b"")
        await self.ended()
        self.assertEqual(sha256(self.io.read(3)[:-1]).digest(), sha256(data).digest())
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

    async def test_reapedByAnother(self) -> None:
        """A process that another part of the program has reaped does not count as a success."""
        await self.boot()
        await self.run_("echo $$; exec sleep 60")
        await self.printed(b"\n")
        pid = int(self.io.read(3))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.assertEqual(await self.ended(), 255)

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

    async def test_groups(self) -> None:
        """Signals for a process group reach the children of a shell as well."""
        for dialect in (CC, H0, H1):
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGPIPE):
                await self.boot(dialect)
                await self.run_("sh -c 'echo up; exec sleep 60'; echo no", id="i")
                await self.printed(b"up")
                await self.agree(Code.KILLCONTAINER, {"container": "c", "signal": number})
                await self.io.until(lambda: (3, b"") in self.io.got)
                self.assertNotIn(b"no", self.io.read(3))
                await self.stop()

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

    async def test_erase(self) -> None:
        """The terminal erases whole characters of UTF-8."""
        await self.boot()
        await self.run_("echo up; read -r line; echo \"<$line>\"", terminal=True)
        await self.printed(b"up")
        self.stdin("a世\x7fb\n".encode())
        await self.printed(b"<ab>")

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

"""
C{ccproxyctl} as people start it, with the test as the proxy.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import tty
from collections.abc import Sequence
from typing import Any
from unittest import skipIf

from twisted.trial.unittest import SynchronousTestCase

from ...ctl import ccproxyctl
from ...testing.daemon import environment, eventually, script
from ...wire.codes import Command, FrameType, Stream
from ...wire.frames import (
    Frame,
    FrameDecoder,
    encodeFrame,
    encodeProcessExited,
    encodeStream,
)

TIMEOUT = 60.0


class Peer:
    """One connection of a tool, seen from the proxy."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(TIMEOUT)
        self._decoder = FrameDecoder()

    def next(self) -> Frame | None:
        """The next frame, or L{None} at the end."""
        while (frame := self._decoder.next()) is None:
            data = self.socket.recv(65536)
            if not data:
                return None
            self._decoder.feed(data)
        return frame

    def command(self, command: Command) -> Any:
        """Expect a command, which is answered with nothing; its payload."""
        payload = self.commandWithoutAnswer(command)
        self.answer(command)
        return payload

    def commandWithoutAnswer(self, command: Command) -> Any:
        frame = self.next()
        assert frame is not None, f"the end instead of {command.title}"
        assert (frame.type, frame.opcode) == (FrameType.COMMAND, command), frame
        return json.loads(frame.payload) if frame.payload else None

    def answer(self, command: Command, payload: bytes = b"", error: str = "") -> None:
        if error:
            payload = json.dumps({"msg": error}).encode()
        self.socket.sendall(encodeFrame(FrameType.RESPONSE, command, payload, bool(error)))

    def stdin(self) -> bytes:
        """The next frame, which is of stdin."""
        frame = self.next()
        assert frame is not None and (frame.type, frame.opcode) == (2, 0), frame
        return frame.payload

    def allStdin(self) -> bytes:
        """Stdin up to its end."""
        return b"".join(iter(self.stdin, b""))

    def signal(self) -> int:
        """Expect a signal, which is delivered."""
        number: int = self.command(Command.SIGNAL)["signalNumber"]
        return number

    def exit(self, status: int) -> None:
        """Let the process end, and the shim leave."""
        self.socket.sendall(encodeProcessExited(status))
        self.commandWithoutAnswer(Command.DISCONNECT_SHIM)
        self.socket.close()

    def out(self, data: bytes, stream: Stream = Stream.STDOUT) -> None:
        self.socket.sendall(encodeStream(stream, data))


class ToolTestCase(SynchronousTestCase):
    """Starts C{ccproxyctl} and waits for its connections."""

    def setUp(self) -> None:
        # What we ignore, a command ignores too; a shell has its background ignore SIGINT.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        folder = tempfile.mkdtemp(prefix="ccp")
        self.addCleanup(shutil.rmtree, folder)
        self.folder = folder
        self.path = os.path.join(folder, "p.sock")
        self.listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(self.listener.close)
        self.listener.bind(self.path)
        self.listener.listen()
        self.listener.settimeout(TIMEOUT)

    def accept(self) -> Peer:
        peer = Peer(self.listener.accept()[0])
        self.addCleanup(peer.socket.close)
        return peer

    def spawn(self, *words: str, **more: Any) -> subprocess.Popen[bytes]:
        """Start the command, with pipes if nothing else is asked for."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            [*script("ccproxyctl"), *words],
            **{"env": environment(CCPROXY_SOCKET=self.path, TERM="vt100"), **pipes, **more},
        )
        self.addCleanup(self.reap, process)
        return process

    def reap(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None and not pipe.closed:
                pipe.close()

    def finish(self, process: subprocess.Popen[bytes], status: int) -> tuple[bytes, bytes]:
        """Wait for the end; what there was on stdout and stderr."""
        out, err = process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, status, err)
        return out, err

    def shim(self, **more: Any) -> tuple[subprocess.Popen[bytes], Peer]:
        """A shim that has its token."""
        process = self.spawn(
            "shim", "-c", "pod", "-t", "secret", "-u", f"unix://{self.path}", **more
        )
        peer = self.accept()
        self.assertEqual(peer.command(Command.CONNECT_SHIM), {"token": "secret"})
        return process, peer

    def pty(self, rows: int = 24, columns: int = 80) -> tuple[int, int]:
        """The two ends of a terminal of this size."""
        ours, theirs = os.openpty()
        self.addCleanup(os.close, ours)
        self.addCleanup(os.close, theirs)
        resize(ours, rows, columns)
        return ours, theirs


def resize(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def isRaw(fd: int) -> bool:
    return not termios.tcgetattr(fd)[tty.LFLAG] & termios.ICANON


def pending(pid: int, number: int) -> bool:
    """Return whether a signal has been sent to a process and not been delivered yet."""
    with open(f"/proc/{pid}/status") as file:
        masks = dict(line.split(":\t", 1) for line in file)
    return bool((int(masks["SigPnd"], 16) | int(masks["ShdPnd"], 16)) >> (number - 1) & 1)


class ShimTests(ToolTestCase):
    """C{ccproxyctl shim}."""

    def test_life(self) -> None:
        process, peer = self.shim()
        assert process.stdin is not None
        process.stdin.write(b"hello")
        process.stdin.close()
        process.stdin = None
        self.assertEqual(peer.allStdin(), b"hello")
        peer.out(b"out")
        peer.out(b"err", Stream.STDERR)
        peer.exit(7)
        self.assertEqual(self.finish(process, 7), (b"out", b"err"))

    def test_refused(self) -> None:
        process = self.spawn("shim", "-c", "pod", "-t", "secret", "-u", self.path)
        peer = self.accept()
        peer.commandWithoutAnswer(Command.CONNECT_SHIM)
        peer.answer(Command.CONNECT_SHIM, error="unknown token: secret")
        out, err = self.finish(process, 125)
        self.assertEqual((out, err), (b"", b"ccproxyctl shim: unknown token: secret\n"))

    def test_dash(self) -> None:
        """Tokens may begin with a dash: any byte of the alphabet can be their first."""
        for token in ("-secret=", "--token", "-t"):
            process = self.spawn("shim", "-t", token, "-c", "pod", "-u", self.path)
            peer = self.accept()
            self.assertEqual(peer.command(Command.CONNECT_SHIM), {"token": token})
            peer.exit(4)
            self.finish(process, 4)

    @skipIf(os.getuid() == 0, "root may open any socket")
    def test_notAllowed(self) -> None:
        os.chmod(self.path, 0)
        process = self.spawn("shim", "-c", "pod", "-t", "secret", "-u", self.path)
        text = f"this user may not open the proxy's socket {self.path}"
        self.assertIn(text.encode(), self.finish(process, 125)[1])

    def test_noProxy(self) -> None:
        self.listener.close()
        for _ in range(2):
            process = self.spawn("shim", "-c", "pod", "-t", "secret", "-u", self.path)
            self.assertIn(f"no proxy answers at {self.path}".encode(), self.finish(process, 125)[1])
            if os.path.exists(self.path):
                os.unlink(self.path)

    def test_regularFiles(self) -> None:
        """Files, which epoll refuses."""
        name = os.path.join(self.folder, "file")
        data = os.urandom(100_000)
        with open(name, "wb") as file:
            file.write(data)
        with open(name, "rb") as stdin, open(name + ".out", "wb") as stdout:
            process, peer = self.shim(stdin=stdin, stdout=stdout)
        self.assertEqual(peer.allStdin(), data)
        peer.out(data[:50_000])
        peer.out(data[50_000:])
        peer.exit(0)
        self.finish(process, 0)
        with open(name + ".out", "rb") as file:
            self.assertEqual(file.read(), data)

    def test_noDescriptors(self) -> None:
        """
        Output that is closed goes nowhere, and not into what was opened instead; the proxy's log
        says so.
        """
        command = [*script("ccproxyctl"), "shim", "-c", "pod", "-t", "secret", "-u", self.path]
        process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], env=environment()
        )
        self.addCleanup(self.reap, process)
        peer = self.accept()
        peer.command(Command.CONNECT_SHIM)
        self.assertEqual(peer.allStdin(), b"")
        peer.out(b"nothing")
        frame = peer.next()
        assert frame is not None
        self.assertIn("is lost from here on", json.loads(frame.payload)["msg"])
        peer.exit(3)
        self.assertEqual(process.wait(TIMEOUT), 3)

    def test_signals(self) -> None:
        process, peer = self.shim()
        for number in (1, 2, 3, 10, 15, 18, 20, 28, 40):
            process.send_signal(number)
            if number == signal.SIGWINCH:
                # There is no terminal.
                continue
            self.assertEqual(peer.signal(), number)
        peer.exit(143)
        self.finish(process, 143)

    def test_signalRefused(self) -> None:
        """It is reported to the proxy's log, since stderr is the process's."""
        process, peer = self.shim()
        process.send_signal(signal.SIGTERM)
        peer.commandWithoutAnswer(Command.SIGNAL)
        peer.answer(Command.SIGNAL, error="not supported")
        frame = peer.next()
        assert frame is not None
        self.assertEqual(
            json.loads(frame.payload),
            {
                "source": "shim",
                "level": "warn",
                "containerId": "pod",
                "msg": "SIGTERM was not delivered: not supported",
            },
        )
        peer.exit(0)
        self.assertEqual(self.finish(process, 0), (b"", b""))

    def test_killed(self) -> None:
        """Killing the shim kills the process, also if the terminal has to be put back."""
        ours, theirs = self.pty()
        process, peer = self.shim(stdin=theirs)
        peer.command(Command.SIGNAL)
        self.assertTrue(isRaw(ours))
        process.kill()
        process.wait()
        guard = self.accept()
        self.assertEqual(guard.command(Command.CONNECT_SHIM), {"token": "secret"})
        self.assertEqual(guard.signal(), signal.SIGKILL)
        self.assertFalse(isRaw(ours))
        guard.exit(137)

    def test_slowReader(self) -> None:
        """Who does not read stdout stops us from reading the proxy; nothing is lost."""
        process, peer = self.shim()
        data = os.urandom(1 << 20)
        frames = b"".join(
            encodeStream(Stream.STDOUT, data[at : at + 1024]) for at in range(0, len(data), 1024)
        )
        peer.socket.settimeout(1)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < len(frames):
                sent += peer.socket.send(frames[sent:])
        self.assertLess(sent, len(frames))
        assert process.stdout is not None
        received = b""
        peer.socket.setblocking(False)
        while len(received) < len(data):
            received += os.read(process.stdout.fileno(), 65536)
            if sent < len(frames):
                with contextlib.suppress(BlockingIOError):
                    sent += peer.socket.send(frames[sent:])
        self.assertEqual(received, data)
        peer.socket.settimeout(TIMEOUT)
        peer.exit(0)
        self.finish(process, 0)

    def test_impatience(self) -> None:
        """When the process has ended, a signal ends the wait for a reader of its output."""
        process, peer = self.shim()
        assert process.stdout is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        peer.out(bytes(60_000))
        peer.socket.sendall(encodeProcessExited(7))
        peer.socket.settimeout(0.5)
        self.assertRaises(TimeoutError, peer.next)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(TIMEOUT), 7)

    def test_slowProxy(self) -> None:
        """A proxy that does not take stdin stops us from reading it; nothing is lost."""
        process, peer = self.shim()
        assert process.stdin is not None
        fd = process.stdin.fileno()
        os.set_blocking(fd, False)
        block = os.urandom(1 << 16)
        written = b""

        def stuck() -> bool:
            nonlocal written
            try:
                written += block[: os.write(fd, block)]
            except BlockingIOError:
                return True
            return False

        eventually(lambda: all(stuck() for _ in range(3)), "a full pipe")
        self.assertLess(len(written), 1 << 20)
        process.stdin.close()
        process.stdin = None
        self.assertEqual(peer.allStdin(), written)
        peer.exit(0)
        self.finish(process, 0)

    def test_sharedDescriptors(self) -> None:
        """Pipes that others share do not become non-blocking."""
        process, peer = self.shim()
        peer.out(b"x")
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        for fd in range(3):
            with open(f"/proc/{process.pid}/fdinfo/{fd}") as info:
                flags = int(info.read().split("flags:")[1].split()[0], 8)
            self.assertFalse(flags & os.O_NONBLOCK)
        peer.exit(0)
        self.finish(process, 0)

    def test_closedOutput(self) -> None:
        """The process gets SIGPIPE when nobody reads its output any more."""
        process, peer = self.shim()
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        peer.out(b"x")
        self.assertEqual(peer.signal(), signal.SIGPIPE)
        peer.out(b"more, for nobody")
        peer.exit(0)
        process.wait(TIMEOUT)
        self.assertEqual(process.returncode, 0)

    def test_terminal(self) -> None:
        """A terminal is raw meanwhile, its size goes to the process, and it is put back."""
        ours, theirs = self.pty(30, 100)
        self.assertFalse(isRaw(ours))
        process, peer = self.shim(stdin=theirs, stdout=theirs, stderr=theirs)
        self.assertEqual(
            peer.command(Command.SIGNAL), {"signalNumber": 28, "columns": 100, "rows": 30}
        )
        self.assertTrue(isRaw(ours))
        resize(ours, 31, 101)
        process.send_signal(signal.SIGWINCH)
        self.assertEqual(
            peer.command(Command.SIGNAL), {"signalNumber": 28, "columns": 101, "rows": 31}
        )
        os.write(ours, b"\x03")
        self.assertEqual(peer.stdin(), b"\x03")
        peer.out(b"\xff\n")
        self.assertEqual(os.read(ours, 100), b"\xff\n")
        peer.exit(7)
        self.assertEqual(process.wait(TIMEOUT), 7)
        self.assertFalse(isRaw(ours))

    def test_terminalAfterFailure(self) -> None:
        ours, theirs = self.pty()
        process = self.spawn("shim", "-c", "pod", "-t", "secret", stdin=theirs)
        self.accept().socket.close()
        self.assertIn(b"ConnectShim was not answered", self.finish(process, 125)[1])
        self.assertFalse(isRaw(ours))

    def test_reconnect(self) -> None:
        process, peer = self.shim()
        peer.socket.close()
        peer = self.accept()
        self.assertEqual(peer.command(Command.CONNECT_SHIM), {"token": "secret"})
        assert process.stdin is not None
        process.stdin.write(b"hello")
        process.stdin.flush()
        self.assertEqual(peer.stdin(), b"hello")
        peer.exit(7)
        self.finish(process, 7)

    def test_lastWords(self) -> None:
        """A proxy that closes at once loses neither output nor status, though we write to it."""
        process, peer = self.shim()
        assert process.stdin is not None
        data = os.urandom(150_000)
        frames = b"".join(
            encodeStream(Stream.STDOUT, data[at : at + 1000]) for at in range(0, len(data), 1000)
        )
        process.send_signal(signal.SIGSTOP)
        process.stdin.write(b"x" * 5000)
        process.stdin.flush()
        peer.socket.sendall(frames + encodeProcessExited(7))
        peer.socket.close()
        process.send_signal(signal.SIGCONT)
        self.assertEqual(self.finish(process, 7), (data, b""))


class RunTests(ToolTestCase):
    """C{ccproxyctl run} and C{ccproxyctl exec}."""

    def start(
        self, *words: str, tokens: Sequence[str] = ("secret",), **more: Any
    ) -> tuple[subprocess.Popen[bytes], Peer, Peer]:
        """A command whose start is not answered yet, its runtime's and its shim's connection."""
        process = self.spawn(*words, **more)
        runtime = self.accept()
        self.assertEqual(
            runtime.commandWithoutAnswer(Command.ATTACH_VM),
            {"containerId": "demo", "numIOStreams": 1},
        )
        io = {"io": {"url": "unix:///elsewhere", "tokens": list(tokens)}}
        runtime.answer(Command.ATTACH_VM, json.dumps(io).encode())
        shim = self.accept()
        self.assertEqual(shim.command(Command.CONNECT_SHIM), {"token": "secret"})
        return process, runtime, shim

    def test_run(self) -> None:
        words = ("--env", "A=b=c", "-e", "TERM", "--workdir", "/tmp", "--id", "box")
        process, runtime, shim = self.start("run", *words, "--", "cat", "--", "-n")
        self.assertEqual(
            runtime.command(Command.HYPER),
            {
                "hyperName": "newcontainer",
                "tokens": ["secret"],
                "data": {
                    "id": "box",
                    "image": "box",
                    "rootfs": "rootfs",
                    "process": {
                        "args": ["cat", "--", "-n"],
                        "terminal": False,
                        "envs": [
                            {
                                "env": "PATH",
                                "value": "/usr/local/sbin:/usr/local/bin:"
                                "/usr/sbin:/usr/bin:/sbin:/bin",
                            },
                            {"env": "A", "value": "b=c"},
                            {"env": "TERM", "value": "vt100"},
                        ],
                        "workdir": "/tmp",
                    },
                },
            },
        )
        self.assertIsNone(runtime.next())
        shim.out(b"out")
        shim.exit(7)
        cleaner = self.accept()
        self.assertEqual(cleaner.command(Command.ATTACH_VM)["containerId"], "demo")
        removal = cleaner.commandWithoutAnswer(Command.HYPER)
        self.assertEqual(removal["hyperName"], "removecontainer")
        self.assertEqual(removal["data"], {"container": "box"})
        error = "ERROR received from VM agent, control msg received : "
        cleaner.answer(Command.HYPER, error=error)
        self.assertEqual(self.finish(process, 7), (b"out", b""))

    def test_notRemoved(self) -> None:
        """A container that can't be removed is worth a word."""
        process, runtime, shim = self.start("run", "true")
        runtime.command(Command.HYPER)
        shim.exit(7)
        cleaner = self.accept()
        cleaner.command(Command.ATTACH_VM)
        cleaner.commandWithoutAnswer(Command.HYPER)
        cleaner.answer(Command.HYPER, error="it is running")
        self.assertIn(b"may be left in the VM 'demo': it is running", self.finish(process, 7)[1])

    def test_terminal(self) -> None:
        """With C{--tty}, the terminal is raw, and its size and kind go along."""
        ours, theirs = self.pty()
        process, runtime, shim = self.start("exec", "--tty", "box", "sh", "-i", stdin=theirs)
        start = runtime.command(Command.HYPER)
        self.assertEqual(start["hyperName"], "execcmd")
        self.assertEqual(start["data"]["container"], "box")
        self.assertTrue(start["data"]["process"]["terminal"])
        self.assertIn({"env": "TERM", "value": "vt100"}, start["data"]["process"]["envs"])
        self.assertEqual(shim.command(Command.SIGNAL)["columns"], 80)
        eventually(lambda: isRaw(ours), "a raw terminal")
        shim.exit(0)
        self.finish(process, 0)
        self.assertFalse(isRaw(ours))

    def test_cookedTerminal(self) -> None:
        """Without C{--tty} the terminal stays as it is."""
        ours, theirs = self.pty()
        process, runtime, shim = self.start("exec", "box", "cat", stdin=theirs)
        runtime.command(Command.HYPER)
        shim.command(Command.SIGNAL)
        self.assertFalse(isRaw(ours))
        shim.exit(0)
        self.finish(process, 0)

    def test_terminalWithoutOurs(self) -> None:
        """A terminal for the process, but not for us: the end of stdin is what a key would be."""
        process, runtime, shim = self.start("exec", "-t", "box", "sh", stdin=subprocess.DEVNULL)
        runtime.command(Command.HYPER)
        self.assertEqual(shim.allStdin(), b"\x04")
        shim.exit(0)
        self.finish(process, 0)

    def test_unknownVM(self) -> None:
        process = self.spawn("run", "--vm", "other", "true")
        runtime = self.accept()
        runtime.commandWithoutAnswer(Command.ATTACH_VM)
        runtime.answer(Command.ATTACH_VM, error="unknown containerID: other")
        _, err = self.finish(process, 125)
        self.assertIn(f"the proxy at {self.path} knows no VM 'other'".encode(), err)

    def test_startFails(self) -> None:
        """A start that fails leaves nothing behind, also if the status of a lost VM comes first."""
        process, runtime, shim = self.start("run", "--", "nothing")
        runtime.commandWithoutAnswer(Command.HYPER)
        runtime.answer(Command.HYPER, error="no such program")
        shim.commandWithoutAnswer(Command.DISCONNECT_SHIM)
        shim.socket.close()
        self.assertEqual(
            self.finish(process, 125)[1],
            b"ccproxyctl run: nothing could not be started: no such program\n",
        )

    def test_noImage(self) -> None:
        """A start that finds no image says how to name one, unless one was named."""
        for words, advised in (((), True), (("--image", "box"), False)):
            process, runtime, shim = self.start("run", "--id", "box", *words, "sh")
            runtime.commandWithoutAnswer(Command.HYPER)
            runtime.answer(Command.HYPER, error="no folder 'box/rootfs' in what the host shares")
            shim.commandWithoutAnswer(Command.DISCONNECT_SHIM)
            shim.socket.close()
            err = self.finish(process, 125)[1]
            self.assertEqual(b"such as: --image busybox" in err, advised, err)

    def test_startFailsWithoutReason(self) -> None:
        process, runtime, shim = self.start("run", "--", "nothing")
        runtime.commandWithoutAnswer(Command.HYPER)
        runtime.answer(Command.HYPER, error="control msg received : ")
        shim.commandWithoutAnswer(Command.DISCONNECT_SHIM)
        shim.socket.close()
        self.assertIn(b": nothing; is its pod started", self.finish(process, 125)[1])

    def test_signalRefusedTwice(self) -> None:
        """A process that gets no signals can be left."""
        process, runtime, shim = self.start("exec", "box", "sleep", "9")
        runtime.command(Command.HYPER)
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            shim.commandWithoutAnswer(Command.SIGNAL)
            shim.answer(Command.SIGNAL, error="not supported")
        shim.commandWithoutAnswer(Command.DISCONNECT_SHIM)
        shim.socket.close()
        _, err = self.finish(process, 143)
        self.assertIn(b"SIGTERM was not delivered: not supported", err)

    def test_interruptedTwice(self) -> None:
        """The first Ctrl-C is the process's; the second ends the command, started or not."""
        for started in (False, True):
            process, runtime, shim = self.start("run", "sleep", "9")
            if started:
                runtime.command(Command.HYPER)
            process.send_signal(signal.SIGINT)
            self.assertEqual(shim.signal(), signal.SIGINT)
            process.send_signal(signal.SIGINT)
            shim.command(Command.DISCONNECT_SHIM)
            shim.socket.close()
            out, err = self.finish(process, 130)
            said = b"ccproxyctl: ended by a second Ctrl-C; the process in the VM may run on\n"
            self.assertEqual((out, err), (b"", said))

    def test_interruptedWithoutAnswers(self) -> None:
        """Two Ctrl-C end a command that a proxy leaves without any answer."""
        process = self.spawn("run", "--tty", "sleep", "9")
        runtime = self.accept()
        runtime.commandWithoutAnswer(Command.ATTACH_VM)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            eventually(lambda: not pending(process.pid, signal.SIGINT), "the signal is taken")
        self.finish(process, 130)

    def test_interruptedReader(self) -> None:
        """A process that has ended is not reported as one that may run on."""
        process, runtime, shim = self.start("run", "cat")
        runtime.command(Command.HYPER)
        assert process.stdout is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        shim.out(bytes(60_000))
        process.send_signal(signal.SIGINT)
        self.assertEqual(shim.signal(), signal.SIGINT)
        shim.socket.sendall(encodeProcessExited(7))
        shim.socket.settimeout(0.5)
        self.assertRaises(TimeoutError, shim.next)
        process.send_signal(signal.SIGINT)
        # It removes the container, which no proxy answers.
        self.listener.close()
        self.assertNotIn(b"may run on", self.finish(process, 7)[1])

    def test_variables(self) -> None:
        """A process with a terminal gets what tells of ours, if it can be trusted; -e wins."""
        given = {
            "LANG": "de_DE.UTF-8",
            "LC_CTYPE": "x" * 257,
            "LC_TIME": "a\nb",
            "LC_ALL": "C.UTF-8",
            "LC_NAME": "\udcff",
            "LC_x": "no",
            "COLORTERM": "truecolor",
            "SECRET": "no",
        }
        for option, expected in (
            ("--tty", {"TERM": "vt100", "LANG": "de_DE.UTF-8", "COLORTERM": "truecolor"}),
            ("--env=A=b", {"A": "b"}),
        ):
            process, runtime, shim = self.start(
                *("exec", option, "-e", "LC_ALL=C", "box", "sh"),
                env={**self.clean(), **given},
                stdin=subprocess.DEVNULL,
            )
            envs = runtime.command(Command.HYPER)["data"]["process"]["envs"]
            found = {each["env"]: each["value"] for each in envs}
            del found["PATH"]
            self.assertEqual(found, {**expected, "LC_ALL": "C"})
            shim.allStdin()
            shim.exit(0)
            self.finish(process, 0)

    def clean(self) -> dict[str, str]:
        """The environment of a command without any locale."""
        return {
            name: value
            for name, value in environment(CCPROXY_SOCKET=self.path, TERM="vt100").items()
            if name not in ("LANG", "COLORTERM") and not name.startswith("LC_")
        }

    def test_ignoredSignals(self) -> None:
        """What our starter ignores is not forwarded, and Ctrl-Z stays with us."""
        words = [*script("ccproxyctl"), "exec", "box", "cat"]
        process = subprocess.Popen(
            ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *words],
            env=environment(CCPROXY_SOCKET=self.path),
            stdin=subprocess.DEVNULL,
            # SIGTSTP stops nobody in a group that has lost its shell, as ours may have.
            process_group=0,
        )
        self.addCleanup(self.reap, process)
        runtime = self.accept()
        runtime.commandWithoutAnswer(Command.ATTACH_VM)
        runtime.answer(Command.ATTACH_VM, b'{"io": {"tokens": ["secret"]}}')
        shim = self.accept()
        shim.command(Command.CONNECT_SHIM)
        runtime.command(Command.HYPER)
        self.assertEqual(shim.allStdin(), b"")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(shim.signal(), signal.SIGTERM)
        process.send_signal(signal.SIGTSTP)
        eventually(lambda: self.state(process.pid) == "T", "a stopped process")
        process.send_signal(signal.SIGCONT)
        self.assertEqual(shim.signal(), signal.SIGCONT)
        shim.exit(0)
        self.assertEqual(process.wait(TIMEOUT), 0)

    def state(self, pid: int) -> str:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0]


#: A command that ends with 7 when a signal that interrupts another thread is handled.
_OTHER_THREAD = """
import signal, sys, threading
from twisted.internet.defer import Deferred
from ccproxy.ctl.running import runReactor
from ccproxy.shim.signals import Catching
async def work(reactor):
    handled = Deferred()
    def caught(number):
        reactor.callFromThread(handled.callback, 7)
    def raiseSoon():
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    with Catching([signal.SIGUSR1], caught):
        # By then the main thread waits for events.
        threading.Timer(0.5, raiseSoon).start()
        return await handled
sys.exit(runReactor("test", work))
"""


class NumberTests(SynchronousTestCase):
    """Numbers on the command line."""

    def test_refused(self) -> None:
        """A number that no command can use is refused as a bad word, without a traceback."""
        for words in (
            ["supervise", "--capacity", "{}", "--", "true"],
            ["events", "--count", "{}"],
            ["vm", "start", "--memory", "{}", "x"],
            ["vm", "stop", "--timeout", "{}", "x"],
            ["stop", "--timeout", "{}"],
            ["restart", "--timeout", "{}"],
        ):
            for number in ("-1", "nan", "inf", "x", "9" * 30, "9" * 5000):
                stderr = io.StringIO()
                with contextlib.redirect_stderr(stderr), self.assertRaises(SystemExit) as caught:
                    ccproxyctl.main([word.format(number) for word in words])
                self.assertEqual(caught.exception.code, 2)
                self.assertIn(number, stderr.getvalue())


class CommandLineTests(SynchronousTestCase):
    """What is on the command line."""

    def ctl(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*script("ccproxyctl"), *words],
            env=environment(**env),
            check=False,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            stdin=subprocess.DEVNULL,
        )

    def test_help(self) -> None:
        result = self.ctl("--help")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        for command in ("run", "exec", "shim"):
            self.assertIn(f"\n  {command} ", result.stdout)
            more = self.ctl(command, "--help")
            self.assertEqual((more.returncode, more.stderr), (0, ""))

    def test_lightness(self) -> None:
        """No command line needs a reactor before it is understood."""
        code = (
            "import sys; from ccproxy.ctl import ccproxyctl, run, exec, shim;"
            "sys.exit('twisted.internet.reactor' in sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], env=environment(), check=True)

    def test_signalInThread(self) -> None:
        """A signal is handled at once, whichever thread it has interrupted."""
        command = [sys.executable, "-c", _OTHER_THREAD]
        result = subprocess.run(command, env=environment(), check=False, timeout=TIMEOUT)
        self.assertEqual(result.returncode, 7)

    def test_version(self) -> None:
        self.assertRegex(self.ctl("--version").stdout, r"^ccproxyctl \d")

    def test_mistakes(self) -> None:
        for words, text in (
            ([], "required: command"),
            (["fly"], "invalid choice: 'fly'"),
            (["run"], "which program?"),
            (["run", "--"], "which program?"),
            (["run", "--env", "=x", "true"], "names no variable"),
            (["run", "--env", "CCPROXY_NONE", "true"], "CCPROXY_NONE is not set here"),
            (["run", "--url", "tcp://x", "true"], "give unix://PATH or a path"),
            (["exec"], "required: CONTAINER"),
            (["shim", "-c", "pod"], "required: -t/--token"),
        ):
            result = self.ctl(*words)
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn(text, result.stderr)

    def test_badAddressInEnvironment(self) -> None:
        result = self.ctl("run", "true", CCPROXY_SOCKET="tcp://x")
        self.assertEqual(result.returncode, 2)
        self.assertIn("'tcp://x' does not name a UNIX socket", result.stderr)

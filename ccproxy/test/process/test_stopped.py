"""
P21 on real processes that are stopped while their deadlines pass: what came in time counts.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ...testing.agent import ScriptedAgent
from ...testing.client import BlockingClient, hyperPayload, registration, success
from ...testing.daemon import Daemon, environment, eventually, isIdle, script
from ...wire.codes import Command, ControlCode, Dialect, FrameType, Notification, hyperCode
from ...wire.frames import encodeFrame
from ..processes import DaemonTestCase, PlayedVM, Running

#: Seconds of the deadlines that can be configured: all waits must begin within this time. A machine
#: that is too busy for the first gets the next.
DEADLINES = (8, 60)
OPTIONS = (
    "ready-timeout", "command-timeout", "shim-timeout", "process-timeout", "exit-timeout",
    "undelivered-timeout", "absent-timeout", "stalled-warning", "stop-timeout",
)  # fmt: skip
#: Bytes that a process writes: more than its session and the sockets hold.
MUCH = 1 << 20
NEWCONTAINER = hyperCode("newcontainer", Dialect.UNKNOWN)


def stop(pid: int) -> None:
    """Stop a process, as SIGSTOP does."""
    os.kill(pid, signal.SIGSTOP)
    stat = Path(f"/proc/{pid}/stat")
    eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "it is stopped")


#: What happens to one wait, in four parts: what is there before, how the wait begins, what comes
#: while the daemon is stopped, and what follows.
Story = Iterator[None]


class DaemonTests(DaemonTestCase):
    """The daemon's deadlines."""

    def played(self, daemon: Daemon, dialect: Dialect = Dialect.CC) -> PlayedVM:
        """A VM of its own, with a token."""
        self.count += 1
        name = f"vm{self.count}"
        agent = ScriptedAgent(daemon.directory, name, dialect, timeout=60)
        self.addCleanup(agent.close)
        client = self.client(daemon)
        tokens = client.registerVM(name, agent, 1)
        return PlayedVM(lambda: self.client(daemon), name, agent, client, tokens)

    def says(self, process: Running) -> threading.Thread:
        """Have a process write much, for as long as that takes."""

        def say() -> None:
            for _ in range(MUCH >> 12):
                process.say(bytes(1 << 12))

        thread = threading.Thread(target=say)
        thread.start()
        self.addCleanup(thread.join)
        return thread

    def claims(self, vm: PlayedVM) -> BlockingClient:
        """A shim that asks for the token, and does not wait for the answer."""
        shim = vm.connect()
        shim.command(Command.CONNECT_SHIM, {"token": vm.tokens[0]})
        return shim

    def ready(self, daemon: Daemon) -> Story:
        agent, client = ScriptedAgent(daemon.directory, "late", ready=()), self.client(daemon)
        self.addCleanup(agent.close)
        agent.answers[ControlCode.PING] = None
        yield
        client.command(Command.REGISTER_VM, registration("late", agent))
        agent.waitConnected()
        yield
        agent.sendControl(ControlCode.READY)
        yield
        success(client.response(Command.REGISTER_VM))
        self.assertEqual(agent.commands(), [])

    def command(self, daemon: Daemon) -> Story:
        vm = self.played(daemon)
        vm.agent.answers[ControlCode.PING] = None
        yield
        vm.client.command(Command.HYPER, hyperPayload("ping", {}))
        vm.agent.command(ControlCode.PING)
        yield
        vm.agent.sendControl(ControlCode.ACK, b"in time")
        yield
        self.assertEqual(success(vm.client.response(Command.HYPER)), b"in time")

    def shim(self, daemon: Daemon) -> Story:
        vm = self.played(daemon)
        yield
        vm.startLater()
        yield
        shim = self.claims(vm)
        yield
        success(shim.response(Command.CONNECT_SHIM))
        success(vm.client.response(Command.HYPER))

    def heldSignal(self, daemon: Daemon) -> Story:
        vm = self.played(daemon)
        vm.agent.answers[NEWCONTAINER] = None
        shim = vm.shim()
        yield
        vm.startLater()
        vm.agent.command(NEWCONTAINER)
        shim.command(Command.SIGNAL, {"signalNumber": int(signal.SIGUSR1)})
        yield
        vm.agent.sendControl(ControlCode.ACK)
        yield
        success(vm.client.response(Command.HYPER))
        success(shim.response(Command.SIGNAL))

    def lastOutput(self, daemon: Daemon) -> Story:
        process = self.played(daemon, Dialect.HYPERSTART1).start()
        yield
        process.vm.agent.sendEvent(process.container, "init", 7)
        yield
        process.say(b"last words")
        process.vm.agent.sendIO(process.number)
        yield
        self.assertEqual(process.shim.untilExit().stdout, b"last words")

    def undelivered(self, daemon: Daemon) -> Story:
        process = self.played(daemon).start()
        process.shim.close()
        process.say(b"last words")
        process.exit(7)
        yield
        process.vm.agent.hangUp()
        yield
        shim = self.claims(process.vm)
        yield
        success(shim.response(Command.CONNECT_SHIM))
        output = shim.untilExit()
        self.assertEqual((output.stdout, output.status), (b"last words", 7))

    def absentShim(self, daemon: Daemon) -> Story:
        process = self.played(daemon).start()
        process.shim.close()
        yield
        saying = self.says(process)
        daemon.waitLog(f"event=backpressure-on vm={process.vm.id} ")
        yield
        shim = self.claims(process.vm)
        yield
        success(shim.response(Command.CONNECT_SHIM))
        self.takesAll(process, shim, saying)

    def stalledShim(self, daemon: Daemon) -> Story:
        process = self.played(daemon).start()
        yield
        saying = self.says(process)
        daemon.waitLog(f"event=backpressure-on vm={process.vm.id} ")
        yield
        while process.shim.read(0):
            pass
        yield
        self.takesAll(process, process.shim, saying)

    def takesAll(self, process: Running, shim: BlockingClient, saying: threading.Thread) -> None:
        """Receive all that the process writes."""

        def end() -> None:
            saying.join()
            process.exit(7)

        ending = threading.Thread(target=end)
        ending.start()
        output = shim.untilExit()
        ending.join()
        self.assertEqual((len(output.stdout), output.status), (MUCH, 7))

    def drain(self, daemon: Daemon) -> Story:
        vm = self.played(daemon)
        vm.agent.answers[ControlCode.PING] = None
        vm.client.command(Command.HYPER, hyperPayload("ping", {}))
        vm.agent.command(ControlCode.PING)
        yield
        daemon.process.terminate()
        daemon.waitLog("SIGTERM: stopping")
        yield
        vm.agent.sendControl(ControlCode.ACK, b"in time")
        yield
        self.assertEqual(success(vm.client.response(Command.HYPER)), b"in time")
        self.assertEqual(daemon.wait(), 0)

    def test_inTime(self) -> None:
        """P21: each deadline is judged after all input that had come was read."""
        self.count = 0
        if not any(map(self.told, DEADLINES)):
            self.fail("the machine is too busy")

    def told(self, deadline: float) -> bool:
        """
        Tell all stories.

        @param deadline: when each wait must be over, in seconds.
        @return: whether all of them had begun by then.
        """
        stories: list[tuple[Callable[[Daemon], Story], ...]] = [
            (self.ready, self.command, self.shim, self.heldSignal, self.lastOutput,
             self.undelivered, self.absentShim, self.stalledShim),
            (self.drain,),
        ]  # fmt: skip
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        lines = [f"{option} = {deadline}" for option in OPTIONS]
        lines += ["session-buffer = 65536", f'stalled-shim = "drop-after={deadline}"']
        lines += ['log-level = "debug"', 'log-format = "logfmt"']
        (folder / "config").write_text("\n".join(lines))
        config = str(folder / "config")
        running: list[tuple[str, Story]] = []
        daemons = []
        for told in stories:
            for daemon in (Daemon("-config", config), Daemon.byTwistd("--config", config)):
                daemons.append(self.cleared(daemon).start())
                running += [(story.__name__, story(daemon)) for story in told]
        for _, story in running:
            next(story)
        began = time.monotonic()
        for _, story in running:
            next(story)
        for daemon in daemons:
            eventually(daemon.isIdle, "it has seen all")
            stop(daemon.pid)
        end = time.monotonic() + deadline
        if end - began >= 2 * deadline:
            return False
        for _, story in running:
            next(story)
        time.sleep(max(0.0, end - time.monotonic()))
        for daemon in daemons:
            os.kill(daemon.pid, signal.SIGCONT)
        failures = []
        for name, story in running:
            try:
                next(story, None)
            except AssertionError as error:
                failures.append(f"{name}: {error}")
        self.assertEqual(failures, [])
        return True


class CommandTests(DaemonTestCase):
    """The deadlines of C{ccproxyctl}."""

    def setUp(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)

    def asking(self, *words: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """A command, and its connection to a daemon, on which it waits for an answer."""
        path = os.path.join(self.folder, words[0])
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            listening.listen()
            listening.settimeout(60)
            process = subprocess.Popen(
                [*script("ccproxyctl"), *words],
                env=environment(CCPROXY_SOCKET=path, CCPROXY_ADMIN_SOCKET=path),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            self.addCleanup(process.communicate)
            self.addCleanup(process.kill)
            connection = listening.accept()[0]
        self.addCleanup(connection.close)
        connection.settimeout(60)
        connection.recv(4096)
        eventually(lambda: isIdle(process.pid), "it waits")
        stop(process.pid)
        return process, connection

    def test_inTime(self) -> None:
        """P21: answers that have come in time count."""
        from ...ctl.adminclient import ANSWER_TIMEOUT
        from ...shim.attending import CLAIM_TIMEOUT

        status, admin = self.asking("vms")
        shim, proxy = self.asking("shim", "-c", "c", "-t", "token")
        body = b"[]"
        admin.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body), body)
        )
        answer = encodeFrame(FrameType.RESPONSE, Command.CONNECT_SHIM)
        exited = encodeFrame(FrameType.NOTIFICATION, Notification.PROCESS_EXITED, b"\7")
        proxy.sendall(answer + exited)
        proxy.shutdown(socket.SHUT_WR)
        time.sleep(max(ANSWER_TIMEOUT, CLAIM_TIMEOUT))
        for process, expected in ((status, 0), (shim, 7)):
            os.kill(process.pid, signal.SIGCONT)
            self.assertEqual(process.wait(60), expected)

"""
Restarts of the real daemon that nobody notices: docs/reliability.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from ccproxy.core.snapshot import HEADER, Snapshot, seal
from ccproxy.core.states import SessionState
from ccproxy.core.writing import write
from ccproxy.net.passed import PREFIX, inodeOf
from ccproxy.persist.restarting import WORKING_DESCRIPTORS
from ccproxy.persist.state import HandoverForm
from ccproxy.testing.agent import ScriptedAgent
from ccproxy.testing.client import BlockingClient, commandFrame, hyperPayload, registration
from ccproxy.testing.daemon import Daemon, environment, eventually, script
from ccproxy.wire.codes import Command, ControlCode, FrameType, Stream
from ccproxy.wire.frames import encodeFrame, encodeStream
from ccproxy.wire.messages import encodeControl, encodeIO

from ..adminhttp import Admin
from ..memory import World
from ..processes import DaemonTestCase
from .restartload import SIGUSR1, Load

#: How often the load test restarts: make restart-test does it more often.
KILLS = int(os.environ.get("CCPROXY_KILLS", "5"))
RESTARTS = int(os.environ.get("CCPROXY_RESTARTS", "5"))
#: Processes in its VMs.
SESSIONS = int(os.environ.get("CCPROXY_RESTART_SESSIONS", "20"))
#: Seconds until each of them has had an answer, which is the load's own business.
PATIENCE = 60.0 + SESSIONS


def supervised(*options: str, before: str = "") -> Daemon:
    """
    A daemon with a supervisor: its process is the supervisor's.

    @param before: what a shell does before it becomes the supervisor.
    """
    twistd = [*script("twistd"), "-n", "--pidfile=", "ccproxy", "--socket-path", "{socket}"]
    begin = [*script("ccproxyctl"), "supervise", "--", *twistd]
    return Daemon(*options, command=[*shell(before), *begin])


def shell(before: str) -> list[str]:
    """How a command line begins that runs a shell's command before the rest of it."""
    return ["sh", "-c", f'{before} exec "$@"', "sh"] if before else []


def isRunning(pid: int) -> bool:
    """Return whether a process exists, zombies included."""
    return os.path.exists(f"/proc/{pid}")


class RestartCase(DaemonTestCase):
    """A test with a supervised daemon."""

    def setUp(self) -> None:
        """Start it."""
        self.daemon = self.cleared(supervised()).start()
        self.addCleanup(self.end)
        self.daemon.waitLog("event=started")
        self.pauses: list[float] = []

    def end(self) -> None:
        """End it in order."""
        if self.daemon.isAlive():
            self.assertEqual(self.daemon.stop(), 0)

    def count(self, event: str) -> int:
        """How often the log has an event."""
        return self.daemon.log().count(f"event={event}")

    def restart(self) -> None:
        """Ask for a restart."""
        self.daemon.process.send_signal(signal.SIGUSR2)

    def restarted(self, times: int = 1) -> None:
        """Wait until the daemon has restarted so often."""
        eventually(lambda: self.count("started") > times, "a restart", 60)


    def children(self) -> list[int]:
        """The daemon, whose parent is the supervisor, unless there is none for a moment."""
        supervisor = self.daemon.pid
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        return [int(child) for child in children]

    def kill(self) -> int:
        """Kill the daemon."""
        (child,) = eventually(self.children, "a daemon")
        os.kill(child, signal.SIGKILL)
        return int(child)

    def again(self, load: Load, times: int) -> None:
        """Wait until another daemon serves, and note how long that has taken."""
        began = time.monotonic()
        load.run(lambda: self.count("started") > times)
        self.pauses.append(time.monotonic() - began)

    def pause(self) -> str:
        """How long the pauses were."""
        ordered = sorted(self.pauses)
        return f"without a daemon for {ordered[len(ordered) // 2]:.2f} s, at most {ordered[-1]:.2f}"


class PlannedRestartTests(RestartCase):
    """Planned restarts."""

    def test_load(self) -> None:
        """Streams both ways, commands and signals go on as if nothing had happened."""
        vms = max(1, SESSIONS // 5)
        load = Load(self.daemon.directory, self.daemon.path, vms, SESSIONS // vms)
        self.addCleanup(load.close)
        for nth in range(RESTARTS):
            began = time.monotonic()
            load.run(lambda: time.monotonic() > began + 0.3)  # noqa: B023
            self.restart()
            self.again(load, nth + 1)
        load.run(lambda: all(peer.answers > RESTARTS for peer in load.peers), PATIENCE)
        load.finish()
        self.assertEqual(load.problems(), [])
        processes = load.processes()
        for shim in load.shims:
            self.assertEqual(processes[shim.session].stdin.next, shim.sent)
            self.assertTrue(processes[shim.session].stdin.ended)
            self.assertEqual(processes[shim.session].signals, shim.signals)
        self.assertEqual(self.count("resumed"), RESTARTS)
        output = sum(sum(process.sent) for process in processes.values()) * 16
        stdin = sum(shim.sent for shim in load.shims) * 16
        print(
            f"{RESTARTS} restarts, {len(load.shims)} sessions, {self.pause()}: {output >> 20} MiB"
            f" of output, {stdin >> 20} of stdin, {sum(r.answers for r in load.runtimes)} commands,"
            f" {sum(shim.signals for shim in load.shims)} signals, nothing different"
        )


class SmallRestartTests(RestartCase):
    """What is under way at a planned restart, one by one."""

    def restartNow(self) -> None:
        """Restart, and wait for the next daemon."""
        before = self.count("started")
        self.restart()
        eventually(lambda: self.count("started") > before, "a restart", 60)

    def test_command(self) -> None:
        """A command under way gets its answer from the next process, and so do those behind it."""
        vm = self.vm(self.daemon)
        vm.agent.answers[ControlCode.PING] = None
        vm.client.command(Command.HYPER, hyperPayload("ping", 1))
        vm.client.command(Command.HYPER, hyperPayload("ping", 2))
        vm.agent.command(ControlCode.PING)
        self.restartNow()
        vm.agent.sendControl(ControlCode.ACK, b"one")
        vm.agent.command(ControlCode.PING, 1)
        vm.agent.sendControl(ControlCode.ACK, b"two")
        answers = [vm.client.response(Command.HYPER).payload for _ in range(2)]
        self.assertEqual(answers, [b"one", b"two"])

    def test_registration(self) -> None:
        """A registration that waits for READY goes on waiting."""
        agent = ScriptedAgent(self.daemon.directory, ready=())
        self.addCleanup(agent.close)
        client = self.client(self.daemon)
        client.command(Command.REGISTER_VM, registration("vm", agent, 1))
        agent.waitConnected()
        self.restartNow()
        agent.sendControl(ControlCode.READY)
        self.assertFalse(client.response(Command.REGISTER_VM).error)

    def test_waits(self) -> None:
        """A start that waits for its shim, and a signal that waits for the start, go on waiting."""
        vm = self.vm(self.daemon, 2)
        vm.startLater(0)
        early = vm.shim(1)
        early.command(Command.SIGNAL, {"signalNumber": SIGUSR1})
        early.stdin(b"early")
        self.restartNow()
        shim = vm.shim(0)
        self.assertFalse(vm.client.response(Command.HYPER).error)
        vm.start(1, shim=early, container="second")
        early.response(Command.SIGNAL)
        data = vm.agent.data(ControlCode.KILLCONTAINER)
        self.assertEqual(data, {"container": "second", "signal": SIGUSR1})
        self.assertEqual(vm.agent.stdin(5, 5), b"early")
        vm.agent.exit(3, 4)
        self.assertEqual(shim.untilExit().status, 4)

    def test_halfFrames(self) -> None:
        """Frames and messages of which only a part has come are taken up where they end."""
        process = self.vm(self.daemon).start()
        vm, big = process.vm, b"x" * 200_000
        stdin = encodeFrame(FrameType.STREAM, Stream.STDIN, b"typed")
        command = commandFrame(Command.HYPER, hyperPayload("ping", big.decode()))
        output, answer = encodeIO(3, b"said"), encodeControl(ControlCode.ACK, b"answer")
        vm.agent.answers[ControlCode.PING] = None
        vm.attach().command(Command.HYPER, hyperPayload("ping"))
        vm.agent.command(ControlCode.PING)
        ends = [
            (process.shim.send, stdin, 3),
            (vm.client.send, command, 150_000),
            (vm.agent.io.write, output, 14),
            (vm.agent.control.write, answer, 9),
        ]
        for send, data, cut in ends:
            send(data[:cut])
        time.sleep(0.1)  # so that the daemon has it, and not only its sockets
        self.restartNow()
        for send, data, cut in ends:
            send(data[cut:])
        self.assertEqual(vm.agent.stdin(3, 5), b"typed")
        self.assertEqual(process.shim.output(Stream.STDOUT, 4), b"said")
        self.assertEqual(vm.agent.data(ControlCode.PING, 1), big.decode())

    def test_undelivered(self) -> None:
        """What a shim has not read, and what waits for one that comes back, is there."""
        first = self.vm(self.daemon, 2).start()
        second = first.vm.start(1)
        second.shim.close()
        self.daemon.waitLog("event=shim-gone")
        sent = b"".join(b"%08d" % n for n in range(100_000))
        for at in range(0, len(sent), 1000):
            first.say(sent[at : at + 1000])
        second.say(b"for later")
        second.exit(9)
        self.restartNow()
        shim = first.vm.shim(1)
        output = shim.untilExit()
        self.assertEqual((output.stdout, output.status), (b"for later", 9))
        self.assertEqual(first.shim.output(Stream.STDOUT, len(sent)), sent)

    def test_meanwhile(self) -> None:
        """Who connects while there is no daemon is served by the next one."""
        vm = self.vm(self.daemon)
        self.restart()
        self.daemon.waitLog("event=handed-over")
        client = self.client(self.daemon)
        self.assertEqual(client.attachVM("vm"), [])
        vm.usable()

    def test_console(self) -> None:
        """The connection to a console stays, and what it has said; a crash forgets that."""
        admin = Admin(f"{self.daemon.path}.admin")
        url = "/v1/vms/1/console"
        path = os.path.join(self.daemon.directory, "console")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            agent = ScriptedAgent(self.daemon.directory)
            self.addCleanup(agent.close)
            self.client(self.daemon).registerVM("vm", agent, console=path)
            console = listener.accept()[0]
            with console:
                console.sendall(b"booting\n")
                eventually(lambda: admin.ask("GET", url).body, "the console's words")
                self.restartNow()
                self.assertEqual(admin.ask("GET", url).body, b"booting\n")
                console.settimeout(0.3)
                self.assertRaises(TimeoutError, console.recv, 1)
                console.sendall(b"panic\n")
                eventually(lambda: b"panic" in admin.ask("GET", url).body, "its last words")
                self.restartNow()
                self.assertEqual(admin.ask("GET", url).body, b"booting\npanic\n")
                before = self.count("started")
                self.kill()
                eventually(lambda: self.count("started") > before, "a daemon", 20)
                self.assertEqual(admin.ask("GET", url).body, b"")

    def test_socketFile(self) -> None:
        """The socket's file stays while there is no daemon, and goes with the last one."""
        before = os.stat(self.daemon.path).st_ino
        self.restartNow()
        self.assertEqual(os.stat(self.daemon.path).st_ino, before)
        self.assertEqual(self.daemon.stop(), 0)
        self.assertFalse(os.path.exists(self.daemon.path))

    def test_atOnce(self) -> None:
        """Of restarts at the same time each reports the new daemon, and nothing is lost."""
        vm = self.vm(self.daemon)
        command = [*script("ccproxyctl"), "restart", "--admin-socket", f"{self.daemon.path}.admin"]
        asking = [
            subprocess.Popen(
                command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            for _ in range(4)
        ]
        for process in asking:
            said = process.communicate(timeout=120)[0].decode()
            self.assertEqual(process.returncode, 0, said)
            self.assertIn("The daemon has restarted: pid ", said)
        vm.usable()

    def test_lostFile(self) -> None:
        """
        P17: the next daemon makes the client socket again if its file was removed, renamed or
        replaced, and serves those who had connected before.
        """
        vm = self.vm(self.daemon)
        path = self.daemon.path

        def replace() -> None:
            os.unlink(path)
            with socket.socket(socket.AF_UNIX) as stale:
                stale.bind(path)

        for nth, lose in enumerate(
            (lambda: os.unlink(path), lambda: os.rename(path, f"{path}.old"), replace)
        ):
            child = self.daemon.child
            os.kill(child, signal.SIGSTOP)
            early = self.client(self.daemon)
            lose()
            if nth == 1:
                self.kill()
            else:
                self.restart()
                os.kill(child, signal.SIGCONT)
            eventually(lambda: self.count("started") > nth + 1, "a restart", 60)  # noqa: B023
            self.assertEqual(self.client(self.daemon).attachVM("vm"), [])
            self.assertEqual(early.attachVM("vm"), [])
        self.assertEqual(self.daemon.stop(), 0)
        self.assertFalse(os.path.exists(path))
        vm.agent.close()

    def test_foreignFile(self) -> None:
        """P17: where another daemon listens by now, the next daemon goes on without new clients."""
        vm = self.vm(self.daemon)
        os.unlink(self.daemon.path)
        other = self.cleared(Daemon())
        other.arguments[other.arguments.index(other.path)] = self.daemon.path
        other.path = self.daemon.path
        other.start()
        self.restartNow()
        vm.usable()
        self.daemon.waitLog("event=socket-lost")
        self.client(other).probe()
        self.assertEqual(self.daemon.stop(), 0)
        self.client(other).probe()

    def test_again(self) -> None:
        """A daemon that has nothing to hand over restarts too, and does not gather descriptors."""
        vm = self.vm(self.daemon)
        self.restartNow()
        counts = []
        for _ in range(3):
            self.restartNow()
            vm.usable()
            counts.append(self.daemon.settledDescriptors())
        self.assertEqual(len(set(counts)), 1, counts)


class SupervisorTests(DaemonTestCase):
    """C{ccproxyctl supervise} itself."""

    def test_cannotStart(self) -> None:
        """A daemon that has never served is not started again and again."""
        daemon = self.cleared(supervised("--no-such-option"))
        daemon.spawn()
        self.assertNotEqual(daemon.wait(), 0)
        daemon.waitLog("the daemon could not start")

    def test_hangs(self) -> None:
        """A daemon that does not end when it is told to is killed."""
        body = "import signal, time; signal.signal(2, signal.SIG_IGN); print('up'); time.sleep(60)"
        program = (
            "import sys; from ccproxy.ctl import supervise; supervise.STOP_TIMEOUT = 1.0;"
            f" sys.exit(supervise.main(['--', sys.executable, '-uc', {body!r}]))"
        )
        daemon = self.cleared(Daemon(command=[sys.executable, "-c", program]))
        daemon.spawn()
        daemon.waitLog("up")
        self.assertEqual(daemon.stop(), 128 + signal.SIGKILL)
        daemon.waitLog("killing it")

    def test_starting(self) -> None:
        """A daemon that is only starting is told to restart, or to reload, when it serves."""
        daemon = self.cleared(supervised())
        daemon.spawn()
        children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children")
        eventually(children.read_text, "the first daemon")
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            daemon.process.send_signal(number)
        daemon.waitLog("event=resumed")
        eventually(lambda: daemon.log().count("event=started") == 2, "the second daemon")
        self.assertEqual(daemon.stop(), 0)

    def test_endOfRestart(self) -> None:
        """Told to end while the daemon hands over, it ends in order too."""
        daemon = self.cleared(supervised()).start()
        daemon.waitLog("event=started")
        daemon.process.send_signal(signal.SIGUSR2)
        self.assertEqual(daemon.stop(), 0)
        daemon.waitLog("event=stopped")
        self.assertFalse(os.path.exists(daemon.path))

    def test_noProgram(self) -> None:
        """Nor one that is not there."""
        daemon = self.cleared(
            Daemon(command=[*script("ccproxyctl"), "supervise", "--", "/no/such/daemon"])
        )
        daemon.spawn()
        self.assertEqual(daemon.wait(), 127)
        daemon.waitLog("cannot run /no/such/daemon")

    def test_full(self) -> None:
        """A full store is logged; a restart that would lose connections does not happen."""
        daemon = self.cleared(supervised())
        daemon.arguments.insert(daemon.arguments.index("supervise") + 1, "--capacity=3")
        daemon.start()
        vm = self.vm(daemon)
        process = vm.start()
        daemon.waitLog("event=store-full")
        before = daemon.child
        for nth in (1, 2):
            daemon.process.send_signal(signal.SIGUSR2)
            eventually(lambda: daemon.log().count("event=handover-failed") == nth, "a refusal")  # noqa: B023
        self.assertEqual(daemon.child, before)
        process.say(b"goes on")
        self.assertEqual(process.shim.output(Stream.STDOUT, 7), b"goes on")
        # A signal to the daemon itself insists.
        os.kill(before, signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)
        daemon.waitLog("event=stopped")

    def test_fewDescriptors(self) -> None:
        """
        A hundred VMs under a limit of 400 open files outlive a kill and a restart. The daemon knows
        how many descriptors can be kept under that limit.
        """
        daemon = self.cleared(supervised(before="ulimit -n 400;")).start()
        self.addCleanup(daemon.stop)
        load = Load(daemon.directory, daemon.path, 100, 0)
        self.addCleanup(load.close)
        for nth, act in enumerate(
            (
                lambda: os.kill(daemon.child, signal.SIGKILL),
                lambda: daemon.process.send_signal(signal.SIGUSR2),
            )
        ):
            act()
            load.run(lambda: daemon.log().count("event=started") > nth + 1)  # noqa: B023
            answers = [runtime.answers for runtime in load.runtimes]
            load.run(
                lambda: all(r.answers > a for r, a in zip(load.runtimes, answers, strict=True))  # noqa: B023
            )
        self.assertEqual([agent for agent in load.agents.agents if agent.closed], [])
        environment = Path(f"/proc/{daemon.child}/environ").read_bytes().split(b"\0")
        self.assertIn(b"FDSTORE=%d" % (400 - WORKING_DESCRIPTORS), environment)

    def test_stalled(self) -> None:
        """VMs that come while the supervisor takes nothing are kept once it goes on."""
        daemon = self.cleared(supervised()).start()
        self.addCleanup(daemon.stop)
        daemon.process.send_signal(signal.SIGSTOP)
        self.addCleanup(daemon.process.send_signal, signal.SIGCONT)
        load = Load(daemon.directory, daemon.path, 30, 1)
        self.addCleanup(load.close)
        for number in (signal.SIGCONT, signal.SIGUSR2):
            daemon.process.send_signal(number)
        load.run(lambda: daemon.log().count("event=started") > 1)
        load.finish()
        self.assertEqual(load.problems(), [])

    def test_crowded(self) -> None:
        """A restart needs no descriptor that clients can take."""
        daemon = self.cleared(supervised(before="ulimit -n 300;")).start()
        self.addCleanup(daemon.stop)
        process = self.vm(daemon).start()
        served: list[BlockingClient] = []
        while self.isServed(client := self.client(daemon)):
            served.append(client)
        self.assertGreater(len(served), 100)
        daemon.process.send_signal(signal.SIGUSR2)
        eventually(lambda: daemon.log().count("event=started") > 1, "a restart", 60)
        self.assertEqual([client for client in served if not self.isServed(client)], [])
        process.say(b"goes on")
        self.assertEqual(process.shim.output(Stream.STDOUT, 7), b"goes on")

    def isServed(self, client: BlockingClient) -> bool:
        """Return whether a client's commands are answered; else it was turned away."""
        try:
            client.probe()
        except (AssertionError, OSError):
            return False
        return True

    def test_badError(self) -> None:
        """
        P18: whatever becomes of stderr, neither the supervisor nor the daemon stops or hangs.
        """
        reading, full = os.pipe()
        self.addCleanup(os.close, reading)
        os.set_blocking(full, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(full, b"x" * 4096)
        os.set_blocking(full, True)
        nowhere = os.open("/dev/full", os.O_WRONLY)
        for output, before in ((full, ""), (nowhere, ""), (None, "exec >&- 2>&-;")):
            daemon = self.cleared(supervised(before=before)).start(output)
            process = self.vm(daemon).start()
            for number in (signal.SIGKILL, signal.SIGUSR2, signal.SIGKILL):
                child = daemon.child
                if number == signal.SIGKILL:
                    os.kill(child, number)
                else:
                    daemon.process.send_signal(number)
                eventually(lambda: self.another(daemon, child), "another daemon", 60)  # noqa: B023
                if output is None:
                    # No other file of the daemon takes the place of a closed stream.
                    streams = [os.readlink(f"/proc/{daemon.child}/fd/{fd}") for fd in (1, 2)]
                    self.assertEqual(streams, ["/dev/null"] * 2)
                process.vm.attach().hyper("ping")
                process.say(b"goes on")
                self.assertEqual(process.shim.output(Stream.STDOUT, 7), b"goes on")
            self.assertEqual(daemon.stop(), 0)
        os.close(full)
        os.close(nowhere)

    def another(self, daemon: Daemon, before: int) -> bool:
        """Return whether a daemon other than the one before serves."""
        try:
            return Admin(f"{daemon.path}.admin").get("/v1/status")["pid"] != before  # type: ignore[no-any-return]
        except (AssertionError, OSError, ValueError):
            return False

    def test_noManager(self) -> None:
        """Where nobody keeps descriptors, that is said, and SIGTERM is the end."""
        daemon = self.cleared(Daemon.byTwistd("--keep-descriptors")).start()
        daemon.waitLog("event=store-missing")
        self.assertEqual(daemon.stop(), 0)


class RefusedTests(DaemonTestCase):
    """What a daemon is passed that it cannot take up."""

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Our end of a connection, and the one that a daemon is passed."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        ours.settimeout(30)
        return ours, theirs

    def passed(self, contents: bytes, *sockets: socket.socket) -> Daemon:
        """
        A daemon that is passed a state and sockets.

        @param sockets: they are closed here.
        """
        state = os.memfd_create("state")
        os.write(state, contents)
        passed = [state, *(each.fileno() for each in sockets)]
        names = ":".join([f"{PREFIX}state", *[f"{PREFIX}-"] * len(sockets)])
        count = len(passed)
        program = (
            "import fcntl, os, sys;"
            f"above = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[1:{count + 1}]];"
            "[os.dup2(fd, 3 + at) for at, fd in enumerate(above)];"
            f"os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='{count}');"
            f"os.environ.update(LISTEN_FDNAMES='{names}');"
            f"os.execvp(sys.argv[{count + 1}], sys.argv[{count + 1}:])"
        )
        twistd = [*script("twistd"), "-n", "--pidfile=", "ccproxy", "--socket-path", "{socket}"]
        begin = [sys.executable, "-c", program, *map(str, passed), *twistd]
        daemon = self.cleared(Daemon(command=begin))
        daemon.spawn(inherited=passed)
        for each in sockets:
            each.close()
        os.close(state)
        eventually(daemon.isListening, "the socket", 60)
        return daemon

    def test_strange(self) -> None:
        """It says why, closes what it was passed, and serves."""
        later = list(HEADER.unpack_from(seal(b"")))
        later[1:3] = 99, 99
        wrong = HandoverForm("0.1.0", [Snapshot(known={"vm": 5})])
        for contents, reason in (
            (b"", "the state has only 0 bytes"),
            (b"no state at all, but long enough", "it is no state of ccproxy"),
            (HEADER.pack(*later), "the state has version 99"),
            (seal(b"\xc1"), "the state"),
            (seal(msgspec.msgpack.encode(wrong)), "the state names what is not in it"),
        ):
            client, theirs = self.pair()
            daemon = self.passed(contents, theirs)
            event = "restore-dropped" if "names" in reason else "state-refused"
            self.assertIn(reason, daemon.waitLog(f"event={event}"))
            self.assertEqual(client.recv(1), b"")
            self.vm(daemon).usable()
            self.assertEqual(daemon.stop(), 0)

    def test_poisoned(self) -> None:
        """A VM that cannot be restored costs the other one nothing, nor the next start."""
        world = World()
        keys: dict[int, int] = {}
        pairs = []
        for name in ("good", "bad"):
            agent, runtime, tokens = world.register(name, streams=1)
            shim = world.process(agent, runtime, tokens[0])
            for line in (agent.control, agent.io, runtime.connection, shim.connection):
                pairs.append(self.pair())
                keys[id(line)] = inodeOf(pairs[-1][1].fileno())
        world.registry.tokens[tokens[0]].state = SessionState.ENDED
        state = HandoverForm("0.1.0", [write(world.registry, lambda line: keys[id(line)])])
        contents = seal(msgspec.msgpack.encode(state))
        daemon = self.passed(contents, *(theirs for _, theirs in pairs))
        self.assertIn("vm=bad", daemon.waitLog("event=restore-dropped"))
        control, io, runtimeEnd, shimEnd, *bad = (ours for ours, _ in pairs)
        for each in bad:
            self.assertEqual(each.recv(1), b"")
        io.sendall(encodeIO(3, b"alive"))
        self.assertEqual(shimEnd.recv(100), encodeStream(Stream.STDOUT, b"alive"))
        runtimeEnd.sendall(commandFrame(Command.HYPER, hyperPayload("ping")))
        self.assertTrue(control.recv(100))
        self.vm(daemon).usable()
        self.assertEqual(daemon.stop(), 0)


class CrashTests(RestartCase):
    """The daemon is killed."""

    def test_load(self) -> None:
        """
        Every VM and every session lives on, no stream is out of step, and what is lost or comes
        twice is no more than what was on its way. Every other kill comes during a planned restart.
        """
        vms = max(1, SESSIONS // 5)
        load = Load(self.daemon.directory, self.daemon.path, vms, SESSIONS // vms)
        self.addCleanup(load.close)
        chance = random.Random(KILLS)
        for nth in range(KILLS):
            moments = [chance.uniform(0.1, 0.5)]
            if nth % 2:
                moments.append(chance.uniform(0.0, 0.5))
            for number, wait in enumerate(moments):
                moment = time.monotonic() + wait
                if number:
                    self.restart()
                load.run(lambda: time.monotonic() > moment)  # noqa: B023
            # In the midst of a restart there may be no daemon.
            load.run(self.children)
            killed = self.kill()
            load.run(lambda: not isRunning(killed))  # noqa: B023
            self.again(load, self.count("started"))
        answers = [peer.answers for peer in load.peers]
        load.run(
            lambda: all(p.answers > a for p, a in zip(load.peers, answers, strict=True)), PATIENCE
        )
        load.finish()
        self.assertGreaterEqual(self.count("recovered") + self.count("resumed"), KILLS)
        for event in ("state-refused", "journal-failed", "handover-failed"):
            self.assertEqual(self.count(event), 0, event)
        self.report(load)
        self.assertGreater(len(load.left), KILLS)
        # Output is lost in whole frames; stdin in parts of messages, which may cut a record.
        meters = [meter for shim in load.shims for meter in shim.meters]
        self.assertEqual([meter for meter in meters if meter.strange], [])
        clients = [*load.runtimes, *load.left]
        self.assertEqual([wrong for each in clients for wrong in each.wrong], [])
        self.assertEqual([shim for shim in load.shims if shim.closed], [])
        self.assertEqual([agent for agent in load.agents.agents if agent.closed], [])

    def test_longCommand(self) -> None:
        """
        A command that is sent in many steps is sent once, whether the daemon dies before the agent
        has read it or while the agent carries it out.
        """
        vm, long = self.vm(self.daemon), "x" * 400_000
        vm.agent.answers[ControlCode.PING] = None
        for nth, early in enumerate((True, False)):
            vm.agent.control.paused = early
            vm.agent._wake()
            vm.attach().command(Command.HYPER, hyperPayload("ping", long))
            if early:
                eventually(lambda: vm.agent.control.waiting() > 100_000, "a part of the command")
            else:
                vm.agent.command(ControlCode.PING, nth)
            self.kill()
            eventually(lambda: self.count("recovered") > nth, "a restart", 20)  # noqa: B023
            vm.agent.control.paused = False
            vm.agent._wake()
            self.assertEqual(vm.agent.data(ControlCode.PING, nth), long)
            vm.agent.sendControl(ControlCode.ACK)
        vm.agent.answers.clear()
        vm.attach().hyper("ping", "next")
        bodies = [len(each.body) for each in vm.agent.commands(ControlCode.PING)]
        self.assertEqual(bodies, [len(long) + 2] * 2 + [6])

    def test_counters(self) -> None:
        """A drain is neither lost nor does it come back, and ignored frames stay counted."""
        admin = Admin(f"{self.daemon.path}.admin")
        self.vm(self.daemon)

        def status() -> tuple[bool, int]:
            found = admin.ask("GET", "/v1/status").json
            return found["draining"], found["ignoredFrames"]

        for nth, draining in enumerate((True, False), 1):
            admin.ask("POST", "/v1/drain", {"draining": draining})
            self.client(self.daemon).send(encodeFrame(FrameType.STREAM, Stream.STDIN, b"strange"))
            eventually(lambda: status() == (draining, nth), "a frame that is ignored")  # noqa: B023
            self.kill()
            eventually(lambda: self.count("recovered") == nth, "a restart", 60)  # noqa: B023
            self.assertEqual(status(), (draining, nth))

    def test_cannotWrite(self) -> None:
        """
        A journal that cannot be written stops nothing. It starts again as soon as it can be
        written, and the next crash costs nothing either.
        """
        vm = self.vm(self.daemon, 2)
        supervisor = self.daemon.pid
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        before = resource.prlimit(int(children[0]), resource.RLIMIT_FSIZE)
        resource.prlimit(int(children[0]), resource.RLIMIT_FSIZE, (1, before[1]))
        vm.usable()
        running = vm.start(0)
        answer = encodeControl(ControlCode.ACK, b"in two parts")
        vm.agent.answers[ControlCode.PING] = None
        vm.client.command(Command.HYPER, hyperPayload("ping"))
        vm.agent.command(ControlCode.PING, 1)
        vm.agent.control.write(answer[:5])
        running.say(b"heard")
        self.assertEqual(running.shim.output(Stream.STDOUT, 5), b"heard")
        vm.agent.control.write(answer[5:])
        self.assertEqual(vm.client.response(Command.HYPER).payload, b"in two parts")
        vm.agent.answers.clear()
        resource.prlimit(int(children[0]), resource.RLIMIT_FSIZE, before)
        eventually(lambda: self.count("journal-recovered"), "a new journal", 90)
        self.kill()
        eventually(lambda: self.count("recovered"), "a restart", 60)
        running.say(b"and again")
        self.assertEqual(running.shim.output(Stream.STDOUT, 9), b"and again")
        vm.attach().hyper("ping", "next")

    def report(self, load: Load) -> None:
        """Say what was lost."""
        processes = load.processes()
        kinds = {
            "output": [meter for shim in load.shims for meter in shim.meters],
            "stdin": [processes[shim.session].stdin for shim in load.shims],
        }
        print(f"{KILLS} kills, {len(load.shims)} sessions, {self.pause()}:", end=" ")
        for kind, meters in kinds.items():
            total = sum(meter.next for meter in meters) >> 16
            print(f"{len(meters)} streams of {kind} with {total} MiB", end="")
            for what in ("lost", "doubled", "strange"):
                counts = [getattr(meter, what) for meter in meters]
                print(f", {sum(map(bool, counts))} with {sum(counts)} bytes {what}", end="")
            print(end="; ")
        print(sum(len(shim.wrong) for shim in load.shims), "answers to signals doubled")

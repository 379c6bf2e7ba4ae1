"""
Signals and terminal sizes through the real daemon.
"""

from __future__ import annotations

from ccproxy.test.processes import SIGKILL, SIGTERM, SIGUSR1, SIGWINCH, ProcessTestCase
from ccproxy.testing.agent import error
from ccproxy.testing.client import success
from ccproxy.wire.codes import Command, ControlCode, Dialect, FrameType


class SignalTests(ProcessTestCase):
    """Signal for a process that runs."""

    def test_noShim(self) -> None:
        """P3: a client that is no shim cannot send signals."""
        vm = self.vm()
        self.assertIn("client isn't a shim", vm.client.signalRefused(SIGTERM))
        self.assertEqual(vm.agent.commands(), [])

    def test_container(self) -> None:
        """P14: a container's first process gets it by killcontainer, its own container's."""
        vm = self.vm(3)
        processes = [vm.start(nth, container=f"c{nth}") for nth in range(3)]
        for nth, (which, number) in enumerate(((2, SIGUSR1), (0, SIGTERM), (1, SIGKILL), (2, 1))):
            processes[which].shim.signal(number)
            data = vm.agent.data(ControlCode.KILLCONTAINER, nth)
            self.assertEqual((data["container"], data["signal"]), (f"c{which}", number))

    def test_allNumbers(self) -> None:
        """All of Linux's signals can be sent, the real-time ones too."""
        process = self.process()
        numbers = [number for number in range(1, 65) if number != SIGWINCH]
        for number in numbers:
            process.shim.signal(number)
        sent = process.vm.agent.commands(ControlCode.KILLCONTAINER)
        self.assertEqual(len(sent), len(numbers))

    def test_badNumbers(self) -> None:
        """P3: other numbers are errors that name the field."""
        process = self.process()
        for number in (-1, 65, 1000, 2**31, 2**70):
            self.assertIn("signalNumber", process.shim.signalRefused(number))
        for payload in ({"signalNumber": "9"}, {"signalNumber": 9.5}, b"[]", b"nonsense", {}):
            process.shim.refused(Command.SIGNAL, payload)
        self.assertEqual(process.vm.agent.commands(ControlCode.KILLCONTAINER), [])
        process.shim.signal(SIGUSR1)

    def test_exec(self) -> None:
        """P14: for a process of execcmd it is a clear error where the agent cannot do it."""
        for dialect in (Dialect.CC, Dialect.HYPERSTART0):
            vm = self.vm(2, dialect=dialect)
            vm.start(0, container="c")
            process = vm.start(1, "execcmd", container="c")
            for number in (SIGUSR1, SIGTERM, SIGKILL):
                self.assertIn(
                    "signals to a process started by execcmd are not supported by this agent",
                    process.shim.signalRefused(number),
                )
            self.assertEqual(vm.agent.commands(ControlCode.KILLCONTAINER), [])
            self.assertSays(process)

    def test_execHyperstart1(self) -> None:
        """P14: hyperstart 1.x can: signalprocess, with the process's id."""
        vm = self.vm(2, dialect=Dialect.HYPERSTART1)
        vm.start(0, container="c")
        process = vm.start(1, "execcmd", container="c", id="exec7")
        process.shim.signal(SIGTERM)
        self.assertEqual(
            vm.agent.data(ControlCode.SIGNALPROCESS),
            {"container": "c", "process": "exec7", "signal": SIGTERM},
        )

    def test_refusedByAgent(self) -> None:
        """An ERROR of the agent is an error for the shim, which goes on."""
        process = self.process()
        process.vm.agent.answers[ControlCode.KILLCONTAINER] = error("no such process")
        self.assertIn("no such process", process.shim.signalRefused(SIGUSR1))
        self.assertSays(process)

    def test_beforeWaitingCommands(self) -> None:
        """Signals go before Hyper commands of other connections that wait."""
        process = self.process()
        vm = process.vm
        vm.agent.answers[ControlCode.PING] = None
        others = [vm.attach() for _ in range(3)]
        for client in others:
            client.command(Command.HYPER, {"hyperName": "ping"})
        vm.agent.command(ControlCode.PING)
        process.shim.command(Command.SIGNAL, {"signalNumber": SIGUSR1})
        vm.attach()
        vm.agent.sendControl(ControlCode.ACK)
        vm.agent.command(ControlCode.PING, 1)
        codes = [message.number for message in vm.agent.commands()]
        self.assertEqual(codes[-3:], [12, 18, 12])
        success(process.shim.response(Command.SIGNAL))
        vm.agent.sendControl(ControlCode.ACK)
        vm.agent.command(ControlCode.PING, 2)
        vm.agent.sendControl(ControlCode.ACK)


class EarlySignalTests(ProcessTestCase):
    """Signal before the process is started."""

    def test_deadly(self) -> None:
        """KILL and TERM: ProcessExited(0), then the response; the agent hears nothing."""
        for number in (SIGKILL, SIGTERM):
            vm = self.vm(1)
            shim = self.shim(vm.tokens[0])
            shim.command(Command.SIGNAL, {"signalNumber": number})
            frames = [shim.receive(), shim.receive()]
            self.assertEqual(
                [(f.type, f.payload, f.error) for f in frames],
                [(FrameType.NOTIFICATION, b"\0", False), (FrameType.RESPONSE, b"", False)],
            )
            self.assertEqual(vm.agent.commands(), [])
            shim.command(Command.DISCONNECT_SHIM)
            shim.waitClosed()

    def test_deadlyBehindStdin(self) -> None:
        """P8: they are seen behind stdin that is held."""
        vm = self.vm(1)
        shim = self.shim(vm.tokens[0])
        for _ in range(20):
            shim.stdin(b"typed ahead\n" * 500)
        shim.command(Command.SIGNAL, {"signalNumber": SIGTERM})
        self.assertEqual(shim.exited(), 0)

    def test_deadlyBehindSignals(self) -> None:
        """Held signals fail in their order before the exit that KILL makes."""
        vm = self.vm(1)
        shim = self.shim(vm.tokens[0])
        for number in (SIGUSR1, 12, SIGKILL):
            shim.command(Command.SIGNAL, {"signalNumber": number})
        frames = [shim.receive() for _ in range(4)]
        self.assertEqual(
            [(f.type, f.error) for f in frames],
            [(FrameType.RESPONSE, True), (FrameType.RESPONSE, True),
             (FrameType.NOTIFICATION, False), (FrameType.RESPONSE, False)],
        )  # fmt: skip

    def test_held(self) -> None:
        """Others are held until the start, then carried out in order."""
        vm = self.vm(1)
        shim = self.shim(vm.tokens[0])
        for number in (SIGUSR1, 12):
            shim.command(Command.SIGNAL, {"signalNumber": number})
        shim.silent(0.1)
        self.assertEqual(vm.agent.commands(), [])
        vm.start(shim=shim, container="c")
        for nth, number in enumerate((SIGUSR1, 12)):
            success(shim.response(Command.SIGNAL))
            self.assertEqual(vm.agent.data(ControlCode.KILLCONTAINER, nth)["signal"], number)

    def test_deadlyDuringStart(self) -> None:
        """Once the start is sent, KILL too waits for its answer."""
        vm = self.vm(1)
        shim = self.shim(vm.tokens[0])
        vm.agent.answers[ControlCode.NEWCONTAINER] = None
        vm.startLater()
        vm.agent.command(ControlCode.NEWCONTAINER)
        shim.command(Command.SIGNAL, {"signalNumber": SIGKILL})
        shim.silent(0.1)
        vm.agent.sendControl(ControlCode.ACK)
        success(shim.response(Command.SIGNAL))
        self.assertEqual(vm.agent.data(ControlCode.KILLCONTAINER)["signal"], SIGKILL)


class WindowSizeTests(ProcessTestCase):
    """SIGWINCH."""

    def test_bySequence(self) -> None:
        """To cc and hyperstart 0.x: winsize with the process's number."""
        for dialect in (Dialect.CC, Dialect.HYPERSTART0):
            vm = self.vm(2, dialect=dialect)
            for nth, kind in enumerate(("newcontainer", "execcmd")):
                process = vm.start(nth, kind, terminal=True)
                process.shim.signal(SIGWINCH, columns=120 + nth, rows=40)
                self.assertEqual(
                    vm.agent.data(ControlCode.WINSIZE, nth),
                    {"seq": process.number, "row": 40, "column": 120 + nth},
                )

    def test_byProcess(self) -> None:
        """To hyperstart 1.x: winsize with container and process."""
        vm = self.vm(2, dialect=Dialect.HYPERSTART1)
        vm.client.hyper("startpod", {})
        first = vm.start(0, container="c", terminal=True)
        second = vm.start(1, "execcmd", container="c", terminal=True, id="sh")
        for nth, (process, name) in enumerate(((first, str(first.number)), (second, "sh"))):
            process.shim.signal(SIGWINCH, columns=65535, rows=1)
            self.assertEqual(
                vm.agent.data(ControlCode.WINSIZE, nth),
                {"container": "c", "process": name, "row": 1, "column": 65535},
            )

    def test_needsBoth(self) -> None:
        """P3: a size needs columns and rows, 1 to 65535 each."""
        process = self.process(terminal=True)
        sizes: list[dict[str, int]] = [
            {}, {"columns": 80}, {"rows": 24}, {"columns": 0, "rows": 0},
            {"columns": 80, "rows": 0}, {"columns": 65536, "rows": 24}, {"columns": 80, "rows": -1},
        ]  # fmt: skip
        for size in sizes:
            process.shim.signalRefused(SIGWINCH, **size)
        self.assertEqual(process.vm.agent.commands(ControlCode.WINSIZE), [])
        process.shim.signal(SIGWINCH, columns=80, rows=24)

    def test_othersHaveNone(self) -> None:
        """P3: no other signal has a size."""
        process = self.process()
        for size in ({"columns": 80, "rows": 24}, {"columns": 80}, {"rows": 24}):
            for number in (SIGUSR1, SIGKILL):
                process.shim.signalRefused(number, **size)
        self.assertEqual(process.vm.agent.commands(ControlCode.KILLCONTAINER), [])

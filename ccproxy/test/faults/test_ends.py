"""
Ends in every order: P6, P8 and P12 on the real daemon, with peers that close right after sending.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable

from ccproxy.test.faults.conversation import FaultTestCase
from ccproxy.test.processes import PlayedVM, Running, startData
from ccproxy.testing.client import commandFrame, hyperPayload
from ccproxy.testing.daemon import eventually
from ccproxy.wire.codes import Command, ControlCode, Dialect, Stream
from ccproxy.wire.frames import encodeStream
from ccproxy.wire.messages import encodeIO

DIALECTS = (Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1)
KIB = 1 << 10
_NOISE = random.Random(3).randbytes(700 * KIB)
LOST = 255
#: Seconds for which what is left of a VM waits for a shim, and an event for the end of the output:
#: longer than anything else that these tests do.
UNDELIVERED = EXIT = 2.0


def bothAtOnce(vm: PlayedVM) -> None:
    """The sockets are closed, and the listeners too: the hypervisor is gone."""
    vm.agent.close()


def outputFirst(vm: PlayedVM) -> None:
    """The I/O channel ends before the control channel."""
    vm.agent.hangUp(vm.agent.io)
    vm.agent.hangUp(vm.agent.control)


def controlFirst(vm: PlayedVM) -> None:
    """The control channel ends before the I/O channel."""
    vm.agent.hangUp(vm.agent.control)
    vm.agent.hangUp(vm.agent.io)


ENDS: tuple[Callable[[PlayedVM], None], ...] = (bothAtOnce, outputFirst, controlFirst)


class LastWordsTests(FaultTestCase):
    """P6, P12: the VM ends right behind the last output of its processes."""

    options = (
        "--log-level=debug",
        f"--undelivered-timeout={UNDELIVERED}",
        f"--exit-timeout={EXIT}",
    )

    def running(self, dialect: Dialect) -> Running:
        """A process in a VM of its own."""
        return self.vm(1, dialect=dialect).start(container="c", id="p")

    def speak(self, process: Running, size: int) -> None:
        """Write so much to stdout, and a line to standard error."""
        pieces = [encodeIO(process.number, _NOISE[at : min(at + 4000, size)])
                  for at in range(0, size, 4000)]  # fmt: skip
        process.vm.agent.io.write(b"".join(pieces) + encodeIO(process.stderr, b"a line\n"))

    def test_withStatus(self) -> None:
        """P6: output, then the status, then the end of the VM at once, in each order."""
        for dialect, end, size in itertools.product(DIALECTS, ENDS, (0, 1, 300, 150 * KIB)):
            what = f"P6: {dialect}, {end.__name__}, {size}"
            process = self.running(dialect)
            self.speak(process, size)
            process.exit(7)
            end(process.vm)
            output = process.shim.untilExit()
            self.assertTrue(output.stdout == _NOISE[:size], what)
            self.assertEqual((output.stderr, output.status), (b"a line\n", 7), what)
            process.shim.waitClosed()

    def test_withoutStatus(self) -> None:
        """P6, P12: the same without a status: all output, then 255."""
        for dialect, end, size in itertools.product(DIALECTS, ENDS, (0, 1, 700 * KIB)):
            what = f"P12: {dialect}, {end.__name__}, {size}"
            process = self.running(dialect)
            self.speak(process, size)
            end(process.vm)
            output = process.shim.untilExit()
            self.assertTrue(output.stdout == _NOISE[:size], what)
            self.assertEqual((output.stderr, output.status), (b"a line\n", LOST), what)
            process.shim.waitClosed()

    def test_lastingWords(self) -> None:
        """P6, P12: the control channel has ended, and the output goes on for a while."""
        for dialect in DIALECTS:
            process = self.running(dialect)
            process.vm.agent.hangUp(process.vm.agent.control)
            for at in range(0, 40_000, 4000):
                process.say(_NOISE[at : at + 4000])
                time.sleep(0.02)
            process.vm.agent.hangUp(process.vm.agent.io)
            output = process.shim.untilExit()
            self.assertTrue(output.stdout == _NOISE[:40_000], f"P6: {dialect}: output is missing")
            self.assertEqual(output.status, LOST)

    def test_halfAnEnd(self) -> None:
        """P12: the empty message has come, the status has not."""
        for dialect, end in itertools.product(DIALECTS, ENDS):
            process = self.running(dialect)
            process.say(b"out")
            process.say(b"")
            end(process.vm)
            self.assertOutput(process.shim, b"out", b"", LOST)

    def test_eventAlone(self) -> None:
        """P6: hyperstart's event has come, the end of the output has not: it is the status."""
        for end in ENDS:
            process = self.running(Dialect.HYPERSTART1)
            process.vm.agent.sendEvent("c", "p", 3)
            process.say(b"out")
            end(process.vm)
            self.assertOutput(process.shim, b"out", b"", 3)

    def test_shimComesLater(self) -> None:
        """P6, P7: the VM is gone before the shim is back: output and status wait for it."""
        for dialect, (status, expected) in itertools.product(DIALECTS, ((9, 9), (None, LOST))):
            process = self.running(dialect)
            process.shim.close()
            process.vm.usable()
            self.speak(process, 600 * KIB)
            if status is not None:
                process.exit(status)
            process.vm.agent.close()
            output = eventually(lambda: self.shim(process.token), "a shim").untilExit()  # noqa: B023
            self.assertTrue(output.stdout == _NOISE[: 600 * KIB], f"P7: {dialect}")
            self.assertEqual((output.stderr, output.status), (b"a line\n", expected))

    def test_nobodyComes(self) -> None:
        """P13: what nobody comes for is dropped after its time, reported, and its token void."""
        process = self.running(Dialect.CC)
        process.shim.close()
        process.vm.usable()
        self.speak(process, 600 * KIB)
        process.vm.agent.close()
        self.assertDropped(process)

    def assertDropped(self, process: Running) -> None:
        """What was not delivered is given up."""
        reported = f"that no shim came for  event=undelivered vm={process.vm.id} "

        def line() -> str:
            return next((line for line in self.newLog().splitlines() if reported in line), "")

        self.assertNames(eventually(line, "P13: the loss is reported"), process.token[:6])
        self.void([process.token])

    def test_stuckToTheEnd(self) -> None:
        """P13: a shim that never reads does not keep what is left of its VM for ever."""
        process = self.running(Dialect.CC)
        self.speak(process, 600 * KIB)
        process.vm.agent.close()
        time.sleep(UNDELIVERED + 0.5)
        frames = process.shim.waitClosed()
        got = b"".join(frame.payload for frame in frames if frame.opcode == Stream.STDOUT)
        self.assertTrue(_NOISE.startswith(got), "P6: output differs")
        self.assertDropped(process)

    def test_silentEnd(self) -> None:
        """P6: an event without the end of the output is the status after its time, not before."""
        process = self.running(Dialect.HYPERSTART1)
        process.say(b"out")
        began = time.monotonic()
        process.vm.agent.sendEvent("c", "p", 5)
        self.assertOutput(process.shim, b"out", b"", 5)
        self.assertGreater(time.monotonic() - began, EXIT - 0.1, "P6: not waited for the output")

    def test_eventOfFullSession(self) -> None:
        """P6: that time does not run while the output cannot be read."""
        process = self.running(Dialect.HYPERSTART1)
        size = 3 << 20
        data = (_NOISE * 5)[:size]

        def write() -> None:
            for at in range(0, size, 4096):
                process.say(data[at : at + 4096])
            process.say(b"")

        writer = threading.Thread(target=write)
        writer.start()
        time.sleep(0.2)
        process.vm.agent.sendEvent("c", "p", 5)
        time.sleep(EXIT + 0.5)
        output = process.shim.untilExit()
        self.assertEqual(len(output.stdout), size, "P6: the status has overtaken output")
        self.assertTrue(output.stdout == data)
        self.assertEqual(output.status, 5)
        writer.join()

    def test_thirtyAtOnce(self) -> None:
        """P6: thirty processes of a VM end in any order, output on one channel, ends on both."""
        for dialect in DIALECTS:
            vm = self.vm(30, dialect=dialect)
            processes = [vm.start(nth, container=f"c{nth}", id="p") for nth in range(30)]
            chance = random.Random(1)
            order = [process for process in processes for _ in range(8)]
            chance.shuffle(order)
            events = processes[:]
            chance.shuffle(events)

            def tell(events: list[Running] = events) -> None:
                for process in events:
                    process.vm.agent.sendEvent(process.container, "p", process.number % 256)

            teller = threading.Thread(target=tell)
            if dialect is Dialect.HYPERSTART1:
                teller.start()
            said = dict.fromkeys(processes, b"")
            for process in order:
                text = b"%d:%d;" % (process.number, len(said[process])) * chance.randrange(1, 200)
                said[process] += text
                process.say(text)
            for process in events:
                if dialect is Dialect.HYPERSTART1:
                    process.say(b"")
                else:
                    process.exit(process.number % 256)
            for process in processes:
                self.assertOutput(process.shim, said[process], b"", process.number % 256)
            vm.usable()
            if dialect is Dialect.HYPERSTART1:
                teller.join()


class ClosingPeersTests(FaultTestCase):
    """P8: clients that close right after sending."""

    def test_stdinThenClose(self) -> None:
        """P8: a shim sends stdin and its end, and is gone: all of it reaches the process."""
        for size in (0, 1, 5000, 500 * KIB):
            vm = self.vm(1)
            process = vm.start()
            for at in range(0, size, 8192):
                process.shim.stdin(_NOISE[at : min(at + 8192, size)])
            process.shim.stdin(b"")
            process.shim.close()
            vm.agent.waitEOF(process.number)
            self.assertTrue(vm.agent.stdin(process.number, size) == _NOISE[:size], f"P8: {size}")

    def test_everythingThenClose(self) -> None:
        """P8: before its start: a shim connects, writes, and is gone, all in one write."""
        vm = self.vm(1)
        shim = self.client()
        pieces = [
            encodeStream(Stream.STDIN, _NOISE[at : at + 8192]) for at in range(0, 80_000, 8192)
        ]
        shim.send(
            commandFrame(Command.CONNECT_SHIM, {"token": vm.tokens[0]})
            + b"".join(pieces)
            + encodeStream(Stream.STDIN, b"")
        )
        shim.close()
        process = vm.start()
        vm.agent.waitEOF(process.number)
        sent = _NOISE[: 8192 * len(pieces)]
        self.assertTrue(vm.agent.stdin(process.number, len(sent)) == sent, "P8: stdin differs")

    def test_startThenClose(self) -> None:
        """P10: a runtime sends its start, and is gone: the process runs."""
        vm = self.vm(20)
        for nth in range(20):
            shim = vm.shim(nth)
            client = vm.attach()
            data = startData("newcontainer", f"c{nth}")
            client.command(Command.HYPER, hyperPayload("newcontainer", data, [vm.tokens[nth]]))
            client.close()
            number = vm.agent.data(ControlCode.NEWCONTAINER, nth)["process"]["stdio"]
            vm.agent.exit(number, nth)
            self.assertEqual(shim.exited(), nth)

    def test_outputThenUnregister(self) -> None:
        """P6, P12: UnregisterVM right behind the last output, then the end of the VM."""
        for dialect, end in itertools.product(DIALECTS, ENDS):
            vm = self.vm(1, dialect=dialect)
            process = vm.start(container="c", id="p")
            process.say(b"out")
            process.exit(2)
            vm.client.command(Command.UNREGISTER_VM, {"containerId": vm.id})
            vm.client.close()
            end(vm)
            self.assertOutput(process.shim, b"out", b"", 2)
            process.shim.waitClosed()
            self.void([process.token])

"""
Readers that are stuck, shims that are away, agents that take no stdin: P8 and P9 on the real
daemon.
"""

from __future__ import annotations

import random
import threading
import time

from ccproxy.test.faults.conversation import FaultTestCase
from ccproxy.test.processes import PlayedVM, Running
from ccproxy.testing.client import commandFrame
from ccproxy.testing.daemon import Daemon, eventually
from ccproxy.wire.codes import Command, ControlCode, Stream
from ccproxy.wire.frames import encodeStream

MIB = 1 << 20
PIECE = 4096
#: More than the kernel holds between two sockets.
KERNEL = 256 << 10
#: What the daemon may take beyond its buffers: the interpreter's own ways.
SLACK = 3 * MIB
#: Seconds for which output is held for a shim that is away.
ABSENT = 2.0

_NOISE = random.Random(9).randbytes(8 * MIB)


class Flood:
    """
    A process that writes much, in a thread of its own.

    @ivar written: how many bytes it has got rid of.
    """

    def __init__(self, process: Running, total: int) -> None:
        self.data = memoryview(_NOISE)[:total]
        self.written = 0
        self._process = process
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        for at in range(0, len(self.data), PIECE):
            self._process.say(bytes(self.data[at : at + PIECE]))
            self.written = at + PIECE

    def stall(self, daemon: Daemon) -> int:
        """Wait until it cannot write any more; how much it has written."""
        before = -1
        while before != self.written or not daemon.isIdle():
            before = self.written
            time.sleep(0.15)
        return before

    def join(self) -> None:
        """Wait until it has written all."""
        self._thread.join(60)
        assert not self._thread.is_alive(), "P9: the output does not flow again"


class StuckShimTests(FaultTestCase):
    """P9: shims that are there and do not read."""

    options = ("--log-level=debug", "--stalled-warning=0.2")

    def test_eightMegabytes(self) -> None:
        """P9: others of its VM go on until it is full, others for ever; then all comes."""
        vm = self.vm(2)
        stuck, other = vm.start(0), vm.start(1)
        memory = self.daemon.memory()
        flood = Flood(stuck, MIB)
        flood.join()
        self.assertSays(other, b"up to 1 MiB the VM goes on")
        flood = Flood(stuck, 8 * MIB)
        written = MIB + flood.stall(self.daemon)
        self.assertGreaterEqual(written, MIB + PIECE, "P9: paused before it was full")
        self.assertLess(written, MIB + 3 * KERNEL, "P9: more is kept than the limit")
        self.assertLess(self.daemon.memory() - memory, MIB + SLACK, "P9: memory")
        self.undisturbed()
        vm.usable()
        other.shim.stdin(b"in")
        vm.agent.stdin(other.number, 2)
        line = self.waitLog("does not read")
        self.assertNames(line, vm.id, stuck.token[:6])
        self.assertNotIn(stuck.token, self.newLog())
        # Longer than it takes to be reported again; from the signal on it reads, and may be.
        other.shim.silent(0.6)
        self.assertEqual(self.newLog().count("does not read"), 1, "P9: reported once")
        stuck.shim.signal(10)
        data = b"".join([bytes(_NOISE[:MIB]), bytes(flood.data)])
        self.assertTrue(stuck.shim.output(Stream.STDOUT, len(data)) == data, "P6: output differs")
        flood.join()
        self.assertSays(other, b"it flows by itself")
        stuck.exit(4)
        self.assertEqual(stuck.shim.exited(), 4)

    def test_stutters(self) -> None:
        """P9: a shim that reads a little at a time loses nothing, nor does its neighbour."""
        vm = self.vm(2)
        slow, other = vm.start(0), vm.start(1)
        flood = Flood(slow, 4 * MIB)
        got = 0
        while got < 4 * MIB:
            piece = slow.shim.output(Stream.STDOUT, 1)
            self.assertTrue(piece == flood.data[got : got + len(piece)], f"P6: differs at {got}")
            got += len(piece)
            if got % (64 * PIECE) == 0:
                time.sleep(0.005)
        flood.join()
        self.assertSays(other)

    def test_vmDies(self) -> None:
        """P6, P12: the VM is lost while a session is full: all that had come is delivered."""
        vm = self.vm(1)
        stuck = vm.start()
        data = _NOISE[: 1400 << 10]
        flood = Flood(stuck, len(data))
        flood.stall(self.daemon)
        vm.agent.hangUp(vm.agent.control)
        threading.Timer(0.3, lambda: vm.agent.hangUp(vm.agent.io)).start()
        output = stuck.shim.untilExit()
        self.assertTrue(data.startswith(output.stdout), "P6: output differs")
        self.assertGreaterEqual(len(output.stdout), min(flood.written, len(data)) - PIECE)
        self.assertEqual(output.status, 255)
        stuck.shim.waitClosed()
        self.void(vm.tokens)

    def test_disconnects(self) -> None:
        """P9: the stuck shim gives up with DisconnectShim: its VM flows at once."""
        vm = self.vm(2)
        stuck, other = vm.start(0), vm.start(1)
        flood = Flood(stuck, 3 * MIB)
        flood.stall(self.daemon)
        stuck.shim.command(Command.DISCONNECT_SHIM)
        flood.join()
        self.assertSays(other)
        self.void(vm.tokens[:1])


class CrowdedTests(FaultTestCase):
    """P9: all buffers together have a limit too."""

    options = ("--log-level=debug", "--total-buffer=2MiB", "--crowded-buffer=64KiB")

    def test_manyStuck(self) -> None:
        """P9: eight stuck shims take no more than the limit of all; nothing of theirs is lost."""
        vms = [self.vm(1) for _ in range(8)]
        stuck = [vm.start() for vm in vms]
        memory = self.daemon.memory()
        floods = [Flood(process, 2 * MIB) for process in stuck]
        for flood in floods:
            flood.stall(self.daemon)
        grown = self.daemon.memory() - memory
        self.assertLess(grown, 3 * MIB + SLACK, "P9: memory beyond --total-buffer")
        self.undisturbed()
        for process, flood in zip(stuck, floods, strict=True):
            got = process.shim.output(Stream.STDOUT, 2 * MIB)
            self.assertTrue(got == flood.data, "P6: output differs")
            flood.join()
            process.exit(1)
            self.assertEqual(process.shim.exited(), 1)


class AbsentShimTests(FaultTestCase):
    """P7, P9: shims that are away while much is written."""

    options = ("--log-level=debug", f"--absent-timeout={ABSENT}")

    def away(self, vm: PlayedVM, nth: int) -> Running:
        """A process whose shim has gone."""
        process = vm.start(nth)
        process.shim.close()
        vm.usable()
        return process

    def test_droppedAndReported(self) -> None:
        """P7, P9: it is held for the time, then dropped and reported; the status is kept."""
        vm = self.vm(2)
        away, other = self.away(vm, 0), vm.start(1)
        began = time.monotonic()
        flood = Flood(away, 4 * MIB)
        flood.join()
        self.assertGreater(time.monotonic() - began, ABSENT - 0.1, "P7: dropped before its time")
        self.assertSays(other)
        away.exit(6)
        vm.usable()
        output = self.shim(away.token).untilExit()
        self.assertEqual(output.status, 6, "P7: the status is not kept")
        kept = len(output.stdout)
        self.assertTrue(output.stdout == flood.data[:kept], "P7: not the beginning")
        self.assertGreaterEqual(kept, MIB - PIECE, "P7: less is kept than the limit")
        self.assertLess(kept, MIB + 2 * KERNEL)
        line = self.waitLog("process exited with 6")
        self.assertIn(f"dropped={4 * MIB - kept}", line, "P9: the loss is counted")
        self.assertNames(self.waitLog("dropped from now on"), vm.id, away.token[:6])

    def test_backInTime(self) -> None:
        """P7: a shim that is back in time has lost nothing."""
        vm = self.vm(2)
        away, other = self.away(vm, 0), vm.start(1)
        flood = Flood(away, 4 * MIB)
        flood.stall(self.daemon)
        shim = self.shim(away.token)
        got = shim.output(Stream.STDOUT, 4 * MIB)
        self.assertTrue(got == flood.data, "P7: output is lost")
        flood.join()
        self.assertSays(other)
        self.assertNotIn("dropped from now on", self.newLog())

    def test_alwaysAway(self) -> None:
        """P9: several processes without shims: the VM is held up once for each, not for ever."""
        vm = self.vm(4)
        aways = [self.away(vm, nth) for nth in range(3)]
        other = vm.start(3)
        memory = self.daemon.memory()
        for process in aways:
            Flood(process, 2 * MIB).join()
        self.assertSays(other)
        self.assertLess(self.daemon.memory() - memory, 3 * MIB + SLACK, "P9: memory")
        for process in aways:
            process.exit(1)
            self.assertEqual(self.shim(process.token).untilExit().status, 1)


class StalledDropTests(FaultTestCase):
    """P9: the operator has chosen that stuck shims lose output."""

    options = ("--log-level=debug", "--stalled-warning=0.2", "--stalled-shim=drop-after=0.5")

    def test_dropped(self) -> None:
        """P9: after that time the VM flows; the shim gets what was kept, and the status."""
        vm = self.vm(2)
        stuck, other = vm.start(0), vm.start(1)
        began = time.monotonic()
        flood = Flood(stuck, 4 * MIB)
        flood.join()
        self.assertGreater(time.monotonic() - began, 0.45, "P9: dropped before its time")
        self.assertSays(other)
        stuck.exit(9)
        vm.usable()
        output = stuck.shim.untilExit()
        self.assertEqual(output.status, 9)
        kept = len(output.stdout)
        self.assertTrue(output.stdout == flood.data[:kept], "P9: not the beginning")
        self.assertGreaterEqual(kept, MIB)
        self.assertIn(f"dropped={4 * MIB - kept}", self.waitLog("process exited with 9"))


class StuckAgentTests(FaultTestCase):
    """P9: agents that take no stdin, as a cc agent does whose process does not read."""

    def fill(self, process: Running) -> int:
        """Send stdin until the daemon takes no more; how many bytes in frames were taken."""
        data = encodeStream(Stream.STDIN, bytes(_NOISE[:8192]))
        process.shim.socket.settimeout(0.2)
        sent = 0
        while sent < 8 * MIB:
            try:
                sent += process.shim.socket.send(data[sent % len(data) :])
            except TimeoutError:
                if self.daemon.isIdle():
                    break
        process.shim.socket.settimeout(process.shim.timeout)
        return sent

    def test_heldBack(self) -> None:
        """P8, P9: shims are held back, memory is bounded, all else works, nothing is lost."""
        vm = self.vm(4)
        processes = [vm.start(nth) for nth in range(4)]
        vm.agent.pause()
        self.addCleanup(vm.agent.resume)
        memory = self.daemon.memory()
        sent = [self.fill(process) for process in processes[:3]]
        for count in sent:
            self.assertGreater(count, MIB, "P9: held back before it was full")
            self.assertLess(count, MIB + 3 * KERNEL, "P9: more is kept than the limit")
        self.assertLess(self.daemon.memory() - memory, 3 * MIB + SLACK, "P9: memory")
        for process in processes:
            self.assertSays(process)
        vm.usable()
        processes[3].shim.stdin(b"a keystroke")
        processes[3].shim.signal(10)
        self.undisturbed()
        vm.agent.resume()
        frame = len(encodeStream(Stream.STDIN, bytes(8192)))
        for process, count in zip(processes[:3], sent, strict=True):
            whole = count // frame * 8192
            got = vm.agent.stdin(process.number, whole)
            self.assertTrue(got == _NOISE[:8192] * (whole // 8192), "P8: stdin differs")
        self.assertEqual(vm.agent.stdin(processes[3].number, 11), b"a keystroke")

    def test_signalBehind(self) -> None:
        """P8, P9: a signal behind stdin that fits is carried out at once."""
        vm = self.vm(1)
        process = vm.start()
        vm.agent.pause()
        self.addCleanup(vm.agent.resume)
        for _ in range(120):
            process.shim.stdin(_NOISE[:8192])
        process.shim.signal(15)
        self.assertEqual(vm.agent.data(ControlCode.KILLCONTAINER)["signal"], 15)
        vm.agent.resume()
        self.assertEqual(len(vm.agent.stdin(process.number, 120 * 8192)), 120 * 8192)

    def test_shimLeaves(self) -> None:
        """P8: the shim leaves meanwhile: what was taken goes on, its successor's comes behind."""
        vm = self.vm(1)
        process = vm.start()
        vm.agent.pause()
        self.addCleanup(vm.agent.resume)
        self.fill(process)
        process.shim.close()
        shim = self.shim(process.token)
        shim.stdin(b"successor")
        shim.stdin(b"")
        vm.agent.resume()
        vm.agent.waitEOF(process.number)
        got = vm.agent.stdin(process.number, 9)
        self.assertTrue(got.endswith(b"successor"), "P8: the end is not the successor's")
        count, rest = divmod(len(got) - 9, 8192)
        self.assertEqual(rest, 0, "P8: a part of a frame was taken")
        self.assertTrue(got[:-9] == _NOISE[:8192] * count, "P8: stdin differs")
        self.assertGreaterEqual(len(got), MIB)

    def test_disconnects(self) -> None:
        """P8, P9: the stuck process's shim disconnects, and signals of others are still heard."""
        vm = self.vm(2)
        process, other = vm.start(0), vm.start(1)
        vm.agent.pause()
        self.addCleanup(vm.agent.resume)
        for _ in range(100):
            process.shim.stdin(_NOISE[:8192])
        process.shim.send(commandFrame(Command.DISCONNECT_SHIM))
        process.shim.waitClosed()
        other.shim.signal(10)
        vm.agent.resume()
        vm.agent.waitEOF(process.number)
        self.assertEqual(len(vm.agent.stdin(process.number, 819_200)), 819_200)
        self.void(vm.tokens[:1])

    def test_vmDies(self) -> None:
        """P9, P12: the VM dies: its shims are told, and its memory is given back."""
        memory = self.daemon.memory()
        for _ in range(4):
            vm = self.vm(2)
            processes = [vm.start(nth) for nth in range(2)]
            vm.agent.pause()
            for process in processes:
                self.fill(process)
            vm.agent.hangUp()
            for process in processes:
                self.assertEqual(process.shim.exited(), 255)
                process.shim.waitClosed()
            self.void(vm.tokens)
        eventually(lambda: self.daemon.memory() - memory < 2 * MIB + SLACK, "P13: memory is back")

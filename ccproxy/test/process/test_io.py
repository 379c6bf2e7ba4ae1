"""
Standard streams and exit statuses through the real daemon.
"""

from __future__ import annotations

import random
import threading
import time

from ccproxy.test.processes import ProcessTestCase, Running
from ccproxy.wire.codes import Stream
from ccproxy.wire.frames import encodeStream
from ccproxy.wire.messages import encodeIO

KIB = 1 << 10


def noise(length: int) -> bytes:
    """Bytes that do not repeat themselves."""
    return random.Random(length).randbytes(length)


class OutputTests(ProcessTestCase):
    """P6: what processes write."""

    def test_streams(self) -> None:
        """P6: stdout and stderr come with their own opcodes, all bytes as they are."""
        for kind in ("newcontainer", "execcmd"):
            process = self.process(kind=kind)
            data = bytes(range(256)) * 4
            process.say(data)
            process.complain(data[::-1])
            self.assertEqual(process.shim.output(Stream.STDOUT, 1024), data)
            self.assertEqual(process.shim.output(Stream.STDERR, 1024), data[::-1])

    def test_terminal(self) -> None:
        """P6: the output of a terminal is all stdout."""
        process = self.process(terminal=True)
        process.say(b"prompt$ ")
        process.exit(1)
        self.assertOutput(process.shim, b"prompt$ ", b"", 1)

    def test_cutAnywhere(self) -> None:
        """P1: messages may be cut at any byte."""
        process = self.process()
        stream = encodeIO(3, b"one") + encodeIO(4, b"err") + encodeIO(3, b"two")
        for cut in range(1, len(stream)):
            process.vm.agent.io.write(stream[:cut])
            time.sleep(0.002)
            process.vm.agent.io.write(stream[cut:])
            self.assertEqual(process.shim.output(Stream.STDOUT, 6), b"onetwo")
            self.assertEqual(process.shim.output(Stream.STDERR, 3), b"err")

    def test_merged(self) -> None:
        """P1, P6: a thousand messages of two processes in one piece keep their order."""
        vm = self.vm(2)
        one, two = vm.start(0), vm.start(1)
        stream = b"".join(encodeIO(3 + n % 4, b"%04d" % n) for n in range(1000))
        vm.agent.io.write(stream)
        for n, process in ((0, one), (2, two)):
            process.exit(n)
            self.assertOutput(
                process.shim,
                b"".join(b"%04d" % k for k in range(n, 1000, 4)),
                b"".join(b"%04d" % k for k in range(n + 1, 1000, 4)),
                n,
            )

    def test_large(self) -> None:
        """P6: messages larger than agents send them today arrive whole."""
        process = self.process()
        for size in (10_240, 65_536, 1_000_000):
            data = noise(size)
            process.say(data)
            self.assertEqual(process.shim.output(Stream.STDOUT, size), data)

    def test_megabytes(self) -> None:
        """P6: 10 MiB on two streams at once arrive byte for byte, the status last."""
        process = self.process()
        data = noise(10 << 20)

        def write() -> None:
            for at in range(0, len(data), 4 * KIB):
                process.say(data[at : at + 4 * KIB])
                process.complain(data[at : at + 10])
            process.exit(5)

        writer = threading.Thread(target=write)
        writer.start()
        output = process.shim.untilExit()
        writer.join()
        self.assertEqual((len(output.stdout), output.status), (len(data), 5))
        self.assertTrue(output.stdout == data)
        errors = b"".join(data[at : at + 10] for at in range(0, len(data), 4 * KIB))
        self.assertTrue(output.stderr == errors)

    def test_unknownNumbers(self) -> None:
        """P19: messages for numbers that nobody has are dropped, empty ones too."""
        process = self.process()
        for number in (0, 1, 2, 5, 1000, 2**63, 2**64 - 1):
            process.vm.agent.sendIO(number, b"for nobody")
            process.vm.agent.sendIO(number)
        self.assertSays(process)
        process.vm.usable()

    def test_beforeStart(self) -> None:
        """Messages for a number whose start was not sent yet are dropped."""
        vm = self.vm(1)
        shim = self.shim(vm.tokens[0])
        vm.agent.exit(3, 1)
        vm.agent.sendIO(4, b"early")
        shim.silent(0.1)
        self.assertSays(vm.start(shim=shim))

    def test_twoVMs(self) -> None:
        """Two VMs with the same numbers and containers do not mix."""
        processes = [self.process(container="c") for _ in range(2)]
        for n, process in enumerate(processes):
            self.assertEqual(process.number, 3)
            process.say(b"out %d" % n)
            process.shim.stdin(b"in %d" % n)
        for n, process in enumerate(processes):
            self.assertEqual(process.vm.agent.stdin(3, 4), b"in %d" % n)
            process.exit(n)
            self.assertOutput(process.shim, b"out %d" % n, b"", n)

    def test_badMessage(self) -> None:
        """P2, P12: a message of an impossible length ends that VM, and that VM only."""
        other = self.process()
        lengths = (0, 11, (1 << 20) + 1, (1 << 32) - 1)
        processes = [self.process() for _ in lengths]
        for process, length in zip(processes, lengths, strict=True):
            process.say(b"last")
            header = (3).to_bytes(8, "big") + length.to_bytes(4, "big")
            process.vm.agent.io.write(header)
        for process in processes:
            self.assertOutput(process.shim, b"last", b"", 255)
            process.vm.agent.waitDisconnected(process.vm.agent.control)
        self.assertSays(other)

    def test_stuckShim(self) -> None:
        """P9: a shim that does not read holds up no other, within its buffer, and loses nothing."""
        vm = self.vm(2)
        stuck, other = vm.start(0), vm.start(1)
        data = noise(900 * KIB)
        for at in range(0, len(data), 4 * KIB):
            stuck.say(data[at : at + 4 * KIB])
        self.assertSays(other)
        stuck.exit(1)
        self.assertSays(other)
        self.assertTrue(stuck.shim.untilExit().stdout == data)

    def test_stuckVM(self) -> None:
        """P9: a full session holds up its own VM, no other, nor control; then it resumes."""
        vm, bystander = self.vm(2), self.process()
        stuck, other = vm.start(0), vm.start(1)
        data = noise(5 << 20)

        def write() -> None:
            for at in range(0, len(data), 4 * KIB):
                stuck.say(data[at : at + 4 * KIB])
            stuck.exit(1)
            other.exit(2)

        writer = threading.Thread(target=write)
        writer.start()
        time.sleep(0.3)
        memory = self.daemon.memory()
        vm.usable()
        self.assertSays(bystander)
        other.shim.silent(0.1)
        self.assertLess(self.daemon.memory() - memory, 2 << 20)
        self.assertTrue(stuck.shim.untilExit().stdout == data)
        self.assertEqual(other.shim.untilExit().status, 2)
        writer.join()


class ExitTests(ProcessTestCase):
    """P6: the exit status comes after all output, once."""

    def test_statuses(self) -> None:
        """P6: every status from 0 to 255."""
        vm = self.vm(5)
        for nth, status in enumerate((0, 1, 42, 137, 255)):
            process = vm.start(nth)
            process.exit(status)
            self.assertEqual(process.shim.exited(), status)

    def test_cutAnywhere(self) -> None:
        """P1: the end and the status may be cut at any byte."""
        length = len(encodeIO(3) + encodeIO(3, b"*"))
        vm = self.vm(length - 1)
        for cut in range(1, length):
            process = vm.start(cut - 1, "execcmd")
            end = encodeIO(process.number) + encodeIO(process.number, b"*")
            vm.agent.io.write(end[:cut])
            time.sleep(0.002)
            vm.agent.io.write(end[cut:])
            self.assertEqual(process.shim.exited(), 42)

    def test_oneByte(self) -> None:
        """P6: one byte is output, on stdout unless the end came before, on stderr always."""
        process = self.process()
        for _ in range(3):
            process.say(b"\x07")
            process.complain(b"\x08")
        self.assertEqual(process.shim.output(Stream.STDOUT, 3), b"\x07" * 3)
        self.assertEqual(process.shim.output(Stream.STDERR, 3), b"\x08" * 3)
        process.say(b"")
        process.complain(b"E")
        self.assertEqual(process.shim.output(Stream.STDERR, 1), b"E")
        process.say(b"\x09")
        self.assertEqual(process.shim.exited(), 9)

    def test_endOfStderr(self) -> None:
        """P6: an end of stderr makes no status of the next byte of stdout."""
        process = self.process()
        process.complain(b"")
        process.say(b"x")
        self.assertEqual(process.shim.output(Stream.STDOUT, 1), b"x")
        process.exit(0)
        self.assertEqual(process.shim.exited(), 0)

    def test_afterExit(self) -> None:
        """Stdin and signals after the end are dropped, or told why they cannot be."""
        process = self.process()
        process.exit(0)
        self.assertEqual(process.shim.exited(), 0)
        process.shim.stdin(b"late")
        self.assertIn("process has exited", process.shim.signalRefused(15))
        process.vm.usable()
        self.assertEqual(process.vm.agent.pieces(), [])


class StdinTests(ProcessTestCase):
    """P8: what shims send."""

    def test_frames(self) -> None:
        """P8: stdin arrives in order under the process's number, its end as an empty message."""
        process = self.process()
        for text in (b"one\n", b"two\n", b""):
            process.shim.stdin(text)
        process.vm.agent.waitEOF(process.number)
        self.assertEqual(process.vm.agent.stdin(process.number, 8), b"one\ntwo\n")
        self.assertEqual(process.vm.agent.pieces()[-1], b"")

    def test_held(self) -> None:
        """P8: stdin and its end are held until the start, then arrive once and in order."""
        vm = self.vm(1)
        shim = self.shim(vm.tokens[0])
        data = noise(300 * KIB)
        for at in range(0, len(data), 8 * KIB):
            shim.stdin(data[at : at + 8 * KIB])
        shim.stdin(b"")
        time.sleep(0.1)
        self.assertEqual(vm.agent.pieces(), [])
        process = vm.start(shim=shim)
        vm.agent.waitEOF(process.number)
        self.assertTrue(vm.agent.stdin(process.number, len(data)) == data)

    def test_cutAnywhere(self) -> None:
        """P1: a frame of stdin may be cut at any byte."""
        process = self.process()
        frame = encodeStream(Stream.STDIN, b"12345")
        for cut in range(1, len(frame)):
            process.shim.send(frame[:cut])
            time.sleep(0.002)
            process.shim.send(frame[cut:])
        length = 5 * (len(frame) - 1)
        self.assertEqual(process.vm.agent.stdin(process.number, length), b"12345" * (length // 5))

    def test_sizes(self) -> None:
        """P8, P19: frames of any size arrive whole, in messages that the agent bears."""
        process = self.process()
        sent = b""
        for size in (1, 4083, 4084, 4085, 4096, 8192, 65_536, 1 << 20):
            data = noise(size)
            process.shim.stdin(data)
            sent += data
            self.assertTrue(process.vm.agent.stdin(process.number, len(sent)) == sent)
        self.assertLessEqual(max(map(len, process.vm.agent.pieces())), 4084)

    def test_megabytes(self) -> None:
        """P8: 4 MiB in frames of a shim's size, to an agent that takes its time."""
        process = self.process()
        process.vm.agent.readPause = 0.0002
        data = noise(4 << 20)
        for at in range(0, len(data), 8 * KIB):
            process.shim.stdin(data[at : at + 8 * KIB])
        process.shim.stdin(b"")
        process.vm.agent.waitEOF(process.number)
        self.assertTrue(process.vm.agent.stdin(process.number, len(data)) == data)

    def test_stuckAgent(self) -> None:
        """P9: an agent that takes no stdin holds up that of its own VM; all else goes on."""
        vm, bystander = self.vm(2), self.process()
        process, other = vm.start(0), vm.start(1)
        vm.agent.pause()
        self.addCleanup(setattr, vm.agent.io, "paused", False)
        sent = self.fill(process)
        memory = self.daemon.memory()
        self.assertSays(process)
        self.assertSays(other)
        vm.usable()
        process.shim.signal(10)
        bystander.shim.stdin(b"in")
        bystander.vm.agent.stdin(bystander.number, 2)
        self.assertLess(self.daemon.memory() - memory, 2 << 20)
        vm.agent.resume()
        self.assertTrue(
            vm.agent.stdin(process.number, sent)[:sent] == (bytes(8 * KIB) * 999)[:sent]
        )

    def fill(self, process: Running) -> int:
        """Send much stdin; how many bytes of it."""
        sent = 0
        frame = encodeStream(Stream.STDIN, bytes(8 * KIB))
        # Signals are seen while no more stdin than the session's limit stands before them.
        while sent < 512 * KIB:
            process.shim.send(frame)
            sent += 8 * KIB
        return sent

    def test_turns(self) -> None:
        """P9: a keystroke is not behind another process's bulk of stdin."""
        vm = self.vm(2)
        bulk, typed = vm.start(0), vm.start(1)
        vm.agent.pause()
        self.addCleanup(vm.agent.resume)
        for _ in range(60):
            bulk.shim.stdin(bytes(8 * KIB))
        typed.shim.stdin(b"k")
        vm.usable()
        vm.agent.resume()
        vm.agent.stdin(typed.number, 1)
        before = sum(m.size for m in vm.agent.io.messages if m.number == bulk.number)
        self.assertLess(before, 256 * KIB)
        vm.agent.stdin(bulk.number, 60 * 8 * KIB)

"""
Shims that are killed while output flows: P7 and P9 on the real daemon.

What a process writes is a sequence of numbered words, so that each byte tells its place.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Sequence

import attrs

from ccproxy.test.faults.conversation import FaultTestCase
from ccproxy.test.processes import Running
from ccproxy.testing.client import BlockingClient, Output, commandFrame
from ccproxy.testing.daemon import environment, eventually, script
from ccproxy.wire.codes import Command, ControlCode, FrameType, Stream
from ccproxy.wire.frames import HEADER, encodeStream
from ccproxy.wire.messages import encodeIO

#: Words and bytes in a message of the flood.
WORDS = 512
PAYLOAD = 8 * WORDS
FRAME = HEADER.size + PAYLOAD
#: How every frame of the flood begins; no word looks so.
MARK = encodeStream(Stream.STDOUT, bytes(PAYLOAD))[: HEADER.size]
#: More than the kernel holds for a reader of a UNIX socket.
KERNEL = 256 << 10
READ = 1 << 16

#: A shim that reads, and notes how many bytes it has read.
SHIM = f"""
import mmap, socket, sys
connection = socket.socket(fileno=int(sys.argv[1]))
note = mmap.mmap(int(sys.argv[2]), 8)
count = 0
while data := connection.recv({READ}):
    count += len(data)
    note[:] = count.to_bytes(8, "big")
"""

#: A shim like cc-shim: its monitor child sends a frame when it is killed. It reads nothing.
MONITORED = """
import os, socket, sys, time
connection = socket.socket(fileno=int(sys.argv[1]))
end, other = os.pipe()
if os.fork():
    os.close(end)
    os.write(1, b"*")
    time.sleep(60)
os.close(other)
os.read(end, 1)
connection.sendall(bytes.fromhex(sys.argv[2]))
"""


def words(first: int, count: int) -> bytes:
    """A part of the sequence."""
    numbers = array("Q", range(first, first + count))
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers.tobytes()


@attrs.define(eq=False)
class Child:
    """
    A shim as a process of its own.

    @ivar start: the first word that its connection has got.
    """

    process: subprocess.Popen[bytes]
    connection: socket.socket
    start: int
    note: mmap.mmap

    @property
    def count(self) -> int:
        """How many bytes it has read."""
        return int.from_bytes(self.note[:], "big")

    def stopReading(self) -> None:
        """Stop it, and wait until its socket holds whole frames."""
        self.process.send_signal(signal.SIGSTOP)
        size = 3 * FRAME

        def full() -> bool:
            return len(self.connection.recv(size, socket.MSG_PEEK)) == size

        eventually(full, "P7: output flows")

    def kill(self) -> None:
        """The worst that can happen to it."""
        self.process.kill()
        self.process.wait()


class KilledShimTests(FaultTestCase):
    """P7: SIGKILL at any time."""

    def claim(self, token: str) -> socket.socket:
        """A bare connection that claims the token."""
        connection = socket.socket(socket.AF_UNIX)
        self.addCleanup(connection.close)
        connection.settimeout(10)
        connection.connect(self.daemon.path)
        connection.sendall(commandFrame(Command.CONNECT_SHIM, {"token": token}))
        return connection

    def spawn(
        self,
        program: str,
        connection: socket.socket,
        argument: str,
        inherited: Sequence[int] = (),
        output: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Give a connection to a process."""
        connection.setblocking(True)
        fd = connection.fileno()
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", program, str(fd), argument],
            pass_fds=[fd, *inherited],
            stdout=output,
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def child(self, token: str) -> Child:
        """A shim for the token, to which output flows already."""
        connection = self.claim(token)

        def first() -> int:
            data = connection.recv(READ, socket.MSG_PEEK)
            at = data.find(MARK)
            if not 0 <= at <= len(data) - HEADER.size - 8:
                return 0
            return 1 + int.from_bytes(data[at + HEADER.size : at + HEADER.size + 8], "big")

        start = eventually(first, "P7: output for the next shim") - 1
        with tempfile.TemporaryFile() as file:
            file.truncate(8)
            note = mmap.mmap(file.fileno(), 8)
            process = self.spawn(SHIM, connection, str(file.fileno()), [file.fileno()])
        return Child(process, connection, start, note)

    def flood(self, process: Running, other: Running, total: int) -> threading.Thread:
        """Write C{total} bytes, and now and then something of another process; then end both."""

        def write() -> None:
            for nth in range(0, total // PAYLOAD, 32):
                batch = [
                    encodeIO(process.number, words(n * WORDS, WORDS)) for n in range(nth, nth + 32)
                ]
                batch.insert(nth % 31, encodeIO(other.number, words(nth, 32)))
                process.vm.agent.io.write(b"".join(batch))
            process.exit(77)
            other.exit(78)

        thread = threading.Thread(target=write)
        thread.start()
        self.addCleanup(thread.join)
        return thread

    def reading(self, shim: BlockingClient, found: list[Output]) -> threading.Thread:
        """Have all output of a process read."""

        def read() -> None:
            found.append(shim.untilExit(60))

        thread = threading.Thread(target=read)
        thread.start()
        return thread

    def test_hundredMegabytes(self) -> None:
        """P7: 100 MB to shims that are killed: each gets what the last had not taken whole."""
        total, chance = 100 << 20, random.Random(7)
        vm = self.vm(2)
        process, other = vm.start(0), vm.start(1)
        process.shim.close()
        heard: list[Output] = []
        reader = self.reading(other.shim, heard)
        writer = self.flood(process, other, total)
        # The next shim must begin with a word from here to there, which begins a frame.
        least = most = 0
        killed = 0
        memory = self.daemon.memory()
        while most < (total - (12 << 20)) // 8:
            child = self.child(process.token)
            self.assertTrue(least <= child.start <= most, f"P7: {child.start}: {least} to {most}")
            self.assertEqual(child.start % WORDS, 0, "P7: a frame does not begin where it should")
            self.assertLess(self.daemon.memory() - memory, 6 << 20, "P9: too much memory")
            enough = chance.randrange(1 << 20, 6 << 20)
            watched = killed % 2 == 0
            if not watched:
                child.connection.close()
            eventually(lambda: child.count > enough, "P7: output flows")  # noqa: B023
            if watched:
                child.stopReading()
            child.kill()
            killed += 1
            read = child.count // FRAME * WORDS
            least, most = child.start + read, child.start + read + (KERNEL + READ) // FRAME * WORDS
            if watched:
                last = self.drained(child.connection)
                assert last is not None
                least = most = last + 1
            self.undisturbed()
        shim = self.shim(process.token)
        self.finish(shim, least, most, total // 8)
        writer.join()
        reader.join()
        (output,) = heard
        expected = b"".join(words(n, 32) for n in range(0, total // PAYLOAD, 32))
        self.assertEqual(output.stdout, expected, "P9: another's output")
        self.assertEqual(output.status, 78)
        self.assertGreater(killed, 4)

    def drained(self, connection: socket.socket) -> int | None:
        """
        End the connection of a killed shim, and take what its kernel buffer has.

        @return: the last word that it has in a whole frame, if it has one.
        """
        connection.shutdown(socket.SHUT_RDWR)
        data = b""
        while piece := connection.recv(1 << 20):
            data += piece
        connection.close()
        at = data.find(MARK)
        count = (len(data) - at) // FRAME
        if at < 0 or not count:
            return None
        end = at + count * FRAME
        return int.from_bytes(data[end - 8 : end], "big")

    def finish(self, shim: BlockingClient, least: int, most: int, total: int) -> None:
        """The rest of the sequence comes to this shim, and then the status."""
        at: int | None = None
        while True:
            frame = shim.take(lambda f: f.type is not FrameType.RESPONSE, "the rest of the output")
            if frame.type is FrameType.NOTIFICATION:
                break
            first = int.from_bytes(frame.payload[:8], "big")
            if at is None:
                self.assertTrue(least <= first <= most, f"P7: {first}: {least} to {most}")
                at = first
            self.assertTrue(frame.payload == words(at, WORDS), f"P7: {first} instead of {at}")
            at += WORDS
        self.assertEqual(at, total, "P6, P7: output is missing before the status")
        self.assertEqual(frame.payload, b"\x4d")
        shim.command(Command.DISCONNECT_SHIM)
        shim.waitClosed()

    def test_manyTimesWithoutReading(self) -> None:
        """P7: shims that go without reading a byte lose what their kernel buffers took, no more."""
        vm = self.vm(2)
        process, other = vm.start(0), vm.start(1)
        process.shim.close()
        total = 8 << 20
        self.reading(other.shim, [])
        self.flood(process, other, total)
        last = -1
        for _ in range(12):
            connection = self.claim(process.token)
            time.sleep(0.03)
            taken = self.drained(connection)
            last = last if taken is None else taken
        self.finish(self.shim(process.token), last + 1, last + 1, total // 8)

    def monitored(self, process: Running, before: bytes = b"") -> None:
        """Kill a shim whose monitor child then sends Signal 9 on the same connection."""
        process.shim.close()
        connection = self.claim(process.token)
        connection.sendall(before)
        frame = commandFrame(Command.SIGNAL, {"signalNumber": 9})
        reading, writing = os.pipe()
        child = self.spawn(MONITORED, connection, frame.hex(), output=writing)
        os.close(writing)
        connection.close()
        self.assertEqual(os.read(reading, 1), b"*")
        os.close(reading)
        child.kill()
        child.wait()  # until then it holds the connection

    def assertKilled(self, process: Running, what: str) -> None:
        """The process has been sent SIGKILL."""

        def killed() -> list[object]:
            return [m for m in process.vm.agent.commands(ControlCode.KILLCONTAINER)
                    if process.container.encode() in m.body]  # fmt: skip

        eventually(killed, f"P7: Signal 9 carried out: {what}")
        self.assertEqual(len(killed()), 1)
        self.assertIn(b'"signal":9', process.vm.agent.commands(ControlCode.KILLCONTAINER)[-1].body)

    def test_monitorChild(self) -> None:
        """P7: Signal 9 of the monitor child, then EOF on the same connection: carried out."""
        vm = self.vm(4)
        idle, reading, writing, early = (f"{name}-{vm.id}" for name in ("i", "r", "w", "e"))
        process = vm.start(0, container=idle)
        self.monitored(process)
        self.assertKilled(process, "of an idle process")
        process = vm.start(1, container=reading)
        self.monitored(process, encodeStream(Stream.STDIN, b"x" * 8192) * 20)
        self.assertKilled(process, "behind 160 KB of stdin")
        self.assertEqual(len(vm.agent.stdin(process.number, 163_840)), 163_840)
        process = vm.start(2, container=writing)
        for n in range(200):
            process.say(words(n * WORDS, WORDS))
        vm.usable()
        self.monitored(process)
        self.assertKilled(process, "of a shim that has not read its output")
        process.exit(137)
        output = self.shim(process.token).untilExit()
        self.assertEqual(output.status, 137)
        self.assertTrue(words(0, 200 * WORDS).endswith(output.stdout), "P7: what is kept has gaps")
        # Two shims that have not read it are gone, each with what its kernel buffer held.
        self.assertGreater(len(output.stdout), 200 * PAYLOAD - 2 * KERNEL, "P7: too much is lost")
        process = vm.start(3, container=early)
        vm.agent.answers[ControlCode.PING] = None
        vm.client.command(Command.HYPER, {"hyperName": "ping"})
        vm.agent.command(ControlCode.PING, 1)
        self.monitored(process)
        time.sleep(0.1)
        vm.agent.sendControl(ControlCode.ACK)
        self.assertKilled(process, "while another command is not answered")
        del vm.agent.answers[ControlCode.PING]

    def test_monitorChildOfStuckAgent(self) -> None:
        """P7, P9: Signal 9 is carried out though the agent takes no stdin."""
        vm = self.vm(1)
        process = vm.start(container=f"stuck-{vm.id}")
        vm.agent.pause()
        self.addCleanup(vm.agent.resume)
        self.monitored(process, encodeStream(Stream.STDIN, b"x" * 8192) * 100)
        self.assertKilled(process, "behind 800 KB of stdin that the agent does not take")
        vm.agent.resume()
        self.assertEqual(len(vm.agent.stdin(process.number, 819_200)), 819_200)

    def test_ourOwnShim(self) -> None:
        """P7: SIGKILL for C{ccproxyctl shim} kills its process, though its output is stuck."""
        vm = self.vm(1)
        token, name = vm.tokens[0], f"own-{vm.id}"
        command = [*script("ccproxyctl"), "shim", "-c", name, "-t", token,
                   "-u", f"unix://{self.daemon.path}"]  # fmt: skip
        stuck, unread = os.pipe()
        self.addCleanup(os.close, stuck)
        with open(os.devnull) as null:
            shim = subprocess.Popen(command, stdin=null, stdout=unread, env=environment())
        os.close(unread)
        self.addCleanup(shim.wait)
        self.addCleanup(shim.kill)
        vm.client.timeout = vm.agent.timeout = 60
        vm.startLater()
        vm.agent.command(ControlCode.NEWCONTAINER)
        vm.client.response(Command.HYPER)
        for n in range(100):
            vm.agent.sendIO(3, words(n * WORDS, WORDS))
        shim.send_signal(signal.SIGKILL)
        self.assertEqual(vm.agent.data(ControlCode.KILLCONTAINER)["signal"], 9)
        vm.agent.exit(3, 137)
        eventually(lambda: "shim disconnected" in self.newLog(), "the guard ends the session")
        vm.client.unregisterVM(vm.id)
        vm.agent.hangUp()
        self.void([token])

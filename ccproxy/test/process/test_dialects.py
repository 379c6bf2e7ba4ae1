"""
The agents' dialects, and what each agent can bear: P15 and P19 on the real daemon.

The scripted agents of these tests read as a hypervisor does and die of what the real ones die of;
L{ProcessTestCase} makes sure that none of them has.
"""

from __future__ import annotations

import json
import time

from ccproxy.test.processes import ProcessTestCase, Running, startData
from ccproxy.testing.agent import Answer
from ccproxy.testing.client import success
from ccproxy.wire.codes import Command, ControlCode, Dialect, Stream
from ccproxy.wire.messages import CONTROL_HEADER, IO_HEADER, encodeControl

HYPERSTARTS = (Dialect.HYPERSTART0, Dialect.HYPERSTART1)
NEXT = encodeControl(ControlCode.NEXT, b"\0\0\0\x08")


class AnyDialectTests(ProcessTestCase):
    """P15: a client need not know which agent it is."""

    def test_wholeLife(self) -> None:
        """P6, P8, P15: two containers and an exec, in each dialect."""
        for dialect in (Dialect.CC, *HYPERSTARTS):
            vm = self.vm(3, dialect=dialect)
            vm.client.hyper("startpod", {"hostname": "h"})
            processes = [
                vm.start(0, container="c0"),
                vm.start(1, container="c1"),
                vm.start(2, "execcmd", container="c0", id="exec"),
            ]
            for n, process in enumerate(processes):
                process.shim.stdin(b"in %d" % n)
                process.shim.stdin(b"")
                vm.agent.waitEOF(process.number)
                self.assertEqual(b"".join(vm.agent.pieces(process.number)), b"in %d" % n)
                process.say(b"out %d" % n)
                process.complain(b"err %d" % n)
            for n, process in reversed(list(enumerate(processes))):
                process.exit(n)
                self.assertOutput(process.shim, b"out %d" % n, b"err %d" % n, n)
            vm.usable()

    def test_stdinFlood(self) -> None:
        """P8, P19: 300 KB of stdin of any frame size, in each dialect, in full speed."""
        for dialect in (Dialect.CC, *HYPERSTARTS):
            process = self.vm(1, dialect=dialect).start()
            sent = b""
            for n, size in enumerate((1, 255, 257, 4084, 4085, 8192, 100_000, 200_000)):
                sent += bytes([65 + n]) * size
                process.shim.stdin(bytes([65 + n]) * size)
            self.assertTrue(process.vm.agent.stdin(process.number, len(sent)) == sent)


class HyperstartTests(ProcessTestCase):
    """What only hyperstart does."""

    def test_version(self) -> None:
        """P15, P19: an agent that has shown NEXT is asked version, once, before its first start."""
        for dialect in HYPERSTARTS:
            vm = self.vm(2, dialect=dialect)
            vm.client.hyper("startpod", {})
            self.assertEqual([m.number for m in vm.agent.commands()], [1])
            vm.start(0)
            vm.start(1, "execcmd", id="x")
            self.assertEqual([m.number for m in vm.agent.commands()], [1, 0, 17, 6])

    def test_versionByNextAtReady(self) -> None:
        """P15: a NEXT before READY is enough to know; a client's own version is enough too."""
        vm = self.vm(1, dialect=Dialect.HYPERSTART1, ready=[NEXT, encodeControl(8)])
        self.assertEqual(int.from_bytes(vm.client.hyper("version"), "big"), 4244)
        vm.start()
        self.assertEqual([m.number for m in vm.agent.commands()], [0, 17])

    def test_id(self) -> None:
        """P19: hyperstart 1.x gets an id for each process, as first member; no other does."""
        for dialect in (Dialect.CC, *HYPERSTARTS):
            vm = self.vm(2, dialect=dialect)
            vm.client.hyper("ping")
            for nth, (kind, code) in enumerate((("newcontainer", 17), ("execcmd", 6))):
                process = vm.start(nth, kind)
                members = list(json.loads(vm.agent.command(code).body)["process"].items())
                numbers = [("stdio", process.number), ("stderr", process.stderr)]
                if dialect is Dialect.HYPERSTART1:
                    self.assertIn(("id", str(process.number)), members[:3])
                    self.assertEqual(sorted(members[:3]), sorted([("id", str(process.number)),
                                                                  *numbers]))  # fmt: skip
                else:
                    self.assertEqual(members[:2], numbers)
                    self.assertNotIn("id", dict(members))

    def test_idKept(self) -> None:
        """P19: an id that the client gave is kept."""
        process = self.vm(1, dialect=Dialect.HYPERSTART1).start(id="mine")
        self.assertEqual(process.data["process"]["id"], "mine")

    def test_liveId(self) -> None:
        """P19: hyperstart 1.x never gets a start whose container and id are live."""
        vm = self.vm(3, dialect=Dialect.HYPERSTART1)
        first = vm.start(0, "execcmd", container="c", id="p")
        self.shim(vm.tokens[1])
        data = startData("execcmd", "c", id="p")
        vm.client.hyperRefused("execcmd", data, vm.tokens[1:2])
        vm.start(2, "execcmd", container="other", id="p")
        self.assertSays(first)

    def test_unknownKeyBeforeArgs(self) -> None:
        """P19: hyperstart 0.x reads nothing of process behind a key unknown to it."""
        vm = self.vm(1, dialect=Dialect.HYPERSTART0)
        vm.client.hyper("startpod", {})
        vm.client.hyper("newcontainer", {"id": "b", "process": {"args": ["a"]}})
        start = {"id": "c", "process": {"noNewPrivileges": True, "args": ["a"]}}
        vm.client.hyperRefused("newcontainer", start, vm.tokens)  # P11: no wait for a shim
        shim = self.shim(vm.tokens[0])
        vm.client.hyperRefused("newcontainer", start, vm.tokens)
        self.assertEqual(len(vm.agent.commands(ControlCode.NEWCONTAINER)), 1)
        start["process"] = {"terminal": False, "args": ["a"], "noNewPrivileges": True}
        vm.client.hyper("newcontainer", start, vm.tokens)
        vm.agent.sendIO(3, b"out")
        self.assertEqual(shim.output(Stream.STDOUT, 3), b"out")

    def test_stdinPieces(self) -> None:
        """P19: stdin for hyperstart has at most 256 bytes in a message."""
        for dialect in HYPERSTARTS:
            process = self.vm(1, dialect=dialect).start()
            process.shim.stdin(b"x" * 100_000)
            process.vm.agent.stdin(process.number, 100_000)
            self.assertLessEqual(max(map(len, process.vm.agent.pieces())), 256)

    def test_stdinBeforeItIsKnown(self) -> None:
        """P19: so it is when hyperstart shows its NEXT only with the answer to the start."""
        for dialect in HYPERSTARTS:
            vm = self.vm(1, dialect=dialect)
            shim = self.shim(vm.tokens[0])
            shim.stdin(b"x" * 50_000)
            process = vm.start(shim=shim)
            vm.agent.stdin(process.number, 50_000)
            self.assertLessEqual(max(map(len, vm.agent.pieces())), 256)

    def test_emptyForUnknown(self) -> None:
        """P6: the empty message that hyperstart answers to stdin too late is no exit."""
        process = self.vm(1, dialect=Dialect.HYPERSTART0).start()
        process.say(b"")
        process.shim.silent(0.1)
        process.say(b"\x05")
        self.assertEqual(process.shim.exited(), 5)

    def test_podFinished(self) -> None:
        """P19: hyperstart 0.x's code 13 answers nothing, also while a command waits."""
        vm = self.vm(dialect=Dialect.HYPERSTART0)
        finished = encodeControl(ControlCode.POD_FINISHED, bytes(4))
        vm.agent.answers[ControlCode.STARTPOD] = Answer(b"own", before=[finished, finished])
        self.assertEqual(vm.client.hyper("startpod", {}), b"own")
        vm.agent.control.write(finished)
        vm.usable()

    def test_destroypod(self) -> None:
        """P12, P19: nothing is sent behind a destroypod; the end of the VM is its success."""
        vm = self.vm(dialect=Dialect.HYPERSTART1)
        other = vm.attach()
        vm.agent.answers[ControlCode.DESTROYPOD] = None
        vm.client.hyper("ping")
        vm.client.command(Command.HYPER, {"hyperName": "destroypod"})
        vm.agent.command(ControlCode.DESTROYPOD)
        other.command(Command.HYPER, {"hyperName": "ping"})
        time.sleep(0.1)
        self.assertEqual(vm.agent.commands()[-1].number, ControlCode.DESTROYPOD)
        vm.agent.hangUp()
        success(vm.client.response(Command.HYPER))
        self.assertTrue(other.response(Command.HYPER).error)


class EventTests(ProcessTestCase):
    """P6: hyperstart 1.x tells the exit by an event on the other channel."""

    def start(self) -> Running:
        """A process of a VM that speaks hyperstart 1.x."""
        return self.vm(1, dialect=Dialect.HYPERSTART1).start(container="c", id="p")

    def test_before(self) -> None:
        """P6: an event that overtakes the output waits for the end of it."""
        process = self.start()
        process.vm.agent.sendEvent("c", "p", 3)
        process.vm.usable()
        process.shim.silent(0.2)
        process.say(b"late")
        process.complain(b"words")
        process.say(b"")
        self.assertOutput(process.shim, b"late", b"words", 3)

    def test_after(self) -> None:
        """P6: so does the end wait for its event."""
        process = self.start()
        process.say(b"out")
        process.say(b"")
        process.vm.usable()
        self.assertEqual(process.shim.output(Stream.STDOUT, 3), b"out")
        process.shim.silent(0.2)
        process.vm.agent.sendEvent("c", "p", 4)
        self.assertEqual(process.shim.exited(), 4)

    def test_oneByte(self) -> None:
        """P6: a byte behind the end is no status here."""
        process = self.start()
        process.say(b"")
        process.vm.agent.sendEvent("c", "p", 4)
        self.assertEqual(process.shim.exited(), 4)

    def test_ofOthers(self) -> None:
        """P10: an event ends the process of its container and id, and no other."""
        vm = self.vm(2, dialect=Dialect.HYPERSTART1)
        one = vm.start(0, container="c", id="p")
        two = vm.start(1, "execcmd", container="c", id="q")
        one.say(b"")
        two.say(b"")
        vm.agent.sendEvent("c", "nobody", 1)
        vm.agent.sendEvent("d", "p", 1)
        vm.agent.sendEvent("c", "q", 2)
        self.assertEqual(two.shim.exited(), 2)
        one.shim.silent(0.1)
        vm.usable()
        vm.agent.sendEvent("c", "p", 0)
        self.assertEqual(one.shim.exited(), 0)

    def test_nonsense(self) -> None:
        """P3: events that are none are dropped."""
        process = self.start()
        for body in (b"", b"{", b"[]", b"null", b'{"event":5}', b'{"event":"finished"}',
                     b'{"event":"finished","container":"c","process":"p","status":"x"}',
                     b'{"event":"finished","container":5,"process":[],"status":1}',
                     b"\xff" * 50):  # fmt: skip
            process.vm.agent.sendControl(ControlCode.PROCESS_ASYNC_EVENT, body)
        self.assertSays(process)
        process.vm.usable()


class PacingTests(ProcessTestCase):
    """P19: write boundaries that the cc agent survives, whatever the timing."""

    def test_slowReader(self) -> None:
        """P19: small stdin of several processes piles up before an agent that reads late."""
        vm = self.vm(4)
        vm.client.hyper("ping")
        processes = [vm.start(nth) for nth in range(4)]
        vm.agent.readPause = 0.003
        for n in range(100):
            for process in processes:
                process.shim.stdin(b"%04d" % n * (1 + n % 7))
        whole = b"".join(b"%04d" % n * (1 + n % 7) for n in range(100))
        for process in processes:
            self.assertEqual(vm.agent.stdin(process.number, len(whole)), whole)

    def test_bulkAndKeys(self) -> None:
        """P19: so do bulk and keystrokes that are mixed."""
        vm = self.vm(2)
        bulk, typed = vm.start(0), vm.start(1)
        vm.agent.readPause = 0.001
        for n in range(60):
            bulk.shim.stdin(bytes([n]) * (4000 + n * 17))
            typed.shim.stdin(b"k")
        expected = b"".join(bytes([n]) * (4000 + n * 17) for n in range(60))
        self.assertTrue(vm.agent.stdin(bulk.number, len(expected)) == expected)
        self.assertEqual(vm.agent.stdin(typed.number, 60), b"k" * 60)

    def test_pausedReader(self) -> None:
        """P19: while the agent reads nothing, little waits in its socket."""
        vm = self.vm(1)
        vm.client.hyper("ping")
        process = vm.start()
        vm.agent.pause()
        self.addCleanup(vm.agent.resume)
        for _ in range(30):
            process.shim.stdin(b"x" * 8000)
        time.sleep(0.2)
        self.assertLessEqual(vm.agent.io.waiting(), 16 << 10)
        vm.agent.resume()
        self.assertEqual(len(vm.agent.stdin(process.number, 240_000)), 240_000)

    def test_control(self) -> None:
        """P19: control messages of any size, to an agent that reads late."""
        vm = self.vm()
        vm.agent.readPause = 0.001
        for size in (1, 4079, 4080, 4085, 4088, 4089, 4096, 8184, 8190, 50_000):
            clients = [vm.attach() for _ in range(3)]
            data = {"fill": "x" * size}
            for client in clients:
                client.command(Command.HYPER, {"hyperName": "startpod", "data": data})
                client.command(Command.HYPER, {"hyperName": "ping"})
            for client in clients:
                success(client.response(Command.HYPER))
                success(client.response(Command.HYPER))

    def test_headerSizes(self) -> None:
        """The headers that must not be cut have 8 and 12 bytes."""
        self.assertEqual((CONTROL_HEADER.size, IO_HEADER.size), (8, 12))

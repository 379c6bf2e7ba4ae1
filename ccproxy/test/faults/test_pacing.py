"""
Stdin of any size and timing, to agents with the weaknesses of the real ones: P8 and P19.

The scripted agent reads as QEMU does, at most 4096 bytes at a time, and dies of what kills the
real one. That none has died is checked at the end of each test.
"""

from __future__ import annotations

import random
import threading
import time

from ccproxy.test.faults.conversation import FaultTestCase
from ccproxy.test.processes import PlayedVM, Running
from ccproxy.testing.client import hyperPayload, success
from ccproxy.wire.codes import Command, Dialect

#: The buffer of a process's stdin in hyperstart, and how many messages come between two flushes.
BUFFER = 512
TURN = 2
#: Payloads around which the writes to a cc agent are cut.
EDGES = (1, 11, 12, 13, 4083, 4084, 4085, 4096, 4097, 8168, 8192)


class RandomInputTests(FaultTestCase):
    """P19: several shims write at random."""

    def sizes(self, chance: random.Random) -> int:
        """A size of a frame that a shim sends."""
        if chance.random() < 0.4:
            return chance.choice(EDGES)
        return chance.randrange(1, 300 if chance.random() < 0.6 else 9000)

    def play(self, seed: int, vm: PlayedVM, processes: list[Running], frames: int) -> None:
        """Write to all of them at random, read at random, and see that all arrives in order."""
        chance = random.Random(seed)
        sent = {process.number: bytearray() for process in processes}
        for nth in range(frames):
            process = chance.choice(processes)
            data = chance.randbytes(self.sizes(chance))
            process.shim.stdin(data)
            sent[process.number] += data
            if chance.random() < 0.02:
                vm.agent.readPause = chance.choice((0.0, 0.0002, 0.002))
            if chance.random() < 0.03:
                vm.agent.pause()
                time.sleep(chance.random() / 200)
                vm.agent.resume()
            if chance.random() < 0.05:
                time.sleep(chance.random() / 500)
            if nth % 50 == 0:
                self.assertSays(chance.choice(processes))
        vm.agent.readPause = 0
        for process in processes:
            process.shim.stdin(b"")
            vm.agent.waitEOF(process.number)
            expected = sent[process.number]
            got = vm.agent.stdin(process.number, len(expected))
            self.assertTrue(got == expected, f"P8: stdin differs, seed {seed}")
            self.assertEqual(vm.agent.pieces(process.number)[-1], b"", f"P8: EOF, seed {seed}")
            self.assertEqual(vm.agent.pieces(process.number).count(b""), 1)

    def running(self, dialect: Dialect, count: int, known: bool = True) -> PlayedVM:
        """A VM whose dialect is known, or not yet."""
        vm = self.vm(count, dialect=dialect)
        if known:
            vm.client.hyper("startpod", {"hostname": "h"})
        return vm

    def test_cc(self) -> None:
        """P8, P19: a cc agent, which dies of a header that comes in two reads."""
        for seed in range(3):
            vm = self.running(Dialect.CC, 6)
            self.play(seed, vm, [vm.start(nth) for nth in range(6)], 250)
            self.assertLessEqual(max(map(len, vm.agent.pieces())), 4084)

    def test_hyperstart(self) -> None:
        """P8, P19: hyperstarts, which drop what their buffer does not hold, and die of too much."""
        for seed, dialect in enumerate((Dialect.HYPERSTART0, Dialect.HYPERSTART1)):
            vm = self.running(dialect, 4)
            self.play(seed, vm, [vm.start(nth, id=f"p{nth}") for nth in range(4)], 120)
            self.assertLossless(vm)

    def assertLossless(self, vm: PlayedVM) -> None:
        """A buffer of 512 bytes that is flushed behind every second message loses nothing."""
        messages = list(vm.agent.io.messages)
        for nth in (0, 1):
            for at in range(nth, len(messages) - 1, TURN):
                held: dict[int, int] = {}
                for message in messages[at : at + TURN]:
                    held[message.number] = held.get(message.number, 0) + len(message.body)
                self.assertLessEqual(max(held.values()), BUFFER, "P19: hyperstart loses stdin")
        longest = max(len(message.body) for message in messages)
        self.assertLessEqual(longest, 256, "P19: more than is safe for hyperstart")

    def test_unknownYet(self) -> None:
        """P19: what was held for an agent whose dialect only its start tells is cut for it too."""
        for dialect in (Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1):
            vm = self.running(dialect, 3, known=False)
            shims = [vm.shim(nth) for nth in range(3)]
            for size in (*EDGES, 20_000):
                for shim in shims:
                    shim.stdin(b"x" * size)
            processes = [vm.start(n, shim=shim, id=f"p{n}") for n, shim in enumerate(shims)]
            total = sum(EDGES) + 20_000
            for process in processes:
                self.assertEqual(len(vm.agent.stdin(process.number, total)), total)
            if dialect is not Dialect.CC:
                self.assertLossless(vm)

    def test_controlAtTheSameTime(self) -> None:
        """P10, P19: control messages of any size meanwhile, each read as QEMU does."""
        vm = self.running(Dialect.CC, 3)
        processes = [vm.start(nth) for nth in range(3)]
        clients = [vm.attach() for _ in range(3)]
        problems: list[BaseException] = []

        def talk() -> None:
            chance = random.Random(5)
            try:
                for _ in range(60):
                    for client in clients:
                        data = {"fill": "x" * chance.choice((0, 1, 4070, 4078, 4086, 4090, 9000))}
                        client.command(Command.HYPER, hyperPayload("startpod", data))
                    processes[0].shim.signal(10)
                    processes[1].shim.signal(28, columns=80, rows=chance.randrange(1, 99))
                    for client in clients:
                        success(client.response(Command.HYPER))
            except BaseException as problem:
                problems.append(problem)

        thread = threading.Thread(target=talk)
        thread.start()
        # The shims of the first two are the other thread's meanwhile.
        self.play(11, vm, processes[2:], 150)
        thread.join()
        self.assertEqual(problems, [])

    def test_everyPair(self) -> None:
        """P19: two sizes behind each other, all pairs of the odd ones, to a cc agent at rest."""
        vm = self.running(Dialect.CC, 2)
        one, two = vm.start(0), vm.start(1)
        total = 0
        for first in EDGES:
            for second in EDGES:
                one.shim.stdin(b"1" * first)
                two.shim.stdin(b"2" * second)
                total += first
            self.assertEqual(len(vm.agent.stdin(one.number, total)), total)

    def test_windowOfStuckAgent(self) -> None:
        """P9, P19: an agent that does not read never has more than 16 KiB before it."""
        for dialect in (Dialect.CC, Dialect.HYPERSTART1):
            vm = self.running(dialect, 4)
            processes = [vm.start(nth, id=f"p{nth}") for nth in range(4)]
            vm.agent.pause()
            self.addCleanup(vm.agent.resume)
            for nth in range(40):
                processes[nth % 4].shim.stdin(bytes([nth]) * (500 + 200 * nth))
            time.sleep(0.1)
            self.assertLessEqual(vm.agent.io.waiting(), 16 << 10, "P19: a keystroke waits behind")
            vm.agent.resume()
            for nth, process in enumerate(processes):
                expected = b"".join(bytes([n]) * (500 + 200 * n) for n in range(nth, 40, 4))
                self.assertTrue(vm.agent.stdin(process.number, len(expected)) == expected)

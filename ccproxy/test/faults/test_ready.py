"""
VMs whose READY is past: P20 on the real daemon, with what an earlier registration has left behind.
"""

from __future__ import annotations

import time

from ccproxy.test.faults.conversation import FaultTestCase
from ccproxy.test.processes import PlayedVM, Running
from ccproxy.testing.agent import READY, Answer, ScriptedAgent
from ccproxy.testing.client import BlockingClient, hyperPayload, registration, success, tokensOf
from ccproxy.testing.daemon import eventually
from ccproxy.wire.codes import Command, ControlCode, Dialect, Stream
from ccproxy.wire.messages import encodeControl, encodeIO

#: Seconds of silence before ping is asked.
PING = 0.6


class PastReadyTests(FaultTestCase):
    """P20: a VM that was registered before is registered again."""

    options = ("--log-level=debug", f"--ready-ping={PING}", "--ready-timeout=10")

    def registered(self, agents: list[ScriptedAgent], tokens: int = 1) -> list[PlayedVM]:
        """Register the VMs of these agents, all at once."""
        vms = [PlayedVM(self.client, self.unique(), a, self.client(), []) for a in agents]
        for vm in vms:
            vm.client.command(Command.REGISTER_VM, registration(vm.id, vm.agent, tokens))
        for vm in vms:
            vm.tokens = tokensOf(success(vm.client.response(Command.REGISTER_VM)))
        return vms

    def test_staleAnswers(self) -> None:
        """P20: answers to an earlier client that come before the ping answer nothing."""
        stale = [
            [encodeControl(ControlCode.ACK, b"stale")],
            [encodeControl(ControlCode.ACK), encodeControl(ControlCode.ACK, b"and another")],
            [encodeControl(ControlCode.NEXT, bytes(4)), encodeControl(ControlCode.ACK, b"stale")],
            [encodeControl(ControlCode.POD_FINISHED, bytes(4))],
            [encodeControl(ControlCode.PROCESS_ASYNC_EVENT, b'{"event":"finished"}')],
        ]
        for vm in self.registered([self.agent(ready=pieces) for pieces in stale]):
            self.assertEqual([m.number for m in vm.agent.commands()], [ControlCode.PING])
            vm.agent.answers[ControlCode.STARTPOD] = Answer(b"its own")
            self.assertEqual(
                vm.client.hyper("startpod", {}), b"its own", "P20: answers are shifted"
            )
            vm.usable()
            self.assertSays(vm.start())

    def test_askedOnce(self) -> None:
        """P20: ping is asked after the silence, once, and a refusal is an answer too."""
        refusing, slow = self.agent(ready=()), self.agent(ready=())
        refusing.answers[ControlCode.PING] = Answer(b"", ControlCode.ERROR)
        slow.answers[ControlCode.PING] = Answer(delay=4 * PING)
        began = time.monotonic()
        vms = self.registered([refusing, slow])
        self.assertGreater(time.monotonic() - began, 4.5 * PING, "P20: not waited for the answer")
        for vm in vms:
            self.assertEqual([m.number for m in vm.agent.commands()], [ControlCode.PING])
            del vm.agent.answers[ControlCode.PING]
            vm.usable()

    def test_readyInTime(self) -> None:
        """P20: an agent that says READY is not asked, and its numbers begin at 3."""
        vms = self.registered([self.agent(readyDelay=PING / 6) for _ in range(3)])
        for vm in vms:
            self.assertEqual(vm.agent.commands(), [])
            self.assertEqual(vm.start().number, 3)

    def test_readyAfterPing(self) -> None:
        """P20: READY behind the ping is READY: the ping's answer is not taken for another's."""
        vms = self.registered([self.agent(ready=(READY,), readyDelay=2 * PING) for _ in range(3)])
        for vm in vms:
            vm.agent.answers[ControlCode.STARTPOD] = Answer(b"its own")
            self.assertEqual(
                vm.client.hyper("startpod", {}), b"its own", "P20: answers are shifted"
            )
            vm.usable()

    def test_lateReady(self) -> None:
        """P20: READY that comes after the ping's answer is taken for nothing."""
        (vm,) = self.registered([self.agent(ready=(READY,), readyDelay=3 * PING)])
        vm.agent.answers[ControlCode.PING] = None
        vm.client.command(Command.HYPER, hyperPayload("ping"))
        time.sleep(3 * PING)
        vm.agent.sendControl(ControlCode.ACK, b"pong")
        self.assertEqual(success(vm.client.response(Command.HYPER)), b"pong")

    def assertWorks(self, process: Running, what: str) -> None:
        """What the process says arrives, and so does its end."""
        process.say(b"out")
        process.complain(b"err")
        process.exit(9)
        output = process.shim.untilExit()
        got = (output.stdout, output.stderr, output.status)
        self.assertEqual(got, (b"out", b"err", 9), what)

    def test_insideMessage(self) -> None:
        """P20: the I/O channel begins at any byte of an old message; no byte of ours is lost."""
        old = encodeIO(5, bytes(range(20)))
        agents = [self.agent(ready=()) for _ in range(len(old))]
        for cut, vm in enumerate(self.registered(agents)):
            vm.agent.io.write(old[cut:] + old + encodeIO(3) + encodeIO(3, b"\x01"))
            process = vm.start()
            self.assertGreater(process.number, 1 << 33, "P20: a number of an earlier registration")
            self.assertWorks(process, f"P20: the channel begins at byte {cut}")

    def test_insideMessageNothingElse(self) -> None:
        """P20: so it is when nothing else of the old process comes before ours."""
        old = encodeIO(5, b"old and long enough to look like one: " + bytes(30) + b"\xff" * 30)
        agents = [self.agent(ready=()) for _ in range(0, len(old), 3)]
        for nth, vm in enumerate(self.registered(agents)):
            process = vm.start()
            vm.agent.io.write(old[nth * 3 :])
            self.assertWorks(process, f"P20: the channel begins at byte {nth * 3}")

    def test_insideLongMessage(self) -> None:
        """P20: the rest of an old message may itself look like messages."""
        looks = b"".join(encodeIO(n, b"x" * n) for n in range(40))
        old = encodeIO(7, looks)
        agents = [self.agent(ready=()) for _ in range(0, 60, 4)]
        for nth, vm in enumerate(self.registered(agents)):
            process = vm.start()
            vm.agent.io.write(old[nth * 4 :])
            self.assertWorks(process, f"P20: the channel begins at byte {nth * 4}")

    def test_piecemeal(self) -> None:
        """P20: the beginning may come a byte at a time."""
        (vm,) = self.registered([self.agent(ready=())])
        process = vm.start()
        for byte in encodeIO(5, b"old")[4:]:
            vm.agent.io.write(bytes([byte]))
            time.sleep(0.002)
        self.assertWorks(process, "P20: byte by byte")

    def test_oldProcesses(self) -> None:
        """P20: output and ends of old processes never reach a new one, nor do their statuses."""
        (vm,) = self.registered([self.agent(ready=())], 2)
        one, two = vm.start(0), vm.start(1)
        for number in (1, 2, 3, 4, 5, 6):
            vm.agent.sendIO(number, b"old")
            vm.agent.exit(number, 1)
            vm.agent.sendIO(one.number, b"new")
        self.assertEqual(one.shim.output(Stream.STDOUT, 18), b"new" * 6)
        two.shim.silent(0.05)
        self.assertSays(two)

    def test_dialects(self) -> None:
        """P15, P20: the dialect is told apart after a ping as well; stdin is cut accordingly."""
        dialects = (Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1)
        agents = [self.agent(dialect=dialect, ready=()) for dialect in dialects]
        for dialect, vm in zip(dialects, self.registered(agents), strict=True):
            process = vm.start(container="c", id="p")
            process.shim.stdin(b"x" * 20_000)
            vm.agent.stdin(process.number, 20_000)
            longest = max(map(len, vm.agent.pieces(process.number)))
            self.assertLessEqual(longest, 4084 if dialect is Dialect.CC else 256)
            self.assertWorks(process, f"P15: {dialect}")

    def test_abandoned(self) -> None:
        """P11, P13: clients that go at any time of a registration leave nothing of it."""
        agents = [self.agent(ready=()) for _ in range(12)]
        for agent in agents:
            agent.answers[ControlCode.PING] = None
        name, began = self.unique(), time.monotonic()
        clients = [self.client() for _ in agents]
        for nth, client in enumerate(clients):
            client.command(Command.REGISTER_VM, registration(f"{name}-{nth}", agents[nth], 3))
        for nth, client in enumerate(clients):
            # Before and after ping is asked.
            time.sleep(max(0.0, began + nth * PING / 6 - time.monotonic()))
            self.forget(client)
        for nth, agent in enumerate(agents):
            other, agent.ready = self.client(), (READY,)
            again = registration(f"{name}-{nth}", agent)

            def free(other: BlockingClient = other, payload: object = again) -> bool:
                return not other.call(Command.REGISTER_VM, payload).error

            eventually(free, f"P13: the id and the sockets of {name}-{nth} are free")
            other.hyper("startpod", {})

    def test_again(self) -> None:
        """P20: unregistered while its process runs, and registered again at once: it works."""
        vm = self.vm(1)
        process = vm.start()
        vm.client.unregisterVM(vm.id)
        vm.agent.ready = ()
        (again,) = self.registered([vm.agent])
        process.shim.waitClosed()
        self.assertSays(again.start())
        self.void([process.token])

"""
The end of a VM, of a client, and of patience: P11, P12 and P13 on the real daemon.
"""

from __future__ import annotations

import os
import time
from fcntl import ioctl
from struct import unpack
from termios import TIOCOUTQ

from twisted.trial.unittest import SkipTest

from ccproxy.test.processes import ProcessTestCase
from ccproxy.testing.agent import ScriptedAgent
from ccproxy.testing.client import commandFrame, failure, hyperPayload, registration, success
from ccproxy.testing.daemon import eventually
from ccproxy.wire.codes import Command, ControlCode, Dialect, Stream


class LostVMTests(ProcessTestCase):
    """P12: a VM's channels close."""

    def test_shims(self) -> None:
        """P12: shims get the output that had come, then ProcessExited(255), then the end."""
        vm = self.vm(2)
        one, two = vm.start(0), vm.start(1)
        one.say(b"last words")
        two.complain(b"of both")
        vm.agent.hangUp()
        self.assertOutput(one.shim, b"last words", b"", 255)
        self.assertOutput(two.shim, b"", b"of both", 255)
        one.shim.waitClosed()
        two.shim.waitClosed()

    def test_statusFirst(self) -> None:
        """P6, P12: a status that came just before the end is the one that counts."""
        for dialect in (Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1):
            process = self.vm(1, dialect=dialect).start(container="c", id="p")
            process.say(b"out")
            process.exit(7)
            process.vm.agent.hangUp()
            self.assertOutput(process.shim, b"out", b"", 7)

    def test_unclaimedShims(self) -> None:
        """P12: a shim whose process is not started yet ends too."""
        vm = self.vm(1)
        shim = self.shim(vm.tokens[0])
        vm.agent.hangUp()
        self.assertEqual(shim.untilExit().status, 255)
        shim.waitClosed()

    def test_eitherChannel(self) -> None:
        """P12: the end of one channel is the end of the VM; the other's last words are read."""
        one, two = self.process(), self.process()
        one.vm.agent.hangUp(one.vm.agent.io)
        two.vm.agent.hangUp(two.vm.agent.control)
        two.say(b"last words")
        self.assertOutput(one.shim, b"", b"", 255)
        self.assertOutput(two.shim, b"last words", b"", 255)
        for process in (one, two):
            process.shim.waitClosed()
            process.vm.agent.waitDisconnected(process.vm.agent.control)
            process.vm.agent.waitDisconnected(process.vm.agent.io)

    def test_commands(self) -> None:
        """P11, P12: commands that wait, sent or not, and held signals get an error at once."""
        vm = self.vm(2)
        vm.agent.answers[ControlCode.PING] = None
        sent, unsent = vm.attach(), vm.attach()
        sent.command(Command.HYPER, hyperPayload("ping"))
        vm.agent.command(ControlCode.PING)
        unsent.command(Command.HYPER, hyperPayload("startpod", {}))
        vm.startLater(1)
        held = self.shim(vm.tokens[0])
        held.command(Command.SIGNAL, {"signalNumber": 10})
        unsent.silent(0.1)
        vm.agent.hangUp()
        for client in (sent, unsent, vm.client):
            self.assertIn(vm.id, failure(client.response(Command.HYPER)))
        failure(held.response(Command.SIGNAL))

    def test_afterwards(self) -> None:
        """P12: the id stays known: Hyper is refused at once, UnregisterVM succeeds."""
        vm = self.vm()
        vm.agent.hangUp()
        eventually(lambda: vm.client.call(3, hyperPayload("ping")).error, "the VM lost")
        self.assertIn(vm.id, vm.client.hyperRefused("ping"))
        other = self.client()
        vm.client.unregisterVM(vm.id)
        other.refused(Command.UNREGISTER_VM, {"containerId": vm.id})

    def test_replaced(self) -> None:
        """P12: RegisterVM replaces a lost VM, at the same sockets too."""
        process = self.process()
        vm = process.vm
        vm.agent.hangUp()
        self.assertEqual(process.shim.untilExit().status, 255)
        client = self.client()
        tokens = client.registerVM(vm.id, vm.agent, 1)
        client.hyper("ping")
        self.client().refused(Command.CONNECT_SHIM, {"token": process.token})
        self.client().connectShim(tokens[0])

    def test_registersUntilSeen(self) -> None:
        """P12: a successor may be registered at once, before anybody has seen the loss."""
        vm = self.vm()
        vm.agent.hangUp()
        agent = self.agent()
        self.client().registerVM(vm.id, agent)

    def test_shimAway(self) -> None:
        """P7, P12: what a shim that is away has not got yet is kept for it beyond the VM's end."""
        process = self.process()
        process.shim.close()
        process.say(b"unheard")
        process.vm.usable()
        process.vm.agent.hangUp()
        self.assertOutput(self.shim(process.token), b"unheard", b"", 255)

    def test_bigLastWords(self) -> None:
        """P6, P12: an agent that closes right after 400 KB loses none of it."""
        process = self.process()
        data = bytes(n % 253 for n in range(400_000))
        for at in range(0, len(data), 4096):
            process.say(data[at : at + 4096])
        process.vm.agent.hangUp()
        output = process.shim.untilExit()
        self.assertTrue(output.stdout == data)
        self.assertEqual(output.status, 255)

    def test_inodeUsedAgain(self) -> None:
        """P6, P12: a VM with output left is not taken for one whose sockets got its inodes."""
        process = self.process()
        agent = process.vm.agent
        inodes = {os.stat(channel.path).st_ino for channel in (agent.control, agent.io)}
        piece, count = bytes(n % 251 for n in range(4096)), 0
        # Until the session and the shim's socket are full, and some of it is left in the channel's.
        while count < 256 or self._unread(agent) < 4 * len(piece):
            process.say(piece)
            count += 1
        agent.close()
        for _ in range(20):
            other = self.agent()
            found = {os.stat(channel.path).st_ino for channel in (other.control, other.io)}
            if found & inodes:
                break
        else:
            raise SkipTest("this file system does not use inodes again")
        self.client().registerVM(self.unique(), other)
        output = process.shim.untilExit()
        self.assertTrue(output.stdout == piece * count)
        self.assertEqual(output.status, 255)

    def _unread(self, agent: ScriptedAgent) -> int:
        """How much of the output is in the channel's socket, when the daemon has had its time."""
        time.sleep(0.01)
        assert agent.io.connection is not None
        count: int = unpack("i", ioctl(agent.io.connection, TIOCOUTQ, bytes(4)))[0]
        return count

    def test_others(self) -> None:
        """P12: other VMs hear nothing of it."""
        process, lost = self.process(), self.process()
        lost.vm.agent.close()
        self.assertEqual(lost.shim.untilExit().status, 255)
        self.assertSays(process)
        process.vm.usable()


class LostClientTests(ProcessTestCase):
    """P10, P13: clients that end at odd moments."""

    def test_duringStart(self) -> None:
        """P10: a runtime that leaves after its start was sent: the process runs all the same."""
        vm = self.vm(1)
        shim = self.shim(vm.tokens[0])
        vm.agent.answers[ControlCode.NEWCONTAINER] = None
        vm.startLater()
        vm.agent.command(ControlCode.NEWCONTAINER)
        vm.client.close()
        vm.agent.sendControl(ControlCode.ACK)
        vm.agent.sendIO(3, b"alive")
        self.assertEqual(shim.output(Stream.STDOUT, 5), b"alive")
        vm.agent.exit(3, 2)
        self.assertEqual(shim.exited(), 2)

    def test_everyCut(self) -> None:
        """P3, P13: a runtime's whole conversation, cut at many bytes, leaves nothing behind."""
        agent, name = self.agent(), self.unique()
        stream = (
            commandFrame(Command.REGISTER_VM, registration(name, agent, 1))
            + commandFrame(Command.HYPER, hyperPayload("startpod", {"hostname": "h"}))
            + commandFrame(Command.ATTACH_VM, {"containerId": name, "numIOStreams": 1})
        )
        other = self.client()

        def registersAgain() -> bool:
            other.call(Command.UNREGISTER_VM, {"containerId": name})
            return not other.call(Command.REGISTER_VM, registration(name, agent)).error

        for cut in range(1, len(stream) + 1, 9):
            client = self.client()
            client.send(stream[:cut])
            client.close()
            eventually(registersAgain, f"the id can be registered after a cut at {cut}")
            other.hyper("ping")
        other.unregisterVM(name)


class DeadlineTests(ProcessTestCase):
    """P11: waits end by themselves, with an error that says what was waited for."""

    options = (
        "--log-level=debug",
        "--ready-timeout=2.5",
        "--ready-ping=1.2",
        "--shim-timeout=1.5",
        "--process-timeout=1.5",
        "--command-timeout=1.5",
    )

    def test_ready(self) -> None:
        """P11: neither READY nor an answer to ping: the registration fails, nothing remains."""
        agent, client, name = self.agent(ready=()), self.client(), self.unique()
        agent.answers[ControlCode.PING] = None
        text = client.refused(Command.REGISTER_VM, registration(name, agent))
        self.assertIn("READY", text)
        self.assertIn(name, text)
        agent.waitDisconnected(agent.control)
        agent.waitDisconnected(agent.io)
        client.registerVM(name, self.agent())

    def test_shim(self) -> None:
        """P11: a start whose shim never comes fails with its token; it may be tried again."""
        vm = self.vm(1)
        text = vm.startRefused()
        self.assertIn(f"timeout waiting for shim with token {vm.tokens[0]}", text)
        self.assertEqual(vm.agent.commands(), [])
        self.assertSays(vm.start())

    def test_signal(self) -> None:
        """P11: a signal whose process is never started fails with its token."""
        vm = self.vm(1)
        shim = self.shim(vm.tokens[0])
        text = shim.signalRefused(10)
        self.assertIn(f"timeout waiting for process with token {vm.tokens[0]}", text)
        self.assertSays(vm.start(shim=shim))

    def test_command(self) -> None:
        """P11: a silent agent: the caller gets an error, its late answer is discarded."""
        vm = self.vm()
        vm.agent.answers[ControlCode.STARTPOD] = None
        other = vm.attach()
        vm.client.command(Command.HYPER, hyperPayload("startpod", {}))
        vm.agent.command(ControlCode.STARTPOD)
        other.command(Command.HYPER, hyperPayload("ping"))
        text = failure(vm.client.response(Command.HYPER))
        self.assertIn("startpod", text)
        self.assertIn(vm.id, text)
        self.assertIn("agent has not answered startpod since", failure(other.response(3)))
        self.assertEqual(vm.agent.commands(ControlCode.PING), [])
        vm.agent.sendControl(ControlCode.ACK, b"late")
        vm.usable()

    def test_lateStart(self) -> None:
        """P11: a late ACK of a start starts the session all the same."""
        vm = self.vm(1)
        shim = self.shim(vm.tokens[0])
        vm.agent.answers[ControlCode.NEWCONTAINER] = None
        vm.startLater()
        failure(vm.client.response(Command.HYPER))
        vm.agent.sendIO(3, b"early")
        vm.agent.sendControl(ControlCode.ACK)
        vm.agent.exit(3, 5)
        self.assertOutput(shim, b"early", b"", 5)
        success(vm.client.call(Command.HYPER, hyperPayload("ping")))

"""
The configured limits on the real daemon: P2, P5 and P9.
"""

from __future__ import annotations

import contextlib
import resource
import time

from ccproxy.test.processes import ProcessTestCase, startData
from ccproxy.testing.client import (
    BlockingClient,
    commandFrame,
    failure,
    hyperPayload,
    registration,
    success,
)
from ccproxy.testing.daemon import eventually
from ccproxy.wire.codes import Command, ControlCode, FrameType, Stream
from ccproxy.wire.frames import HEADER


class LimitTests(ProcessTestCase):
    """P5: one more than allowed is an error that says so."""

    options = (
        "--log-level=debug",
        "--max-clients=12",
        "--max-vms=4",
        "--max-tokens=5",
        "--max-commands=6",
        "--max-unanswered=8",
        "--max-frame=4KiB",
        "--max-message=16KiB",
        "--token-timeout=3",
        "--absent-timeout=0.3",
        "--session-buffer=64KiB",
    )

    def tearDown(self) -> None:
        """Unregister what is registered still, so that the next test has all of the limits."""
        client = self._clients[0]
        if not client.closed and client.socket.fileno() >= 0:
            for name in self.registered:
                client.call(Command.UNREGISTER_VM, {"containerId": name})
        super().tearDown()

    def setUp(self) -> None:
        """Remember which VMs there are."""
        super().setUp()
        self.registered: list[str] = []
        self.client()

    def unique(self, name: str = "vm") -> str:
        """A name that no other test has used, unregistered in the end."""
        unique = super().unique(name)
        self.registered.append(unique)
        return unique

    def test_vms(self) -> None:
        """P5: one VM too many."""
        vms = [self.vm() for _ in range(4)]
        name, agent, client = self.unique(), self.agent(), self.client()
        text = client.refused(Command.REGISTER_VM, registration(name, agent))
        self.assertIn("4", text)
        self.assertEqual(agent.control.connections, 0)
        vms[0].client.unregisterVM(vms[0].id)
        vms[0].agent.hangUp()
        eventually(
            lambda: not client.call(Command.REGISTER_VM, registration(name, agent)).error,
            "room for the VM",
        )
        vms[1].usable()

    def test_lostVMs(self) -> None:
        """P5, P12: lost VMs make room for new ones, the oldest first."""
        lost = [self.vm() for _ in range(4)]
        for vm in lost:
            vm.agent.hangUp()
            self.waitLog(f"event=vm-lost vm={vm.id} ")
        self.vm().usable()
        client = self.client()
        self.assertIn(
            "unknown containerID",
            client.refused(Command.UNREGISTER_VM, {"containerId": lost[0].id}),
        )

    def test_tokens(self) -> None:
        """P5: one token too many; one that nobody has claimed for a while makes room."""
        vm = self.vm(3)
        shim = self.shim(vm.tokens[0])
        text = vm.client.refused(Command.ATTACH_VM, {"containerId": vm.id, "numIOStreams": 3})
        self.assertIn("5", text)
        more = vm.client.attachVM(vm.id, 2)
        vm.client.refused(Command.ATTACH_VM, {"containerId": vm.id, "numIOStreams": 1})
        time.sleep(3.1)
        vm.client.attachVM(vm.id, 1)
        text = self.client().refused(Command.CONNECT_SHIM, {"token": vm.tokens[1]})
        self.assertIn("unknown token", text)
        self.client().connectShim(more[0])
        self.assertSays(vm.start(shim=shim))

    def test_clients(self) -> None:
        """P5: a client too many is turned away; those that are there go on."""
        clients = [self.client() for _ in range(11)]
        for client in clients:
            client.probe()
        extra = self.client()
        extra.command(Command.ATTACH_VM, {"containerId": "x"})
        (answer,) = extra.waitClosed()
        self.assertIn("too many clients", failure(answer))
        clients[0].probe()
        clients.pop().close()
        eventually(self.oneMore, "room for a client")

    def oneMore(self) -> bool:
        """Whether one more client is served."""
        client = BlockingClient(self.daemon.path)
        text = client.refused(Command.ATTACH_VM, {"containerId": "x"})
        client.close()
        return "too many clients" not in text

    def test_frame(self) -> None:
        """P2: the frame limit is the one configured."""
        client = self.client()
        client.probe()
        client.send(HEADER.pack(2, 3, FrameType.COMMAND, Command.HYPER, 4097))
        self.assertIn("4096", failure(client.response(Command.HYPER)))
        client.waitClosed()

    def test_message(self) -> None:
        """P2, P12: a message from an agent over the limit is the end of its VM."""
        vm = self.vm()
        vm.agent.answers[ControlCode.PING] = None
        vm.client.command(Command.HYPER, hyperPayload("ping"))
        vm.agent.command(ControlCode.PING)
        vm.agent.control.write(b"\0\0\0\x09" + (16385).to_bytes(4, "big"))
        failure(vm.client.response(Command.HYPER))
        vm.agent.waitDisconnected(vm.agent.io)

    def test_commands(self) -> None:
        """P5: one command too many for an agent that does not answer is an error at once."""
        vm = self.vm()
        vm.agent.answers[ControlCode.PING] = None
        client = vm.attach()
        for _ in range(8):
            client.command(Command.HYPER, hyperPayload("ping"))
        other = vm.attach()
        other.refused(Command.HYPER, hyperPayload("ping"))
        vm.agent.command(ControlCode.PING)
        del vm.agent.answers[ControlCode.PING]
        vm.agent.sendControl(ControlCode.ACK)
        answers = [client.response(Command.HYPER).error for _ in range(8)]
        self.assertIn(False, answers)
        vm.usable()

    def test_unanswered(self) -> None:
        """P9: a client with too many unanswered commands is not read until some are answered."""
        vm, other = self.vm(), self.vm()
        vm.agent.answers[ControlCode.PING] = None
        client = vm.attach()
        client.command(Command.HYPER, hyperPayload("ping"))
        for _ in range(30):
            client.command(Command.ATTACH_VM, {"containerId": "none-such"})
        client.command(Command.UNREGISTER_VM, {"containerId": other.id})
        vm.agent.command(ControlCode.PING)
        time.sleep(0.1)
        other.attach()
        vm.agent.sendControl(ControlCode.ACK)
        self.assertFalse(client.response(Command.HYPER).error)
        for _ in range(30):
            failure(client.response(Command.ATTACH_VM))
        success(client.response(Command.UNREGISTER_VM))

    def test_deafClient(self) -> None:
        """P9: a client that sends and never reads is not read on, and costs little."""
        memory = self.daemon.memory()
        vm, deaf = self.vm(), self.client()
        deaf.socket.settimeout(0.5)
        command = commandFrame(Command.ATTACH_VM, {"containerId": "x" * 1000})
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 << 20:
                sent += deaf.socket.send(command)
        self.assertLess(sent, 16 << 20)
        vm.usable()
        self.assertLess(self.daemon.memory() - memory, 8 << 20)

    def test_absentShim(self) -> None:
        """P9: a full session without a shim drops its output after a while, keeps its status."""
        vm = self.vm(2)
        away, other = vm.start(0), vm.start(1)
        away.shim.close()
        for _ in range(150):
            away.say(b"x" * 4096)
        self.assertSays(other)
        away.exit(6)
        output = self.shim(away.token).untilExit()
        self.assertEqual(output.status, 6)
        self.assertLess(len(output.stdout), 150 * 4096)
        self.assertGreaterEqual(len(output.stdout), 32 << 10)
        self.waitLog("drop")

    def test_stream(self) -> None:
        """P9: memory stays within the limits when output piles up for a shim that is there."""
        process = self.process()
        memory = self.daemon.memory()
        process.vm.agent.timeout = 1
        for _ in range(60):
            process.say(b"x" * 4096)
        self.assertLess(self.daemon.memory() - memory, 2 << 20)
        process.exit(0)
        self.assertEqual(len(process.shim.untilExit().stdout), 60 * 4096)


class DescriptorTests(ProcessTestCase):
    """P5: running out of descriptors."""

    options = ("--log-level=debug", "--stop-timeout=1")

    def test_runningOut(self) -> None:
        """P5: it is reported and survived: new clients are put off, those that are there go on."""
        process = self.process()
        limit = self.daemon.settledDescriptors() + 4
        before = resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE)
        self.addCleanup(resource.prlimit, self.daemon.pid, resource.RLIMIT_NOFILE, before)
        resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE, (limit, before[1]))
        clients = [self.client() for _ in range(10)]
        for client in clients:
            client.command(Command.ATTACH_VM, {"containerId": "none-such"})
        eventually(self.daemon.isIdle, "it waits for descriptors")
        used = self.daemon.cpuSeconds()
        time.sleep(0.5)
        self.assertLess(self.daemon.cpuSeconds() - used, 0.3, "the daemon spins")
        self.assertSays(process)
        process.vm.usable()
        resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE, before)
        for client in clients:
            while not client.frames and not client.closed:
                self.assertTrue(client.read(), "neither served nor turned away")
        self.client().probe()
        self.waitLog("open files")

    def test_noneForAVM(self) -> None:
        """P5, P13: a registration that finds no descriptors fails and leaves nothing."""
        client, agent, name = self.client(), self.agent(), self.unique()
        client.probe()
        before = resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE)
        self.addCleanup(resource.prlimit, self.daemon.pid, resource.RLIMIT_NOFILE, before)
        limit = self.daemon.settledDescriptors() + 1
        resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE, (limit, before[1]))
        client.refused(Command.REGISTER_VM, registration(name, agent))
        resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE, before)
        tokens = client.registerVM(name, agent, 1)
        shim = self.shim(tokens[0])
        client.hyper("newcontainer", startData("newcontainer", "c"), tokens)
        agent.sendIO(3, b"fine")
        self.assertEqual(shim.output(Stream.STDOUT, 4), b"fine")

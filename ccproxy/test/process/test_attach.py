"""
AttachVM and UnregisterVM on the real daemon, and many VMs at a time.
"""

from __future__ import annotations

import json

from ccproxy.test.processes import ProcessTestCase
from ccproxy.testing.client import failure, registration, success
from ccproxy.testing.daemon import eventually
from ccproxy.wire.codes import Command, ControlCode
from ccproxy.wire.messages import encodeControl


class AttachTests(ProcessTestCase):
    """AttachVM."""

    def test_unknown(self) -> None:
        """An unknown id is an error."""
        text = self.client().refused(Command.ATTACH_VM, {"containerId": "none-such"})
        self.assertIn("unknown containerID: none-such", text)

    def test_hotPath(self) -> None:
        """A runtime's sequence: connect, attach, one Hyper, close; for each command anew."""
        vm = self.vm()
        vm.client.close()
        for n in range(20):
            client = vm.attach()
            client.hyper("startpod", n)
            client.close()
        self.assertEqual([json.loads(m.body) for m in vm.agent.commands()], list(range(20)))

    def test_moves(self) -> None:
        """The last AttachVM decides where commands go; one that fails changes nothing."""
        one, two, client = self.vm(), self.vm(), self.client()
        client.attachVM(one.id)
        client.attachVM(two.id)
        client.hyper("ping")
        client.refused(Command.ATTACH_VM, {"containerId": "none-such"})
        client.hyper("ping")
        self.assertEqual((len(one.agent.commands()), len(two.agent.commands())), (0, 2))


class UnregisterTests(ProcessTestCase):
    """UnregisterVM and what goes on after it."""

    def test_unknown(self) -> None:
        """An id that is not known, or not any more, is an error."""
        vm = self.vm()
        vm.attach().unregisterVM(vm.id)
        for client in (vm.client, self.client()):
            for command in (Command.UNREGISTER_VM, Command.ATTACH_VM):
                text = client.refused(command, {"containerId": vm.id})
                self.assertIn(f"unknown containerID: {vm.id}", text)

    def test_detaches(self) -> None:
        """All that were attached are not any more."""
        vm = self.vm()
        other = vm.attach()
        vm.client.unregisterVM(vm.id)
        for client in (vm.client, other):
            self.assertEqual(client.hyperRefused("ping"), "client not attached to a vm")
        self.assertEqual(vm.agent.commands(), [])

    def test_sessionsGoOn(self) -> None:
        """Claimed sessions keep stdin, output, signals and status until the channels close."""
        process = self.process(container="c")
        vm = process.vm
        vm.client.unregisterVM(vm.id)
        process.shim.stdin(b"in")
        self.assertEqual(vm.agent.stdin(process.number, 2), b"in")
        process.shim.signal(10)
        self.assertEqual(vm.agent.data(ControlCode.KILLCONTAINER)["signal"], 10)
        process.say(b"out")
        process.complain(b"err")
        process.exit(3)
        self.assertOutput(process.shim, b"out", b"err", 3)

    def test_tokensEnd(self) -> None:
        """Tokens that nobody has claimed end at once, claimed ones with the VM."""
        vm = self.vm(2)
        process = vm.start()
        vm.client.unregisterVM(vm.id)
        text = self.client().refused(Command.CONNECT_SHIM, {"token": vm.tokens[1]})
        self.assertIn("unknown token", text)
        vm.agent.hangUp()
        process.shim.waitClosed()
        self.client().refused(Command.CONNECT_SHIM, {"token": vm.tokens[0]})

    def test_failsWhatWaits(self) -> None:
        """P11: starts that wait for a shim, and commands not sent yet, fail at once."""
        vm = self.vm(1)
        waiting, queued = vm.attach(), vm.attach()
        vm.client.command(
            Command.HYPER,
            {
                "hyperName": "newcontainer",
                "tokens": vm.tokens,
                "data": {"id": "c", "process": {"args": ["a"]}},
            },
        )
        vm.agent.answers[ControlCode.PING] = None
        waiting.command(Command.HYPER, {"hyperName": "ping"})
        vm.agent.command(ControlCode.PING)
        queued.command(Command.HYPER, {"hyperName": "startpod", "data": {}})
        queued.silent(0.1)
        self.client().unregisterVM(vm.id)
        failure(vm.client.response(Command.HYPER))
        failure(queued.response(Command.HYPER))
        self.assertEqual(vm.agent.commands(ControlCode.STARTPOD), [])

    def test_idAgain(self) -> None:
        """The id can be registered again; the old tokens stay unknown."""
        vm, agent = self.vm(1), self.agent()
        vm.client.unregisterVM(vm.id)
        tokens = vm.client.registerVM(vm.id, agent, 1)
        self.assertNotEqual(tokens, vm.tokens)
        vm.client.hyper("ping")
        self.assertEqual(len(agent.commands()), 1)
        self.client().refused(Command.CONNECT_SHIM, {"token": vm.tokens[0]})
        self.client().connectShim(tokens[0])


class ManyTests(ProcessTestCase):
    """P10, P13: many at once, and many one after another."""

    def test_sameId(self) -> None:
        """P10: of many that register one id at once, exactly one succeeds; its agent serves all."""
        name = self.unique()
        agents = [self.agent() for _ in range(20)]
        clients = [self.client() for _ in agents]
        for client, agent in zip(clients, agents, strict=True):
            client.command(Command.REGISTER_VM, registration(name, agent))
        errors = [client.response(Command.REGISTER_VM).error for client in clients]
        self.assertEqual(errors.count(False), 1)
        winner = errors.index(False)
        for client in clients:
            client.attachVM(name)
            client.hyper("ping")
        self.assertEqual(len(agents[winner].commands()), 20)

    def test_manyVMs(self) -> None:
        """P10: 60 VMs that register at once, each late in its own way, all get their own agent."""
        agents = [self.agent(readyDelay=0.1 + n % 7 / 50) for n in range(60)]
        names = [self.unique() for _ in agents]
        clients = [self.client() for _ in agents]
        for client, agent, name in zip(clients, agents, names, strict=True):
            client.command(Command.REGISTER_VM, registration(name, agent, 1))
        for client in clients:
            success(client.response(Command.REGISTER_VM))
        for nth, client in enumerate(clients):
            client.command(Command.HYPER, {"hyperName": "startpod", "data": nth})
        for client in clients:
            success(client.response(Command.HYPER))
        for nth, agent in enumerate(agents):
            self.assertEqual([m.body for m in agent.commands()], [b"%d" % nth])

    def test_thousand(self) -> None:
        """P13: 1,000 registrations, every other one failing, leave no descriptor or memory."""
        client, agent, refusing = self.client(), self.agent(), self.agent()
        refusing.ready = [encodeControl(ControlCode.ERROR, b"no")]

        def cycle(count: int) -> None:
            for _ in range(count):
                client.registerVM("cycled", agent, 2)
                client.unregisterVM("cycled")
                agent.hangUp()
                client.refused(Command.REGISTER_VM, registration("cycled", refusing, 2))

        cycle(50)
        descriptors, memory = self.daemon.settledDescriptors(), self.daemon.memory()
        cycle(450)
        eventually(lambda: len(self.daemon.descriptors()) <= descriptors, "descriptors closed")
        self.assertLess(self.daemon.memory() - memory, 4 << 20)

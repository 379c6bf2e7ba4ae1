"""
RegisterVM, AttachVM and UnregisterVM on the real daemon.
"""

from __future__ import annotations

import json
import os
import time
from base64 import b64decode

from ccproxy.test.processes import ProcessTestCase
from ccproxy.testing.agent import READY, Answer, ScriptedAgent
from ccproxy.testing.client import failure, registration, success
from ccproxy.testing.daemon import eventually
from ccproxy.wire.codes import Command, ControlCode
from ccproxy.wire.messages import encodeControl

NEXT = encodeControl(ControlCode.NEXT, b"\0\0\0\x08")


class ResponseTests(ProcessTestCase):
    """What RegisterVM and AttachVM answer."""

    def test_tokens(self) -> None:
        """Tokens are 32 random bytes in URL-safe base64 with padding, and all differ."""
        vm = self.vm(60)
        tokens = vm.tokens + vm.client.attachVM(vm.id, 40)
        self.assertEqual(len(set(tokens)), 100)
        for token in tokens:
            self.assertEqual(len(token), 44)
            self.assertEqual(len(b64decode(token, b"-_", validate=True)), 32)

    def test_url(self) -> None:
        """The URL is there in both spellings, and is the daemon's own socket."""
        client, agent, name = self.client(), self.agent(), self.unique()
        for command, payload in (
            (Command.REGISTER_VM, registration(name, agent, 1)),
            (Command.ATTACH_VM, {"containerId": name}),
        ):
            io = json.loads(client.accepted(command, payload))["io"]
            self.assertEqual(io["url"], "unix://" + self.daemon.path)
            self.assertEqual(io["URL"], io["url"])

    def test_noTokens(self) -> None:
        """numIOStreams that is absent, null or 0 gives no tokens."""
        vm = self.vm()
        for more in ({}, {"numIOStreams": None}, {"numIOStreams": 0}):
            payload = vm.client.accepted(Command.ATTACH_VM, {"containerId": vm.id, **more})
            self.assertFalse(json.loads(payload)["io"]["tokens"])

    def test_streamCounts(self) -> None:
        """P5: numIOStreams outside of 0 to 4096, or no whole number, is an error naming it."""
        client, agent, name = self.client(), self.agent(), self.unique()
        counts = (-1, 4097, 2**31, 10**30, 1.5, "2", [1], True)
        for count in counts:
            text = client.refused(
                Command.REGISTER_VM, {**registration(name, agent), "numIOStreams": count}
            )
            self.assertIn("numIOStreams", text)
        client.registerVM(name, agent)
        for count in counts:
            text = client.refused(Command.ATTACH_VM, {"containerId": name, "numIOStreams": count})
            self.assertIn("numIOStreams", text)

    def test_quietAgent(self) -> None:
        """Registering a fresh VM sends the agent nothing."""
        vm = self.vm(2)
        time.sleep(0.2)
        self.assertEqual(vm.agent.commands(), [])
        self.assertEqual(vm.agent.pieces(), [])


class ReadyTests(ProcessTestCase):
    """P11: the answer waits for READY."""

    def test_inPieces(self) -> None:
        """P1: READY may come a byte at a time, may have a body, and NEXT may come before it."""
        for pieces in (
            [bytes([byte]) for byte in READY],
            [encodeControl(ControlCode.READY, b"body")],
            [NEXT, NEXT + READY],
        ):
            self.vm(ready=pieces).usable()

    def test_late(self) -> None:
        """P11: the answer comes after READY, not before."""
        client, agent, name = self.client(), self.agent(readyDelay=0.5), self.unique()
        began = time.monotonic()
        client.registerVM(name, agent)
        self.assertGreater(time.monotonic() - began, 0.45)

    def test_meanwhile(self) -> None:
        """While a VM registers its id is taken, unknown to AttachVM, and holds up nobody."""
        client, agent, name = self.client(), self.agent(ready=()), self.unique()
        client.command(Command.REGISTER_VM, registration(name, agent))
        agent.waitConnected()
        other = self.client()
        text = other.refused(Command.REGISTER_VM, registration(name, self.agent()))
        self.assertIn(f"{name}: container already registered", text)
        for command in (Command.ATTACH_VM, Command.UNREGISTER_VM):
            text = other.refused(command, {"containerId": name})
            self.assertIn(f"unknown containerID: {name}", text)
        self.vm(1).start()
        agent.sendControl(ControlCode.READY)
        success(client.response(Command.REGISTER_VM))
        client.hyper("ping")

    def assertFails(self, agent: ScriptedAgent, within: float = 10.0) -> str:
        """Registering must fail, and leave nothing behind; the text of the error."""
        client, name = self.client(), self.unique()
        client.command(Command.REGISTER_VM, registration(name, agent))
        text = failure(client.response(Command.REGISTER_VM, within))
        self.assertIn("unknown containerID", client.refused(2, {"containerId": name}))
        for channel in (agent.control, agent.io):
            agent.waitDisconnected(channel)
        client.registerVM(name, self.agent())
        client.hyper("ping")
        return text

    def test_error(self) -> None:
        """P13: an agent that says ERROR instead is given up, and the id is free."""
        text = self.assertFails(self.agent(ready=[encodeControl(ControlCode.ERROR, b"no init")]))
        self.assertIn("no init", text)

    def test_nonsense(self) -> None:
        """P2: a message too long to be one, or too short, fails the registration at once."""
        for length in (0, 7, (1 << 20) + 1, (1 << 32) - 1):
            header = b"\0\0\0\x08" + length.to_bytes(4, "big")
            self.assertFails(self.agent(ready=[header]), within=2.5)

    def test_agentGone(self) -> None:
        """P11: an agent that closes before READY fails the registration at once."""
        for which in ("control", "io"):
            agent, client, name = self.agent(ready=()), self.client(), self.unique()
            client.command(Command.REGISTER_VM, registration(name, agent))
            agent.waitConnected()
            agent.hangUp(getattr(agent, which))
            failure(client.response(Command.REGISTER_VM, 2.5))
            agent.waitDisconnected(agent.control)
            agent.waitDisconnected(agent.io)
            client.registerVM(name, self.agent())

    def test_clientGone(self) -> None:
        """P11, P13: a client that leaves before READY gives the registration up."""
        agent, client, name = self.agent(ready=()), self.client(), self.unique()
        client.command(Command.REGISTER_VM, registration(name, agent))
        agent.waitConnected()
        client.close()
        agent.waitDisconnected(agent.control)
        agent.waitDisconnected(agent.io)
        self.client().registerVM(name, self.agent())

    def test_past(self) -> None:
        """P20: an agent whose READY is past is asked ping after 3 s; numbers start high."""
        client, agent, name = self.client(), self.agent(ready=()), self.unique()
        began = time.monotonic()
        tokens = client.registerVM(name, agent, 1)
        self.assertGreater(time.monotonic() - began, 2.5)
        self.assertEqual([m.number for m in agent.commands()], [ControlCode.PING])
        client.hyper("newcontainer", self.startData(), tokens[:0])
        shim = self.shim(tokens[0])
        client.hyper("execcmd", {"container": "c", "process": {"args": ["a"]}}, tokens)
        number = agent.data(ControlCode.EXECCMD)["process"]["stdio"]
        self.assertGreater(number, 1 << 32)
        self.assertLess(number, 1 << 53)
        agent.sendIO(3, b"of an earlier life")
        agent.sendIO(number, b"mine")
        agent.exit(number, 4)
        self.assertOutput(shim, b"mine", b"", 4)

    def test_readyAfterAll(self) -> None:
        """P20: READY may come before the ping's answer; the ping stays a command in flight."""
        client, agent, name = self.client(), self.agent(ready=()), self.unique()
        agent.answers[ControlCode.PING] = Answer(b"", before=[READY], delay=0.3)
        client.registerVM(name, agent)
        agent.answers[ControlCode.STARTPOD] = Answer(b"own")
        self.assertEqual(client.hyper("startpod", {}), b"own")

    def startData(self) -> dict[str, object]:
        """The data of a container that needs no token."""
        return {"id": "c", "rootfs": "r", "image": "i", "process": {"args": ["a"]}}


class RefusedTests(ProcessTestCase):
    """Registrations that cannot be: P3, P13."""

    def assertNotRegistered(self, payload: dict[str, object]) -> str:
        """Registering must fail and leave nothing; the text of the error."""
        client = self.client()
        text = client.refused(Command.REGISTER_VM, payload)
        client.refused(Command.ATTACH_VM, {"containerId": payload["containerId"]})
        return text

    def test_twice(self) -> None:
        """P3: an id that is taken is refused, and the VM registered first is untouched."""
        vm, other = self.vm(1), self.agent()
        for client in (vm.client, self.client()):
            text = client.refused(Command.REGISTER_VM, registration(vm.id, other, 1))
            self.assertIn(f"{vm.id}: container already registered", text)
        self.assertEqual(other.control.connections, 0)
        vm.start()
        vm.usable()

    def test_noSockets(self) -> None:
        """P13: sockets that are not there are named in the error; the id stays free."""
        name, agent = self.unique(), self.agent()
        right = registration(name, agent)
        for field in ("ctlSerial", "ioSerial"):
            text = self.assertNotRegistered({**right, field: "/nonexistent/socket"})
            self.assertIn("/nonexistent/socket", text)
        self.client().registerVM(name, agent)

    def test_noSocketsAtAll(self) -> None:
        """P3: a path that is no socket's is refused."""
        name, agent = self.unique(), self.agent()
        plain = os.path.join(self.daemon.directory, "plain")
        with open(plain, "w"):
            self.addCleanup(os.unlink, plain)
        for path in (plain, self.daemon.directory, "/dev/null"):
            text = self.assertNotRegistered({**registration(name, agent), "ioSerial": path})
            self.assertIn(path, text)

    def test_badPaths(self) -> None:
        """P3: paths are absolute, at most 107 bytes, without NUL; the error names the field."""
        name, agent = self.unique(), self.agent()
        right = registration(name, agent)
        self.assertIn("ctlSerial", self.assertNotRegistered({**right, "ctlSerial": ""}))
        self.assertIn("ioSerial", self.assertNotRegistered({**right, "ioSerial": ""}))
        for field in ("ctlSerial", "ioSerial", "console"):
            for path in ("relative/path", "/" + "x" * 107, "/a\0b", "/" + "é" * 54):
                text = self.assertNotRegistered({**right, field: path})
                self.assertIn(field, text)

    def test_sameSocket(self) -> None:
        """P3: the sockets of a VM are different ones, links resolved."""
        name, agent = self.unique(), self.agent()
        right = registration(name, agent)
        link = os.path.join(self.daemon.directory, self.unique("link"))
        os.symlink(agent.control.path, link)
        self.addCleanup(os.unlink, link)
        self.assertNotRegistered({**right, "ioSerial": agent.control.path})
        self.assertNotRegistered({**right, "console": agent.io.path})
        self.assertNotRegistered({**right, "ioSerial": link})

    def test_heldByAnother(self) -> None:
        """P3: a socket that a registered VM holds is refused at once, with that VM's name."""
        vm = self.vm()
        began = time.monotonic()
        text = self.assertNotRegistered(registration(self.unique(), vm.agent))
        self.assertIn(vm.id, text)
        self.assertLess(time.monotonic() - began, 2)
        vm.usable()

    def test_heldByUnregistered(self) -> None:
        """The channels of an unregistered VM are closed for its successor; its sessions end."""
        process = self.process()
        vm = process.vm
        vm.client.unregisterVM(vm.id)
        successor = self.unique()
        vm.client.registerVM(successor, vm.agent)
        process.shim.waitClosed()
        self.assertEqual(vm.agent.control.connections, 2)
        vm.client.hyper("ping")


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
        failure(vm.client.response(Command.HYPER, 2))
        failure(queued.response(Command.HYPER, 2))
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
        descriptors, memory = len(self.daemon.descriptors()), self.daemon.memory()
        cycle(450)
        eventually(lambda: len(self.daemon.descriptors()) <= descriptors, "descriptors closed")
        self.assertLess(self.daemon.memory() - memory, 4 << 20)

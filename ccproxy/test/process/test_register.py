"""
RegisterVM on the real daemon: its answer, READY, and what is refused.
"""

from __future__ import annotations

import json
import os
import socket
import time
from base64 import b64decode

from ccproxy.test.processes import ProcessTestCase
from ccproxy.testing.agent import READY, Answer, ScriptedAgent
from ccproxy.testing.client import failure, registration, success
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

    def assertFails(self, agent: ScriptedAgent) -> str:
        """Registering must fail, and leave nothing behind; the text of the error."""
        client, name = self.client(), self.unique()
        client.command(Command.REGISTER_VM, registration(name, agent))
        text = failure(client.response(Command.REGISTER_VM))
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
            self.assertFails(self.agent(ready=[header]))

    def test_agentGone(self) -> None:
        """P11: an agent that closes before READY fails the registration at once."""
        for which in ("control", "io"):
            agent, client, name = self.agent(ready=()), self.client(), self.unique()
            client.command(Command.REGISTER_VM, registration(name, agent))
            agent.waitConnected()
            agent.hangUp(getattr(agent, which))
            failure(client.response(Command.REGISTER_VM))
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

    def test_halfClosedAndGone(self) -> None:
        """P11, P13: so does one that half-closes first, long before READY's deadline."""
        agent, client, name = self.agent(ready=()), self.client(), self.unique()
        client.command(Command.REGISTER_VM, registration(name, agent))
        agent.waitConnected()
        client.socket.shutdown(socket.SHUT_WR)
        self.client().refused(Command.ATTACH_VM, {"containerId": name})  # the end is read by now
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
        self.assertGreater(number, 1 << 33)
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
        self.assertLess(time.monotonic() - began, 10)
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

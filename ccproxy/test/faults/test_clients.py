"""
Clients that end at every byte of what they have to say, closing or half-closing: P3, P7, P8, P10
and P13 on the real daemon.
"""

from __future__ import annotations

import json

from ccproxy.test.faults.conversation import FaultTestCase, batches, ends
from ccproxy.test.processes import startData
from ccproxy.testing.agent import ScriptedAgent
from ccproxy.testing.client import (
    BlockingClient,
    commandFrame,
    hyperPayload,
    registration,
    success,
)
from ccproxy.testing.daemon import eventually
from ccproxy.wire.codes import Command, ControlCode, Stream
from ccproxy.wire.frames import encodeStream

#: How many runtimes end together.
RUNTIMES = 12


class RuntimeCutTests(FaultTestCase):
    """A runtime registers, starts a pod and a container, attaches, pings and unregisters."""

    def conversation(self, name: str, agent: ScriptedAgent) -> list[bytes]:
        """All that it says, frame by frame."""
        start = hyperPayload("newcontainer", startData("newcontainer", "c"))
        return [
            commandFrame(Command.REGISTER_VM, registration(name, agent, 1)),
            commandFrame(Command.HYPER, hyperPayload("startpod", {"hostname": "h"})),
            commandFrame(Command.HYPER, start),
            commandFrame(Command.ATTACH_VM, {"containerId": name, "numIOStreams": 1}),
            commandFrame(Command.HYPER, hyperPayload("ping")),
            commandFrame(Command.UNREGISTER_VM, {"containerId": name}),
        ]

    def cutEverywhere(self, half: bool) -> None:
        """End at each byte; afterwards the id and the sockets can be used again."""
        agents = [self.agent() for _ in range(RUNTIMES)]
        names = [self.unique() for _ in agents]
        talks = [self.conversation(*pair) for pair in zip(names, agents, strict=True)]
        length = max(sum(map(len, talk)) for talk in talks)
        other = self.client()
        for batch in batches(length + 1, RUNTIMES):
            clients = []
            for cut, talk in zip(batch, talks, strict=False):
                client = self.client()
                client.send(b"".join(talk)[:cut])
                self.leave(client, half)
                clients.append(client)
            for nth, client in enumerate(clients):
                if half:
                    self.assertAnswered(client, talks[nth], batch[nth])
                name, agent = names[nth], agents[nth]

                def again(name: str = name, payload: object = registration(name, agent)) -> bool:
                    other.call(Command.UNREGISTER_VM, {"containerId": name})
                    return not other.call(Command.REGISTER_VM, payload).error

                eventually(again, f"P13: a VM is free again after a cut at {batch[nth]}")
                other.hyper("ping")
                other.unregisterVM(name)
        self.undisturbed()

    def assertAnswered(self, client: BlockingClient, talk: list[bytes], cut: int) -> None:
        """Each whole frame of the first C{cut} bytes is answered, and nothing else."""
        frames = client.waitClosed()
        whole = [frame[7] for frame, end in zip(talk, ends(talk), strict=True) if end <= cut]
        if Command.UNREGISTER_VM not in whole:
            # UnregisterVM fails what was not sent to the agent when it came.
            for frame in frames:
                success(frame)
        self.assertEqual([frame.opcode for frame in frames], whole, f"answers, cut at {cut}")
        self.forget(client)

    def test_closed(self) -> None:
        """P3, P13: closed at any byte, it leaves nothing that is in the way of another."""
        self.cutEverywhere(False)

    def test_halfClosed(self) -> None:
        """P10: half-closed at any byte, each whole command is carried out and answered."""
        self.cutEverywhere(True)

    def test_starting(self) -> None:
        """P8, P13: a start whose client ends is sent if it came whole and its shim is there."""
        vm = self.vm(1)
        start = hyperPayload("newcontainer", startData("newcontainer", "c000"), vm.tokens)
        length = len(commandFrame(Command.HYPER, start))
        tokens = vm.client.attachVM(vm.id, length + 1)
        claimed = [*tokens[:-1:8], tokens[-1]]
        shims = [self.shim(token) for token in claimed]
        for cut, token in enumerate(tokens):
            client = vm.attach()
            data = startData("newcontainer", f"c{cut:03}")
            frame = commandFrame(Command.HYPER, hyperPayload("newcontainer", data, [token]))
            client.send(frame[:cut])
            self.leave(client, cut % 2 == 0)
        name = f"c{length:03}"
        self.assertEqual(vm.agent.data(ControlCode.NEWCONTAINER)["id"], name)
        vm.usable()
        self.assertEqual(len(vm.agent.commands(ControlCode.NEWCONTAINER)), 1)
        vm.agent.exit(vm.agent.data(ControlCode.NEWCONTAINER)["process"]["stdio"], 3)
        self.assertEqual(shims[-1].exited(), 3)
        # The tokens of all others are as good as new.
        for token in tokens[:-1:16]:
            vm.client.hyper("newcontainer", startData("newcontainer", token[:6]), [token])
        vm.client.unregisterVM(vm.id)
        vm.agent.hangUp()
        for shim in shims:
            shim.waitClosed()
        self.void(tokens)

    def test_waitingStart(self) -> None:
        """P11: a start that waits for its shim is given up when its client ends, either way."""
        vm = self.vm(6)
        for nth in range(6):
            client = vm.attach()
            data = startData("newcontainer", f"c{nth}")
            client.command(Command.HYPER, hyperPayload("newcontainer", data, [vm.tokens[nth]]))
            self.leave(client, nth % 2 == 0)
            if nth % 2 == 0:
                self.assertIn("gone", client.waitClosed()[-1].payload.decode())
        vm.usable()
        shims = [vm.shim(nth) for nth in range(6)]
        vm.usable()
        self.assertEqual(vm.agent.commands(ControlCode.NEWCONTAINER), [], "P11: not given up")
        for nth, shim in enumerate(shims):
            self.assertSays(vm.start(nth, shim=shim))


class ShimCutTests(FaultTestCase):
    """A shim connects, sends stdin, a signal, a size and the end of stdin, and disconnects."""

    def conversation(self, token: str) -> list[bytes]:
        """All that it says, frame by frame."""
        return [
            commandFrame(Command.CONNECT_SHIM, {"token": token}),
            encodeStream(Stream.STDIN, b"one "),
            commandFrame(Command.SIGNAL, {"signalNumber": 10}),
            encodeStream(Stream.STDIN, b"two"),
            commandFrame(Command.SIGNAL, {"signalNumber": 28, "columns": 80, "rows": 24}),
            encodeStream(Stream.STDIN, b""),
            commandFrame(Command.DISCONNECT_SHIM),
        ]

    def cutEverywhere(self, half: bool) -> None:
        """End at each byte; what came whole is carried out, and a successor gets the output."""
        vm = self.vm(1)
        witness = vm.start(container="witness")
        talk = self.conversation(vm.tokens[0])
        length = sum(map(len, talk))
        vm.tokens += vm.client.attachVM(vm.id, length + 1)
        processes = []
        for cut in range(length + 1):
            process = vm.start(1 + cut, container=f"c{cut}")
            self.forget(process.shim)
            process.shim = self.client()
            process.shim.send(b"".join(self.conversation(process.token))[:cut])
            self.leave(process.shim, half)
            if half:
                process.shim.waitClosed()
                self.forget(process.shim)
            processes.append(process)
        self.assertSays(witness)
        _, one, signalled, two, resized, ended, left = ends(talk)
        expected = [
            b"one two" if cut >= two else b"one " if cut >= one else b""
            for cut in range(length + 1)
        ]
        for cut, process in enumerate(processes):
            got = vm.agent.stdin(process.number, len(expected[cut]))
            self.assertEqual(got, expected[cut], f"P8: stdin, cut at {cut}")
        for process in processes[ended:]:
            vm.agent.waitEOF(process.number)
        # The last word of the last shim is read by now, and commands keep their order.
        vm.usable()
        self.assertEqual(self.signalled(vm.agent), list(range(signalled, length + 1)))
        sizes = [json.loads(m.body)["seq"] for m in vm.agent.commands(ControlCode.WINSIZE)]
        self.assertEqual(sorted(sizes), [p.number for p in processes[resized:]])
        for cut, process in enumerate(processes):
            end = b"" in vm.agent.pieces(process.number)
            self.assertEqual(end, cut >= ended, f"P8: the end of stdin, cut at {cut}")
            if cut < left:
                process.say(b"kept for the next")
                process.complain(b"err")
                process.exit(cut % 256)
        vm.usable()
        for cut, process in enumerate(processes[:left]):
            shim = self.shim(process.token)
            self.assertOutput(shim, b"kept for the next", b"err", cut % 256)
            shim.command(Command.DISCONNECT_SHIM)
            self.assertEqual(shim.waitClosed(), [])
            self.forget(shim)
        self.assertSays(witness)
        self.void([process.token for process in processes])

    def signalled(self, agent: ScriptedAgent) -> list[int]:
        """Which processes have been signalled, by the number in their container's name."""
        names = [json.loads(m.body)["container"] for m in agent.commands(ControlCode.KILLCONTAINER)]
        return sorted(int(name[1:]) for name in names)

    def test_closed(self) -> None:
        """P7, P8: closed at any byte."""
        self.cutEverywhere(False)

    def test_halfClosed(self) -> None:
        """P7, P8: half-closed at any byte, which is the end of a shim too."""
        self.cutEverywhere(True)

    def test_beforeStart(self) -> None:
        """P7, P8: closed at any byte before the process is started: it is all carried out then."""
        vm = self.vm(1)
        talk = self.conversation(vm.tokens[0])
        length = sum(map(len, talk)) - len(talk[-1])
        vm.tokens = vm.client.attachVM(vm.id, length + 1)
        for cut, token in enumerate(vm.tokens):
            client = self.client()
            client.send(b"".join(self.conversation(token))[:cut])
            self.leave(client, False)
        _, one, signalled, two, _, _, _ = ends(talk)
        processes = [vm.start(nth, container=f"c{nth}") for nth in range(length + 1)]
        vm.usable()
        for cut, process in enumerate(processes):
            expected = b"one two" if cut >= two else b"one " if cut >= one else b""
            got = vm.agent.stdin(process.number, len(expected))
            self.assertEqual(got, expected, f"P8: held stdin, cut at {cut}")
        self.assertEqual(self.signalled(vm.agent), list(range(signalled, length + 1)))
        vm.agent.hangUp()
        for process in processes:
            self.assertEqual(process.shim.exited(), 255)
            process.shim.waitClosed()
        self.void(vm.tokens)

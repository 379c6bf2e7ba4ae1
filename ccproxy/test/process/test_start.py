"""
Starting processes through the real daemon: relocation, tokens, and what holds a start back.
"""

from __future__ import annotations

import json
import time

from ccproxy.test.processes import PlayedVM, ProcessTestCase, startData
from ccproxy.testing.agent import error
from ccproxy.testing.client import failure, hyperPayload, success
from ccproxy.wire.codes import Command, ControlCode, Stream

KINDS = {"newcontainer": ControlCode.NEWCONTAINER, "execcmd": ControlCode.EXECCMD}


class RelocationTests(ProcessTestCase):
    """The numbers that the proxy writes into newcontainer and execcmd."""

    def test_numbers(self) -> None:
        """Tokens have 3 and 4, 5 and 6, and so on, in each VM, whatever the order of use."""
        for _ in range(2):
            vm = self.vm(3)
            vm.tokens += vm.client.attachVM(vm.id, 2)
            for nth in (4, 0, 3, 1, 2):
                process = vm.start(nth, kind="execcmd" if nth % 2 else "newcontainer")
                self.assertEqual((process.number, process.stderr), (3 + 2 * nth, 4 + 2 * nth))

    def test_terminal(self) -> None:
        """A process with a terminal has no stderr."""
        vm = self.vm(2)
        for nth, kind in enumerate(KINDS):
            process = vm.start(nth, kind, terminal=True)
            self.assertEqual(process.number, 3 + 2 * nth)
            self.assertNotIn("stderr", process.data["process"])

    def test_firstMembers(self) -> None:
        """stdio and stderr are the first members of process, once; the others keep their order."""
        vm = self.vm(2)
        for nth, kind in enumerate(KINDS):
            members = {"zeta": 1, "stdio": 0, "args": ["a"], "stderr": None, "alpha": 2}
            self.shim(vm.tokens[nth])
            data = {**startData(kind, "c"), "process": members}
            vm.client.hyper(kind, data, [vm.tokens[nth]])
            body = vm.agent.command(KINDS[kind]).body
            pairs = json.loads(body, object_pairs_hook=lambda pairs: pairs)
            self.assertEqual(
                dict(pairs)["process"],
                [("stdio", 3 + 2 * nth), ("stderr", 4 + 2 * nth), ("zeta", 1),
                 ("args", ["a"]), ("alpha", 2)],
            )  # fmt: skip

    def test_restIsKept(self) -> None:
        """All else reaches the agent with the same value: what no field list knows, too."""
        vm = self.vm(1)
        self.shim(vm.tokens[0])
        future = b'{"n":[1e3,1.5E-2,9223372036854775807,-0.0],"s":"\\u00e9<&\xe4\xb8\x96","x":null}'
        payload = (
            b'{"hyperName":"newcontainer","tokens":["%s"],"data":{"id":"c","future":%s,'
            b'"process":{"args":["a"],"terminal":false,"future":%s},"last":true}}'
        ) % (vm.tokens[0].encode(), future, future)
        vm.client.accepted(Command.HYPER, payload)
        body = vm.agent.command(ControlCode.NEWCONTAINER).body
        data = json.loads(body)
        self.assertEqual(data["future"], json.loads(future))
        self.assertEqual(data["process"]["future"], json.loads(future))
        self.assertEqual(list(data), ["id", "future", "process", "last"])

    def test_filledIn(self) -> None:
        """P3: numbers that are filled in already are an error."""
        vm = self.vm(1)
        self.shim(vm.tokens[0])
        for kind in KINDS:
            for field in ("stdio", "stderr"):
                self.assertIn(field, vm.startRefused(0, kind, **{field: 7}))
                vm.client.hyperRefused(kind, startData(kind, "c", **{field: 7}))
        self.assertEqual(vm.agent.commands(), [])

    def test_otherSpellings(self) -> None:
        """P3: members that a Go agent would take for ours, or ours twice, are errors."""
        vm = self.vm(1)
        self.shim(vm.tokens[0])
        for process in (b'{"args":["a"],"Stdio":7}', b'{"args":["a"],"STDERR":0}',
                        b'{"args":["a"],"stdio":0,"stdio":0}'):  # fmt: skip
            self.refusedData(vm, b'{"id":"c","process":' + process + b"}")
        self.refusedData(vm, b'{"id":"c","process":{"args":["a"]},"Process":{"args":["b"]}}')
        self.refusedData(vm, b'{"id":"c","process":{"args":["a"]},"process":{"args":["b"]}}')
        self.assertEqual(vm.agent.commands(), [])

    def refusedData(self, vm: PlayedVM, data: bytes) -> str:
        """A newcontainer with this data must fail; the text of the error."""
        payload = b'{"hyperName":"newcontainer","tokens":["%s"],"data":%s}'
        return vm.client.refused(Command.HYPER, payload % (vm.tokens[0].encode(), data))

    def test_badData(self) -> None:
        """P3: what agents hang or crash on is refused: no process, or one without args."""
        vm = self.vm(1)
        shim = self.shim(vm.tokens[0])
        for data in (b"5", b"[]", b"null", b'"x"', b"{}", b'{"process":null}', b'{"process":5}',
                     b'{"process":{}}', b'{"process":{"args":[]}}',
                     b'{"process":{"args":null}}'):  # fmt: skip
            self.refusedData(vm, data)
        vm.client.refused(Command.HYPER, {"hyperName": "newcontainer", "tokens": vm.tokens})
        for data in (b"5", b"[]", b'{"process":5}', b'{"process":[]}'):
            payload = b'{"hyperName":"execcmd","data":%s}' % data
            vm.client.refused(Command.HYPER, payload)
        self.assertEqual(vm.agent.commands(), [])
        vm.start(shim=shim)


class NullSessionTests(ProcessTestCase):
    """Processes without a token."""

    def start(self, vm: PlayedVM, kind: str = "newcontainer", **process: object) -> tuple[int, int]:
        """Start one; its numbers."""
        before = len(vm.agent.commands(KINDS[kind]))
        vm.client.hyper(kind, startData(kind, self.unique("c"), **process))
        members = vm.agent.data(KINDS[kind], before)["process"]
        return members["stdio"], members.get("stderr", 0)

    def test_numbers(self) -> None:
        """The first gets 1 and 2; while it runs a further one gets a pair of its own."""
        vm = self.vm(1)
        self.assertEqual(self.start(vm), (1, 2))
        self.assertEqual(self.start(vm, "execcmd"), (5, 6))
        self.assertEqual(self.start(vm, terminal=True), (7, 0))
        vm.agent.exit(1, 0)
        vm.usable()
        self.assertEqual(self.start(vm), (1, 2))
        self.assertEqual(vm.start().number, 3)

    def test_dropped(self) -> None:
        """What they write is dropped, and disturbs nobody."""
        vm = self.vm(1)
        self.start(vm)
        process = vm.start()
        for number in (1, 2):
            vm.agent.sendIO(number, b"dropped" * 10_000)
        self.assertSays(process)
        vm.agent.exit(1, 7)
        self.assertSays(process)


class TokenTests(ProcessTestCase):
    """Which tokens a start can name."""

    def test_twoTokens(self) -> None:
        """P3: more than one token is an error."""
        vm = self.vm(2)
        for kind in KINDS:
            text = vm.client.hyperRefused(kind, startData(kind, "c"), vm.tokens)
            self.assertIn("expected 0 or 1 token, got 2", text)
        self.assertEqual(vm.agent.commands(), [])

    def test_unknown(self) -> None:
        """P3: a token that is unknown, or another VM's, is an error at once."""
        vm, other = self.vm(1), self.vm(1)
        self.shim(other.tokens[0])
        for kind in KINDS:
            for token in ("none-such", "", other.tokens[0]):
                text = vm.client.hyperRefused(kind, startData(kind, "c"), [token])
                self.assertIn(f"unknown token {token}", text)
        self.assertEqual(vm.agent.commands() + other.agent.commands(), [])
        vm.start()

    def test_usedAgain(self) -> None:
        """P3: a token whose process runs, or has ended, starts no other."""
        process = self.process()
        process.vm.startRefused(0, "execcmd")
        self.assertSays(process)
        process.exit(0)
        self.assertEqual(process.shim.untilExit().status, 0)
        process.vm.startRefused(0, "execcmd")
        process.vm.usable()

    def test_outlivesConnection(self) -> None:
        """A token may be named on another connection than got it, while that one is long gone."""
        vm = self.vm()
        client = self.client()
        vm.tokens = client.attachVM(vm.id, 1)
        client.close()
        process = vm.start()
        self.assertSays(process)


class WaitingTests(ProcessTestCase):
    """P11: a start waits for its shim."""

    def test_waits(self) -> None:
        """The agent hears of it only when the shim is there; others go ahead meanwhile."""
        for kind, code in KINDS.items():
            vm = self.vm(2)
            vm.startLater(0, kind)
            other = vm.attach()
            other.hyper("startpod", {})
            vm.client.silent(0.1)
            self.assertEqual(vm.agent.commands(code), [])
            shim = self.shim(vm.tokens[0])
            success(vm.client.response(Command.HYPER))
            number = vm.agent.data(code)["process"]["stdio"]
            vm.agent.sendIO(number, b"hello")
            self.assertEqual(shim.output(Stream.STDOUT, 5), b"hello")

    def test_sameConnection(self) -> None:
        """Commands behind a start that waits are carried out; their responses wait for its."""
        vm = self.vm(1)
        vm.startLater()
        vm.client.command(Command.HYPER, hyperPayload("ping"))
        vm.agent.command(ControlCode.PING)
        vm.client.silent(0.1)
        self.shim(vm.tokens[0])
        success(vm.client.response(Command.HYPER))
        success(vm.client.response(Command.HYPER))
        self.assertEqual([m.number for m in vm.agent.commands()], [12, 17])

    def test_clientGone(self) -> None:
        """P10, P11: a client that leaves gives its waiting start up; the token stays good."""
        vm = self.vm(1)
        client, vm.client = vm.client, vm.attach()
        data = hyperPayload("newcontainer", startData("newcontainer", "c"), vm.tokens)
        client.command(Command.HYPER, data)
        client.command(Command.HYPER, hyperPayload("ping"))
        vm.agent.command(ControlCode.PING)
        client.close()
        vm.usable()
        shim = self.shim(vm.tokens[0])
        time.sleep(0.1)
        self.assertEqual(vm.agent.commands(ControlCode.NEWCONTAINER), [])
        self.assertSays(vm.start(shim=shim))

    def test_killed(self) -> None:
        """A KILL before the start: the waiting start fails with the reason."""
        vm = self.vm(1)
        shim = self.shim(vm.tokens[0])
        shim.command(Command.SIGNAL, {"signalNumber": 9})
        self.assertEqual(shim.exited(), 0)
        text = vm.startRefused()
        self.assertIn("process was killed before its start", text)

    def test_refused(self) -> None:
        """When the agent refuses, the shim and its token stay good for another try."""
        vm = self.vm(1)
        shim = self.shim(vm.tokens[0])
        vm.agent.answers[ControlCode.NEWCONTAINER] = error("no rootfs")
        self.assertIn("no rootfs", vm.startRefused())
        vm.agent.sendIO(3, b"of the failed one")
        shim.silent(0.1)
        del vm.agent.answers[ControlCode.NEWCONTAINER]
        process = vm.start(shim=shim)
        self.assertEqual(process.number, 3)
        self.assertSays(process)

    def test_outputBeforeAnswer(self) -> None:
        """P6: output goes to the shim as it comes, the status after the start's answer."""
        vm = self.vm(1)
        shim = self.shim(vm.tokens[0])
        vm.agent.answers[ControlCode.NEWCONTAINER] = None
        vm.startLater()
        vm.agent.command(ControlCode.NEWCONTAINER)
        vm.agent.sendIO(3, b"quick")
        vm.agent.exit(3, 5)
        self.assertEqual(shim.output(Stream.STDOUT, 5), b"quick")
        shim.silent(0.2)
        vm.agent.sendControl(ControlCode.ACK)
        success(vm.client.response(Command.HYPER))
        self.assertEqual(shim.exited(), 5)

    def test_failedStartDropsOutput(self) -> None:
        """P6: an ERROR drops what the start had written, its status too."""
        vm = self.vm(1)
        shim = self.shim(vm.tokens[0])
        vm.agent.answers[ControlCode.NEWCONTAINER] = None
        vm.startLater()
        vm.agent.command(ControlCode.NEWCONTAINER)
        vm.agent.exit(3, 5)
        vm.agent.sendControl(ControlCode.ERROR, b"after all not")
        self.assertIn("after all not", failure(vm.client.response(Command.HYPER)))
        shim.silent(0.1)
        del vm.agent.answers[ControlCode.NEWCONTAINER]
        process = vm.start(shim=shim)
        self.assertSays(process)

"""
Hyper on the real daemon: commands to the agent, and each answer to its own caller.
"""

from __future__ import annotations

import json
import random
import time

from ccproxy.test.processes import ProcessTestCase
from ccproxy.testing.agent import READY, Answer, echo, error
from ccproxy.testing.client import failure, hyperPayload, success
from ccproxy.wire.codes import Command, ControlCode, Dialect
from ccproxy.wire.messages import encodeControl

COMMANDS = {
    "version": 0, "startpod": 1, "destroypod": 4, "winsize": 11, "ping": 12, "writefile": 15,
    "readfile": 16, "killcontainer": 18, "onlinecpumem": 19, "setupinterface": 20,
    "setuproute": 21, "removecontainer": 22,
}  # fmt: skip
NEXT = encodeControl(ControlCode.NEXT, b"\0\0\0\x04")


class ForwardingTests(ProcessTestCase):
    """What goes to the agent, and what comes back."""

    def test_notAttached(self) -> None:
        """P3: a client without a VM gets an error, and stays."""
        client = self.client()
        self.assertEqual(client.hyperRefused("ping"), "client not attached to a vm")
        client.probe()

    def test_codes(self) -> None:
        """Every command reaches the agent under its code, with its data."""
        vm = self.vm(strict=False)
        for code in COMMANDS.values():
            vm.agent.answers[code] = echo
        for name, code in COMMANDS.items():
            answer = vm.client.hyper(name, {"for": name})
            self.assertEqual(json.loads(answer), {"for": name})
            self.assertEqual(vm.agent.data(code), {"for": name})

    def test_data(self) -> None:
        """Data reaches the agent byte for byte: white space, order, numbers, unknown members."""
        vm = self.vm()
        for nth, data in enumerate((
            b'{ "b" : 1e3, "a":[1.50 , -0, 123456789012345678901234567890],"\\u00e9":"\xc3\xa9" }',
            b'"\\/"', b"7", b"null", b"[ ]", b'{"a":1,"a":2}',
        )):  # fmt: skip
            vm.client.accepted(Command.HYPER, b'{"data":' + data + b',"hyperName":"startpod"}')
            self.assertEqual(vm.agent.command(ControlCode.STARTPOD, nth).body, data)

    def test_noData(self) -> None:
        """Without data the body is empty."""
        vm = self.vm()
        vm.client.hyper("ping")
        self.assertEqual(vm.agent.command(ControlCode.PING).body, b"")

    def test_answers(self) -> None:
        """The body of an ACK comes back byte for byte, up to 1 MiB."""
        vm = self.vm()
        bodies = [b"", b"\0", b'{"a": 1}', bytes(range(256)), random.Random(1).randbytes(900_000)]
        for body in bodies:
            vm.agent.answers[ControlCode.PING] = Answer(body)
            self.assertEqual(vm.client.hyper("ping"), body)

    def test_large(self) -> None:
        """A control message may be large: an environment of 900 KB arrives whole."""
        vm = self.vm()
        data = {"fill": "0123456789" * 90_000}
        vm.client.hyper("startpod", data)
        self.assertEqual(vm.agent.data(ControlCode.STARTPOD), data)

    def test_refusedByAgent(self) -> None:
        """An ERROR becomes an error response with its text; the VM goes on."""
        vm = self.vm()
        for text in ("no such share: EINVAL", "", "é\nline"):
            vm.agent.answers[ControlCode.STARTPOD] = error(text)
            self.assertEqual(
                vm.client.hyperRefused("startpod", {}),
                f"ERROR received from VM agent, control msg received : {text}",
            )
            vm.usable()

    def test_errorBytes(self) -> None:
        """P3: an ERROR that is no UTF-8, or ends with a NUL, is still an error that can be read."""
        vm = self.vm()
        for body in (b"bad \xff\xfe text", b"bad  text\0"):
            vm.agent.answers[ControlCode.STARTPOD] = Answer(body, ControlCode.ERROR)
            text = vm.client.hyperRefused("startpod", {})
            self.assertIn("text", text)
            self.assertNotIn("\0", text)

    def test_unknownName(self) -> None:
        """P3: a name that no agent knows is an error before anything is sent."""
        vm = self.vm()
        for name in ("none-such", "", "PING", "ack", "finishpod", "process_async_event"):
            vm.client.hyperRefused(name)
            vm.usable()
        self.assertEqual({m.number for m in vm.agent.commands()}, {ControlCode.PING})

    def test_notOfThisDialect(self) -> None:
        """P15: nor is a command sent that the agent is known not to have."""
        vm = self.vm(dialect=Dialect.HYPERSTART1)
        vm.client.hyper("ping")
        vm.client.hyperRefused("pscontainer", {})
        vm.client.hyper("deleteinterface", {})
        cc = self.vm()
        cc.client.hyper("ping")
        for name in ("signalprocess", "deleteinterface"):
            cc.client.hyperRefused(name, {})
        self.assertEqual(len(cc.agent.commands()), 1)

    def test_tokensOnOthers(self) -> None:
        """P3: only newcontainer and execcmd take tokens; an empty list is none."""
        vm = self.vm(2)
        for tokens in (vm.tokens[:1], vm.tokens):
            text = vm.client.hyperRefused("ping", None, tokens)
            self.assertIn(f"ping doesn't need tokens but {len(tokens)} token(s) were given", text)
        self.assertEqual(vm.agent.commands(), [])
        vm.client.hyper("ping", None, [])
        vm.client.accepted(Command.HYPER, b'{"hyperName":"ping","tokens":null}')


class RepliesTests(ProcessTestCase):
    """P1, P10: the agent's stream of replies."""

    def test_cutAnywhere(self) -> None:
        """P1: NEXT and the answer may come in any pieces."""
        vm = self.vm()
        vm.agent.answers[ControlCode.PING] = None
        reply = NEXT + encodeControl(ControlCode.ACK, b"body")
        for cut in range(1, len(reply)):
            vm.client.command(Command.HYPER, hyperPayload("ping"))
            vm.agent.command(ControlCode.PING, cut - 1)
            vm.agent.control.write(reply[:cut])
            time.sleep(0.002)
            vm.agent.control.write(reply[cut:])
            self.assertEqual(success(vm.client.response(Command.HYPER)), b"body")

    def test_stray(self) -> None:
        """P19: messages that answer nothing are not taken for the answer to a later command."""
        vm = self.vm()
        vm.agent.answers[ControlCode.PING] = echo
        for nth, (code, body) in enumerate((
            (ControlCode.ACK, b"stray"),
            (ControlCode.ERROR, b"stray"),
            (ControlCode.NEXT, b"\0\0\0\x01"),
            (ControlCode.POD_FINISHED, b"\0\0\0\x01"),
            (ControlCode.READY, b""),
            (ControlCode.PROCESS_ASYNC_EVENT, b'{"event":"finished","container":"x"}'),
            (24, b'{"event":"other"}'),
        )):  # fmt: skip
            vm.agent.sendControl(code, body)
            vm.agent.control.waitRead()
            self.assertEqual(vm.client.hyper("ping", nth), b"%d" % nth)

    def test_strayBehindCommand(self) -> None:
        """P19: nor those that come while a command waits, but for ACK and ERROR."""
        vm = self.vm()
        before = [
            NEXT,
            encodeControl(ControlCode.POD_FINISHED, b"\0\0\0\x01"),
            encodeControl(23, b'{"event":"finished","container":"x","process":"y","status":1}'),
        ]
        vm.agent.answers[ControlCode.PING] = Answer(b"own", before=before)
        for _ in range(3):
            self.assertEqual(vm.client.hyper("ping"), b"own")

    def test_otherCode(self) -> None:
        """P3: a reply that is neither ACK nor ERROR is an error for the caller."""
        vm = self.vm()
        vm.agent.answers[ControlCode.STARTPOD] = Answer(b"what", ControlCode.READY)
        vm.client.hyperRefused("startpod", {})
        vm.usable()

    def test_manyInARow(self) -> None:
        """P10: a thousand commands in a row get their own answers."""
        vm = self.vm()
        vm.agent.answers[ControlCode.PING] = echo
        for n in range(1000):
            self.assertEqual(vm.client.hyper("ping", n), b"%d" % n)


class ConcurrencyTests(ProcessTestCase):
    """P10: many clients, one agent."""

    def test_hundred(self) -> None:
        """P10: a hundred clients at a time each get their own answers, in their own order."""
        vm = self.vm()
        vm.agent.answers[ControlCode.PING] = echo
        clients = [vm.attach() for _ in range(100)]
        for turn in range(2):
            for nth, client in enumerate(clients):
                client.command(Command.HYPER, hyperPayload("ping", [nth, turn]))
        for turn in range(2):
            for nth, client in reversed(list(enumerate(clients))):
                answer = success(client.response(Command.HYPER))
                self.assertEqual(json.loads(answer), [nth, turn])

    def test_leaving(self) -> None:
        """P10: clients that leave before their answers do not shift those of the others."""
        vm = self.vm()
        vm.agent.answers[ControlCode.PING] = lambda message: Answer(message.body, delay=0.005)
        clients = [vm.attach() for _ in range(40)]
        for nth, client in enumerate(clients):
            client.command(Command.HYPER, hyperPayload("ping", nth))
        for client in clients[::2]:
            client.close()
        for nth, client in list(enumerate(clients))[1::2]:
            self.assertEqual(success(client.response(Command.HYPER)), b"%d" % nth)
        vm.usable()
        numbers = [json.loads(m.body) for m in vm.agent.commands()][:40]
        self.assertEqual(sorted(numbers), list(range(40)), "unsent commands are still sent")

    def test_oneInFlight(self) -> None:
        """The agent gets a command only when it has answered the one before."""
        vm = self.vm()
        vm.agent.answers[ControlCode.PING] = None
        others = [vm.attach() for _ in range(3)]
        for client in others:
            client.command(Command.HYPER, hyperPayload("ping"))
        for nth in range(3):
            vm.agent.command(ControlCode.PING, nth)
            time.sleep(0.05)
            self.assertEqual(len(vm.agent.commands()), nth + 1)
            vm.agent.sendControl(ControlCode.ACK, b"%d" % nth)
        for nth, client in enumerate(others):
            self.assertEqual(success(client.response(Command.HYPER)), b"%d" % nth)

    def test_slowAgent(self) -> None:
        """P9, P10: an agent that takes its time holds up its own VM only."""
        slow, quick = self.vm(), self.vm()
        slow.agent.answers[ControlCode.STARTPOD] = None
        slow.client.command(Command.HYPER, hyperPayload("startpod", {}))
        slow.agent.command(ControlCode.STARTPOD)
        quick.usable()
        slow.client.silent(0.1)
        slow.agent.sendControl(ControlCode.ACK, b"late")
        self.assertEqual(success(slow.client.response(Command.HYPER)), b"late")

    def test_order(self) -> None:
        """P10: responses leave in the order of the commands, those finished sooner wait."""
        vm = self.vm()
        vm.agent.answers[ControlCode.PING] = Answer(b"pong", delay=0.2)
        vm.client.command(Command.HYPER, hyperPayload("ping"))
        vm.client.command(Command.HYPER, hyperPayload("none-such"))
        vm.client.command(Command.ATTACH_VM, {"containerId": vm.id})
        self.assertEqual(success(vm.client.response(Command.HYPER)), b"pong")
        failure(vm.client.response(Command.HYPER))
        success(vm.client.response(Command.ATTACH_VM))

    def test_lateReady(self) -> None:
        """P19: a READY that comes again is no answer."""
        vm = self.vm()
        vm.agent.answers[ControlCode.PING] = Answer(b"own", before=[READY])
        failure(vm.client.call(Command.HYPER, hyperPayload("ping")))
        vm.agent.answers[ControlCode.PING] = echo
        vm.agent.control.waitRead()
        vm.usable()

"""
Agents that never answer, or too late: P10, P11 and P14 on the real daemon.
"""

from __future__ import annotations

import json
import re
import time

from ccproxy.test.faults.conversation import FaultTestCase
from ccproxy.test.processes import PlayedVM, Running, startData
from ccproxy.testing.client import BlockingClient, failure, hyperPayload, registration, success
from ccproxy.wire.codes import Command, ControlCode, Dialect, Stream, hyperCode
from ccproxy.wire.messages import encodeControl

#: The deadline of a command in these tests, in seconds.
DEADLINE = 1.5
#: What a busy machine may add to it.
GRACE = 20.0

#: What each command needs, besides a pod.
COMMANDS: dict[str, object] = {
    "version": None,
    "startpod": {"hostname": "h"},
    "destroypod": None,
    "ping": None,
    "readfile": {"container": "c", "file": "f"},
    "writefile": {"container": "c", "file": "f"},
    "newcontainer": startData("newcontainer", "c"),
    "execcmd": startData("execcmd", "c"),
    "killcontainer": {"container": "c", "signal": 9},
    "removecontainer": {"container": "c"},
    "onlinecpumem": None,
    "setupinterface": {"device": "d"},
    "setuproute": {"routes": []},
    "winsize": {"seq": 3, "row": 1, "column": 1},
}


class StallTests(FaultTestCase):
    """P11: each command stalls in an agent of its own, all at the same time."""

    options = (
        "--log-level=debug",
        f"--command-timeout={DEADLINE}",
        "--command-warning=0.7",
        f"--shim-timeout={DEADLINE}",
        f"--ready-timeout={DEADLINE}",
        "--ready-ping=0.8",
    )

    def stalled(self, name: str, dialect: Dialect = Dialect.CC) -> PlayedVM:
        """A VM whose agent does not answer a command, which is sent."""
        vm = self.vm(2, dialect=dialect)
        code = hyperCode(name, dialect)
        vm.agent.answers[code] = None
        vm.client.command(Command.HYPER, hyperPayload(name, COMMANDS.get(name)))
        vm.agent.command(code)
        return vm

    def behind(self, vm: PlayedVM) -> BlockingClient:
        """A client whose ping waits behind what stalls."""
        client = vm.attach()
        client.command(Command.HYPER, hyperPayload("ping"))
        return client

    def assertLate(self, began: float, what: str) -> None:
        """About a deadline has passed since then, not less and not much more."""
        passed = time.monotonic() - began
        self.assertGreater(passed, DEADLINE - 0.15, f"P11: {what} is told too early")
        self.assertLess(passed, DEADLINE + GRACE, f"P11: {what} is told too late")

    def test_everyCommand(self) -> None:
        """P11: the caller and those behind are told what is not answered, and since when."""
        began = time.monotonic()
        vms = {name: self.stalled(name) for name in COMMANDS}
        others = {name: self.behind(vm) for name, vm in vms.items()}
        self.undisturbed()
        self.assertLess(time.monotonic() - began, DEADLINE + GRACE, "P9: others are held up")
        for name, vm in vms.items():
            text = failure(vm.client.response(Command.HYPER, DEADLINE + GRACE))
            self.assertNames(text, vm.id, f"agent has not answered {name} within {DEADLINE:g} s")
            text = failure(others[name].response(Command.HYPER, DEADLINE + GRACE))
            self.assertNames(text, vm.id)
            since = rf"agent has not answered {name} since \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"
            self.assertTrue(re.search(since, text), f"P11: {text}")
            self.assertIn(name, self.waitLog(f"has not answered {name} for"))
        self.assertLate(began, "a caller")
        for name, vm in vms.items():
            # Late answers are nobody's, whether they are good or bad.
            code = ControlCode.ERROR if name < "n" else ControlCode.ACK
            if name != "ping":
                self.assertEqual(len(vm.agent.commands()), 1, f"P11: sent behind {name}")
            vm.agent.sendControl(code, b"late")
            vm.agent.answers.clear()
        for vm in vms.values():
            vm.usable()

    def test_behindForLong(self) -> None:
        """P11: a command that comes later has a deadline of its own, and is never sent."""
        vm = self.stalled("startpod")
        time.sleep(DEADLINE / 2)
        for nth in range(2):
            began = time.monotonic()
            text = failure(self.behind(vm).response(Command.HYPER, DEADLINE + GRACE))
            self.assertNames(text, "agent has not answered startpod since", vm.id)
            self.assertLate(began, f"caller {nth}")
        self.assertEqual(len(vm.agent.commands()), 1, "P11: sent behind one that is not answered")

    def test_callerLeaves(self) -> None:
        """P10: the caller goes before the deadline; the answer is still his and no other's."""
        vm = self.stalled("startpod")
        other = self.behind(vm)
        self.forget(vm.client)
        vm.agent.sendControl(ControlCode.ACK, b"of the one who left")
        self.assertEqual(success(other.response(Command.HYPER)), b"")
        self.assertEqual(len(vm.agent.commands(ControlCode.PING)), 1)

    def test_answeredLastMoment(self) -> None:
        """P10: answers around the deadline: each is the caller's or nobody's, never another's."""
        vms = [self.stalled("startpod") for _ in range(12)]
        began = time.monotonic()
        for nth, vm in enumerate(vms):
            time.sleep(max(0.0, began + DEADLINE - 0.06 + nth * 0.01 - time.monotonic()))
            vm.agent.sendControl(ControlCode.ACK, b"for startpod")
        for vm in vms:
            response = vm.client.response(Command.HYPER, GRACE)
            own = failure(response) if response.error else response.payload.decode()
            self.assertRegex(own, f"^for startpod$|^{vm.id}: agent has not answered startpod ")
            vm.usable()

    def start(self, kind: str) -> tuple[PlayedVM, BlockingClient]:
        """A start that is not answered until its caller has been told so."""
        vm = self.vm(2)
        code = hyperCode(kind, Dialect.CC)
        vm.agent.answers[code] = None
        shim = vm.shim(0)
        shim.stdin(b"in")
        shim.command(Command.SIGNAL, {"signalNumber": 10})
        vm.startLater(0, kind)
        vm.agent.command(code)
        vm.agent.sendIO(3, b"early")
        text = failure(vm.client.response(Command.HYPER, DEADLINE + GRACE))
        self.assertNames(text, f"agent has not answered {kind} within", vm.id)
        del vm.agent.answers[code]
        return vm, shim

    def test_lateStart(self) -> None:
        """P11: the late ACK of a start starts the session: output, held stdin, held signal."""
        for kind in ("newcontainer", "execcmd"):
            vm, shim = self.start(kind)
            vm.agent.sendControl(ControlCode.ACK)
            self.assertEqual(vm.agent.stdin(3, 2), b"in")
            response = shim.response(Command.SIGNAL)
            if kind == "newcontainer":
                success(response)
                self.assertEqual(vm.agent.data(ControlCode.KILLCONTAINER)["signal"], 10)
            else:
                self.assertNames(failure(response), "not supported by this agent")
            vm.agent.exit(3, 5)
            self.assertOutput(shim, b"early", b"", 5)
            vm.usable()

    def test_lateRefusal(self) -> None:
        """P11: the late ERROR of a start ends the wait for it; the token is good for another."""
        vm, shim = self.start("newcontainer")
        vm.agent.sendControl(ControlCode.ERROR, b"no such image")
        self.assertNames(failure(shim.response(Command.SIGNAL)), "no such image")
        self.assertEqual(shim.output(Stream.STDOUT, 5), b"early")
        process = vm.start(0, shim=shim)
        self.assertSays(process)
        self.assertEqual(vm.agent.stdin(process.number, 2), b"in")

    def test_neverStarted(self) -> None:
        """P11, P12: the VM is lost while a start stalls: its shim is not left waiting."""
        vm, shim = self.start("newcontainer")
        vm.agent.hangUp()
        failure(shim.response(Command.SIGNAL))
        self.assertOutput(shim, b"early", b"", 255)
        shim.waitClosed()
        self.void(vm.tokens)

    def test_version(self) -> None:
        """P11, P15: a hyperstart that does not answer the proxy's own question holds up a start."""
        vm = self.vm(2, dialect=Dialect.HYPERSTART1)
        vm.client.hyper("startpod", {})
        vm.agent.answers[ControlCode.VERSION] = None
        shim = vm.shim(0)
        text = vm.startRefused(0)
        self.assertNames(text, "agent has not answered version since", vm.id)
        vm.agent.sendControl(ControlCode.ACK, (4244).to_bytes(4, "big"))
        process = vm.start(0, shim=shim)
        self.assertEqual(process.data["process"]["id"], str(process.number))
        self.assertSays(process)

    def test_signals(self) -> None:
        """P11, P14: signals and sizes that stall, and those behind them, are told too."""
        vm = self.vm(2)
        one, two = vm.start(0, container="one"), vm.start(1, container="two")
        vm.agent.answers[ControlCode.KILLCONTAINER] = None
        one.shim.command(Command.SIGNAL, {"signalNumber": 10})
        vm.agent.command(ControlCode.KILLCONTAINER)
        two.shim.command(Command.SIGNAL, {"signalNumber": 28, "columns": 5, "rows": 5})
        self.assertNames(
            failure(one.shim.response(Command.SIGNAL, DEADLINE + GRACE)), "has not answered signal"
        )
        self.assertNames(
            failure(two.shim.response(Command.SIGNAL, DEADLINE + GRACE)), "has not answered", vm.id
        )
        self.assertSays(one)
        self.assertSays(two)
        vm.agent.sendControl(ControlCode.ACK)
        vm.usable()

    def test_destroypod(self) -> None:
        """P11, P19: a hyperstart that powers off late: told in time, nothing sent behind."""
        vm = self.stalled("destroypod", Dialect.HYPERSTART1)
        text = failure(vm.client.response(Command.HYPER, DEADLINE + GRACE))
        self.assertNames(text, "has not answered destroypod", vm.id)
        text = failure(self.behind(vm).response(Command.HYPER, DEADLINE + GRACE))
        self.assertNames(text, "has not answered destroypod since", vm.id)
        self.assertEqual(vm.agent.commands()[-1].number, ControlCode.DESTROYPOD)
        vm.agent.hangUp()
        self.client().unregisterVM(vm.id)

    def test_shimsAndStarts(self) -> None:
        """P11: a hundred starts wait for a shim at once; each is told of its own token."""
        vm = self.vm(100)
        clients = [vm.attach() for _ in vm.tokens]
        began = time.monotonic()
        for nth, client in enumerate(clients):
            data = startData("newcontainer", f"c{nth}")
            client.command(Command.HYPER, hyperPayload("newcontainer", data, [vm.tokens[nth]]))
        for client, token in zip(clients, vm.tokens, strict=True):
            text = failure(client.response(Command.HYPER, DEADLINE + GRACE))
            self.assertNames(text, f"timeout waiting for shim with token {token}", vm.id)
        self.assertGreater(time.monotonic() - began, DEADLINE - 0.1)
        self.assertEqual(vm.agent.commands(), [])

    def test_ready(self) -> None:
        """P11: twenty agents without READY, some of which talk: each is told, nothing remains."""
        noise = encodeControl(ControlCode.ACK, b"stale") + encodeControl(ControlCode.NEXT, bytes(4))
        agents = [self.agent(ready=(noise,) * (n % 2), readyDelay=n / 400) for n in range(20)]
        names = [self.unique() for _ in agents]
        client = [self.client() for _ in agents]
        for agent in agents:
            agent.answers[ControlCode.PING] = None
        for nth, agent in enumerate(agents):
            client[nth].command(Command.REGISTER_VM, registration(names[nth], agent, 2))
        for nth, agent in enumerate(agents):
            text = failure(client[nth].response(Command.REGISTER_VM, DEADLINE + GRACE))
            self.assertNames(text, names[nth], "READY", agent.control.path, f"{DEADLINE:g} s")
            agent.waitDisconnected(agent.control)
            agent.waitDisconnected(agent.io)
            agent.ready, agent.readyDelay = (encodeControl(ControlCode.READY),), 0.0
            client[nth].registerVM(names[nth], agent)
            client[nth].hyper("startpod", {})

    def test_eventsMeanwhile(self) -> None:
        """P10, P19: messages that answer nothing are not taken for the answer that stays away."""
        vm = self.vm(1, dialect=Dialect.HYPERSTART1)
        process: Running = vm.start(0, container="c", id="p")
        vm.agent.answers[ControlCode.STARTPOD] = None
        vm.client.command(Command.HYPER, hyperPayload("startpod", {}))
        vm.agent.command(ControlCode.STARTPOD)
        vm.agent.sendControl(ControlCode.NEXT, bytes(4))
        vm.agent.sendControl(ControlCode.POD_FINISHED, bytes(4))
        vm.agent.sendControl(24, json.dumps({"event": "odd"}).encode())
        process.say(b"out")
        process.exit(4)
        self.assertOutput(process.shim, b"out", b"", 4)
        vm.client.silent(0.05)
        vm.agent.sendControl(ControlCode.ACK, b"its own")
        self.assertEqual(success(vm.client.response(Command.HYPER)), b"its own")

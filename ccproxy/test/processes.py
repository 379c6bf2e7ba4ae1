"""
What the tests of the real daemon have in common: one daemon for many tests, surrounded by
scripted agents and blocking clients, and checks that no test leaves anything behind.
"""

from __future__ import annotations

import atexit
import itertools
import subprocess
from collections.abc import Callable
from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.testing.agent import ScriptedAgent
from ccproxy.testing.client import BlockingClient, hyperPayload
from ccproxy.testing.daemon import Daemon, environment, eventually, script
from ccproxy.wire.codes import Command, ControlCode, Dialect, Stream, hyperCode

SIGKILL, SIGUSR1, SIGTERM, SIGWINCH = 9, 10, 15, 28

_shared: dict[tuple[str, ...], Daemon] = {}
_serial = itertools.count(1)


def sharedDaemon(options: tuple[str, ...]) -> Daemon:
    """A running daemon with these options of C{twistd ccproxy}; all tests get the same one."""
    daemon = _shared.get(options)
    if daemon is None or not daemon.isAlive():
        daemon = _shared[options] = Daemon.byTwistd(*options).start()
    return daemon


@atexit.register
def _clearShared() -> None:
    for daemon in _shared.values():
        daemon.clear()


def startData(kind: str, container: str, **process: object) -> dict[str, Any]:
    """
    The data of a newcontainer or execcmd.

    @param kind: which of the two.
    @param process: more members of the process.
    """
    members = {"args": ["/bin/sh"], "terminal": False, **process}
    if kind == "execcmd":
        return {"container": container, "process": members}
    return {"id": container, "rootfs": "rootfs", "image": "image", "process": members}


@attrs.define(eq=False)
class Running:
    """
    A process in a VM, with its shim.

    @ivar number: the number of its stdin and stdout.
    @ivar stderr: the number of its standard error, 0 if it has none.
    @ivar data: the data of its start, as the agent got it.
    """

    vm: PlayedVM
    token: str
    shim: BlockingClient
    container: str
    data: dict[str, Any]

    @property
    def number(self) -> int:
        """The number of its stdin and stdout."""
        number: int = self.data["process"]["stdio"]
        return number

    @property
    def stderr(self) -> int:
        """The number of its standard error, 0 if it has none."""
        number: int = self.data["process"].get("stderr", 0)
        return number

    def say(self, data: bytes) -> None:
        """Write to stdout."""
        self.vm.agent.sendIO(self.number, data)

    def complain(self, data: bytes) -> None:
        """Write to standard error."""
        self.vm.agent.sendIO(self.stderr, data)

    def exit(self, status: int) -> None:
        """End, as processes do in the dialect of the VM's agent."""
        process = self.data["process"].get("id", "init")
        self.vm.agent.exit(self.number, status, self.container, process)


@attrs.define(eq=False)
class PlayedVM:
    """
    A registered VM.

    @ivar connect: makes a new client.
    @ivar id: its containerId.
    @ivar client: the client that has registered it.
    @ivar tokens: the tokens that came with the registration.
    """

    connect: Callable[[], BlockingClient]
    id: str
    agent: ScriptedAgent
    client: BlockingClient
    tokens: list[str]

    def attach(self) -> BlockingClient:
        """Another client, attached to it."""
        client = self.connect()
        client.attachVM(self.id)
        return client

    def shim(self, nth: int = 0) -> BlockingClient:
        """A new shim for one of its tokens."""
        shim = self.connect()
        shim.connectShim(self.tokens[nth])
        return shim

    def start(
        self,
        nth: int = 0,
        kind: str = "newcontainer",
        container: str | None = None,
        shim: BlockingClient | None = None,
        **process: object,
    ) -> Running:
        """
        Start a process.

        @param nth: which of the tokens it gets.
        @param kind: newcontainer or execcmd.
        @param shim: its shim, a new one by default.
        @param process: more members of the process.
        """
        token = self.tokens[nth]
        shim = shim or self.shim(nth)
        container = container or f"container{nth}"
        code = hyperCode(kind, Dialect.UNKNOWN)
        before = len(self.agent.commands(code))
        self.client.hyper(kind, startData(kind, container, **process), [token])
        return Running(self, token, shim, container, self.agent.data(code, before))

    def startLater(self, nth: int = 0, kind: str = "newcontainer", **process: object) -> None:
        """Send the command that starts a process, without waiting for its response."""
        data = startData(kind, f"container{nth}", **process)
        self.client.command(Command.HYPER, hyperPayload(kind, data, [self.tokens[nth]]))

    def startRefused(self, nth: int = 0, kind: str = "newcontainer", **process: object) -> str:
        """Try to start a process, which must fail; the text of the error."""
        data = startData(kind, f"container{nth}", **process)
        return self.client.hyperRefused(kind, data, [self.tokens[nth]])

    def usable(self) -> None:
        """Make sure that it still carries out commands."""
        before = len(self.agent.commands(ControlCode.PING))
        self.client.hyper("ping", before)
        if self.agent.data(ControlCode.PING, before) != before:
            raise AssertionError(f"the agent got another ping: {self.agent.commands()[-3:]}")


class ProcessTestCase(SynchronousTestCase):
    """
    A test of the real daemon, which it shares with others.

    After each test the daemon must be alive, with no more descriptors than before it and no
    traceback in its log, and no agent may have died of what the daemon sent.

    @cvar options: the daemon's options.
    """

    options: tuple[str, ...] = ("--log-level=debug",)

    def setUp(self) -> None:
        """Get the daemon, and remember what it holds."""
        self.daemon = sharedDaemon(self.options)
        self._clients: list[BlockingClient] = []
        self._agents: list[ScriptedAgent] = []
        self._descriptors = self.daemon.settledDescriptors()
        self._logged = len(self.daemon.log())

    def tearDown(self) -> None:
        """Close all, and see what is left of it."""
        for client in self._clients:
            client.close()
        for agent in self._agents:
            agent.close()
        self.assertEqual([agent.causeOfDeath for agent in self._agents if agent.causeOfDeath], [])
        self.assertTrue(self.daemon.isAlive(), self.daemon.log()[-2000:])
        for sign in ("Traceback", "Unhandled"):
            self.assertNotIn(sign, self.newLog())
        eventually(self.nothingIsLeft, "the descriptors are closed")

    def nothingIsLeft(self) -> bool:
        """Whether the daemon has no more descriptors than at the beginning: P13."""
        return len(self.daemon.descriptors()) <= self._descriptors

    def newLog(self) -> str:
        """What the daemon has logged since the test began."""
        return self.daemon.log()[self._logged :]

    def waitLog(self, text: str) -> str:
        """Wait for a text in what is logged since the test began; the line that has it."""
        eventually(lambda: text in self.newLog(), f"{text!r} in the log")
        return next(line for line in self.newLog().splitlines() if text in line)

    def unique(self, name: str = "vm") -> str:
        """A name that no other test has used."""
        return f"{name}-{next(_serial)}"

    def client(self) -> BlockingClient:
        """A new client."""
        client = BlockingClient(self.daemon.path)
        self._clients.append(client)
        return client

    def agent(self, *args: Any, **options: Any) -> ScriptedAgent:
        """A new agent, with the options of L{ScriptedAgent}."""
        agent = ScriptedAgent(self.daemon.directory, self.unique("a"), *args, **options)
        self._agents.append(agent)
        return agent

    def vm(self, tokens: int = 0, *args: Any, **options: Any) -> PlayedVM:
        """
        A registered VM.

        @param tokens: how many tokens it has.
        @param options: options of L{ScriptedAgent}.
        """
        agent, client, name = self.agent(*args, **options), self.client(), self.unique()
        return PlayedVM(self.client, name, agent, client, client.registerVM(name, agent, tokens))

    def shim(self, token: str) -> BlockingClient:
        """A new shim."""
        shim = self.client()
        shim.connectShim(token)
        return shim

    def process(self, *args: Any, **members: Any) -> Running:
        """A process in a VM of its own: arguments are those of L{PlayedVM.start}."""
        return self.vm(1).start(*args, **members)

    def assertOutput(self, shim: BlockingClient, out: bytes, err: bytes, status: int) -> None:
        """What comes until the exit status, and it, are these."""
        output = shim.untilExit()
        self.assertEqual((output.stdout, output.stderr, output.status), (out, err, status))

    def assertSays(self, process: Running, text: bytes = b"still here") -> None:
        """What the process says next reaches its shim."""
        process.say(text)
        self.assertEqual(process.shim.output(Stream.STDOUT, len(text)), text)


class DaemonTestCase(SynchronousTestCase):
    """A test with daemons of its own."""

    def cleared(self, daemon: Daemon) -> Daemon:
        """The daemon, which is killed if need be and removed after a look into its log."""
        self.addCleanup(daemon.clear)
        self.addCleanup(lambda: self.assertNotIn("Traceback", daemon.log()))
        return daemon

    def daemons(self) -> list[Daemon]:
        """A daemon of each command line, not started yet."""
        return [self.cleared(Daemon("-log", "debug")), self.cleared(Daemon.byTwistd())]

    def client(self, daemon: Daemon) -> BlockingClient:
        """A client of the daemon."""
        client = BlockingClient(daemon.path)
        self.addCleanup(client.close)
        return client

    def vm(self, daemon: Daemon, tokens: int = 1) -> PlayedVM:
        """A VM that is registered at the daemon."""
        agent, client = ScriptedAgent(daemon.directory), self.client(daemon)
        self.addCleanup(agent.close)
        return PlayedVM(
            lambda: self.client(daemon), "vm", agent, client, client.registerVM("vm", agent, tokens)
        )


def runProxy(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run C{cc-proxy} to its end."""
    return subprocess.run(
        [*script("cc-proxy"), *arguments], env=environment(**variables), cwd="/",
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

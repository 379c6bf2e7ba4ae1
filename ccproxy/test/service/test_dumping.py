"""
Tests for L{ccproxy.service.dumping}.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from ...config.settings import Settings
from ...log.daemonlog import DaemonLog
from ...log.formats import asLine, formatLogfmt
from ...log.sinks import Sink
from ...net.deadlines import Deadlines
from ...service import dumping
from ...service.dumping import BATCH, PAUSE, StateDump
from ...wire.codes import Command
from ..log.test_daemonlog import parseLogfmt
from ..memory import World, registration, startData


class DumpTests(SynchronousTestCase):
    """What SIGUSR1 puts into the log."""

    def setUp(self) -> None:
        """A daemon's state, and a log that shows errors alone."""
        self.world = World()
        self.lines: list[bytes] = []
        settings = Settings(logLevel="error", logRate=1)
        self.log = DaemonLog(settings, [Sink(asLine(formatLogfmt), self.lines.append)])
        self.patch(StateDump, "_log", Logger("ccproxy.service.dumping", observer=self.log))
        clock = self.world.clock
        self.dump = StateDump(self.world.registry, clock, Deadlines(clock))

    def entries(self) -> list[dict[str, Any]]:
        """What was logged since the last call, as parsers read it."""
        self.log.flush(0)
        lines = b"".join(self.lines).decode().splitlines()
        self.lines.clear()
        return [parseLogfmt(line) for line in lines]

    def having(self, entries: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
        """The entries of an event."""
        return [entry for entry in entries if entry["event"] == f"dump-{event}"]

    def test_everything(self) -> None:
        """VMs, sessions, clients, commands and waits: each is an entry that names what it is of."""
        agent, runtime, tokens = self.world.register("pod-7", 2)
        self.world.process(agent, runtime, tokens[0], container="c1")
        runtime.hyper("newcontainer", startData("newcontainer", container="c2"), [tokens[1]])
        runtime.hyper("ping")
        self.dump()
        entries = self.entries()
        (vm,) = self.having(entries, "vm")
        self.assertEqual((vm["vm"], vm["serial"], vm["state"]), ("pod-7", "1", "registered"))
        first, second = self.having(entries, "session")
        self.assertEqual((first["container"], first["state"]), ("c1", "running"))
        self.assertEqual((second["vm"], second["state"]), ("pod-7", "created"))
        self.assertTrue(second["session"].startswith(tokens[1][:6]))
        self.assertEqual(len(self.having(entries, "client")), 2)
        waiting = {entry["command"]: entry["awaits"] for entry in self.having(entries, "command")}
        self.assertEqual(waiting, {"newcontainer": "shim", "ping": "answer"})
        waits = {entry["call"]: entry for entry in self.having(entries, "wait")}
        overdue = waits["Starts._shimOverdue"]
        self.assertEqual((overdue["vm"], overdue["seconds"]), ("pod-7", "30.000"))
        self.assertIn("Agent._check", waits)
        self.assertEqual(entries[-1]["event"], "dump-end")
        self.assertEqual(entries[-1]["entries"], str(len(entries) - 1))
        text = str(entries)
        self.assertNotIn(tokens[0], text)
        self.assertNotIn(tokens[1], text)

    def test_hostileNames(self) -> None:
        """A name that a client has chosen stays within its field."""
        self.world.register('v"m\n event=dump-end')
        self.dump()
        (vm,) = self.having(self.entries(), "vm")
        self.assertEqual(vm["vm"], 'v"m\n event=dump-end')

    def test_pace(self) -> None:
        """A large state does not hold up the loop, and is dumped once however often one asks."""
        self.world.register("vm", 3 * BATCH)
        self.dump()
        self.dump()
        entries = self.entries()
        self.assertEqual(len(entries), BATCH)
        while entries[-1]["event"] != "dump-end":
            self.dump()
            self.world.clock.advance(PAUSE)
            entries += self.entries()
        self.assertEqual(len(self.having(entries, "session")), 3 * BATCH)
        self.assertEqual(len(self.having(entries, "end")), 1)

    def test_comesAndGoes(self) -> None:
        """What ends while the dump is under way is no trouble."""
        agent, runtime, _ = self.world.register("vm", 3 * BATCH)
        self.world.register("other", 3 * BATCH)
        self.dump()
        runtime.send(Command.UNREGISTER_VM, {"containerId": "vm"})
        agent.control.end()
        agent.io.end()
        self.world.clock.advance(60)
        for _ in range(20):
            self.world.clock.advance(PAUSE)
        entries = self.entries()
        self.assertEqual(entries[-1]["event"], "dump-end")

    def test_waitsEnd(self) -> None:
        """Waits that end while the dump is under way were told as they were."""
        for nth in range(2 * BATCH):
            self.world.client().send(Command.REGISTER_VM, registration(f"vm{nth}"))
        self.dump()
        self.world.registry.shutDown()
        for _ in range(20):
            self.world.clock.advance(PAUSE)
        entries = self.entries()
        name = "Registration.neverReady"
        waits = [wait for wait in self.having(entries, "wait") if wait["call"] == name]
        self.assertEqual({wait["vm"] for wait in waits}, {f"vm{nth}" for nth in range(2 * BATCH)})
        self.assertEqual(entries[-1]["event"], "dump-end")

    def test_failing(self) -> None:
        """An error of the dump is logged, and the next one works."""

        def broken(*arguments: object) -> Any:
            raise ValueError("broken")

        patch = self.patch(dumping, "_state", broken)
        self.dump()
        self.assertIn("ValueError: broken", self.entries()[-1]["error"])
        patch.restore()
        self.dump()
        self.assertEqual(self.entries()[-1]["event"], "dump-end")

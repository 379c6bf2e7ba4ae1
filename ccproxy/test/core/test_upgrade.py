"""
States that earlier versions have written, in the folder C{states}, are taken up by this one.

C{before-defects} was written by the last version before snapshots had the moment of their writing,
C{before-redesign} by the last one before fields were declared where they are. C{planned} is a whole
state, C{crash} the journal's last word about its VM. All four are about one VM with a cc agent and
these sessions, by their sequence numbers:

 - 3 runs, with C{typed} sent to it; its shim has read 30 bytes of 500 of output, and has sent a
   SIGHUP that waits behind the runtime's C{ping}, which the agent has not answered.
 - 5 has a start that waits for its shim.
 - 7 has a shim, whose SIGHUP waits for a start.
 - 9 has exited with status 5, without a shim for its last words.
 - 11 has a token that nobody has used.
"""

from __future__ import annotations

from importlib.resources import files

from msgspec.msgpack import decode
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.core.context import Context
from ccproxy.core.registry import Registry
from ccproxy.core.requests import connect
from ccproxy.core.resuming import resume
from ccproxy.core.snapshot import Snapshot, unseal
from ccproxy.wire.codes import Command, ControlCode, FrameType, Stream
from ccproxy.wire.frames import encodeFrame, encodeProcessExited, encodeStream
from ccproxy.wire.messages import encodeControl, encodeIO

from ..memory import MemoryConnection, MemoryConnector, command

VERSIONS = ("before-defects", "before-redesign")
#: The connections by the keys that the states have.
CONTROL, IO, RUNTIME, SHIM, WAITING = KEYS = range(1, 6)
_PONG = encodeFrame(FrameType.RESPONSE, Command.HYPER)
_SIGNALLED = encodeFrame(FrameType.RESPONSE, Command.SIGNAL)
_CONNECTED = encodeFrame(FrameType.RESPONSE, Command.CONNECT_SHIM)


class UpgradeTests(SynchronousTestCase):
    """One conversation that goes on with each of the states."""

    def takeUp(self, name: str, crashed: bool) -> None:
        """
        Go on with a state.

        @param name: its file.
        """
        self.clock = Clock()
        self.registry = Registry(Context(self.clock, float), MemoryConnector())
        body = unseal((files(__package__) / "states" / name).read_bytes())
        self.lines = {key: MemoryConnection() for key in KEYS if key != RUNTIME or not crashed}
        resumed = resume(self.registry, decode(body, type=list[Snapshot]), self.lines)
        for key, sink in resumed.sinks.items():
            self.lines[key].taken(sink)
        if crashed:
            resumed.recover()
        resumed.begin()
        self.assertEqual(resumed.sinks.keys(), self.lines.keys())
        self.tokens = {each.stdio: token for token, each in self.registry.tokens.items()}

    def shim(self, stdio: int) -> MemoryConnection:
        """Connect a shim to a session."""
        line = MemoryConnection()
        line.sink = connect(self.registry, line)
        line.feed(command(Command.CONNECT_SHIM, {"token": self.tokens[stdio]}))
        return line

    def goOn(self, crashed: bool) -> None:
        """What agent, runtime and shims see from now on."""
        lines = self.lines
        self.assertTrue(self.registry.draining)
        self.assertEqual(set(self.tokens), {3, 5, 7, 9, 11})
        if not crashed:
            rest = encodeStream(Stream.STDOUT, b"x" * 500)[30:]
            self.assertEqual(lines[SHIM].take(), rest)
        lines[IO].feed(encodeIO(3, b"more"))
        self.assertEqual(lines[SHIM].take(), encodeStream(Stream.STDOUT, b"more"))
        # The agent has the ping; the signal goes to it once that is answered.
        lines[CONTROL].feed(encodeControl(ControlCode.ACK))
        signal = encodeControl(ControlCode.KILLCONTAINER, b'{"container":"c1","signal":1}')
        self.assertEqual(lines[CONTROL].take(), signal)
        lines[CONTROL].feed(encodeControl(ControlCode.ACK))
        self.assertEqual(lines[SHIM].take(), _SIGNALLED)
        if not crashed:
            self.assertEqual(lines[RUNTIME].take(), _PONG)
        # The start of 5 is sent when its shim comes, unless the runtime has gone.
        self.shim(5)
        sent = lines[CONTROL].take()
        self.assertEqual(int.from_bytes(sent[:4], "big"), 0 if crashed else ControlCode.EXECCMD)
        lastWords = [] if crashed else [b"more"]
        expected = [encodeStream(Stream.STDOUT, text) for text in lastWords]
        ended = b"".join([_CONNECTED, *expected, encodeProcessExited(5)])
        self.assertEqual(self.shim(9).take(), ended)
        # Of 30 s that a signal waits for its process, 5 have gone.
        self.clock.advance(24)
        self.assertEqual(lines[WAITING].take(), b"")
        self.clock.advance(1)
        self.assertIn(b"timeout waiting for process", lines[WAITING].take())
        lines[CONTROL].end()
        lines[IO].end()
        self.clock.advance(1)
        self.assertTrue(lines[SHIM].take().endswith(encodeProcessExited(255)))

    def test_planned(self) -> None:
        """A planned restart into this version changes nothing for anybody."""
        for version in VERSIONS:
            self.takeUp(f"{version}-planned", False)
            self.goOn(False)

    def test_crash(self) -> None:
        """After a crash of an earlier version its shims and agents go on with this one."""
        for version in VERSIONS:
            self.takeUp(f"{version}-crash", True)
            self.goOn(True)

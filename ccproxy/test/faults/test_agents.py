"""
Agents that lose a channel at every byte of what they have to say: P6, P10, P11, P12 and P13 on
the real daemon.
"""

from __future__ import annotations

import json

import attrs

from ccproxy.test.faults.conversation import CutAgent, FaultTestCase, batches
from ccproxy.test.processes import startData
from ccproxy.testing.agent import Answer
from ccproxy.testing.client import (
    BlockingClient,
    failure,
    hyperPayload,
    registration,
    tokensOf,
)
from ccproxy.wire.codes import Command, ControlCode, Dialect
from ccproxy.wire.messages import encodeControl, encodeIO

#: More bytes than any conversation has.
NEVER = 1 << 30
#: The number of the process's stdout.
FIRST = 3
STATUS = 7
EVENT = encodeControl(
    ControlCode.PROCESS_ASYNC_EVENT,
    json.dumps({"container": "c", "process": "p", "event": "finished", "status": STATUS}).encode(),
)


@attrs.define(eq=False)
class Play:
    """
    One playing of the conversation.

    @ivar accepted: which of the commands succeeded, in their order.
    """

    name: str
    agent: CutAgent
    runtime: BlockingClient
    shim: BlockingClient
    tokens: list[str]
    accepted: list[bool]


class AgentCutTests(FaultTestCase):
    """
    A VM is registered, its pod and a container are started, and it is pinged: then the process
    prints and ends.
    """

    def output(self, dialect: Dialect, number: int) -> list[bytes]:
        """What the process sends on the I/O channel."""
        pieces = [
            encodeIO(number, b"out"),
            encodeIO(number + 1, b"error"),
            encodeIO(number, b"more out"),
            encodeIO(number),
        ]
        if dialect is not Dialect.HYPERSTART1:
            pieces.append(encodeIO(number, bytes([STATUS])))
        return pieces

    def play(self, dialect: Dialect, channel: str, count: int) -> Play:
        """
        Make ready one playing of the conversation.

        @param channel: which of the agent's channels is cut.
        @param count: after how many bytes.
        """
        agent, name = self.cutAgent(dialect=dialect), self.unique()
        agent.cut(getattr(agent, channel), count)
        agent.answers[ControlCode.PING] = lambda message: self.prints(agent)
        runtime, shim = self.client(), self.client()
        runtime.command(Command.REGISTER_VM, registration(name, agent, 2))
        return Play(name, agent, runtime, shim, [], [])

    def prints(self, agent: CutAgent) -> Answer:
        """The process prints and ends, which comes before the answer to ping."""
        before = []
        if agent.dialect is Dialect.HYPERSTART1:
            before = [EVENT]
        for piece in self.output(agent.dialect, FIRST):
            agent.io.write(piece)
        return Answer(before=before)

    def playAll(self, dialect: Dialect, channel: str, counts: list[int]) -> list[Play]:
        """Play it with cuts after so many bytes each, all at the same time."""
        plays = [self.play(dialect, channel, count) for count in counts]
        for play in plays:
            response = play.runtime.response(Command.REGISTER_VM)
            self.note(play, response.error, response.payload)
            if not response.error:
                play.tokens = tokensOf(response.payload)
                play.shim.command(Command.CONNECT_SHIM, {"token": play.tokens[0]})
        running = [play for play in plays if play.tokens]
        for play in running:
            play.shim.response(Command.CONNECT_SHIM)
            data = startData("newcontainer", "c", id="p")
            for name, value, tokens in (
                ("startpod", {"hostname": "h"}, None),
                ("newcontainer", data, play.tokens[:1]),
                ("ping", None, None),
            ):
                play.runtime.command(Command.HYPER, hyperPayload(name, value, tokens))
        for play in running:
            for _ in range(3):
                response = play.runtime.response(Command.HYPER)
                self.note(play, response.error, response.payload)
        return plays

    def note(self, play: Play, error: bool, payload: bytes) -> None:
        """Remember how a command has ended; an error must say whose it is."""
        play.accepted.append(not error)
        if error:
            self.assertIn(play.name, json.loads(payload)["msg"])

    def end(self, play: Play) -> None:
        """The VM is gone with both channels; its id is known until it is unregistered."""
        for channel in (play.agent.control, play.agent.io):
            if channel.connection is not None:
                play.agent.hangUp(channel)
        if play.tokens:
            other = self.client()
            failure(play.runtime.call(Command.HYPER, hyperPayload("ping")))
            other.unregisterVM(play.name)
            self.forget(other)
        self.void(play.tokens)
        self.drop(play.agent)
        self.forget(play.runtime)
        self.forget(play.shim)

    def lengths(self, dialect: Dialect, channel: str) -> list[int]:
        """Where the agent's writes to the channel end in a conversation that is not cut."""
        (play,) = self.playAll(dialect, channel, [NEVER])
        self.assertEqual(play.accepted, [True] * 4)
        output = play.shim.untilExit()
        self.assertEqual((output.stdout, output.stderr), (b"outmore out", b"error"))
        self.assertEqual(output.status, STATUS)
        self.end(play)
        return play.agent.written

    def cutControl(self, dialect: Dialect) -> None:
        """Cut the control channel everywhere."""
        writes = self.lengths(dialect, "control")
        # READY, then the answers; a hyperstart is asked version before its first start.
        ready, startpod, *more = writes
        newcontainer, ping = more[-2:]
        # Every message of hyperstart's answer to ping: NEXT, the event, and the answer.
        event = 12 + len(EVENT) if dialect is Dialect.HYPERSTART1 else 0
        for batch in batches(ping + 1):
            for cut, play in zip(batch, self.playAll(dialect, "control", list(batch)), strict=True):
                ends = [ready, startpod, newcontainer, ping]
                expected = [end <= cut for end in ends]
                accepted = play.accepted + [False] * (4 - len(play.accepted))
                self.assertEqual(accepted, expected, f"P10, P12: cut of control at {cut}")
                play.agent.waitDisconnected(play.agent.control)
                if play.agent.io.connection is not None:
                    play.agent.hangUp(play.agent.io)
                if cut > ready:
                    output = play.shim.untilExit()
                    printed = bool(play.agent.commands(ControlCode.PING))
                    whole = (b"outmore out", b"error") if printed else (b"", b"")
                    self.assertEqual((output.stdout, output.stderr), whole, f"P6: cut at {cut}")
                    told = printed and (cut >= newcontainer + event)
                    self.assertEqual(output.status, STATUS if told else 255, f"P12: cut at {cut}")
                    play.shim.waitClosed()
                self.end(play)

    def cutIO(self, dialect: Dialect) -> None:
        """Cut the I/O channel everywhere."""
        (*_, length) = self.lengths(dialect, "io")
        pieces = self.output(dialect, FIRST)
        for batch in batches(length + 1):
            for cut, play in zip(batch, self.playAll(dialect, "io", list(batch)), strict=True):
                self.assertEqual(play.accepted[:3], [True] * 3)
                play.agent.waitDisconnected(play.agent.io)
                if play.agent.control.connection is not None:
                    play.agent.hangUp(play.agent.control)
                whole = [p for n, p in enumerate(pieces) if len(b"".join(pieces[: n + 1])) <= cut]
                out = b"".join(p[12:] for p in whole[:3] if p[7] == 3)
                err = b"".join(p[12:] for p in whole[:3] if p[7] == 4)
                output = play.shim.untilExit()
                self.assertEqual((output.stdout, output.stderr), (out, err), f"P6: cut at {cut}")
                told = cut >= length or dialect is Dialect.HYPERSTART1
                self.assertEqual(output.status, STATUS if told else 255, f"P12: cut at {cut}")
                play.shim.waitClosed()
                self.end(play)

    def test_controlOfCC(self) -> None:
        """P10, P12: the control channel of a cc agent is cut at every byte."""
        self.cutControl(Dialect.CC)

    def test_controlOfHyperstart(self) -> None:
        """P10, P12: so is that of both hyperstarts, in NEXT and events too."""
        self.cutControl(Dialect.HYPERSTART0)
        self.cutControl(Dialect.HYPERSTART1)

    def test_outputOfCC(self) -> None:
        """P6, P12: the I/O channel of a cc agent is cut at every byte."""
        self.cutIO(Dialect.CC)

    def test_outputOfHyperstart(self) -> None:
        """P6, P12: so is that of both hyperstarts; the status of 1.x comes by the other channel."""
        self.cutIO(Dialect.HYPERSTART0)
        self.cutIO(Dialect.HYPERSTART1)

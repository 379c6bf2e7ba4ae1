"""
What the tests have in common that break connections of the real daemon: a recorded conversation,
peers that stop in the middle of it, and the checks that nothing of it is left.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from ccproxy.test.processes import ProcessTestCase, Running
from ccproxy.testing.agent import ScriptedAgent
from ccproxy.testing.channel import Channel
from ccproxy.testing.client import BlockingClient
from ccproxy.wire.codes import Command

#: How many connections are broken before the results are looked at.
BATCH = 32


def batches(count: int, size: int = BATCH) -> Iterator[range]:
    """All numbers below C{count}, some at a time."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def ends(frames: Sequence[bytes]) -> list[int]:
    """Where each of the frames ends in the stream that they make."""
    return [sum(map(len, frames[: n + 1])) for n in range(len(frames))]


class CutAgent(ScriptedAgent):
    """
    An agent that loses one of its connections after it has sent so many bytes on it.

    @ivar written: where each write to that channel ended, in bytes from its beginning.
    """

    def cut(self, channel: Channel, count: int) -> None:
        """
        Cut C{channel} when it has sent C{count} bytes.

        @param channel: its L{ScriptedAgent.control} or L{ScriptedAgent.io}.
        """
        self.written: list[int] = []
        write, sent = channel.write, 0

        def limited(data: bytes) -> None:
            nonlocal sent
            # The rest of what it would say comes when there is nobody to say it to.
            with suppress(AssertionError):
                write(data[: count - sent])
            sent = min(count, sent + len(data))
            self.written.append(sent)
            connection = channel.connection
            if sent == count and connection is not None:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

        setattr(channel, "write", limited)  # noqa: B010


class FaultTestCase(ProcessTestCase):
    """
    A test that breaks what surrounds the daemon.

    Beyond what L{ProcessTestCase} makes sure of, a bystander's VM goes on undisturbed, the daemon
    logs no error, and no token of a VM that is gone is good for anything.
    """

    #: What the daemon may log as an error.
    expectedErrors = "^$"

    def setUp(self) -> None:
        """Begin with a bystander, and no token that must be void."""
        super().setUp()
        self._void: list[str] = []
        self.bystander: Running = self.process()

    def tearDown(self) -> None:
        """See what the faults have done to those who had no part in them."""
        self.undisturbed()
        client = self.client()
        for token in self._void:
            self.assertIn("unknown token", client.refused(Command.CONNECT_SHIM, {"token": token}))
        errors = re.findall(r"^\S+ error .*$", self.newLog(), re.MULTILINE)
        self.assertEqual([e for e in errors if not re.search(self.expectedErrors, e)], [])
        super().tearDown()

    def undisturbed(self) -> None:
        """A VM that has no part in the fault works: its commands, its input, its output."""
        process = self.bystander
        process.vm.usable()
        before = len(process.vm.agent.stdin(process.number, 0))
        process.shim.stdin(b"in")
        process.vm.agent.stdin(process.number, before + 2)
        self.assertSays(process)

    def void(self, tokens: Sequence[str]) -> None:
        """These tokens must be void when the test ends."""
        self._void += tokens

    def cutAgent(self, *args: Any, **options: Any) -> CutAgent:
        """A new agent that can be cut."""
        agent = CutAgent(self.daemon.directory, self.unique("a"), *args, **options)
        self._agents.append(agent)
        return agent

    def drop(self, agent: ScriptedAgent) -> None:
        """An agent is of no more use: free its sockets and its thread."""
        agent.close()
        self.assertEqual(agent.causeOfDeath, "")
        self._agents.remove(agent)

    def leave(self, client: BlockingClient, half: bool) -> None:
        """
        A client ends.

        @param half: it still reads.
        """
        if half:
            client.socket.shutdown(socket.SHUT_WR)
        else:
            self.forget(client)

    def forget(self, client: BlockingClient) -> None:
        """Close a client that is of no more use."""
        client.close()
        self._clients.remove(client)

    def assertNames(self, text: str, *words: str) -> None:
        """An error says what it must."""
        for word in words:
            self.assertIn(word, text)

"""
The fast lanes of the core against the plain ones.

Output in bulk is translated where it stands and stdin in bulk is taken in runs. What comes out at
the other end must be the same as when each message and each frame is taken by itself.
"""

from __future__ import annotations

from unittest import mock

from ccproxy.core.client import Client
from ccproxy.core.session import Session
from ccproxy.test.memory import MemoryClient, MemoryConnection, World
from ccproxy.wire.codes import Dialect, Stream
from ccproxy.wire.frames import encodeStream
from ccproxy.wire.messages import IO_HEADER, MessageDecoder, encodeIO

from .reading import Input, pieces

#: Small, so that sessions become full.
BUFFER = 512
_DIALECTS = [Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1]
_NUMBERS = [3, 4, 5, 6, 1, 9]


class _Bench:
    """Two processes of one VM, with their shims."""

    def __init__(self, dialect: Dialect) -> None:
        world = World(dialect, sessionBuffer=BUFFER, totalBuffer=1 << 20)
        self.budget = world.registry.context.budget
        self.agent, runtime, tokens = world.register(streams=2)
        self.shims: list[MemoryClient] = []
        for number, token in enumerate(tokens):
            shim = world.process(self.agent, runtime, token, container=f"c{number}")
            self.shims.append(shim)
        self.connections: list[MemoryConnection] = [
            self.agent.io,
            *(shim.connection for shim in self.shims),
        ]
        self.agent.io.take()

    def settle(self) -> None:
        """Let everything flow that can."""
        before = -1
        while before != (before := sum(c.sends for c in self.connections)):
            for connection in self.connections:
                connection.pump()
                connection.drain()

    def play(self, data: bytes) -> list[bytes]:
        """Do what the input says; what has come out at each end."""
        source = Input(data)
        out = [b"", b"", b""]
        while source.more:
            step, number = source.byte(), source.byte()
            shim = self.shims[number % 2]
            if step % 4 == 0:
                messages = b"".join(
                    encodeIO(_NUMBERS[source.byte() % 6], bytes(source.byte() % 70))
                    * (1 + source.byte() % 12)
                    for _ in range(1 + number % 4)
                )
                for piece in pieces(messages, source.take(step >> 4)):
                    self.agent.io.feed(piece)
            elif step % 4 == 1:
                frames = b"".join(
                    encodeStream(Stream.STDIN, bytes([source.byte()]) * (source.byte() + step % 3))
                    * (1 + source.byte() % 12)
                    for _ in range(1 + number % 3)
                )
                for piece in pieces(frames, source.take(step >> 4)):
                    shim.connection.feed(piece)
            elif step % 4 == 2:
                shim.connection.makeRoom(source.byte() * 4 if step & 16 else None)
            else:
                self.agent.io.makeRoom(source.byte() * 16 if step & 16 else None)
            self.settle()
        for connection in self.connections:
            connection.makeRoom()
        self.settle()
        for end, connection in enumerate(self.connections):
            out[end] += connection.take()
        assert self.budget.used == 0, "what was delivered is still counted"
        return out


def lanes(data: bytes) -> None:
    """The same input, by the fast lanes and by the plain ones."""
    source = Input(data)
    dialect, script = source.choice(_DIALECTS), source.rest()
    fast = _Bench(dialect).play(script)
    with (
        mock.patch.object(Session, "roomFor", lambda *arguments: 0),
        mock.patch.object(Client, "_stdin", lambda *arguments: 0),
    ):
        plain = _Bench(dialect).play(script)
    assert fast[1:] == plain[1:], "output differs"
    assert _stdin(fast[0]) == _stdin(plain[0]), "stdin differs"


def _stdin(data: bytes) -> dict[int, bytes]:
    """What each process gets; how it is cut into messages may differ."""
    decoder, got = MessageDecoder(IO_HEADER), dict[int, bytes]()
    decoder.feed(data)
    while (message := decoder.next()) is not None:
        end = b"" if message.body else b"(end)"
        got[message.number] = got.get(message.number, b"") + message.body + end
    return got

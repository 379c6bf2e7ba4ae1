"""
Targets for our own ends of the two protocols: the embedded agent, and the client library.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport
from zope.interface import implementer

from ccproxy.errors import CCProxyError
from ccproxy.net.client import IProcessOutput, ProxyClient
from ccproxy.test.agent.doubles import Bench
from ccproxy.wire.codes import ControlCode, Dialect

from .reading import Input, pieces

_DIALECTS = [Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1]
_CODES = sorted({*ControlCode, 2, 26})


def agent(data: bytes) -> None:
    """The embedded agent takes any message on either channel."""
    source = Input(data)
    flags = source.byte()
    bench = Bench(_DIALECTS[flags % 3], strict=bool(flags & 4), podStarted=bool(flags & 8))
    while source.more and not bench.agent.off:
        step = source.byte()
        if step % 4 == 0:
            code = source.choice(_CODES)
            bench.send(code, source.take(source.word() % 1024))
        elif step % 4 == 1:
            bench.stdin(source.byte() % 12, source.short(), source.short())
        elif bench.machine.running:
            running = source.choice(bench.machine.running)
            if running.gone:
                continue
            if step % 4 == 2:
                running.sink.output(1 + (step >> 2) % 2, source.short() or b"x")
            else:
                running.end(source.byte() - 64)
        for _ in range(len(bench.machine.psAsked)):
            bench.machine.psAsked.pop()[1](None if step & 128 else b"ps")
        bench.io.take()


@implementer(IProcessOutput)
class _Output:
    """Takes what a process writes."""

    def stdout(self, data: bytes) -> None:
        """Nothing is done with it."""

    def stderr(self, data: bytes) -> None:
        """Nothing is done with it."""

    def exited(self, status: int) -> None:
        assert 0 <= status <= 255


def client(data: bytes) -> None:
    """The client library takes anything for a proxy's answer, and every Deferred fires."""
    source = Input(data)
    flags, cuts = source.byte(), source.short()
    proxy = ProxyClient(_Output() if flags & 1 else None)
    transport = StringTransport()
    proxy.makeConnection(transport)
    commands: list[Deferred[Any]] = [
        proxy.registerVM("vm", "/c", "/i"),
        proxy.attachVM("vm", 1),
        proxy.hyper("ping"),
        proxy.signal(9),
        proxy.unregisterVM("vm"),
    ]
    fired: list[object] = []
    for command in commands:
        command.addErrback(lambda reason: reason.trap(CCProxyError)).addCallback(fired.append)
    for piece in pieces(source.rest(), cuts):
        proxy.dataReceived(piece)
    proxy.connectionLost()
    assert len(fired) == len(commands), "a command was not answered at the end"

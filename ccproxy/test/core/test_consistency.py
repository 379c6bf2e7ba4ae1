"""
States that contradict themselves: each is refused, or taken up so that nothing fails later.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.msgpack import decode, encode
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.core.channels import ControlSink, IOSink
from ccproxy.core.context import Context
from ccproxy.core.registry import Registry
from ccproxy.core.requests import connect
from ccproxy.core.resuming import resume
from ccproxy.core.snapshot import BadSnapshot, Snapshot
from ccproxy.core.states import ClientState, SessionState, VMState
from ccproxy.core.writing import write
from ccproxy.interfaces import IConnection
from ccproxy.wire.codes import Command, ControlCode, FrameType, Stream
from ccproxy.wire.frames import encodeFrame
from ccproxy.wire.messages import encodeControl, encodeIO

from ..memory import MemoryConnection, World, command
from .test_snapshot import busyWorld

NAN, INFINITE = float("nan"), float("inf")
NUMBERS = [-(1 << 63), -2, -1, 0, 1, 2, 5, 99, 1 << 40, 1 << 63, (1 << 64) - 1]
TEXTS = ["", "x", "ping", "hyper", "start", "signal", "version", "hs", "cc"]
TEXTS += [state.value for table in (ClientState, SessionState, VMState) for state in table]


def written() -> tuple[Any, list[int]]:
    """A state as plain values, and the keys of its connections."""
    keys: dict[int, int] = {}
    alive: list[IConnection] = []

    def keyOf(connection: IConnection) -> int:
        alive.append(connection)
        return keys.setdefault(id(connection), len(keys) + 1)

    return decode(encode(write(busyWorld().registry, keyOf))), [
        *keys.values()
    ]


STATE, KEYS = written()


def members(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where everything is."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, each in value.items():
            yield from members(each, (*at, key))
    elif isinstance(value, list):
        for key, each in enumerate(value):
            yield from members(each, (*at, key))


def found(state: Any, at: tuple[Any, ...]) -> Any:
    """What is there."""
    for key in at:
        state = state[key]
    return state


def others(value: Any) -> list[Any]:
    """What might stand there instead."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return NUMBERS
    if isinstance(value, float):
        return [-1.0, -1e300, 1e300, NAN, INFINITE, -INFINITE]
    if isinstance(value, str):
        return TEXTS
    if isinstance(value, bytes):
        return [b"", value[:-1], value + b"x"]
    if isinstance(value, list):
        return [[], value + value[-1:], value[:-1], value[::-1]]
    if isinstance(value, dict):
        return [{}]
    return [0, -1, 99, 1.0, NAN, -5.0, "x", b"x"]


PATHS = list(members(STATE))


def changed(at: tuple[Any, ...], value: Any) -> bytes:
    """The state with something else there."""
    state = copy.deepcopy(STATE)
    found(state, at[:-1])[at[-1]] = value
    return encode(state)


def takenUp(body: bytes) -> bool:
    """Take a state up, if it is not refused, and do with it whatever can be done."""
    world = World(sessionBuffer=4096)
    lines = {key: MemoryConnection() for key in KEYS}
    registry = Registry(Context(world.clock, float), world.connector)
    try:
        resumed = resume(registry, [decode(body, type=Snapshot)], lines)
    except (BadSnapshot, msgspec.MsgspecError):
        return False
    for key, sink in resumed.sinks.items():
        lines[key].sink = sink
    resumed.begin()
    late = MemoryConnection()
    late.sink = connect(registry, late)
    live = [*(lines[key] for key in resumed.sinks), late]
    for _ in range(2):
        for line in live:
            if isinstance(line.sink, ControlSink):
                for _ in range(4):
                    line.feed(encodeControl(ControlCode.ACK, b"{}"))
            elif isinstance(line.sink, IOSink):
                line.drain()
                for number in range(3, 8):
                    line.feed(encodeIO(number, b"more"))
                for number in (3, 5):
                    line.feed(encodeIO(number))
                    line.feed(encodeIO(number, b"\1"))
            elif not line.closed:
                line.makeRoom()
                for frame in (
                    encodeFrame(FrameType.STREAM, Stream.STDIN, b"in"),
                    command(Command.SIGNAL, {"signalNumber": 9}),
                    command(Command.HYPER, {"hyperName": "ping"}),
                    command(Command.ATTACH_VM, {"containerId": "vm"}),
                ):
                    line.feed(frame)
    write(registry, id)
    for line in live:
        if not line.closed:
            line.end()
    world.clock.advance(10000.0)
    return True


class ConsistencyTests(SynchronousTestCase):
    """What is refused, and what is not."""

    def test_good(self) -> None:
        """The state itself is taken up."""
        self.assertTrue(takenUp(changed(("serial",), STATE["serial"])))

    def test_refused(self) -> None:
        """What does not fit together is refused before anything is made of it."""
        shim = next(n for n, each in enumerate(STATE["sessions"]) if each["shim"] is not None)
        other = next(n for n, c in enumerate(STATE["clients"]) if c["session"] is None)
        for at, value in [
            (("sessions", shim, "shim"), other),
            (("sessions", shim, "shim"), -1),
            (("sessions", shim, "state"), "ended"),
            (("sessions", shim, "token"), "another"),
            (("sessions", shim, "stdio"), -1),
            (("sessions", shim, "offset"), 99),
            (("sessions", shim, "endIn"), NAN),
            (("sessions", shim, "endIn"), INFINITE),
            (("sessions", shim, "endIn"), -1.0),
            (("clients", 0, "outlet", "offset"), 1 << 40),
            (("clients", 0, "connection"), STATE["vms"][0]["io"]),
            (("clients", 0, "state"), "closed"),
            (("slots", 0, "opcode"), 256),
            (("vms",), STATE["vms"] * 2),
            (("vms", 0, "sessions"), STATE["vms"][0]["sessions"] * 2),
            (("vms", 0, "sessions"), []),
            (("vms", 0, "state"), "gone"),
            (("vms", 0, "request", "containerId"), "another"),
            (("vms", 0, "waiting"), [STATE["vms"][0]["inFlight"]]),
        ]:
            self.assertFalse(takenUp(changed(at, value)), (at, value))

    @settings(max_examples=150)
    @given(st.sampled_from(PATHS), st.data())
    def test_anything(self, at: tuple[Any, ...], data: st.DataObject) -> None:
        """Whatever else stands somewhere, nothing fails later."""
        takenUp(changed(at, data.draw(st.sampled_from(others(found(STATE, at))))))

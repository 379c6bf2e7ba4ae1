"""
What hypothesis needs to make the bytes of both protocols.
"""

from __future__ import annotations

import json

from hypothesis import strategies as st

from ..wire import payloads
from ..wire.codes import FrameType
from ..wire.decoder import Buffer
from ..wire.frames import Frame
from ..wire.messages import CONTROL_HEADER, IO_HEADER, Message

#: The text that JSON can carry: all of Unicode but lone surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = texts.filter(bool)

#: Client frames, of known type and any opcode.
frames = st.builds(
    Frame,
    type=st.sampled_from(FrameType),
    opcode=st.integers(0, 255),
    payload=st.binary(max_size=60),
    error=st.booleans(),
)

#: Messages of the control channel, and of the I/O channel.
controlMessages = st.builds(Message, number=st.integers(0, 2**32 - 1), body=st.binary(max_size=60))
ioMessages = st.builds(Message, number=st.integers(0, 2**64 - 1), body=st.binary(max_size=60))

#: A channel's header together with messages that it can carry.
channels = st.one_of(
    st.tuples(st.just(CONTROL_HEADER), st.lists(controlMessages, max_size=8)),
    st.tuples(st.just(IO_HEADER), st.lists(ioMessages, max_size=8)),
)

#: Any value that JSON has.
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)

_streamCounts = st.none() | st.integers(0, payloads.MAX_STREAMS)
_cells = st.none() | st.integers(0, 65535)

#: Every payload that a client may send, as instances of its class; C{Hyper} without its data.
clientPayloads = st.one_of(
    st.builds(
        payloads.RegisterVM,
        containerId=names,
        ctlSerial=texts,
        ioSerial=texts,
        console=st.none() | texts,
        numIOStreams=_streamCounts,
    ),
    st.builds(payloads.AttachVM, containerId=names, numIOStreams=_streamCounts),
    st.builds(payloads.UnregisterVM, containerId=names),
    st.builds(payloads.Hyper, hyperName=texts, tokens=st.none() | st.lists(texts, max_size=3)),
    st.builds(payloads.ConnectShim, token=texts),
    st.builds(payloads.Signal, signalNumber=st.integers(0, 64), columns=_cells, rows=_cells),
    st.builds(
        payloads.LogEntry,
        source=st.sampled_from(["shim", "runtime"]),
        level=st.sampled_from(["debug", "info", "warn", "error"]),
        msg=names,
        containerId=st.none() | texts,
    ),
)


@st.composite
def damagedJSON(draw: st.DrawFn) -> bytes:
    """The JSON of a payload with a member replaced, removed, or its bytes cut or changed."""
    members = json.loads(payloads.encode(draw(clientPayloads)))
    name = draw(st.sampled_from(sorted(members)))
    harm = draw(st.sampled_from(["replace", "remove", "cut", "poke"]))
    if harm == "replace":
        members[name] = draw(json_values)
    elif harm == "remove":
        del members[name]
    data = json.dumps(members).encode()
    if harm == "cut":
        return data[: draw(st.integers(0, len(data) - 1))]
    if harm == "poke":
        at = draw(st.integers(0, len(data) - 1))
        return data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    return data


@st.composite
def cuts(draw: st.DrawFn, data: Buffer) -> list[bytes]:
    """
    The pieces that some bytes may arrive in: all of them, in order, none empty.

    @param data: the bytes.
    """
    inside = st.integers(1, len(data) - 1) if len(data) > 1 else st.nothing()
    places = sorted(draw(st.sets(inside, max_size=12))) if len(data) > 1 else []
    whole = bytes(data)
    ends = [*places, len(whole)] if whole else []
    return [whole[start:end] for start, end in zip([0, *places], ends, strict=False)]

"""
Targets for what decodes bytes: frames, messages, payloads, relocation, flags, log lines.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, TypeVar

from msgspec import UNSET, Raw
from twisted.logger import Logger

from ccproxy.config.goflags import FlagError, HelpWanted, parseFlags, usage
from ccproxy.config.settings import Settings
from ccproxy.errors import BadPayload, RemoteProtocolError, RequestError
from ccproxy.log.daemonlog import DaemonLog
from ccproxy.log.formats import FORMATS, asLine
from ccproxy.log.sinks import Sink
from ccproxy.service.ccproxy_command import FLAGS
from ccproxy.wire import payloads
from ccproxy.wire.codes import Dialect, Stream, hyperCode
from ccproxy.wire.decoder import StreamDecoder, Unit
from ccproxy.wire.frames import FrameDecoder, encodeFrame, encodeStream
from ccproxy.wire.messages import (
    CONTROL_HEADER,
    IO_HEADER,
    MessageDecoder,
    encodeControl,
    encodeIO,
    readEvent,
)
from ccproxy.wire.relocation import StartData
from ccproxy.wire.translation import SIZE, frameAround, runLength, translate

from .reading import Input, pieces

U = TypeVar("U", bound=Unit)
LIMIT = 200
#: The longest header of a client frame: 255 words.
LONGEST_HEADER = 4 * 255


def _units(decoder: StreamDecoder[U], parts: list[bytes]) -> tuple[list[U], str | None]:
    """What a decoder makes of a stream, and the error that ends it."""
    found = []
    for part in parts:
        assert decoder.pending <= LONGEST_HEADER + LIMIT, "more is held than one unit"
        decoder.feed(part)
        try:
            while (unit := decoder.next()) is not None:
                found.append(unit)
        except RemoteProtocolError as error:
            return found, str(error)
    return found, None


def frames(data: bytes) -> None:
    """Client frames: any cut of the stream means the same; what is read can be written again."""
    source = Input(data)
    cuts, stream = source.short(), source.rest()
    whole, error = _units(FrameDecoder(LIMIT), [stream])
    assert (whole, error) == _units(FrameDecoder(LIMIT), pieces(stream, cuts))
    assert all(len(frame.payload) <= LIMIT for frame in whole), "a frame over the limit"
    again = b"".join(encodeFrame(f.type, f.opcode, f.payload, f.error) for f in whole)
    assert _units(FrameDecoder(LIMIT), [again]) == (whole, None)


def control(data: bytes) -> None:
    """Messages of the control channel, and the events that may be in them."""
    source = Input(data)
    cuts, stream = source.short(), source.rest()
    whole, error = _units(MessageDecoder(CONTROL_HEADER, LIMIT), [stream])
    cut = _units(MessageDecoder(CONTROL_HEADER, LIMIT), pieces(stream, cuts))
    assert (whole, error) == cut
    assert all(message.size <= LIMIT for message in whole), "a message over the limit"
    written = b"".join(encodeControl(message.number, message.body) for message in whole)
    assert stream.startswith(written)
    readEvent(stream)
    for message in whole:
        readEvent(message.body)


def io(data: bytes) -> None:
    """Messages of the I/O channel."""
    source = Input(data)
    cuts, stream = source.short(), source.rest()
    whole, error = _units(MessageDecoder(IO_HEADER, LIMIT), [stream])
    assert (whole, error) == _units(MessageDecoder(IO_HEADER, LIMIT), pieces(stream, cuts))
    assert all(message.size <= LIMIT for message in whole), "a message over the limit"
    written = b"".join(encodeIO(message.number, message.body) for message in whole)
    assert stream.startswith(written)


_PAYLOADS: list[type[Any]] = [
    payloads.RegisterVM,
    payloads.AttachVM,
    payloads.UnregisterVM,
    payloads.Hyper,
    payloads.ConnectShim,
    payloads.Signal,
    payloads.LogEntry,
    payloads.IOResponse,
    payloads.ErrorResponse,
]


def payload(data: bytes) -> None:
    """The payload of each command: it is refused, or written and read again it is the same."""
    source = Input(data)
    cls, text = source.choice(_PAYLOADS), source.rest()
    try:
        value = payloads.decode(cls, text)
    except BadPayload as error:
        assert cls.__name__ in str(error)
        return
    if isinstance(value, payloads.Signal):
        with suppress(BadPayload):
            value.check()
    if isinstance(value, payloads.Hyper):
        for dialect in Dialect:
            with suppress(RequestError):
                hyperCode(value.hyperName, dialect)
        if isinstance(value.data, Raw):
            assert bytes(value.data) in text
    try:
        written = payloads.encode(value)
    except UnicodeEncodeError:
        return  # A lone surrogate can be read, and is never written back.
    again = payloads.decode(cls, written)
    if isinstance(value, payloads.Hyper) and isinstance(again, payloads.Hyper):
        # Raw spans are equal only to themselves.
        assert (value.hyperName, value.tokens) == (again.hyperName, again.tokens)
        assert (value.data is UNSET) == (again.data is UNSET)
    else:
        assert value == again


class _Members(list[tuple[str, Any]]):
    """A JSON object: its members in order, those of the same name included."""


def _read(text: bytes) -> Any:
    return json.loads(text, object_pairs_hook=_Members, parse_int=str, parse_float=str)


def _without(members: _Members, *names: str) -> _Members:
    return _Members(member for member in members if member[0] not in names)


def relocation(data: bytes) -> None:
    """
    The data of newcontainer and execcmd: only C{stdio}, C{stderr} and C{id} of the process change.
    """
    source = Input(data)
    kind, text = source.choice(["newcontainer", "execcmd"]), source.rest()
    try:
        hyper = payloads.decode(payloads.Hyper, b'{"hyperName":"","data":%b}' % text)
        start = StartData.parse(kind, hyper.data)
    except BadPayload:
        return
    assert isinstance(hyper.data, Raw)
    before = _read(bytes(hyper.data))
    with suppress(RequestError):
        start.checkHyperstart0()
    for added in [None] if start.process else [None, "7"]:
        after = _read(start.render(7, 8, added))
        assert [name for name, _ in before] == [name for name, _ in after]
        assert _without(before, "process") == _without(after, "process")
        own = [("id", "7")] if added else []
        own += [("stdio", "7")] if start.terminal else [("stdio", "7"), ("stderr", "8")]
        process, members = dict(before)["process"], dict(after)["process"]
        assert members[: len(own)] == own
        dropped = ("stdio", "stderr") if start.process else ("stdio", "stderr", "id")
        assert members[len(own) :] == _without(process, *dropped)


def translation(data: bytes) -> None:
    """A run of messages translated in place gives the frames that writing them anew gives."""
    source = Input(data)
    messages: list[bytes] = []
    while source.more and len(messages) < 64:
        number, body = source.choice([3, 4, 5, 259, 1 << 32]), bytes(source.byte() % 40)
        messages += [encodeIO(number, body)] * (1 + source.byte() % 8)
    stream = bytearray(b"".join(messages))
    end = len(stream) - source.byte() % (SIZE + 1)
    view, offset, first = memoryview(stream), 0, 0
    while end - offset >= SIZE:
        number, size = IO_HEADER.unpack_from(view, offset)
        if offset + size > end:
            break
        alike, header = 1, messages[first][:SIZE]
        while (
            first + alike < len(messages)
            and messages[first + alike][:SIZE] == header
            and offset + (alike + 1) * size <= end
        ):
            alike += 1
        assert runLength(view, offset, end, size) == alike
        translate(view, offset, size, alike, Stream.STDOUT)
        frame = encodeStream(Stream.STDOUT, messages[first][SIZE:])
        run = bytes(view[offset : offset + alike * size])
        assert run == frame * alike
        position = source.byte() % len(run)
        start = position // size * size
        assert frameAround(run, position) == (start, start + size)
        offset += alike * size
        first += alike
    assert bytes(view[offset:]) == b"".join(messages)[offset:], "what is no message was changed"


def flags(data: bytes) -> None:
    """The command line of C{cc-proxy}, its arguments with a NUL between them."""
    arguments = data.decode("utf-8", "surrogateescape").split("\0")
    try:
        values, rest = parseFlags(FLAGS, arguments)
    except FlagError as error:
        assert str(error)
    except HelpWanted:
        assert usage("cc-proxy", FLAGS)
    else:
        assert values.keys() == {flag.name for flag in FLAGS}
        assert arguments[len(arguments) - len(rest) :] == rest


_FORMATS = ["text", "logfmt", "json"]


def logline(data: bytes) -> None:
    """Whatever a client or a console says, it is one line of the log (promise P18)."""
    source = Input(data)
    format = source.choice(_FORMATS)
    container, text = source.short().decode("utf-8", "surrogateescape"), source.rest()
    output: list[bytes] = []
    sink = Sink(asLine(FORMATS[format]), output.append)
    log = DaemonLog(Settings(logLevel="debug"), [sink])
    logger = Logger("fuzz", observer=log)
    logger.warn("{text}", event="fuzz", text=text.decode("utf-8", "replace"), container=container)
    log.flush(0)
    line = b"".join(output).decode("utf-8")
    assert line.endswith("\n")
    # As strictly as anybody may cut a log into lines: at every end of a line that Unicode has.
    assert len(line.splitlines()) == 1, line
    assert line[:-1].isprintable() or format == "json", line
    if format == "json":
        assert json.loads(line)["event"] == "fuzz"

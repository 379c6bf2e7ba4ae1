"""
Messages of the agent's two channels: the encoders, and the decoder under every kind of bytes.
"""

from __future__ import annotations

from struct import Struct

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.errors import RemoteProtocolError
from ccproxy.testing.strategies import channels, cuts
from ccproxy.wire.codes import ControlCode
from ccproxy.wire.messages import (
    CONTROL_HEADER,
    IO_HEADER,
    MAX_MESSAGE,
    AsyncEvent,
    Message,
    MessageDecoder,
    encodeControl,
    encodeIO,
    readEvent,
    readMessage,
)

ENCODERS = {CONTROL_HEADER: encodeControl, IO_HEADER: encodeIO}


def drain(decoder: MessageDecoder) -> list[Message]:
    """The messages that are whole."""
    return list(iter(decoder.next, None))


class EncodingTests(SynchronousTestCase):
    """The bytes of messages."""

    def test_control(self) -> None:
        """A control message: its code, its whole length, its body."""
        self.assertEqual(
            encodeControl(ControlCode.NEXT, b"\0\0\0\x08"),
            b"\0\0\0\x0e\0\0\0\x0c\0\0\0\x08",
        )
        self.assertEqual(encodeControl(ControlCode.PING), b"\0\0\0\x0c\0\0\0\x08")

    def test_io(self) -> None:
        """An I/O message: a sequence number of 64 bits, its whole length, its body."""
        for body in (b"hi", bytearray(b"hi"), memoryview(b"hi")):
            self.assertEqual(
                encodeIO(2**64 - 2, body),
                b"\xff\xff\xff\xff\xff\xff\xff\xfe\0\0\0\x0ehi",
            )
        self.assertEqual(encodeIO(3), b"\0\0\0\0\0\0\0\x03\0\0\0\x0c")


class ReadingTests(SynchronousTestCase):
    """L{readMessage} on single messages."""

    def test_incomplete(self) -> None:
        """P1: there is no message before its last byte, and then there is."""
        for header, encode in ENCODERS.items():
            data = b"??" + encode(7, b"body")
            for end in range(2, len(data)):
                self.assertIsNone(readMessage(header, data[:end], 2))
                self.assertIsNone(readMessage(header, data, 2, end=end))
            message = readMessage(header, memoryview(data), 2)
            assert message is not None
            self.assertEqual(message, Message(7, b"body"))
            self.assertEqual(message.size, len(data) - 2)

    def test_length(self) -> None:
        """P2: a length that cannot be is refused from the header alone."""
        for header in ENCODERS:
            for size, limit in (
                (0, 100),
                (header.size - 1, 100),
                (101, 100),
                (MAX_MESSAGE + 1, MAX_MESSAGE),
                (2**32 - 1, MAX_MESSAGE),
            ):
                error = self.assertRaises(
                    RemoteProtocolError, readMessage, header, header.pack(9, size), 0, limit
                )
                self.assertIn(str(size), str(error))
                self.assertEqual(error.opcode, None)

    def test_limit(self) -> None:
        """P2: the limit counts the header and is itself allowed."""
        for header, encode in ENCODERS.items():
            data = encode(7, bytes(100 - header.size))
            self.assertIsNotNone(readMessage(header, data, 0, 100))
            self.assertRaises(RemoteProtocolError, readMessage, header, data, 0, 99)
            self.assertIsNone(readMessage(header, header.pack(7, MAX_MESSAGE)))


class DecoderTests(SynchronousTestCase):
    """L{MessageDecoder} on streams."""

    @given(st.data(), channels)
    def test_anySplit(self, data: st.DataObject, channel: tuple[Struct, list[Message]]) -> None:
        """P1: however a stream is cut, it means the messages that were encoded."""
        header, sent = channel
        encode = ENCODERS[header]
        stream = b"".join(encode(message.number, message.body) for message in sent)
        decoder = MessageDecoder(header)
        received = []
        for piece in data.draw(cuts(stream)):
            decoder.feed(piece)
            received += drain(decoder)
        self.assertEqual(received, sent)
        self.assertEqual(sum(message.size for message in received), len(stream))
        self.assertEqual(decoder.pending, 0)

    @given(
        st.data(),
        st.sampled_from(list(ENCODERS)),
        st.lists(st.sampled_from([b"\0", b"\x08", b"\x0c", b"\x10", b"\xff"]), max_size=80),
    )
    def test_anyBytes(self, data: st.DataObject, header: Struct, some: list[bytes]) -> None:
        """P3: any bytes give the same messages or the same error, whatever the split."""
        stream = b"".join(some)
        self.assertEqual(
            self.outcome(header, [stream]), self.outcome(header, data.draw(cuts(stream)))
        )

    def outcome(self, header: Struct, pieces: list[bytes]) -> tuple[list[Message], str | None]:
        """The messages that came, and the text of the error that ended them if one did."""
        received = []
        decoder = MessageDecoder(header, 64)
        for piece in pieces:
            decoder.feed(piece)
            try:
                for message in iter(decoder.next, None):
                    received.append(message)
            except RemoteProtocolError as error:
                return received, str(error)
            self.assertLess(decoder.pending, 64)
        return received, None


class EventTests(SynchronousTestCase):
    """L{readEvent}."""

    def test_finished(self) -> None:
        """The end of a process, with what is not known ignored."""
        body = b'{"container":"c","process":"p","event":"finished","status":7,"future":[]}'
        self.assertEqual(readEvent(body), AsyncEvent("finished", "c", "p", Raw(b"7")))
        self.assertEqual(readEvent(b'{"event":"other"}'), AsyncEvent("other"))

    def test_none(self) -> None:
        """P3: what is no event is none, and no error."""
        for body in (
            b"", b"{", b"[]", b"null", b'"finished"', b"{}", b'{"event":5}', b'{"event":null}',
            b'{"event":"finished","container":5}', b'{"event":"\xff"}', b"\xff\xfe", b"[1,2]",
            b'{"event":"x","more":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        ):  # fmt: skip
            self.assertIsNone(readEvent(body))

    @given(st.binary(max_size=60))
    def test_anyBytes(self, body: bytes) -> None:
        """P3: any bytes are an event or none."""
        self.assertIsInstance(readEvent(body), (AsyncEvent, type(None)))

"""
Client frames: the encoder, and the decoder under every kind of bytes.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.errors import RemoteProtocolError
from ccproxy.testing.strategies import cuts, frames
from ccproxy.wire.codes import Command, FrameType, Stream
from ccproxy.wire.decoder import StreamDecoder
from ccproxy.wire.frames import (
    HEADER,
    MAX_PAYLOAD,
    Frame,
    FrameDecoder,
    encodeFrame,
    encodeProcessExited,
    encodeStream,
    readFrame,
)


def encoded(frame: Frame) -> bytes:
    """The bytes of a frame."""
    return encodeFrame(frame.type, frame.opcode, frame.payload, frame.error)


def header(
    version: int = 2, words: int = 3, flags: int = 0, opcode: int = 0, length: int = 0
) -> bytes:
    """A header with anything in it."""
    return HEADER.pack(version, words, flags, opcode, length)


def drain(decoder: FrameDecoder) -> list[Frame]:
    """The frames that are whole."""
    return list(iter(decoder.next, None))


class EncodingTests(SynchronousTestCase):
    """What L{encodeFrame} and its like make, byte for byte."""

    def test_command(self) -> None:
        """Version, words, reserved bytes, type, opcode and length, then the payload."""
        self.assertEqual(
            encodeFrame(FrameType.COMMAND, Command.ATTACH_VM, b"{}"),
            b"\x00\x02\x03\x00\x00\x00\x00\x02\x00\x00\x00\x02{}",
        )

    def test_error(self) -> None:
        """An error response has bit 0x10 beside its type."""
        self.assertEqual(
            encodeFrame(FrameType.RESPONSE, Command.SIGNAL, b"", error=True),
            b"\x00\x02\x03\x00\x00\x00\x11\x06\x00\x00\x00\x00",
        )

    def test_stream(self) -> None:
        """A stream frame carries its bytes raw, whatever buffer they are in."""
        for data in (b"out", bytearray(b"out"), memoryview(b"out")):
            self.assertEqual(
                encodeStream(Stream.STDERR, data),
                b"\x00\x02\x03\x00\x00\x00\x02\x02\x00\x00\x00\x03out",
            )

    def test_processExited(self) -> None:
        """ProcessExited is one byte, the status."""
        self.assertEqual(
            encodeProcessExited(255), b"\x00\x02\x03\x00\x00\x00\x03\x00\x00\x00\x00\x01\xff"
        )
        self.assertRaises(OverflowError, encodeProcessExited, 256)


class ReadingTests(SynchronousTestCase):
    """L{readFrame} on single frames."""

    def refused(self, data: bytes, maxPayload: int = MAX_PAYLOAD) -> RemoteProtocolError:
        """The error that reading the data raises."""
        error = self.assertRaises(RemoteProtocolError, readFrame, data, 0, maxPayload)
        assert isinstance(error, RemoteProtocolError)
        return error

    def test_incomplete(self) -> None:
        """P1: there is no frame before its last byte, and then there is."""
        data = encodeFrame(FrameType.STREAM, Stream.STDIN, b"abc")
        for end in range(len(data)):
            self.assertIsNone(readFrame(data[:end]))
            self.assertIsNone(readFrame(data, end=end))
        self.assertEqual(readFrame(data), Frame(FrameType.STREAM, Stream.STDIN, b"abc"))

    def test_inPlace(self) -> None:
        """A frame is read where it stands, and its size says where the next one begins."""
        one, two = encodeStream(Stream.STDIN, b"one"), encodeStream(Stream.STDIN, b"two!")
        for buffer in (b"??" + one + two, memoryview(b"??" + one + two)):
            first = readFrame(buffer, 2)
            assert first is not None
            self.assertEqual(first.size, len(one))
            second = readFrame(buffer, 2 + first.size)
            assert second is not None
            self.assertEqual((first.payload, second.payload), (b"one", b"two!"))

    def test_longerHeader(self) -> None:
        """P1: bytes of a header longer than ours are skipped."""
        for words in (4, 5, 16, 255):
            data = header(words=words, opcode=2, length=3) + b"\xa5" * 4 * (words - 3) + b"abc"
            for end in range(len(data)):
                self.assertIsNone(readFrame(data, end=end))
            frame = readFrame(data)
            assert frame is not None
            self.assertEqual((frame.payload, frame.size), (b"abc", len(data)))

    def test_reserved(self) -> None:
        """Reserved bits and bytes are ignored."""
        data = b"\x00\x02\x03\xff\xff\xff\xe0\x02\x00\x00\x00\x00"
        self.assertEqual(readFrame(data), Frame(FrameType.COMMAND, 2))

    def test_errorFlag(self) -> None:
        """The error flag is read, also where it means nothing."""
        frame = readFrame(header(flags=0x10))
        self.assertEqual(frame, Frame(FrameType.COMMAND, 0, error=True))

    def test_unknownOpcode(self) -> None:
        """P3: an opcode that nobody knows is still a frame: its sender keeps the connection."""
        for opcode in (7, 255):
            frame = readFrame(header(opcode=opcode))
            assert frame is not None
            self.assertEqual(frame.opcode, opcode)

    def test_version(self) -> None:
        """P3: another version than 2 is refused; what it is an answer to cannot be known."""
        for version in (0, 1, 3, 0x200, 0xFFFF):
            error = self.refused(header(version=version, opcode=3))
            self.assertEqual(error.opcode, None)
            self.assertIn(f"version {version}", str(error))

    def test_type(self) -> None:
        """P3: an unknown type is refused."""
        for kind in range(4, 16):
            error = self.refused(header(flags=kind))
            self.assertEqual(error.opcode, None)
            self.assertIn(f"type {kind}", str(error))

    def test_shortHeader(self) -> None:
        """P3: fewer than three words are refused, with the opcode if it is a command."""
        for words in range(3):
            error = self.refused(header(words=words, opcode=5))
            self.assertEqual(error.opcode, 5)
            self.assertIn(f"{words} words", str(error))
            self.assertEqual(self.refused(header(words=words, flags=2)).opcode, None)

    def test_tooLong(self) -> None:
        """P2: a length over the limit is refused from the header alone."""
        for length in (101, 2**31, 2**32 - 1):
            error = self.refused(header(opcode=3, length=length), 100)
            self.assertEqual(error.opcode, 3)
            self.assertIn(str(length), str(error))
            self.assertIn("100", str(error))
        for flags in (1, 2, 3):
            self.assertEqual(self.refused(header(flags=flags, length=101), 100).opcode, None)

    def test_limit(self) -> None:
        """P2: the limit itself is allowed; it is 1 MiB unless it is said otherwise."""
        self.assertIsNone(readFrame(header(length=100), maxPayload=100))
        self.assertIsNone(readFrame(header(length=1 << 20)))
        self.refused(header(length=(1 << 20) + 1))


class DecoderTests(SynchronousTestCase):
    """L{FrameDecoder} on streams."""

    @given(st.data(), st.lists(frames, max_size=8))
    def test_anySplit(self, data: st.DataObject, sent: list[Frame]) -> None:
        """P1: however a stream is cut, it means the frames that were encoded."""
        stream = b"".join(map(encoded, sent))
        decoder = FrameDecoder()
        received = []
        for piece in data.draw(cuts(stream)):
            decoder.feed(piece)
            received += drain(decoder)
        self.assertEqual(received, sent)
        self.assertEqual(sum(frame.size for frame in received), len(stream))
        self.assertEqual(decoder.pending, 0)

    @given(st.data(), st.binary(max_size=200))
    def test_anyBytes(self, data: st.DataObject, stream: bytes) -> None:
        """P3: any bytes give the same frames or the same error, whatever the split."""
        self.assertEqual(self.outcome([stream]), self.outcome(data.draw(cuts(stream))))

    def outcome(self, pieces: list[bytes]) -> tuple[list[Frame], str | None]:
        """The frames that came, and the text of the error that ended them if one did."""
        received = []
        decoder = FrameDecoder(64)
        for piece in pieces:
            decoder.feed(piece)
            try:
                for frame in iter(decoder.next, None):
                    received.append(frame)
            except RemoteProtocolError as error:
                return received, str(error)
            self.assertLess(decoder.pending, 4 * 255 + 64)
        return received, None

    @given(st.lists(st.tuples(st.integers(3, 255), st.integers(0, 64)), max_size=30))
    def test_boundedMemory(self, shapes: list[tuple[int, int]]) -> None:
        """P2: never more is held than one unfinished frame and what was fed since."""
        decoder = FrameDecoder(64)
        for words, length in shapes:
            frame = header(words=words, length=length) + bytes(4 * (words - 3) + length)
            held = decoder.pending
            decoder.feed(frame)
            self.assertEqual(decoder.pending, held + len(frame))
            drain(decoder)
            self.assertLess(decoder.pending, len(frame))

    def test_fedAgain(self) -> None:
        """Bytes may be fed before those that are there have been read."""
        decoder = FrameDecoder()
        for text in (b"a", b"b", b"c"):
            decoder.feed(encodeStream(Stream.STDIN, text))
        first = decoder.next()
        decoder.feed(encodeStream(Stream.STDIN, b"d"))
        rest = drain(decoder)
        assert first is not None
        self.assertEqual([frame.payload for frame in [first, *rest]], [b"a", b"b", b"c", b"d"])

    def test_refusedForGood(self) -> None:
        """P3: the frames before a bad header are given; behind it there is only the error."""
        decoder = FrameDecoder()
        decoder.feed(encodeStream(Stream.STDIN, b"good") + header(version=1))
        self.assertIsNotNone(decoder.next())
        for _ in range(2):
            self.assertRaises(RemoteProtocolError, decoder.next)
            decoder.feed(encodeStream(Stream.STDIN, b"too late"))

    def test_ownReading(self) -> None:
        """A stream decoder that does not say how to read is a mistake of ours."""
        decoder: StreamDecoder[Frame] = StreamDecoder()
        self.assertRaises(AssertionError, decoder.next)

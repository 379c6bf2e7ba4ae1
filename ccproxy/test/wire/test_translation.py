"""
Translation in place agrees with the plain decoder and encoder on every input.
"""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.wire.codes import Stream
from ccproxy.wire.frames import encodeStream
from ccproxy.wire.messages import IO_HEADER, encodeIO, readMessage
from ccproxy.wire.translation import SIZE, frameAround, runLength, translate

messages = st.lists(
    st.tuples(
        st.sampled_from([3, 4, 5, 259, 2**63]), st.sampled_from([b"", b"a", b"bc", b"x" * 300])
    ),
    min_size=1,
    max_size=40,
)


class TranslationTests(SynchronousTestCase):
    """The fast path against the plain one."""

    @given(messages, st.sampled_from(list(Stream)))
    def test_agrees(self, given: list[tuple[int, bytes]], stream: Stream) -> None:
        """Runs cover all messages, and each becomes the frame that the encoder would make."""
        data = memoryview(bytearray(b"".join(encodeIO(*message) for message in given)))
        offset, runs = 0, 0
        while offset < len(data):
            message = readMessage(IO_HEADER, data, offset)
            assert message is not None
            count = runLength(data, offset, len(data), message.size)
            self.assertGreaterEqual(count, 1)
            translate(data, offset, message.size, count, stream)
            offset += count * message.size
            runs += 1
        self.assertEqual(bytes(data), b"".join(encodeStream(stream, body) for _, body in given))
        changes = sum((a[0], len(a[1])) != (b[0], len(b[1])) for a, b in pairwise(given))
        self.assertEqual(runs, 1 + changes)

    @given(st.binary(min_size=12, max_size=200), st.integers(12, 60))
    def test_anyBytes(self, data: bytes, size: int) -> None:
        """Whatever stands there, a run is what has the first one's header."""
        size = min(size, len(data))
        count = runLength(memoryview(data), 0, len(data), size)
        heads = [data[at : at + 12] for at in range(0, count * size, size)]
        self.assertEqual(set(heads), {data[:12]})
        self.assertLessEqual(count * size, len(data))
        after = data[count * size : count * size + size]
        self.assertFalse(len(after) == size and after[:12] == data[:12])

    def test_shortRuns(self) -> None:
        """P3: what finding a run costs is measured by its length, not by all that has come."""
        looked = 0

        class Counting:
            """Data that knows how much of it was looked at."""

            def __getitem__(self, place: slice) -> bytes:
                nonlocal looked
                found = data[place]
                looked += len(found)
                return found

        for length in (2, 100, 5000):
            data = encodeIO(3, b"a") * length + encodeIO(3, b"bc") * 20_000
            looked = 0
            run = runLength(Counting(), 0, len(data), SIZE + 1)  # type: ignore[arg-type]
            self.assertEqual(run, length)
            self.assertLess(looked, 30 * length + 200)

    @given(st.lists(st.binary(max_size=20), min_size=1, max_size=10), st.data())
    def test_frameAround(self, bodies: list[bytes], data: st.DataObject) -> None:
        """A position lies in exactly one frame."""
        frames = [encodeStream(Stream.STDOUT, body) for body in bodies]
        whole = b"".join(frames)
        position = data.draw(st.integers(0, len(whole) - 1))
        start, stop = frameAround(whole, position)
        self.assertLessEqual(start, position)
        self.assertLess(position, stop)
        self.assertIn(whole[start:stop], frames)

"""
Long answers in JSON, made and sent little by little, so that everybody else has a turn meanwhile.

Each thing is shown as it is when its turn comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice

import msgspec

from ..core.context import Clock, Wait, cancel
from .calls import JSON, Outflow, Reply

#: How many things are shown in one turn of the reactor: that takes about two milliseconds.
PER_TURN = 200


def array(things: Iterable[object]) -> Iterator[bytes]:
    """An array, in pieces of one thing each."""
    comma = b""
    yield b"["
    for thing in things:
        yield comma + msgspec.json.encode(thing)
        comma = b","
    yield b"]"


def members(values: Mapping[str, object]) -> Iterator[bytes]:
    """An object, in pieces; a member that is an iterator is an array."""
    opening = b"{"
    for name, value in values.items():
        yield opening + msgspec.json.encode(name) + b":"
        if isinstance(value, Iterator):
            yield from array(value)
        else:
            yield msgspec.json.encode(value)
        opening = b","
    yield b"}"


def answer(pieces: Iterator[bytes], clock: Clock) -> Reply | LongAnswer:
    """An answer of these pieces: at once if they are few."""
    pieces = chain(pieces, [b"\n"])
    first = list(islice(pieces, PER_TURN))
    if len(first) < PER_TURN:
        return Reply(b"".join(first))
    return LongAnswer(chain(first, pieces), clock)


class LongAnswer:
    """
    An answer that takes many turns.
    """

    type = JSON

    def __init__(self, pieces: Iterator[bytes], clock: Clock) -> None:
        self._pieces = pieces
        self._clock = clock
        self._outflow: Outflow | None = None
        self._paused = False
        self._soon: Wait | None = None

    def _proceed(self) -> None:
        """Send some more, unless the peer has not taken what was sent before."""
        self._soon = None
        if self._paused or self._outflow is None:
            return
        try:
            data = b"".join(islice(self._pieces, PER_TURN))
        except Exception:
            # It is no whole JSON, so the peer knows that it is not all.
            self._outflow.finish()
            raise
        if data:
            self._soon = self._clock.callLater(0, self._proceed)
            self._outflow.write(data)
        else:
            self._outflow.finish()

    # See L{ccproxy.admin.calls.Stream}.

    def begin(self, outflow: Outflow) -> None:
        """The first of it is sent."""
        self._outflow = outflow
        self._proceed()

    def pause(self) -> None:
        """The peer does not read: it waits."""
        self._paused = True

    def resume(self) -> None:
        """The peer reads."""
        self._paused = False
        if self._soon is None:
            self._proceed()

    def gone(self) -> None:
        """The peer has gone, or has it all."""
        self._outflow = None
        cancel(self._soon)

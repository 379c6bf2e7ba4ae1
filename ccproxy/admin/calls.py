"""
What passes between the web's side of the admin socket and the rest: calls, replies and refusals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import attrs
import msgspec

from ..errors import CCProxyError

T = TypeVar("T")

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
OCTETS = "application/octet-stream"
EVENTS = "text/event-stream"

#: The most digits of a number that anything has.
MAX_DIGITS = 18


class Refused(CCProxyError):
    """
    A call cannot be carried out; the caller gets the text.

    @ivar status: the HTTP status that says so.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@attrs.frozen
class Error:
    """
    A call was refused.

    @ivar error: what was wrong, and what to do.
    """

    error: str


@attrs.frozen
class Call:
    """
    What was asked.

    @ivar path: the parameters in the path.
    @ivar query: those behind the question mark.
    @ivar body: the request's body.
    """

    path: Mapping[str, str] = attrs.field(factory=dict)
    query: Mapping[str, str] = attrs.field(factory=dict)
    body: bytes = b""

    def number(self, name: str) -> int:
        """
        A parameter in the path that is a number.

        @raise Refused: it is none, or nothing can have it.
        """
        text = self.path[name]
        if not (text.isascii() and text.isdigit()):
            raise Refused(400, f"{text[:32]!r} is no {name}: it is a whole number")
        if len(text) > MAX_DIGITS:
            raise Refused(404, f"there is no {name} of {len(text)} digits")
        return int(text)

    def flag(self, name: str) -> bool:
        """
        A parameter of the query that is on or off.

        @raise Refused: it is neither.
        """
        text = self.query.get(name, "0")
        if text not in ("0", "1", "false", "true"):
            raise Refused(400, f"{name}={text[:32]!r}: give 1 or 0")
        return text in ("1", "true")

    def json(self, kind: type[T]) -> T:
        """
        The body.

        @param kind: the class of what it says.
        @raise Refused: it says something else.
        """
        try:
            return msgspec.json.decode(self.body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
            raise Refused(400, f"the body is not the JSON that is expected: {problem}") from None


@attrs.frozen
class Reply:
    """
    An answer.

    @ivar body: what is sent.
    @ivar type: its media type.
    @ivar status: its HTTP status.
    @ivar headers: more headers.
    """

    body: bytes
    type: str = JSON
    status: int = 200
    headers: Mapping[str, str] = attrs.field(factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Reply:
        """
        An answer in JSON.

        @param value: an instance of an attrs class, or what holds some.
        """
        return cls(msgspec.json.encode(value) + b"\n", status=status)

    @classmethod
    def refusing(cls, refused: Refused) -> Reply:
        """What a refused call gets."""
        return cls.json(Error(str(refused)), refused.status)


class Outflow(Protocol):
    """What a L{Stream} knows of the connection that it writes to."""

    def write(self, data: bytes) -> None:
        """Send more."""

    def finish(self) -> None:
        """That was all. What the peer does not take soon is dropped."""


class Stream(Protocol):
    """
    An answer without an end.

    @ivar type: its media type.
    """

    type: str

    def begin(self, outflow: Outflow) -> None:
        """The answer's header has been sent."""

    def pause(self) -> None:
        """The peer does not take more now."""

    def resume(self) -> None:
        """The peer takes more."""

    def gone(self) -> None:
        """The peer has gone, or the answer is finished. Called once, last of all."""

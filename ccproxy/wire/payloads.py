"""
The JSON payloads of the client protocol: docs/protocol, "Payloads".

Attributes have the names that the JSON has. C{null} means absent. L{decode} turns the bytes of
a payload into one of these classes, L{encode} turns one into bytes.
"""

from __future__ import annotations

from typing import Annotated, Literal, Optional, TypeVar, Union

import attrs
import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from ..errors import BadPayload, LocalProtocolError, RegistryError
from .codes import MAX_PATH
from .text import notUTF8

#: The most I/O tokens that one command can ask for.
MAX_STREAMS = 4096
#: The longest id of a VM, a container or a process, in characters.
MAX_ID = 1024
SIGWINCH = 28

ContainerId = Annotated[str, Meta(min_length=1, max_length=MAX_ID)]
StreamCount = Optional[Annotated[int, Meta(ge=0, le=MAX_STREAMS)]]
Cells = Optional[Annotated[int, Meta(ge=0, le=65535)]]


@attrs.frozen
class RegisterVM:
    """
    Make a VM known.

    @ivar containerId: the name it shall have.
    @ivar ctlSerial: the path of its control channel's socket.
    @ivar ioSerial: the path of its I/O channel's socket.
    @ivar console: the path of its console's socket, if it has one.
    @ivar numIOStreams: how many I/O tokens are wanted.
    """

    containerId: ContainerId
    ctlSerial: str
    ioSerial: str
    console: Optional[str] = None
    numIOStreams: StreamCount = 0


@attrs.frozen
class AttachVM:
    """
    Choose a registered VM for the commands that follow.

    @ivar numIOStreams: how many I/O tokens are wanted.
    """

    containerId: ContainerId
    numIOStreams: StreamCount = 0


@attrs.frozen
class UnregisterVM:
    """Forget a VM."""

    containerId: ContainerId


@attrs.frozen
class Hyper:
    """
    Forward a control command to the agent of the attached VM.

    @ivar hyperName: the command's name.
    @ivar tokens: the token of the process that the command starts, if it starts one.
    @ivar data: the command's data, any JSON value; its bytes go to the agent as they stand.
    """

    hyperName: str
    tokens: Optional[list[str]] = None
    data: Union[Raw, UnsetType] = UNSET


@attrs.frozen
class ConnectShim:
    """Become the shim of a token's process."""

    token: str


@attrs.frozen
class Signal:
    """
    Send a signal to the shim's process.

    @ivar signalNumber: 0 to 64, as Linux counts them.
    @ivar columns: for SIGWINCH alone, the terminal's new width in cells.
    @ivar rows: for SIGWINCH alone, the terminal's new height in cells.
    """

    signalNumber: Annotated[int, Meta(ge=0, le=64)]
    columns: Cells = None
    rows: Cells = None

    def check(self) -> None:
        """
        @raise BadPayload: SIGWINCH lacks a size, or another signal has one.
        """
        if self.signalNumber == SIGWINCH:
            if not self.columns or not self.rows:
                raise BadPayload("SIGWINCH needs both columns and rows, 1 to 65535")
        elif self.columns or self.rows:
            raise BadPayload(f"signal {self.signalNumber} takes neither columns nor rows")


@attrs.frozen
class LogEntry:
    """An entry for the proxy's log, from a runtime or a shim."""

    source: Literal["shim", "runtime"]
    level: Literal["debug", "info", "warn", "error"]
    msg: Annotated[str, Meta(min_length=1)]
    containerId: Optional[str] = None


@attrs.frozen
class IO:
    """
    Where shims connect, and the tokens they need.

    Both spellings of the URL are sent, since the historic server sent C{URL} where its
    documentation has C{url}; either is taken.
    """

    url: Union[str, UnsetType] = UNSET
    URL: Union[str, UnsetType] = UNSET
    tokens: Optional[list[str]] = None


@attrs.frozen
class IOResponse:
    """The result of RegisterVM and of AttachVM."""

    io: IO = attrs.field(factory=IO)

    @classmethod
    def make(cls, url: str, tokens: list[str]) -> IOResponse:
        """
        @param url: the URL of the proxy's socket.
        @param tokens: the tokens; none at all are C{null}, as they were historically.
        """
        return cls(IO(url, url, tokens or None))


@attrs.frozen
class ErrorResponse:
    """The payload of a response with the error flag."""

    msg: str


T = TypeVar("T")
_decoders: dict[type, msgspec.json.Decoder[object]] = {}
_encoder = msgspec.json.Encoder()


def decode(cls: type[T], payload: bytes, what: str = "") -> T:
    """
    Read a payload.

    @param cls: the class that it should be.
    @param what: how to call it in an error, the name of C{cls} by default.
    @raise BadPayload: it is no JSON, or not what C{cls} asks for; the text names the field.
    """
    decoder = _decoders.get(cls)
    if decoder is None:
        decoder = _decoders[cls] = msgspec.json.Decoder(cls)
    try:
        result = decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadPayload(f"malformed {what or cls.__name__} command: {error}") from None
    except RecursionError:
        raise BadPayload(f"malformed {what or cls.__name__} command: nested too deep") from None
    assert isinstance(result, cls)
    return result


def encode(payload: object) -> bytes:
    """
    The JSON of a payload.

    @raise LocalProtocolError: it has text that is not UTF-8, which the message names.
    """
    try:
        return _encoder.encode(payload)
    except UnicodeEncodeError as error:
        raise LocalProtocolError(notUTF8(error.object)) from None


def checkPath(field: str, path: str) -> None:
    """
    Check a path of a RegisterVM.

    @param field: the payload's field that has it.
    @raise RegistryError: it cannot be the path of a socket.
    """
    problem = None
    if not path:
        problem = "is empty"
    elif not path.startswith("/"):
        problem = f"is no absolute path: {path[:MAX_PATH]!r}"
    elif "\0" in path:
        problem = "has a NUL byte"
    elif len(path.encode("utf-8", "surrogatepass")) > MAX_PATH:
        problem = f"is longer than {MAX_PATH} bytes: {path[:MAX_PATH]!r}..."
    if problem is not None:
        raise RegistryError(f"malformed RegisterVM command: {field} {problem}")

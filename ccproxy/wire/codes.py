"""
The numbers and names of both protocols: docs/protocol, "Frame types and opcodes" and
"Control codes".
"""

from __future__ import annotations

from enum import Enum, IntEnum

from ..errors import UnknownHyperName

#: The longest path of a UNIX socket, in bytes.
MAX_PATH = 107


class FrameType(IntEnum):
    """The low nibble of byte 6 of a client frame."""

    COMMAND = 0
    RESPONSE = 1
    STREAM = 2
    NOTIFICATION = 3


class Command(IntEnum):
    """Opcodes of commands, and of the responses to them."""

    REGISTER_VM = 0
    UNREGISTER_VM = 1
    ATTACH_VM = 2
    HYPER = 3
    CONNECT_SHIM = 4
    DISCONNECT_SHIM = 5
    SIGNAL = 6

    @property
    def title(self) -> str:
        """The command's name as the protocol spells it, such as C{RegisterVM}."""
        return _COMMAND_TITLES[self]


_COMMAND_TITLES = {
    Command.REGISTER_VM: "RegisterVM",
    Command.UNREGISTER_VM: "UnregisterVM",
    Command.ATTACH_VM: "AttachVM",
    Command.HYPER: "Hyper",
    Command.CONNECT_SHIM: "ConnectShim",
    Command.DISCONNECT_SHIM: "DisconnectShim",
    Command.SIGNAL: "Signal",
}


class Stream(IntEnum):
    """Opcodes of stream frames."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    LOG = 3


class Notification(IntEnum):
    """Opcodes of notifications."""

    PROCESS_EXITED = 0


class ControlCode(IntEnum):
    """
    Codes of messages on the agent's control channel.

    23 and 24 depend on the dialect: a command to cc or to hyperstart 1.x, or an event from the
    agent (L{PROCESS_ASYNC_EVENT}).
    """

    VERSION = 0
    STARTPOD = 1
    DESTROYPOD = 4
    EXECCMD = 6
    READY = 8
    ACK = 9
    ERROR = 10
    WINSIZE = 11
    PING = 12
    POD_FINISHED = 13
    NEXT = 14
    WRITEFILE = 15
    READFILE = 16
    NEWCONTAINER = 17
    KILLCONTAINER = 18
    ONLINECPUMEM = 19
    SETUPINTERFACE = 20
    SETUPROUTE = 21
    REMOVECONTAINER = 22
    PSCONTAINER = 23
    PROCESS_ASYNC_EVENT = 23
    SIGNALPROCESS = 24
    DELETEINTERFACE = 25


class Dialect(Enum):
    """
    Which agent speaks on the channels: docs/protocol, "Dialects".

    C{UNKNOWN} and C{HYPERSTART} (some hyperstart) are what the proxy knows of an agent before
    it has shown more of itself.
    """

    UNKNOWN = "unknown"
    CC = "cc"
    HYPERSTART = "hyperstart"
    HYPERSTART0 = "hyperstart0"
    HYPERSTART1 = "hyperstart1"

    @property
    def isHyperstart(self) -> bool:
        """Whether this is any hyperstart."""
        return self in (Dialect.HYPERSTART, Dialect.HYPERSTART0, Dialect.HYPERSTART1)

    @property
    def decided(self) -> bool:
        """Whether nothing more can be learnt about the agent."""
        return self in (Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1)


#: The first API version, answered to C{version}, of hyperstart 1.x.
HYPERSTART1_API = 4244

_CODE_OF = {
    code.name.lower(): code
    for code in ControlCode
    if code not in (ControlCode.ACK, ControlCode.ERROR, ControlCode.NEXT, ControlCode.POD_FINISHED)
}

_ONLY_IN = {
    ControlCode.PSCONTAINER: (Dialect.CC,),
    ControlCode.SIGNALPROCESS: (Dialect.HYPERSTART1,),
    ControlCode.DELETEINTERFACE: (Dialect.HYPERSTART1,),
}


def hyperCode(hyperName: str, dialect: Dialect) -> ControlCode:
    """
    The control code of a command.

    @param hyperName: the command's name, as in a Hyper payload.
    @param dialect: what is known of the agent; what an undecided one may have is allowed.
    @raise UnknownHyperName: no dialect has the command, or not this one.
    """
    code = _CODE_OF.get(hyperName)
    if code is None:
        raise UnknownHyperName(f"unknown hyperName: {hyperName[:64]!r}")
    having = _ONLY_IN.get(code)
    if having is None or dialect in having or dialect is Dialect.UNKNOWN:
        return code
    if dialect is Dialect.HYPERSTART and Dialect.HYPERSTART1 in having:
        return code
    raise UnknownHyperName(
        f"hyperName {hyperName} is not supported by this agent ({dialect.value})"
    )

"""
The lifecycles of client, session and VM, each as one table: docs/architecture, "States".

A state is a plain value that can be written down and read back.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

from ..errors import LocalProtocolError


class ClientState(Enum):
    """A client's connection."""

    #: Commands are read and carried out.
    OPEN = "open"
    #: Nothing more is read; what is under way is answered, then the connection is closed.
    FINISHING = "finishing"
    #: The connection is closed.
    CLOSED = "closed"


class ClientInput(Enum):
    """What moves a client."""

    #: It ended its sending side, broke the protocol, or disconnected as a shim.
    FINISH = "finish"
    #: All was answered, or nobody is there to read.
    CLOSE = "close"


CLIENT_TABLE: Mapping[tuple[ClientState, ClientInput], ClientState] = {
    (ClientState.OPEN, ClientInput.FINISH): ClientState.FINISHING,
    (ClientState.OPEN, ClientInput.CLOSE): ClientState.CLOSED,
    (ClientState.FINISHING, ClientInput.FINISH): ClientState.FINISHING,
    (ClientState.FINISHING, ClientInput.CLOSE): ClientState.CLOSED,
}


class SessionState(Enum):
    """One process, from its token to its end."""

    #: A token was handed out; no start was sent.
    CREATED = "created"
    #: The start was sent to the agent, which has not answered.
    STARTING = "starting"
    #: The agent has acknowledged the start.
    RUNNING = "running"
    #: The exit status is known and goes to the shim, after all output.
    EXITED = "exited"
    #: The process may run, but nobody wants to hear of it: its shim has disconnected, or it
    #: was started without a token.
    DETACHED = "detached"
    #: Nothing is left but the object.
    ENDED = "ended"


class SessionInput(Enum):
    """What moves a session."""

    START = "start"
    ACK = "ack"
    REFUSE = "refuse"
    #: An exit status came, the process was killed before its start, or its VM has gone.
    EXIT = "exit"
    #: The shim has disconnected; the token is no longer valid.
    RELEASE = "release"
    #: The session is freed.
    END = "end"


_S, _I = SessionState, SessionInput
SESSION_TABLE: Mapping[tuple[SessionState, SessionInput], SessionState] = {
    (_S.CREATED, _I.START): _S.STARTING,
    (_S.CREATED, _I.EXIT): _S.EXITED,
    (_S.CREATED, _I.RELEASE): _S.ENDED,
    (_S.CREATED, _I.END): _S.ENDED,
    (_S.STARTING, _I.ACK): _S.RUNNING,
    (_S.STARTING, _I.REFUSE): _S.CREATED,
    (_S.STARTING, _I.EXIT): _S.EXITED,
    (_S.STARTING, _I.RELEASE): _S.DETACHED,
    (_S.STARTING, _I.END): _S.ENDED,
    (_S.RUNNING, _I.EXIT): _S.EXITED,
    (_S.RUNNING, _I.RELEASE): _S.DETACHED,
    (_S.RUNNING, _I.END): _S.ENDED,
    (_S.EXITED, _I.RELEASE): _S.ENDED,
    (_S.EXITED, _I.END): _S.ENDED,
    (_S.DETACHED, _I.START): _S.DETACHED,
    (_S.DETACHED, _I.ACK): _S.DETACHED,
    (_S.DETACHED, _I.REFUSE): _S.ENDED,
    (_S.DETACHED, _I.EXIT): _S.ENDED,
    (_S.DETACHED, _I.END): _S.ENDED,
}


class VMState(Enum):
    """A VM, from RegisterVM to the last byte of its output."""

    #: Its sockets are being connected.
    CONNECTING = "connecting"
    #: Its agent has not said READY.
    WAITING = "waiting"
    #: Clients can attach.
    REGISTERED = "registered"
    #: Clients know it no longer; its sessions go on until its channels close.
    UNREGISTERED = "unregistered"
    #: A channel has closed; the id stays known until somebody unregisters or replaces it.
    LOST = "lost"
    #: Nothing is left but the object, and sessions whose output nobody has fetched yet.
    GONE = "gone"


class VMInput(Enum):
    """What moves a VM."""

    CONNECTED = "connected"
    READY = "ready"
    FAIL = "fail"
    UNREGISTER = "unregister"
    #: A channel has closed.
    LOSE = "lose"


_V, _J = VMState, VMInput
VM_TABLE: Mapping[tuple[VMState, VMInput], VMState] = {
    (_V.CONNECTING, _J.CONNECTED): _V.WAITING,
    (_V.CONNECTING, _J.FAIL): _V.GONE,
    (_V.WAITING, _J.READY): _V.REGISTERED,
    (_V.WAITING, _J.FAIL): _V.GONE,
    (_V.REGISTERED, _J.FAIL): _V.GONE,
    (_V.REGISTERED, _J.UNREGISTER): _V.UNREGISTERED,
    (_V.REGISTERED, _J.LOSE): _V.LOST,
    (_V.UNREGISTERED, _J.LOSE): _V.GONE,
    (_V.LOST, _J.UNREGISTER): _V.GONE,
}

S = TypeVar("S", bound=Enum)
I = TypeVar("I", bound=Enum)


def advance(table: Mapping[tuple[S, I], S], state: S, input: I) -> S:
    """
    The state that follows.

    @raise LocalProtocolError: the input cannot happen in this state.
    """
    try:
        return table[state, input]
    except KeyError:
        raise LocalProtocolError(f"{input} in {state}") from None

"""
What the admin socket shows of the daemon: plain values.

The classes are the JSON that is sent, field by field, and their docstrings are its documentation:
openapi.json is made of them. Times are seconds; ages count from now.
"""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Annotated, Optional

import attrs
import msgspec

from ..config.settings import LOG_LEVELS
from ..core.limits import Limits
from ..core.states import ClientState, SessionState, VMState
from ..wire.codes import Dialect


@attrs.frozen(slots=False)
class Counts:
    """
    How many there are.

    @ivar vms: VMs by state.
    @ivar sessions: sessions by state.
    @ivar clients: client connections by state, shims included.
    @ivar shims: client connections that are shims.
    @ivar commands: commands that wait for something.
    """

    vms: dict[str, int]
    sessions: dict[str, int]
    clients: dict[str, int]
    shims: int
    commands: int


@attrs.frozen(slots=False)
class Status:
    """
    The daemon.

    @ivar version: its version.
    @ivar python: the version of Python that it runs on.
    @ivar twisted: the version of Twisted that it runs on.
    @ivar pid: its process id.
    @ivar startedAt: when it began to listen.
    @ivar uptime: seconds since then.
    @ivar socket: the URL of the client socket.
    @ivar draining: whether it takes no new VMs.
    @ivar logLevel: the least severe level that is logged, or null where the log is twistd's own.
    @ivar bufferedBytes: bytes kept for all sessions, both directions.
    @ivar ignoredFrames: frames of clients that were dropped because they may not send them.
    @ivar counts: how many of everything there are.
    """

    version: str
    python: str
    twisted: str
    pid: int
    startedAt: datetime
    uptime: float
    socket: str
    draining: bool
    logLevel: str | None
    bufferedBytes: int
    ignoredFrames: int
    counts: Counts


@attrs.frozen(slots=False)
class Blocked:
    """
    Why the output of a VM waits.

    @ivar session: the full session that it waits for.
    @ivar seconds: for how long it has.
    """

    session: str
    seconds: float


@attrs.frozen(slots=False)
class VMView:
    """
    A VM.

    @ivar containerId: its name.
    @ivar serial: its number, which no other VM has.
    @ivar state: where it is in its life.
    @ivar age: seconds since RegisterVM.
    @ivar lostFor: seconds since it was lost, or null.
    @ivar dialect: what is known of its agent.
    @ivar ctlSerial: the path of its control channel's socket.
    @ivar ioSerial: the path of its I/O channel's socket.
    @ivar console: the path of its console's socket, or null.
    @ivar clients: how many clients are attached to it.
    @ivar shims: how many of its sessions have a connected shim.
    @ivar sessions: how many sessions it has.
    @ivar commands: how many commands for its agent are in flight or queued.
    @ivar bufferedOutput: bytes of output kept for its shims.
    @ivar bufferedInput: bytes of stdin kept for its processes.
    @ivar blocked: what its output waits for, or null where it flows.
    @ivar blockedSeconds: for how long its output has waited so far, in all.
    @ivar outFrames: messages with output that came from it.
    @ivar outBytes: their bytes, headers included.
    @ivar inFrames: messages with stdin that went to it.
    @ivar inBytes: their bytes, headers included.
    """

    containerId: str
    serial: int
    state: VMState
    age: float
    lostFor: float | None
    dialect: Dialect
    ctlSerial: str
    ioSerial: str
    console: str | None
    clients: int
    shims: int
    sessions: int
    commands: int
    bufferedOutput: int
    bufferedInput: int
    blocked: Blocked | None
    blockedSeconds: float
    outFrames: int
    outBytes: int
    inFrames: int
    inBytes: int


@attrs.frozen(slots=False)
class CrashLoss:
    """
    What crashes of the daemon have cost a session: bytes that were in the daemon's memory.

    @ivar output: of output that its shim had not taken.
    @ivar input: of stdin that its process had not.
    """

    output: int
    input: int


@attrs.frozen(slots=False)
class SessionView:
    """
    A session: one process, from its token to its end.

    @ivar vm: the name of its VM.
    @ivar serial: the number of its VM.
    @ivar session: what the log calls it: its token, shortened, or its number.
    @ivar stdio: the number of its stdin and stdout on the I/O channel.
    @ivar state: where it is in its life.
    @ivar age: seconds since its token was made.
    @ivar container: the id of its container, empty before the start.
    @ivar process: the id of its process, where it has one.
    @ivar first: whether it is its container's first process; null before the start.
    @ivar terminal: whether it has a terminal.
    @ivar shim: the number of the client that is its shim, or null.
    @ivar status: the exit status, once it is known.
    @ivar bufferedOutput: bytes of output kept for the shim.
    @ivar bufferedInput: bytes of stdin kept for the process.
    @ivar heldSignals: signals that wait for the start.
    @ivar dropping: whether its output is dropped because nobody has read it for too long.
    @ivar dropped: how many bytes were.
    @ivar lost: what crashes of the daemon have cost it.
    """

    vm: str
    serial: int
    session: str
    stdio: int
    state: SessionState
    age: float
    container: str
    process: str | None
    first: bool | None
    terminal: bool
    shim: int | None
    status: int | None
    bufferedOutput: int
    bufferedInput: int
    heldSignals: int
    dropping: bool
    dropped: int
    lost: CrashLoss


@attrs.frozen(slots=False)
class ClientView:
    """
    A connection of a runtime or a shim.

    @ivar number: its number, which no other client has.
    @ivar peer: the process and user at its other end.
    @ivar state: where it is in its life.
    @ivar vm: the name of the VM that it is attached to, or of its session, or null.
    @ivar serial: the number of that VM, or null.
    @ivar session: the session whose shim it is, or null.
    @ivar unanswered: how many of its commands are not answered.
    @ivar unsent: bytes that its socket has not taken.
    """

    number: int
    peer: str
    state: ClientState
    vm: str | None
    serial: int | None
    session: str | None
    unanswered: int
    unsent: int


class Awaited(Enum):
    """What a command waits for."""

    #: The READY of the VM that it registers.
    READY = "ready"
    #: The agent's answer: it is the one in flight.
    ANSWER = "answer"
    #: Its turn: another command is in flight.
    TURN = "turn"
    #: The shim of the process that it starts.
    SHIM = "shim"
    #: The start of the process that it is a signal for.
    START = "start"


@attrs.frozen(slots=False)
class CommandView:
    """
    A command that is not answered.

    @ivar vm: the name of the VM that it is for.
    @ivar serial: the number of that VM.
    @ivar command: what it is: C{RegisterVM}, or the name of a command for agents.
    @ivar awaits: what it waits for.
    @ivar age: seconds since it came.
    @ivar client: the number of its client, or null where the proxy itself asks.
    @ivar expired: whether its client was told that its deadline has passed.
    """

    vm: str
    serial: int
    command: str
    awaits: Awaited
    age: float
    client: int | None
    expired: bool


@attrs.frozen(slots=False)
class LogLevel:
    """
    The log level.

    @ivar level: it and what is more severe is logged.
    """

    level: str


@attrs.frozen(slots=False)
class LogLevelWanted:
    """
    The log level that is wanted.

    @ivar level: under every name that the option takes.
    """

    level: Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(LOG_LEVELS)})]


@attrs.frozen(slots=False)
class Draining:
    """
    Whether the daemon drains.

    @ivar draining: whether it takes no new VMs.
    """

    draining: bool


@attrs.frozen(slots=False)
class Stopping:
    """
    The daemon stops.

    @ivar stopping: always true.
    """

    stopping: bool = True


@attrs.frozen(slots=False)
class Joining:
    """
    A pod is served by this daemon.

    @ivar path: the path of its socket.
    @ivar inode: the inode of that socket's descriptor, which comes with the request.
    @ivar until: until when it may be taken, in seconds of the system's monotonic clock: who asked
        serves the pod alone then.
    """

    path: str
    inode: int
    until: Optional[float] = None


@attrs.frozen(slots=False)
class Restarting:
    """
    The daemon hands over to its successor.

    @ivar restarting: always true.
    """

    restarting: bool = True


@attrs.frozen(slots=False)
class Health:
    """
    Whether the daemon works.

    @ivar healthy: whether it does.
    @ivar listening: whether it takes clients.
    @ivar loopLag: by how many seconds its loop was late, at worst in the last ten seconds.
    @ivar maxLoopLag: by how many it may be.
    """

    healthy: bool
    listening: bool
    loopLag: float
    maxLoopLag: float


@attrs.frozen(slots=False)
class Dump:
    """
    All that the daemon knows.

    @ivar status: the daemon.
    @ivar limits: its bounds and deadlines.
    @ivar vms: its VMs.
    @ivar sessions: their sessions.
    @ivar clients: its clients.
    @ivar commands: the commands that are not answered, the oldest first.
    """

    status: Status
    limits: Limits
    vms: list[VMView]
    sessions: list[SessionView]
    clients: list[ClientView]
    commands: list[CommandView]

"""
What a session owes its shim: output and the exit status, as whole frames, until they have been
written whole to a shim's connection.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import attrs

from ..errors import LocalProtocolError
from .context import Budget, Context, Receiver
from .outlet import SMALL_BLOCK, Outlet, joined
from .records import Count, Reader, Writer, derived, reference, saved, transient


class Shim(Receiver, Protocol):
    """A client that is a session's shim, as the session knows it."""

    context: Context
    name: str
    outlet: Outlet

    @property
    def session(self) -> object | None: ...

    def leaveSession(self) -> None:
        """Be its shim no longer."""

    def wake(self) -> None:
        """Read on, if the session's stdin has room again."""

    def finishAfterOutput(self) -> None:
        """Close once all output is written."""

    def pollHolder(self) -> None:
        """Notice now if the peer has gone."""


@attrs.define(eq=False)
class Output:
    """
    The output of one session.

    @ivar budget: where its bytes are counted.
    @ivar shim: where it goes, or L{None} while it is kept here.
    @ivar pending: blocks of frames for a shim that is not there, in order.
    @ivar pendingSize: how many bytes they are.
    @ivar dropping: what comes is dropped, since nobody has read for too long.
    @ivar dropped: how many bytes of the process's output were dropped.
    """

    _budget: Budget = transient()
    shim: Shim | None = reference("clients", None, init=False)
    pending: list[bytes] = transient(attrs.Factory(list), init=False)
    pendingSize: int = transient(0, init=False)
    dropping: bool = saved(False, init=False)
    dropped: int = saved(0, type=Count, init=False)

    def _written(self, writer: Writer) -> list[bytes]:
        return [] if writer.crash else list(self.pending)

    def _read(self, pending: list[bytes], reader: Reader) -> None:
        self.pending = list(pending)
        self.pendingSize = sum(map(len, pending))
        self._budget.used += self.pendingSize

    DERIVED: ClassVar = (derived("pending", list[bytes], list, _written, _read),)

    @property
    def held(self) -> int:
        """Bytes that are not delivered."""
        return self.pendingSize if self.shim is None else self.shim.outlet.kept

    @property
    def room(self) -> int:
        """How many more bytes can be kept for the shim."""
        return self._budget.share - self.held

    @property
    def full(self) -> bool:
        """Whether no more can be kept, and nothing may be dropped."""
        return not self.dropping and self.room <= 0

    def queue(self, frame: bytes) -> None:
        """Add a frame, which is sent at the end of this turn."""
        self._budget.used += len(frame)
        if self.shim is not None:
            self.shim.outlet.push(frame, kept=True)
            self.shim.context.touched(self.shim)
        else:
            self._keep(frame)

    def deliver(self, spans: list[memoryview], total: int) -> None:
        """
        Add whole frames, and send them at once.

        @param spans: where the frames stand, for the time of this call: whole frames, in pieces
            that one call takes.
        @param total: how many bytes they are.
        """
        if self.shim is not None:
            self.shim.outlet.sendSpans(spans, total)
        else:
            self._budget.used += total
            for block in joined(spans):
                self._keep(block)

    def _keep(self, block: bytes) -> None:
        """Whole frames have come, and there is no shim."""
        pending = self.pending
        if pending and len(pending[-1]) + len(block) <= SMALL_BLOCK:
            # An object for every few bytes would take many times the memory that is counted.
            pending[-1] += block
        else:
            pending.append(block)
        self.pendingSize += len(block)

    def connect(self, shim: Shim) -> None:
        """A shim has come: it gets what is pending, then what comes."""
        if self.shim is not None:
            raise LocalProtocolError("a session has one shim")
        self.shim = shim
        while self.pending:
            shim.outlet.push(self.pending[0], kept=True)
            self.pendingSize -= len(self.pending.pop(0))
        shim.context.touched(shim)

    def disconnect(self) -> None:
        """The shim's connection is lost: what was not delivered is kept for the next one."""
        if self.shim is not None:
            self.pending[:0] = self.shim.outlet.takeBack()
            self.pendingSize = sum(map(len, self.pending))
            self.shim = None

    def forget(self) -> None:
        """Drop all that was not delivered."""
        if self.shim is not None:
            self.shim.outlet.dropKept()
        self._budget.used -= self.pendingSize
        self.pending.clear()
        self.pendingSize = 0

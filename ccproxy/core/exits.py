"""
The end of one process: the end of its output, its exit status, and the status on its way.

cc and hyperstart 0.x end a process's output with an empty message; the next one has the status, in
one byte. hyperstart 1.x tells the status in an event, which may come before the last of the output.
An empty message ends the output only if no more follows.
"""

from __future__ import annotations

from typing import Annotated, Optional, Protocol

import attrs
from msgspec import Meta

from ..wire.frames import encodeProcessExited
from .context import Context, Wait, cancel
from .output import Output
from .records import saved, timer, transient

#: Bytes of the frame that tells an exit status.
EXIT_SIZE = len(encodeProcessExited(0))


class ExitOwner(Protocol):
    """A session, as the end of its process knows it."""

    output: Output

    @property
    def context(self) -> Context: ...
    @property
    def readFor(self) -> float: ...

    def changed(self) -> None:
        """Note that the session is to be written down."""

    def exited(self, status: int) -> None:
        """The process has ended, and all its output has come."""


@attrs.define(eq=False)
class Exit:
    """
    @ivar status: the exit status, once the agent has told it.
    @ivar ended: whether an empty message was the last one.
    """

    _owner: ExitOwner = transient()
    status: int | None = saved(
        None, type=Optional[Annotated[int, Meta(ge=0, le=255)]], init=False
    )
    ended: bool = saved(False, key="sawEnd", init=False)
    _queued: bool = saved(False, key="exitQueued", init=False)
    _wait: Wait | None = timer("outputOverdue", key="exitIn")

    # -- what the agent tells

    @property
    def awaited(self) -> bool:
        """Whether the status is known and waits for the end of the output."""
        return self._wait is not None and self._wait.active()

    def end(self) -> None:
        """An empty message has come."""
        self.ended = True
        self._owner.changed()
        if self.status is not None:
            self._owner.exited(self.status)

    def goOn(self) -> None:
        """Output has come: an empty message before it was not the end."""
        if self.ended:
            self.ended = False
            self._owner.changed()

    def tell(self, status: int) -> None:
        """An event has told the status, perhaps before the last of the output."""
        if self.status is not None:
            return
        self.status = status
        if self.ended:
            self._owner.exited(status)
        else:
            context = self._owner.context
            self._wait = context.later(context.limits.exitTimeout, self.outputOverdue)

    def outputOverdue(self) -> None:
        """The end of the output has not come, though there was time for it if it could be read."""
        context = self._owner.context
        missing = context.limits.exitTimeout - self._owner.readFor
        if missing > 0:
            self._wait = context.later(missing, self.outputOverdue)
        elif self.status is not None:
            self._owner.exited(self.status)

    def retry(self) -> None:
        """Exit now, if the process had ended before its start was answered."""
        if self.status is not None and (self.ended or not self.awaited):
            self._owner.exited(self.status)

    def cancel(self) -> None:
        """Wait for the end of the output no longer."""
        cancel(self._wait)

    def forget(self) -> None:
        """There was no process: nothing is known of its end."""
        self.cancel()
        self.status, self.ended = None, False

    # -- the status on its way

    def deliver(self) -> None:
        """Have the status delivered, after the output, if it is not under way."""
        if not self._queued and self.status is not None:
            self._queued = True
            self._owner.output.queue(encodeProcessExited(self.status))

    def deliverAgain(self) -> None:
        """Have the status delivered, whether it was before or not."""
        self._queued = False
        self.deliver()

    def shimGone(self) -> None:
        """The shim has gone: a status that is not kept for the next one has been delivered."""
        self._queued = self._queued and bool(self._owner.output.pending)

    @property
    def undelivered(self) -> int:
        """Bytes of output that no shim has got. The status behind them is not output."""
        held = self._owner.output.held
        return max(0, held - EXIT_SIZE) if self._queued else held

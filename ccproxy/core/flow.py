"""
Backpressure, and the bound on what the proxy remembers.

What a process writes goes to its shim at once. What the shim's socket does not take stays in the
session, and so does what comes while no shim is there. A session is I{full} when it holds its
limit (1 MiB by default; a smaller share once all sessions together hold theirs), and only then
does it matter to others: the VM's I/O channel, which carries the output of all its processes, is
read no further, because the next message may be for the full session and nothing may be lost.
Other VMs do not notice. The channel is read again as soon as the session has room.

Two things end such a pause without the shim's help. A session that has no shim drops its further
output after C{absentTimeout}, keeps its exit status, and the log says how much was dropped. A
session whose shim is there but does not read is reported after C{stalledWarning}, and drops its
output after C{stalledDrop} only where the operator has chosen that.

The other direction is bounded in the same way: stdin waits in the session until the agent's
socket takes it (L{ccproxy.core.stdin}), and a shim whose session's stdin is full is read no
further.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Optional, Protocol

import attrs

from .context import Wait, cancel
from .output import Shim
from .ports import VMPort
from .processes import Processes
from .records import Ago, Left, Place, Reader, Writer, derived, moment, reference, saved, transient
from .session import Session


class FlowVM(VMPort, Protocol):
    """A VM, as far as the flow of its output is concerned."""

    processes: Processes


@attrs.define(eq=False)
class Flow:
    """
    Whether one VM's I/O channel is read, and for whose sake it is not.

    @ivar blocker: the full session that the channel waits for.
    @ivar since: since when it does, in seconds of the clock.
    @ivar blocked: for how many seconds it has waited so far; a pause that still lasts is not in it.
    """

    _vm: FlowVM = transient()
    blocker: Session | None = transient(None, init=False)
    since: float = moment(0.0, init=False)
    blocked: float = saved(0.0, type=Ago, crash=False, init=False)
    _shim: Shim | None = reference("clients", None, crash=False, init=False)
    _readSince: float = moment(0.0, init=False)
    _wait: Wait | None = transient(None, init=False)
    _due: str = transient("", init=False)

    # A crash loses the bytes that have filled a session, so the channel is read again.

    def _blockerPlace(self, writer: Writer) -> Place | None:
        return None if writer.crash else writer.place("sessions", self.blocker)

    def _dueName(self, writer: Writer) -> str | None:
        waits = not writer.crash and self._wait is not None and self._wait.active()
        return self._due if waits else None

    def _dueIn(self, writer: Writer) -> float:
        return (None if writer.crash else writer.left(self._wait)) or 0.0

    def _unread(self, writer: Writer) -> bool:
        return writer.crash and self.blocker is not None

    def _readBlocker(self, place: Place | None, reader: Reader) -> None:
        self.blocker = reader.thing("sessions", place)

    def _readDue(self, due: str | None, reader: Reader) -> None:
        self._due = due or ""

    def _readDueIn(self, left: float, reader: Reader) -> None:
        if self.blocker is not None and self._due:
            self._after(reader.left(left), self._due, self.blocker)

    def _readUnread(self, unread: bool, reader: Reader) -> None:
        if unread:
            self._readSince = reader.now

    DERIVED: ClassVar = (
        derived("blocker", Optional[Place], None, _blockerPlace, _readBlocker),
        derived("due", Optional[Literal["warn", "drop"]], None, _dueName, _readDue),
        derived("dueIn", Left, 0.0, _dueIn, _readDueIn),
        derived("unread", bool, False, _unread, _readUnread),
    )

    @property
    def readFor(self) -> float:
        """For how many seconds the channel has been read without a pause."""
        if self.blocker is not None:
            return 0.0
        return self._vm.context.clock.seconds() - self._readSince

    def block(self, session: Session) -> None:
        """C{session} is full: read the channel no further."""
        vm = self._vm
        self._pauseChanged()
        self.blocker = session
        self.since = vm.context.clock.seconds()
        if vm.io is not None:
            vm.io.pauseReading()
        vm.log.debug(
            "output held up: {session} is full",
            event="backpressure-on",
            session=session.name,
            **vm.fields,
        )
        self._arm()

    def recheck(self, session: Session) -> None:
        """C{session} may have room again, or has gained or lost its shim."""
        if self.blocker is not session:
            return
        if not session.output.full:
            self.release()
        elif session.shim is not self._shim:
            self._arm()

    def repair(self) -> None:
        """Finish what a turn has begun that was cut short: see L{ccproxy.core.context}."""
        if self.blocker is not None:
            self.recheck(self.blocker)
            if self._wait is None or not self._wait.active():
                self._arm()

    def release(self) -> None:
        """Read the channel again."""
        vm = self._vm
        cancel(self._wait)
        self._wait = None
        if self.blocker is None:
            return
        now = vm.context.clock.seconds()
        seconds = now - self.since
        self.blocked += seconds
        vm.context.tally.blocked += seconds
        vm.log.debug(
            "output flows again after {seconds:.1f} s",
            event="backpressure-off",
            session=self.blocker.name,
            seconds=seconds,
            **vm.fields,
        )
        self.blocker = None
        self._readSince = now
        self._pauseChanged()
        if vm.io is not None:
            vm.io.resumeReading()

    def _pauseChanged(self) -> None:
        """The time since which the channel is read changes; a process's end may depend on it."""
        if any(session.exit.awaited for session in self._vm.processes.sessions):
            self._vm.context.changed(self._vm)

    def _arm(self) -> None:
        """Set the deadline that fits the blocker: it has a shim, or it has none."""
        session, limits = self.blocker, self._vm.context.limits
        cancel(self._wait)
        if session is None:
            return
        self._shim = session.shim
        if session.shim is None:
            self._after(limits.absentTimeout, "drop", session)
        else:
            delay = min(limits.stalledWarning, limits.stalledDrop or limits.stalledWarning)
            self._after(delay, "warn", session)

    def _after(self, delay: float, due: str, session: Session) -> None:
        self._due = due
        action = self._warn if due == "warn" else self._drop
        self._wait = self._vm.context.later(delay, action, session)

    def _warn(self, session: Session) -> None:
        """The shim has not read for a while."""
        vm, limits = self._vm, self._vm.context.limits
        vm.log.warn(
            "the shim of {session} does not read: the output of its VM has waited for it for"
            " {seconds:.0f} s",
            event="shim-stalled",
            session=session.name,
            seconds=vm.context.clock.seconds() - self.since,
            **vm.fields,
        )
        if limits.stalledDrop:
            delay = max(0.0, limits.stalledDrop - limits.stalledWarning)
            self._after(delay, "drop", session)

    def _drop(self, session: Session) -> None:
        """Nobody takes the session's output: it goes on without it."""
        if session.output.full:
            session.dropOutput()
        self.release()

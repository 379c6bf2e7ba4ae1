"""
Signals that wait for their process to be started.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import attrs

from ..errors import DeadlineExceeded, RequestError
from ..wire.payloads import Signal
from .commands import Slot
from .context import Context, Wait, cancel
from .records import Ago, Left, Place, Reader, Writer


@attrs.define(eq=False)
class HeldSignal:
    """
    A signal that waits.

    @ivar slot: the place of its response.
    @ivar since: since when it waits, in seconds of the clock.
    """

    slot: Slot
    signal: Signal
    wait: Wait
    since: float


@attrs.define
class HeldForm:
    """
    A L{HeldSignal}, as it is written down.

    @ivar slot: its place.
    @ivar failIn: in how many seconds it fails.
    @ivar since: for how many seconds it has waited.
    """

    slot: Place
    signal: Signal
    failIn: Left
    since: Ago = 0.0


class Signalled(Protocol):
    """A session, as its signals know it."""

    @property
    def context(self) -> Context: ...
    @property
    def containerId(self) -> str: ...
    @property
    def token(self) -> str | None: ...

    def signal(self, slot: Slot, signal: Signal) -> None:
        """
        Send a signal to the process.

        @raise RequestError: it cannot reach the process.
        """


class HeldSignals:
    """The signals that one session holds, each with its own deadline."""

    __slots__ = ("_held", "_session")

    def __init__(self, session: Signalled) -> None:
        self._session = session
        self._held: list[HeldSignal] = []

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[HeldSignal]:
        return iter(self._held)

    def add(
        self,
        slot: Slot,
        signal: Signal,
        within: float | None = None,
        since: float | None = None,
    ) -> None:
        """
        Hold a signal until the process is started.

        @param within: for how many seconds; by default as long as the limits say.
        @param since: when it came, in seconds of the clock; by default now.
        """
        context = self._session.context
        delay = context.limits.processTimeout if within is None else within
        wait = context.later(delay, self._overdue, slot)
        since = context.clock.seconds() if since is None else since
        self._held.append(HeldSignal(slot, signal, wait, since))

    def release(self) -> None:
        """The process is started: send them."""
        for held in self._takeAll():
            try:
                self._session.signal(held.slot, held.signal)
            except RequestError as error:
                held.slot.fail(error)

    def fail(self, error: RequestError) -> None:
        """The process will not be started."""
        for held in self._takeAll():
            held.slot.fail(error)

    def repair(self) -> None:
        """Finish what a turn has begun that was cut short: see L{ccproxy.core.context}."""
        for held in self._held:
            if not held.wait.active():
                self._overdue(held.slot)

    def _takeAll(self) -> list[HeldSignal]:
        taken, self._held = self._held, []
        for held in taken:
            cancel(held.wait)
        return taken

    def _overdue(self, slot: Slot) -> None:
        """A signal has waited for the start long enough."""
        self._held = [held for held in self._held if held.slot is not slot]
        session = self._session
        slot.fail(
            DeadlineExceeded(
                f"timeout waiting for process with token {session.token}:"
                f" not started within {session.context.limits.processTimeout:g} s"
                f" in VM {session.containerId}"
            )
        )


def writeHeld(held: HeldSignals, writer: Writer) -> list[HeldForm]:
    """Write down the signals that a session holds."""
    return [
        HeldForm(
            writer.place("slots", each.slot) or 0,
            each.signal,
            writer.left(each.wait) or 0.0,
            writer.ago(each.since),
        )
        for each in held
    ]


def readHeld(held: HeldSignals, forms: list[HeldForm], reader: Reader) -> None:
    """Hold signals that another process has written."""
    for form in forms:
        since, left = reader.moment(form.since), reader.left(form.failIn)
        held.add(reader.thing("slots", form.slot), form.signal, left, since)

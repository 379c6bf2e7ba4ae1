"""
What all objects of the core share: time, limits, the log, the memory budget and the end of a turn.

A I{turn} is all that one event makes the core do. The event is input of a client or an agent, room
in a socket, the end of a connection, a timer, or a request of the operator. At the end of a turn
L{Context.flush} sends what has gathered, and lets the journal write down what has changed.

An unexpected exception cuts a turn short (promise P22). The turn may have been about to answer
commands, and objects may be between two states. Therefore every turn runs under L{turn} or L{run}.
They log the exception. When the outermost turn is over, they repair the state: each object finishes
what it has begun, and each command that would get no answer gets an error response.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import attrs
from twisted.logger import Logger

from .limits import Limits
from .tally import Tally

#: Passes of a repair over everything: an exception during one leaves something for the next.
MAX_PASSES = 3


class Wait(Protocol):
    """Something that will be called later."""

    def cancel(self) -> None:
        """Call it no more."""

    def active(self) -> bool:
        """Return whether it is still to be called."""

    def getTime(self) -> float:
        """Return when it is due, in seconds of the clock."""


class Clock(Protocol):
    """The part of C{IReactorTime} that the core uses; C{twisted.internet.task.Clock} in tests."""

    def seconds(self) -> float:
        """Return the time, in seconds since any moment."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> Wait:
        """Call C{callable(*args)} in C{delay} seconds."""


def isDue(wait: Wait | None) -> bool:
    """Return whether there is a wait that is not over."""
    return wait is not None and wait.active()


def cancel(wait: Wait | None) -> None:
    """Cancel a wait, if there is one that is not over."""
    if wait is not None and wait.active():
        wait.cancel()


class Budget:
    """
    The bytes that all sessions hold together.

    @ivar limits: how many they may hold.
    @ivar used: how many they hold now, in both directions.
    """

    __slots__ = ("limits", "used")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.used = 0

    @property
    def crowded(self) -> bool:
        """Whether the sessions hold so much that each may hold less."""
        return self.used > self.limits.totalBuffer

    @property
    def share(self) -> int:
        """How many bytes one session may hold in each direction now."""
        if self.crowded:
            return min(self.limits.crowdedBuffer, self.limits.sessionBuffer)
        return self.limits.sessionBuffer


class Receiver(Protocol):
    """A client, as far as the end of a turn is concerned."""

    def flush(self) -> None:
        """Send what can be sent now."""

    def flushAnswers(self) -> None:
        """Send responses, now that what they are about is written down."""


def _nothing() -> None:
    pass


@attrs.define(eq=False, slots=False)
class Context:
    """
    @ivar clock: tells the time.
    @ivar wallClock: returns the seconds since the epoch.
    @ivar limits: the bounds.
    @ivar log: takes the core's events.
    @ivar verbose: whether the steps of every command are logged, at level debug. Where nobody wants
        to know them, a call that logs nothing would still cost more than the step.
    @ivar budget: the bytes that all sessions hold.
    @ivar tally: what has happened, in numbers.
    @ivar whenChanged: called at the end of a turn with what has changed beyond the data in flight:
        VMs, and the registry if its own counters have. L{None} if no journal is kept.
    @ivar whenRoom: called when the budget is no longer crowded.
    @ivar repairs: yields the steps of a repair.
    @ivar damaged: whether an unexpected exception has left something undone.
    @ivar depth: how many turns are under way, one inside of the other.
    """

    clock: Clock
    wallClock: Callable[[], float]
    limits: Limits = attrs.field(factory=Limits)
    log: Logger = attrs.field(factory=Logger)
    verbose: bool = True
    tally: Tally = attrs.field(factory=Tally)
    whenChanged: Callable[[set[Any]], None] | None = None
    whenRoom: Callable[[], None] = _nothing
    repairs: Callable[[], Iterator[Callable[[], object]]] = lambda: iter(())
    damaged: bool = False
    depth: int = 0
    budget: Budget = attrs.field(init=False)
    _changed: set[Any] = attrs.field(factory=set)
    _touched: set[Receiver] = attrs.field(factory=set)
    _answered: set[Receiver] = attrs.field(factory=set)
    _crowded: bool = False

    def __attrs_post_init__(self) -> None:
        self.budget = Budget(self.limits)

    def setLimits(self, limits: Limits) -> None:
        """
        Have other bounds from now on. What is there already stays, and what waits already keeps its
        deadline.
        """
        self.limits = self.budget.limits = limits
        self.whenRoom()
        self.flush()

    def later(self, delay: float, action: Callable[..., object], *args: object) -> Wait:
        """
        Call C{action(*args)} as a turn of its own.

        @param delay: in how many seconds.
        """
        return self.clock.callLater(delay, self.timed, action, args)

    def timed(self, action: Callable[..., object], args: tuple[object, ...]) -> None:
        """Do what L{later} was told to."""
        run(self, self._act, action, args)

    def _act(self, action: Callable[..., object], args: tuple[object, ...]) -> None:
        action(*args)
        self.flush()

    # -- the end of a turn

    def touched(self, client: Receiver) -> None:
        """Send to C{client} at the end of this turn."""
        self._touched.add(client)

    def answered(self, client: Receiver) -> None:
        """Send responses to C{client} once what they are about is written down."""
        self._answered.add(client)

    def forget(self, client: Receiver) -> None:
        """Send nothing to C{client}, which is gone."""
        self._touched.discard(client)
        self._answered.discard(client)

    def changed(self, thing: object) -> None:
        """Note that C{thing} is to be written down: a VM, or the registry for its counters."""
        if self.whenChanged is not None:
            self._changed.add(thing)

    def flush(self) -> None:
        """End a turn: send what has gathered."""
        crowded = self._crowded or self.budget.crowded
        while self._touched:
            client = self._touched.pop()
            if client not in self._answered:
                client.flush()
        self._crowded = self.budget.crowded
        if crowded and not self._crowded:
            self.whenRoom()
        self._writeDown()
        while self._answered:
            self._answered.pop().flushAnswers()
        self._writeDown()

    def _writeDown(self) -> None:
        if self._changed and self.whenChanged is not None:
            changed, self._changed = self._changed, set()
            self.whenChanged(changed)

    # -- repair

    def failed(self) -> None:
        """Log the exception that is being handled. The end of the turn repairs the state."""
        self.damaged = True
        self.log.failure("internal error; the daemon goes on", event="internal-error")

    def attempt(self, step: Callable[[], object]) -> None:
        """Call C{step}; if it raises an exception, log that."""
        try:
            step()
        except Exception:
            self.failed()

    def repair(self) -> None:
        """Bring the state in order after a turn that an exception has cut short."""
        self.depth += 1
        for _ in range(MAX_PASSES):
            self.damaged = False
            for step in self.repairs():
                self.attempt(step)
            if not self.damaged:
                break
        self.damaged = False
        self.depth -= 1


class Breakable(Protocol):
    """A sink that can give up its connection."""

    @property
    def context(self) -> Context:
        """What it shares with all others."""

    def broken(self) -> None:
        """Close the connection: an exception has made its position unknown."""


S = TypeVar("S", bound=Breakable)
P = ParamSpec("P")
R = TypeVar("R")


def turn(step: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """
    Decorate a method of an L{IStreamSink <ccproxy.interfaces.IStreamSink>}: it is a turn. An
    exception costs only this sink its connection.
    """

    @wraps(step)
    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        context = self.context
        context.depth += 1
        try:
            return step(self, *args, **kwargs)
        except Exception:
            context.failed()
            context.attempt(self.broken)
            return cast(R, 0)  # nothing was used: there is no connection any more
        finally:
            # Not shared with run: this is on the path of every frame.
            context.depth -= 1
            if context.damaged and not context.depth:
                context.repair()

    return guarded


def run(context: Context, step: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call C{step} as a turn."""
    context.depth += 1
    try:
        step(*args, **kwargs)
    except Exception:
        context.failed()
    finally:
        context.depth -= 1
        if context.damaged and not context.depth:
            context.repair()

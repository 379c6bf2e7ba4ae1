"""
Profiles of the running daemon: where the time of its one thread goes.

Two kinds: C{calls} has the number and time of all calls, exactly, for C{pstats}; it makes the
daemon about half as fast. C{samples} looks at the stack a hundred times for each second of
processor time, for flame graphs; that costs about nothing.
"""

from __future__ import annotations

import cProfile
import marshal
import signal
from collections import Counter
from types import FrameType
from typing import Annotated, Any, Literal, Protocol

import attrs
import msgspec

from ..core.context import Clock, Wait, cancel
from .calls import OCTETS, Refused, Reply

#: Seconds of processor time between two samples.
INTERVAL = 0.01
#: The most frames of a stack, and the most different stacks, that are kept.
MAX_DEPTH = 128
MAX_STACKS = 20_000
#: The most seconds that a profile lasts.
MAX_SECONDS = 600.0


@attrs.frozen(slots=False)
class ProfileRequest:
    """
    Which profile to make.

    @ivar kind: C{calls} for all calls, C{samples} for stacks.
    @ivar seconds: after how many seconds it stops by itself, at most 600.
    """

    kind: Literal["calls", "samples"] = "samples"
    seconds: Annotated[float, msgspec.Meta(gt=0, le=MAX_SECONDS)] = 30.0


@attrs.frozen(slots=False)
class ProfileState:
    """
    The profile that is made, or was.

    @ivar kind: C{calls} or C{samples}.
    @ivar running: whether it is being made.
    """

    kind: str
    running: bool


class Recording(Protocol):
    """A profile that is being made."""

    def start(self) -> None:
        """
        Begin.

        @raise ValueError: another profiler is at work.
        """

    def stop(self) -> Reply:
        """End; the profile."""


class CallRecording:
    """All calls."""

    def __init__(self) -> None:
        self._profile = cProfile.Profile()

    def start(self) -> None:
        """See L{Recording.start}."""
        self._profile.enable()

    def stop(self) -> Reply:
        """See L{Recording.stop}."""
        self._profile.disable()
        self._profile.create_stats()
        stats: Any = self._profile
        return Reply(marshal.dumps(stats.stats), OCTETS)


class SampleRecording:
    """Stacks, now and then."""

    def __init__(self) -> None:
        self._stacks: Counter[tuple[str, ...]] = Counter()

    def start(self) -> None:
        """See L{Recording.start}."""
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)

    def _sample(self, number: int, frame: FrameType | None) -> None:
        stack: list[str] = []
        while frame is not None and len(stack) < MAX_DEPTH:
            module = frame.f_globals.get("__name__", "?")
            stack.append(f"{module}.{frame.f_code.co_qualname}")
            frame = frame.f_back
        key = tuple(reversed(stack))
        if key not in self._stacks and len(self._stacks) >= MAX_STACKS:
            key = ("(others)",)
        self._stacks[key] += 1

    def stop(self) -> Reply:
        """See L{Recording.stop}."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        # One that is on its way still must not kill the daemon.
        signal.signal(signal.SIGPROF, signal.SIG_IGN)
        lines = [f"{';'.join(stack)} {count}\n" for stack, count in sorted(self._stacks.items())]
        return Reply("".join(lines).encode(), OCTETS)


class Profiler:
    """
    Makes one profile at a time, and keeps the last one.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._recording: Recording | None = None
        self._kind = ""
        self._wait: Wait | None = None
        self._result: Reply | None = None

    def start(self, request: ProfileRequest) -> ProfileState:
        """
        Begin.

        @raise Refused: one is being made.
        """
        if self._recording is not None:
            raise Refused(409, "a profile is being made; POST /v1/profile/stop ends it")
        recording: Recording = CallRecording() if request.kind == "calls" else SampleRecording()
        try:
            recording.start()
        except ValueError as problem:
            raise Refused(409, f"no profile can be made now: {problem}") from None
        self._recording, self._kind, self._result = recording, request.kind, None
        self._wait = self._clock.callLater(request.seconds, self._finish)
        return ProfileState(self._kind, True)

    def _finish(self) -> None:
        if self._recording is not None:
            self._result = self._recording.stop()
            self._recording = None

    def stop(self) -> ProfileState:
        """
        End the profile that is being made, if it has not ended by itself.

        @raise Refused: none was begun.
        """
        if not self._kind:
            raise Refused(409, "no profile was begun; POST /v1/profile/start begins one")
        cancel(self._wait)
        self._finish()
        return ProfileState(self._kind, False)

    def close(self) -> None:
        """End what is being made: its timer and its signal must not outlive it."""
        cancel(self._wait)
        self._finish()

    def result(self) -> Reply:
        """
        The profile that was made last.

        @raise Refused: there is none, or it is not ready.
        """
        if self._result is None:
            raise Refused(
                409 if self._recording is not None else 404,
                "the profile is being made; POST /v1/profile/stop ends it"
                if self._recording is not None
                else "there is no profile; POST /v1/profile/start begins one",
            )
        return self._result

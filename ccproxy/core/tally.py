"""
What has happened since the start, in numbers: what became of commands and how long they took, and
what VMs that are gone have left behind.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol
from weakref import WeakSet

import attrs

from ..errors import RequestError

#: The upper bounds of the classes that durations are counted in, in seconds.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)


@attrs.define(eq=False, weakref_slot=False)
class Traffic:
    """
    What one VM has had since it was registered, headers included.

    Each chunk is counted as a whole, so that counting costs nothing that can be measured.

    @ivar outFrames: messages with output, from the agent to shims.
    @ivar outBytes: their bytes.
    @ivar inFrames: messages with stdin, to the agent.
    @ivar inBytes: their bytes.
    """

    outFrames: int = 0
    outBytes: int = 0
    inFrames: int = 0
    inBytes: int = 0


def writeTraffic(traffic: Traffic, writer: object) -> dict[str, int]:
    """Return the counters by their names, to be written down."""
    return attrs.asdict(traffic)


def readTraffic(traffic: Traffic, counters: dict[str, int], reader: object) -> None:
    """Take the counters of another process."""
    for field in attrs.fields(Traffic):
        setattr(traffic, field.name, counters.get(field.name, 0))


class Durations:
    """
    How often something happened, and how long it took.

    @ivar classes: how often it took as long as each of L{BOUNDS} but longer than the one before;
        the last one is for all that took longer.
    @ivar total: the sum of the durations, in seconds.
    """

    __slots__ = ("classes", "total")

    def __init__(self) -> None:
        self.classes = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """It has happened once more."""
        self.classes[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


class Counted(Protocol):
    """A VM, as far as its traffic is concerned."""

    @property
    def traffic(self) -> Traffic:
        """What it has had."""


class Tally:
    """
    The numbers.

    @ivar answered: clients' commands, by opcode and whether they were carried out.
    @ivar acknowledged: agents' commands, by name and whether the agent carried them out: the time
        from the command's way to the agent to its answer.
    @ivar errors: how often a client's command failed, by the class of the error.
    @ivar blocked: for how many seconds VMs' output has waited for a full session; pauses that
        still last are not in it.
    @ivar traffic: what VMs had whose channels are closed.
    """

    __slots__ = ("_closed", "acknowledged", "answered", "blocked", "errors", "traffic")

    def __init__(self) -> None:
        self.answered: dict[tuple[int, bool], Durations] = {}
        self.acknowledged: dict[tuple[str, bool], Durations] = {}
        self.errors: Counter[type[RequestError]] = Counter()
        self.blocked = 0.0
        self.traffic = Traffic()
        self._closed: WeakSet[Counted] = WeakSet()

    def command(self, opcode: int, seconds: float, error: RequestError | None) -> None:
        """A client's command was answered."""
        key = (opcode, error is None)
        durations = self.answered.get(key)
        if durations is None:
            durations = self.answered[key] = Durations()
        durations.add(seconds)
        if error is not None:
            self.errors[type(error)] += 1

    def acknowledgement(self, name: str, seconds: float, good: bool) -> None:
        """An agent has answered a command."""
        key = (name, good)
        durations = self.acknowledged.get(key)
        if durations is None:
            durations = self.acknowledged[key] = Durations()
        durations.add(seconds)

    def closed(self, vm: Counted) -> None:
        """The channels of C{vm} are closed. Calling it twice is no harm."""
        if vm not in self._closed:
            self._closed.add(vm)
            self.traffic = sumOf([self.traffic, vm.traffic])

    def total(self, vms: Iterable[Counted]) -> Traffic:
        """
        What all VMs have had, those that are gone included.

        @param vms: at least those whose channels are open.
        """
        return sumOf([self.traffic, *(vm.traffic for vm in vms if vm not in self._closed)])


def sumOf(parts: Sequence[Traffic]) -> Traffic:
    """All of it together."""
    return Traffic(
        sum(part.outFrames for part in parts),
        sum(part.outBytes for part in parts),
        sum(part.inFrames for part in parts),
        sum(part.inBytes for part in parts),
    )

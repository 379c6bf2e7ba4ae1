"""
The descriptor store: what the service manager keeps for the next process of this service.
"""

from __future__ import annotations

import os
import select
import time
from base64 import urlsafe_b64encode
from collections.abc import MutableMapping, Sequence

from twisted.logger import Logger

from .notify import Notifier
from .passed import PREFIX

#: Bytes of all names: the next process gets them in one variable of its environment, and would not
#: start at all if that were longer than 128 KiB.
MOST_NAMES = 120 << 10
#: Descriptors for which there is still room when no more sockets are kept: a journal that begins
#: anew must not be the one that does not fit.
SPARE = 8
#: What a name takes that is not short.
_LONG_NAME = 24
#: How many short names there are.
_NUMBERS = 1 << 16
#: Seconds between two tries to tell the manager what it has not taken.
_INTERVAL = 0.002


def _shortName(number: int) -> str:
    return urlsafe_b64encode(number.to_bytes(2, "big"))[:3].decode()


def _length(name: str) -> int:
    """What a name takes of the next process's environment."""
    return len(PREFIX + name + ":")


class DescriptorStore:
    """
    Counts what is kept, and says so when it is too much.

    @ivar notifier: what tells the manager.
    @ivar capacity: how many descriptors it keeps, or L{None} where it does not say.
    @ivar kept: how many it keeps now, by name.
    @ivar size: how many these are.
    @ivar sockets: the names of those that have one of their own, by their inodes.
    """

    _log = Logger()

    def __init__(self, notifier: Notifier, environment: MutableMapping[str, str]) -> None:
        """
        @param environment: that of the process; what is not for its children is removed.
        """
        self.notifier = notifier
        capacity = environment.pop("FDSTORE", "")
        self.capacity = int(capacity) if capacity.isdecimal() and int(capacity) else None
        self.kept: dict[str, int] = {}
        self.sockets: dict[int, str] = {}
        self.size = 0
        self._named = 0
        self._number = 0
        self._full = False

    def keep(self, name: str, descriptors: Sequence[int], spare: int = 0) -> bool:
        """
        Have descriptors kept.

        @param name: how they are called; more can be added under the same name. Those of single
            sockets have three characters, and no others.
        @param spare: for how many others there must still be room.
        @return: whether they are on their way to the manager, and it has room for them.
        """
        count = len(descriptors)
        wanted = self.size + count + spare
        problem = ""
        if self._named + count * _length(name) + spare * _LONG_NAME > MOST_NAMES:
            problem = (
                "no more than {size} descriptors can be passed to another process, and {wanted} are"
                " wanted: what is not kept ends with this process; use more daemons"
            )
        elif self.capacity is not None and wanted > self.capacity:
            problem = (
                "the service manager keeps no more than {capacity} descriptors, and {wanted} are"
                " wanted: what it does not keep ends with this process; raise"
                " FileDescriptorStoreMax="
            )
        if problem:
            if not self._full:
                self._full = True
                self._log.error(
                    problem,
                    event="store-full",
                    size=self.size,
                    capacity=self.capacity,
                    wanted=wanted,
                )
            return False
        if not self.notifier.store(PREFIX + name, descriptors):
            return False
        self._count(name, count)
        return True

    def discard(self, name: str) -> None:
        """Have the manager forget what it keeps under a name."""
        count = self.kept.get(name, 0)
        if count:
            self._count(name, -count)
            self._full = False
            self.notifier.discard(PREFIX + name)

    def keepSocket(self, inode: int, descriptor: int) -> bool:
        """
        Have a socket kept under a name of its own, if it is not already.

        @param inode: what tells it from all others, in every process.
        @return: see L{keep}.
        """
        if inode in self.sockets:
            return True
        while (name := _shortName(self._number)) in self.kept:
            self._number = (self._number + 1) % _NUMBERS
        if not self.keep(name, [descriptor], SPARE):
            return False
        self.sockets[inode] = name
        return True

    def discardSocket(self, inode: int) -> None:
        """Have the manager forget a socket that has a name of its own."""
        self.discard(self.sockets.pop(inode, ""))

    def passed(self, name: str, inode: int) -> None:
        """A descriptor was passed to this process, and is still kept."""
        self._count(name, 1)
        if len(name) == len(_shortName(0)):
            self.sockets[inode] = name

    def _count(self, name: str, more: int) -> None:
        self.kept[name] = self.kept.get(name, 0) + more
        if not self.kept[name]:
            del self.kept[name]
        self.size += more
        self._named += more * _length(name)

    def settle(self, timeout: float) -> bool:
        """
        Wait, and let nothing else happen in this process, until the manager has read all that it
        was told.

        @param timeout: for how many seconds at most.
        @return: whether it has.
        """
        deadline = time.monotonic() + timeout
        reading = self.notifier.barrier()
        if reading is None:
            return False
        try:
            poll = select.poll()
            poll.register(reading, 0)  # that it is at its end is told unasked
            while (left := deadline - time.monotonic()) > 0:
                if not self.notifier.flush():
                    time.sleep(_INTERVAL)
                elif poll.poll(left * 1000):
                    return True
            return False
        finally:
            os.close(reading)

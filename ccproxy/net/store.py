"""
The descriptor store: what the service manager keeps for the next process of this service.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import MutableMapping, Sequence

from twisted.logger import Logger

from .notify import Notifier
from .passed import PREFIX

#: Bytes of all names: the next process gets them in one variable of its environment, and would not
#: start at all if that were longer than 128 KiB.
MOST_NAMES = 120 << 10
#: Seconds between two tries to tell the manager what it has not taken.
_INTERVAL = 0.002


class DescriptorStore:
    """
    Counts what is kept, and says so when it is too much.

    @ivar notifier: what tells the manager.
    @ivar capacity: how many descriptors it keeps, or L{None} where it does not say.
    @ivar kept: how many it keeps now, by name.
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
        self._full = False

    @property
    def size(self) -> int:
        """How many descriptors are kept."""
        return sum(self.kept.values())

    def keep(self, name: str, descriptors: Sequence[int]) -> bool:
        """
        Have descriptors kept.

        @param name: how they are called; more can be added under the same name.
        @return: whether they are on their way to the manager, and it has room for them.
        """
        named = sum((len(PREFIX + each) + 1) * count for each, count in self.kept.items())
        named += (len(PREFIX + name) + 1) * len(descriptors)
        if named > MOST_NAMES:
            if not self._full:
                self._full = True
                self._log.error(
                    "no more than {size} descriptors can be passed to another process, and {wanted}"
                    " are wanted: what is not kept ends with this process; use more daemons",
                    event="store-full",
                    size=self.size,
                    wanted=self.size + len(descriptors),
                )
            return False
        if self.capacity is not None and self.size + len(descriptors) > self.capacity:
            if not self._full:
                self._full = True
                self._log.error(
                    "the service manager keeps no more than {capacity} descriptors, and {wanted}"
                    " are wanted: what it does not keep ends with this process; raise"
                    " FileDescriptorStoreMax=",
                    event="store-full",
                    capacity=self.capacity,
                    wanted=self.size + len(descriptors),
                )
            return False
        if not self.notifier.store(PREFIX + name, descriptors):
            return False
        self.kept[name] = self.kept.get(name, 0) + len(descriptors)
        return True

    def discard(self, name: str) -> None:
        """Have the manager forget what it keeps under a name."""
        if self.kept.pop(name, 0):
            self._full = False
            self.notifier.discard(PREFIX + name)

    def passed(self, name: str) -> None:
        """A descriptor of that name was passed to this process, and is still kept."""
        self.kept[name] = self.kept.get(name, 0) + 1

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

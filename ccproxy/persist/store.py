"""
The descriptor store: what the service manager keeps for the next process of this service.
"""

from __future__ import annotations

import os
import select
import time
from base64 import urlsafe_b64encode
from collections.abc import MutableMapping, Sequence
from contextlib import suppress

from twisted.logger import Logger

from ..core.context import Wait
from ..net.deadlines import looks
from ..net.notify import MOST_DESCRIPTORS, PATIENCE, Notifier
from ..net.passed import PREFIX

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
#: Seconds between two questions whether the manager has what was sent to it.
CONFIRM_INTERVAL = 1.0
#: A descriptor and its inode. The inode tells whether the descriptor was closed meanwhile.
_Held = tuple[int, int]


def _shortName(number: int) -> str:
    return urlsafe_b64encode(number.to_bytes(2, "big"))[:3].decode()


def _length(name: str) -> int:
    """What a name takes of the next process's environment."""
    return len(PREFIX + name + ":")


def _isOpen(descriptor: int, inode: int) -> bool:
    with suppress(OSError):
        return os.fstat(descriptor).st_ino == inode
    return False


class DescriptorStore:
    """
    Has the manager keep descriptors, counts them, and says so when there are too many.

    A manager may be busy or stopped for any time. What it has not taken waits here by its name, as
    descriptors that this process has open anyway: a name that is given up meanwhile is never sent.
    Whatever was sent is confirmed by a barrier, or offered again. A manager closes what it has
    already.

    New descriptors go before names to be forgotten, so that the manager always has a journal.

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
        # Descriptors to send, those sent and not confirmed, and those that the barrier confirms.
        self._offers: dict[str, list[_Held]] = {}
        self._unconfirmed: dict[str, list[_Held]] = {}
        self._asked: dict[str, list[_Held]] = {}
        # Names that the manager is to forget, and how many descriptors these are.
        self._removals: dict[str, int] = {}
        self._barrier: int | None = None
        self._barrierSince = 0.0
        self._confirming: Wait | None = None
        notifier.whenRoom = self._send

    def keep(self, name: str, descriptors: Sequence[int], spare: int = 0) -> bool:
        """
        Have descriptors kept.

        @param name: how they are called; more can be added under the same name. Those of single
            sockets have three characters, and no others.
        @param spare: for how many others there must still be room.
        @return: whether the manager has room for them. They must stay open until they are
            L{discard}ed or L{sent}.
        """
        if not self.notifier.present:
            return False
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
        try:
            held = [(descriptor, os.fstat(descriptor).st_ino) for descriptor in descriptors]
        except OSError:
            return False  # one was closed meanwhile
        self._offers.setdefault(name, []).extend(held)
        self._count(name, count)
        self.notifier.flush()
        return True

    def sent(self, name: str) -> bool:
        """Return whether the manager was sent all that it shall keep under a name."""
        return name not in self._offers

    def discard(self, name: str) -> None:
        """Have the manager forget what it keeps under a name."""
        unsent = len(self._offers.pop(name, ()))
        self._count(name, -unsent)
        self._unconfirmed.pop(name, None)
        self._asked.pop(name, None)
        if name in self.kept:
            self._removals[name] = self.kept[name]
            self.notifier.flush()

    def _send(self) -> bool:
        """
        Send what there is to send, as far as the manager takes it.

        @return: whether all is sent.
        """
        while self._offers:
            name = next(iter(self._offers))
            if name in self._removals and not self._sendRemoval(name):
                return False
            if not self._sendOffers(name):
                return False
        while self._removals:
            if not self._sendRemoval(next(iter(self._removals))):
                return False
        if self._unconfirmed:
            self._confirmSoon()
        return True

    def _sendOffers(self, name: str) -> bool:
        held = self._offers[name]
        while held:
            some = held[:MOST_DESCRIPTORS]
            descriptors = [descriptor for descriptor, inode in some if _isOpen(descriptor, inode)]
            text = f"FDSTORE=1\nFDPOLL=0\nFDNAME={PREFIX}{name}"
            if descriptors and not self.notifier.offer(text, descriptors):
                return False
            self._unconfirmed.setdefault(name, []).extend(some)
            del held[:MOST_DESCRIPTORS]
        del self._offers[name]
        return True

    def _sendRemoval(self, name: str) -> bool:
        if not self.notifier.offer(f"FDSTOREREMOVE=1\nFDNAME={PREFIX}{name}"):
            return False
        self._count(name, -self._removals.pop(name))
        return True

    def _confirmSoon(self) -> None:
        if self._confirming is None:
            self._confirming = self.notifier.clock.callLater(CONFIRM_INTERVAL, self._confirm)

    def _confirm(self) -> None:
        """Ask the manager whether it has read what was sent; if it has not for long, send again."""
        self._confirming = None
        if not self.notifier.present:
            self._endBarrier()
            return
        if self._barrier is None:
            with suppress(OSError):  # there is no descriptor for it: the next time
                self._barrier = self._sendBarrier()
                self._barrierSince = self.notifier.clock.seconds()
            if self._barrier is not None:
                self._asked, self._unconfirmed = self._unconfirmed, {}
        elif _isAtEnd(self._barrier, 0):
            self._endBarrier()
        elif self.notifier.clock.seconds() >= self._barrierSince + PATIENCE:
            for name, held in self._asked.items():
                self._offers[name] = held + self._offers.get(name, [])
            self._endBarrier()
            self.notifier.flush()
        if self._asked or self._unconfirmed:
            self._confirmSoon()

    def _endBarrier(self) -> None:
        self._asked = {}
        if self._barrier is not None:
            os.close(self._barrier)
            self._barrier = None

    def _sendBarrier(self) -> int | None:
        """
        Ask to be told when the manager has read all that was sent.

        @return: a descriptor that is at its end from then on; L{None} if the manager is busy.
        @raise OSError: this process may open no more descriptors.
        """
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if self.notifier.offer("BARRIER=1", [writing]):
                return reading
        finally:
            os.close(writing)
        os.close(reading)
        return None

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
        self._full = self._full and more >= 0
        self._named += more * _length(name)

    def settle(self, timeout: float) -> bool:
        """
        Wait, and let nothing else happen in this process, until the manager has read all that it
        was told.

        @param timeout: for how many seconds at most.
        @return: whether it has.
        @raise OSError: this process may open no more descriptors.
        """
        if not self.notifier.present:
            return False
        reading = None
        try:
            for left in looks(time.monotonic() + timeout):
                if reading is not None:
                    if _isAtEnd(reading, left):
                        self._unconfirmed.clear()
                        return True
                elif not self.notifier.flush() or (reading := self._sendBarrier()) is None:
                    time.sleep(_INTERVAL)
            return False
        finally:
            if reading is not None:
                os.close(reading)


def _isAtEnd(reading: int, timeout: float) -> bool:
    """
    Return whether a pipe is at its end.

    @param timeout: seconds to wait for it.
    """
    poll = select.poll()
    poll.register(reading, 0)  # that it is at its end is told unasked
    return bool(poll.poll(timeout * 1000))

"""
What is believed of a journal that a process has left when it died: L{ccproxy.service.journal}.
"""

from __future__ import annotations

import zlib
from itertools import accumulate

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.core.snapshot import HEADER, VERSION, BadSnapshot, Snapshot, VMForm, seal
from ccproxy.core.states import VMState
from ccproxy.service.journal import _ENTRY, EntryForm, _encoded, readJournal
from ccproxy.wire.codes import Dialect
from ccproxy.wire.payloads import RegisterVM

_BEGINNING = seal(b"")


def entry(serial: int, name: str) -> EntryForm:
    """An entry about a VM of that name."""
    vm = VMForm(RegisterVM(name, "/c", "/i"), serial, VMState.REGISTERED, Dialect.CC)
    return EntryForm(serial, Snapshot(vms=[vm]))


def read(data: bytes) -> dict[int, str]:
    """The names of the VMs of a journal, by their serials."""
    vms = readJournal(data, {}).vms
    return {
        serial: form.snapshot.vms[0].request.containerId
        for serial, form in vms.items()
        if form.snapshot is not None
    }


#: Two VMs, one that is written twice, and one that is gone at the end.
ENTRIES = [entry(1, "one"), entry(2, "two"), entry(1, "one again"), EntryForm(2)]
PIECES = [_encoded(form) for form in ENTRIES]
JOURNAL = _BEGINNING + b"".join(PIECES)
#: Where each entry ends, and what is known then.
ENDS = list(accumulate(map(len, PIECES), initial=len(_BEGINNING)))
KNOWN = [{}, {1: "one"}, {1: "one", 2: "two"}, {1: "one again", 2: "two"}, {1: "one again"}]


class DamageTests(SynchronousTestCase):
    """Journals that are not whole."""

    def test_whole(self) -> None:
        """What was written is read, up to each entry."""
        self.assertEqual([read(JOURNAL[:end]) for end in ENDS], KNOWN)

    def test_empty(self) -> None:
        """One with no entry knows nothing; one without its beginning is none."""
        self.assertEqual(read(_BEGINNING), {})
        for length in range(len(_BEGINNING)):
            self.assertRaises(BadSnapshot, read, _BEGINNING[:length])

    def test_cut(self) -> None:
        """An entry of which the end is missing does not count; those before do."""
        for length in range(ENDS[1], ENDS[2]):
            self.assertEqual(read(JOURNAL[:length]), KNOWN[1])

    def test_damaged(self) -> None:
        """Reading ends at an entry that is damaged, also where its form is still right."""
        at = JOURNAL.index(b"two")
        self.assertEqual(read(JOURNAL[:at] + b"too" + JOURNAL[at + 3 :]), KNOWN[1])

    def test_garbage(self) -> None:
        """What stands behind the last entry is nobody's business."""
        for garbage in (b"\0" * 7, b"\xff" * 100, b"x", PIECES[0][: _ENTRY.size + 5]):
            self.assertEqual(read(JOURNAL + garbage), KNOWN[-1])

    def test_otherForm(self) -> None:
        """An entry that was written whole, and makes no sense, is refused."""
        body = b"\xa3new"
        strange = _ENTRY.pack(len(body), zlib.crc32(body)) + body
        error = self.assertRaises(BadSnapshot, read, JOURNAL + strange)
        self.assertIn("the journal has another form", str(error))

    def test_otherVersion(self) -> None:
        """A journal of a version that is too new is refused, and says which can read it."""
        header = list(HEADER.unpack_from(_BEGINNING))
        header[1:3] = VERSION + 2, VERSION + 1
        error = self.assertRaises(BadSnapshot, read, HEADER.pack(*header) + JOURNAL[HEADER.size :])
        self.assertIn(f"version {VERSION + 2}, which versions from {VERSION + 1} on", str(error))
        self.assertIn(f"this is version {VERSION}", str(error))

    @given(
        st.integers(0, len(JOURNAL)), st.integers(0, len(JOURNAL) - 1), st.integers(0, 255)
    )
    @example(len(JOURNAL), ENDS[1], 255)  # a length
    @example(len(JOURNAL), ENDS[1] + 4, 255)  # a checksum
    def test_anything(self, length: int, at: int, flip: int) -> None:
        """However a journal is cut, and whichever byte is wrong: no VM is invented."""
        data = bytearray(JOURNAL)
        data[at] ^= flip
        whole = sum(end <= min(length, at if flip else length) for end in ENDS)
        try:
            known = read(bytes(data[:length]))
        except BadSnapshot:
            self.assertEqual(whole, 0)
        else:
            # The versions at its beginning may be wrong and still be such as can be read.
            if 8 <= at < len(_BEGINNING):
                whole = sum(end <= length for end in ENDS)
            self.assertEqual(known, KNOWN[whole - 1])

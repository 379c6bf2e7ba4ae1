"""
The lifecycles' tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from twisted.trial.unittest import SynchronousTestCase

from ccproxy.core.states import (
    CLIENT_TABLE,
    SESSION_TABLE,
    VM_TABLE,
    ClientState,
    SessionInput,
    SessionState,
    VMState,
    advance,
)
from ccproxy.errors import LocalProtocolError

TABLES: list[tuple[Mapping[tuple[Enum, Enum], Enum], Enum, Enum]] = [
    (CLIENT_TABLE, ClientState.OPEN, ClientState.CLOSED),  # type: ignore[list-item]
    (SESSION_TABLE, SessionState.CREATED, SessionState.ENDED),  # type: ignore[list-item]
    (VM_TABLE, VMState.CONNECTING, VMState.GONE),  # type: ignore[list-item]
]


class TableTests(SynchronousTestCase):
    """What holds of each table."""

    def test_everyStateIsReached(self) -> None:
        """No state is there for nothing."""
        for table, first, _ in TABLES:
            found = {first}
            while True:
                more = {after for (state, _), after in table.items() if state in found} - found
                if not more:
                    break
                found |= more
            self.assertEqual(found, set(type(first)))

    def test_everyLifeEnds(self) -> None:
        """P13: from every state there is a way to the last one, and none out of that."""
        for table, first, last in TABLES:
            self.assertNotIn(last, {state for state, _ in table})
            ending = {last}
            while True:
                more = {state for (state, _), after in table.items() if after in ending} - ending
                if not more:
                    break
                ending |= more
            self.assertEqual(ending, set(type(first)))

    def test_writtenDownAndReadBack(self) -> None:
        """A state is a plain value."""
        for _, first, _ in TABLES:
            for state in type(first):
                self.assertIs(type(first)(state.value), state)

    def test_forbidden(self) -> None:
        """An input that the state forbids is a bug of ours, and names both."""
        error = self.assertRaises(
            LocalProtocolError, advance, SESSION_TABLE, SessionState.ENDED, SessionInput.EXIT
        )
        self.assertIn("EXIT", str(error))
        self.assertIn("ENDED", str(error))

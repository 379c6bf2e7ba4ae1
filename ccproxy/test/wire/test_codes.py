"""
Codes, opcodes and names: their values, and which dialect has which command.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ccproxy.errors import UnknownHyperName
from ccproxy.wire.codes import Command, ControlCode, Dialect, hyperCode

#: The commands that every agent is sent by the same code.
COMMON = {
    "version": 0,
    "startpod": 1,
    "destroypod": 4,
    "execcmd": 6,
    "ready": 8,
    "winsize": 11,
    "ping": 12,
    "writefile": 15,
    "readfile": 16,
    "newcontainer": 17,
    "killcontainer": 18,
    "onlinecpumem": 19,
    "setupinterface": 20,
    "setuproute": 21,
    "removecontainer": 22,
}
#: Those that some agents have, and the dialects in which they may be sent.
SPECIAL = {
    "pscontainer": (23, {Dialect.UNKNOWN, Dialect.CC}),
    "signalprocess": (24, {Dialect.UNKNOWN, Dialect.HYPERSTART, Dialect.HYPERSTART1}),
    "deleteinterface": (25, {Dialect.UNKNOWN, Dialect.HYPERSTART, Dialect.HYPERSTART1}),
}


class HyperCodeTests(SynchronousTestCase):
    """L{hyperCode}."""

    def test_common(self) -> None:
        """The commands that all agents know."""
        for dialect in Dialect:
            for name, code in COMMON.items():
                self.assertEqual(hyperCode(name, dialect), code)

    def test_perDialect(self) -> None:
        """The others are refused for an agent that is known not to have them."""
        for name, (code, having) in SPECIAL.items():
            for dialect in Dialect:
                if dialect in having:
                    self.assertEqual(hyperCode(name, dialect), code)
                else:
                    error = self.assertRaises(UnknownHyperName, hyperCode, name, dialect)
                    self.assertIn(name, str(error))
                    self.assertIn(dialect.value, str(error))

    def test_unknown(self) -> None:
        """P3: names that no dialect has are refused: answers and retired codes above all."""
        for name in (
            "",
            "ack",
            "error",
            "next",
            "pod_finished",
            "process_async_event",
            "finishpod",
            "PING",
            "ping ",
            "no\nsuch",
        ):
            for dialect in Dialect:
                self.assertRaises(UnknownHyperName, hyperCode, name, dialect)

    def test_unknownIsShown(self) -> None:
        """P18: the error shows the name on one line, and no more of it than needed."""
        error = self.assertRaises(UnknownHyperName, hyperCode, "a\nb" * 1000, Dialect.CC)
        self.assertNotIn("\n", str(error))
        self.assertLess(len(str(error)), 200)


class NamesTests(SynchronousTestCase):
    """The enumerations' properties."""

    def test_titles(self) -> None:
        """Every command has the name that the protocol gives it."""
        self.assertEqual(
            [command.title for command in Command],
            [
                "RegisterVM",
                "UnregisterVM",
                "AttachVM",
                "Hyper",
                "ConnectShim",
                "DisconnectShim",
                "Signal",
            ],
        )

    def test_dialects(self) -> None:
        """P15: which dialects are hyperstart's, and which leave nothing to learn."""
        self.assertEqual(
            {dialect for dialect in Dialect if dialect.isHyperstart},
            {Dialect.HYPERSTART, Dialect.HYPERSTART0, Dialect.HYPERSTART1},
        )
        self.assertEqual(
            {dialect for dialect in Dialect if dialect.decided},
            {Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1},
        )

    def test_sharedCode(self) -> None:
        """23 is a command to cc and an event from hyperstart 1.x."""
        self.assertEqual(ControlCode.PSCONTAINER, ControlCode.PROCESS_ASYNC_EVENT)

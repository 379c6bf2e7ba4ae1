"""
What C{ccproxyctl} makes of the daemon's answers: texts, tables, events, the lines of C{top}.
"""

from __future__ import annotations

import json
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ...admin import views
from ...ctl import clients, commands, sessions, status, topview, vms
from ...ctl.adminclient import AdminError
from ...ctl.events import LONGEST_EVENT, EventParser, line
from ...ctl.printable import ConsoleText, cut, printable, width
from ...ctl.tables import Column, grid, member, pairs, plain, quantity, size, span

#: What a hostile guest might call itself.
EVIL = "a\x1b]0;owned\x07\x9b31m\u202eb\n\ud800"

#: What a console says, in pieces that may be cut anywhere.
CONSOLE = (b"\r\n", b"\r", b"\n", b"\t", "\u017c".encode(), b"\xff", b"\x1b", b"a")


class PrintableTests(SynchronousTestCase):
    """Nothing that steers a terminal reaches one."""

    def test_escapes(self) -> None:
        self.assertEqual(printable(EVIL), "a\\x1b]0;owned\\x07\\x9b31m\\u202eb\\n\\ud800")
        self.assertEqual(printable("żółw 虎"), "żółw 虎")

    @given(st.text())
    def test_always(self, text: str) -> None:
        self.assertTrue(printable(text).isprintable())
        self.assertTrue(plain(text).isprintable())

    @given(st.text(), st.integers(0, 12))
    def test_cut(self, text: str, columns: int) -> None:
        """What is cut fits, and what fits is not cut."""
        text = printable(text)
        result = cut(text, columns)
        self.assertLessEqual(width(result), columns)
        if width(text) <= columns:
            self.assertEqual(result, text)

    def test_width(self) -> None:
        self.assertEqual([width("ab"), width("虎"), width("e\u0301")], [2, 2, 1])


class ConsoleTextTests(SynchronousTestCase):
    """A guest's console is shown as lines of harmless text."""

    def test_text(self) -> None:
        text = ConsoleText()
        shown = text.feed(b"\x1b[2Jlogin:\t\r\n100%\r\xc5") + text.feed(b"\xbc\xff\r", True)
        self.assertEqual(shown, "\\x1b[2Jlogin:\t\n100%\\rż\\xff\\r")

    @given(
        st.binary() | st.lists(st.sampled_from(CONSOLE)).map(b"".join),
        st.lists(st.integers(0, 5)),
    )
    def test_pieces(self, data: bytes, cuts: list[int]) -> None:
        """Any pieces give the same text, and nothing in it steers a terminal."""
        whole = ConsoleText().feed(data, True)
        text, shown, at = ConsoleText(), "", 0
        for length in cuts:
            shown += text.feed(data[at : at + length])
            at += length
        shown += text.feed(data[at:], True)
        self.assertEqual(shown, whole)
        self.assertTrue(whole.replace("\n", "").replace("\t", "").isprintable())


class TableTests(SynchronousTestCase):
    """Tables and quantities."""

    def test_sizes(self) -> None:
        values = (0, 812, 1023.4, 1023.5, 1024, 1536, 10188, 10200, 1 << 20, 3 << 40, 9 << 50)
        self.assertEqual(
            [size(value) for value in values],
            ["0", "812", "1023", "1.0K", "1.0K", "1.5K", "9.9K", "10K", "1.0M", "3.0T", "9216T"],
        )
        self.assertEqual(size(None), "-")

    def test_spans(self) -> None:
        values = (0, 0.31, 9.96, 59.4, 59.6, 303, 3599.6, 7500, 86399.9, 273600)
        self.assertEqual(
            [span(value) for value in values],
            ["0.0s", "0.3s", "10s", "59s", "1m00s", "5m03s", "1h00m", "2h05m", "1d00h", "3d04h"],
        )
        self.assertEqual(span("soon"), "soon")

    def test_plain(self) -> None:
        values: tuple[object, ...] = (None, "", True, False, 7, 0.5, ["a", None], [])
        self.assertEqual(
            [plain(value) for value in values], ["-", "-", "yes", "no", "7", "0.5", "a,-", "-"]
        )

    def test_grid(self) -> None:
        """Columns stand below each other, whatever is in them; what is missing is a dash."""
        columns = (Column("NAME", "name"), quantity("SIZE", "of.size", size), Column("X", "x"))
        rows: list[dict[str, Any]] = [
            {"name": "虎", "of": {"size": 2048}, "x": "end"},
            {"name": EVIL},
            {"of": 3},
        ]
        lines = grid(columns, rows)
        self.assertEqual(
            lines,
            [
                "NAME                                     SIZE  X",
                "虎                                       2.0K  end",
                "a\\x1b]0;owned\\x07\\x9b31m\\u202eb\\n\\ud800     -  -",
                "-                                           -  -",
            ],
        )

    def test_pairs(self) -> None:
        columns = (Column("Version", "version"), Column("Up", "uptime", span))
        self.assertEqual(
            pairs(columns, {"version": "1", "uptime": 3}), ["Version  1", "Up       3.0s"]
        )

    def test_fields(self) -> None:
        """Each column shows a field that the daemon's answers have."""
        for module, view in (
            (status, views.Status),
            (vms, views.VMView),
            (sessions, views.SessionView),
            (clients, views.ClientView),
            (commands, views.CommandView),
        ):
            for column in module.COLUMNS:
                kind: Any = view
                for name in column.field.split("."):
                    self.assertIn(name, attrs.fields_dict(kind), f"{view.__name__} of {module}")
                    kind = views.Counts

    def test_shown(self) -> None:
        self.assertEqual(status.counted({"registered": 2, "lost": 1, "gone": 0}),
                         "3 (2 registered, 1 lost)")  # fmt: skip
        self.assertEqual(status.counted({}), "0")
        self.assertEqual(status.counted(None), "-")
        self.assertEqual(vms.waiting(None), "-")
        self.assertEqual(vms.waiting({"session": "a\x1b", "seconds": 12}), "12s for a\\x1b")


class EventTests(SynchronousTestCase):
    """Server-sent events."""

    TEXT = (
        b': hello\n\nevent: vm-lost\r\ndata: {"vm":\r\ndata:  1}\r\n\r\n'
        b"id: 3\ndata: x\n\nevent: nothing\n\nevent: cut\ndata: off"
    )
    EVENTS = [("vm-lost", '{"vm":\n 1}'), ("message", "x")]

    def test_events(self) -> None:
        self.assertEqual(list(EventParser().feed(self.TEXT)), self.EVENTS)

    @given(st.lists(st.integers(1, 20)))
    def test_pieces(self, cuts: list[int]) -> None:
        parser, at = EventParser(), 0
        found: list[tuple[str, str]] = []
        for length in [*cuts, len(self.TEXT)]:
            found += parser.feed(self.TEXT[at : at + length])
            at += length
        self.assertEqual(found, self.EVENTS)

    def test_tooLong(self) -> None:
        """An event without an end takes no memory without an end."""
        for piece in (b"x" * 65536, b"data: " + b"x" * 65536 + b"\n"):
            parser = EventParser()
            with self.assertRaises(AdminError):
                for _ in range(LONGEST_EVENT // 65536 + 2):
                    list(parser.feed(piece))

    def test_line(self) -> None:
        data = {"time": "T", "level": "warn", "event": "vm-lost", "msg": "VM lost", "vm": EVIL,
                "client": "3 pid=1", "shim": None, "status": 0}  # fmt: skip
        self.assertEqual(
            line("vm-lost", json.dumps(data)),
            "T warn  vm-lost            VM lost  "
            "vm=a\\x1b]0;owned\\x07\\x9b31m\\u202eb\\n\\ud800 "
            'client="3 pid=1" status=0',
        )
        self.assertEqual(
            line("\x1b", "no \x1bJSON"), '- -     \\x1b               -  data="no \\\\x1bJSON"'
        )


def vm(serial: int, out: int = 0, **more: Any) -> dict[str, Any]:
    """What the daemon says of a VM."""
    return {
        "containerId": f"vm{serial}", "serial": serial, "state": "registered",
        "outBytes": out, "outFrames": out // 100, "inBytes": 0, "inFrames": 0,
        "bufferedOutput": 0, "bufferedInput": 0, "blocked": None, **more,
    }  # fmt: skip


class TopTests(SynchronousTestCase):
    """What C{top} shows."""

    def test_rates(self) -> None:
        """Rates are what was counted between two looks; newcomers have none yet."""
        rates = topview.Rates()
        self.assertEqual([row["outBytes"] for row in rates.rows([vm(1, 500)], 10.0)], [0])
        rows = rates.rows([vm(1, 2500), vm(2, 9000)], 12.0)
        self.assertEqual([row["outBytes"] for row in rows], [1000, 0])
        self.assertEqual([row["outFrames"] for row in rows], [10, 0])
        rows = rates.rows([vm(2, 10)], 12.0)
        self.assertEqual([row["outBytes"] for row in rows], [0])

    def test_orders(self) -> None:
        rates = topview.Rates()
        machines = [vm(1, containerId="c"), vm(2, containerId="b"), vm(3, containerId="a")]
        rates.rows(machines, 0.0)
        machines[1] = vm(2, 100, containerId="b")
        machines[2] = vm(3, containerId="a", bufferedInput=9, state="lost")
        view = topview.View(rows=rates.rows(machines, 1.0))
        found = {}
        for view.order in topview.ORDERS:
            found[view.order] = "".join(text[0] for text in view.lines(80, 24)[3:])
        self.assertEqual(found, {"t": "bca", "b": "acb", "s": "acb", "n": "abc"})

    def test_fields(self) -> None:
        """It shows fields that the daemon's answers have."""
        shown = {*topview.COUNTERS, *(column.field for column in topview.COLUMNS)}
        self.assertLessEqual(shown, set(attrs.fields_dict(views.VMView)))

    @given(st.integers(1, 200), st.integers(1, 40), st.text(), st.integers(-5, 50))
    def test_fits(self, columns: int, rows: int, name: str, first: int) -> None:
        """Whatever the size and the names, lines fit, and have nothing that steers a terminal."""
        machines = [vm(number, containerId=name) for number in range(10)]
        view = topview.View({"version": name}, topview.Rates().rows(machines, 1.0), first=first)
        lines = view.lines(columns, rows)
        self.assertLessEqual(len(lines), rows)
        for text in lines:
            self.assertLessEqual(width(text), columns)
            self.assertTrue(text.isprintable())

    def test_scroll(self) -> None:
        view = topview.View({}, topview.Rates().rows([vm(n) for n in range(1, 10)], 1.0))
        view.first = 4
        self.assertEqual(view.lines(80, 24)[3][:3], "vm5")
        view.first = 100
        self.assertEqual([text[:3] for text in view.lines(80, 24)[3:]], ["vm9"])
        view.first = -1
        self.assertEqual(view.lines(80, 24)[3][:3], "vm1")

    def test_trouble(self) -> None:
        view = topview.View({"version": "1", "draining": True, "uptime": 3}, (), trouble="gone")
        lines = view.lines(80, 24)
        self.assertIn("ccproxy 1  pid -  up 3.0s", lines[0])
        self.assertTrue(lines[0].endswith("DRAINING"))
        self.assertEqual(lines[1], "gone")
        self.assertEqual(member(view.status, "counts.vms"), None)

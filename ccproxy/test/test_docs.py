"""
The tables of docs/protocol, and what C{make} says of itself, are as it is.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from struct import Struct

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import ccproxy
from ccproxy.errors import UnknownHyperName
from ccproxy.wire.codes import (
    Command,
    ControlCode,
    Dialect,
    FrameType,
    Notification,
    Stream,
    hyperCode,
)
from ccproxy.wire.frames import HEADER, encodeFrame, encodeStream
from ccproxy.wire.messages import CONTROL_HEADER, IO_HEADER

_RULE = re.compile(r"=+( =+)+$")


def tables(text: str) -> list[list[list[str]]]:
    """
    The simple tables of a text: their rows of cells, without the heading.

    A line whose first cell is empty goes on with the row before it.
    """
    found: list[list[list[str]]] = []
    lines = text.splitlines()
    rules = [number for number, line in enumerate(lines) if _RULE.match(line)]
    for _, heading, end in zip(rules[::3], rules[1::3], rules[2::3], strict=True):
        starts = [match.start() for match in re.finditer("=+", lines[heading])]
        rows: list[list[str]] = []
        for line in lines[heading + 1 : end]:
            cells = [
                line[start:stop].strip()
                for start, stop in zip(starts, [*starts[1:], None], strict=True)
            ]
            if cells[0]:
                rows.append(cells)
            else:
                rows[-1] = [f"{a} {b}".strip() for a, b in zip(rows[-1], cells, strict=True)]
        found.append(rows)
    return found


class ProtocolTests(SynchronousTestCase):
    """docs/protocol against ccproxy.wire."""

    def setUp(self) -> None:
        source = os.environ.get("CCPROXY_SOURCE") or Path(ccproxy.__file__).parent.parent
        page = Path(source) / "docs" / "protocol.rst"
        if not page.exists():
            raise SkipTest(f"there is no {page}; CCPROXY_SOURCE names the sources")
        self.text = page.read_text()
        self.tables = tables(self.text)

    def layouts(self) -> list[list[tuple[int, int]]]:
        """The tables of bytes: offsets and sizes."""
        return [
            [(int(row[0]), int(row[1])) for row in rows if row[1].isdigit()]
            for rows in self.tables
            if rows[0][0] == "0" and rows[0][1].isdigit() and len(rows[0]) == 3
        ]

    def test_headers(self) -> None:
        """The three headers have the fields that the tables give them."""
        frame, control, io = self.layouts()
        for layout, struct in ((frame, HEADER), (control, CONTROL_HEADER), (io, IO_HEADER)):
            at = 0
            for offset, size in layout:
                self.assertEqual(offset, at)
                at += size
            self.assertEqual(at, struct.size)
        self.assertEqual([size for _, size in frame], [2, 1, 3, 1, 1, 4])
        self.assertEqual([size for _, size in control], _sizes(CONTROL_HEADER))
        self.assertEqual([size for _, size in io], _sizes(IO_HEADER))

    def test_examples(self) -> None:
        """The frames shown byte by byte are what the encoder makes."""
        shown = [bytes.fromhex(hex) for hex in re.findall(r"``(0002 03 [0-9a-f ]+)``", self.text)]
        self.assertEqual(
            shown,
            [
                encodeFrame(FrameType.RESPONSE, Command.CONNECT_SHIM),
                encodeStream(Stream.STDOUT, b"hi"),
            ],
        )

    def test_opcodes(self) -> None:
        """Types and opcodes have the numbers of the table."""
        (rows,) = [rows for rows in self.tables if rows[0][0] == "command"]
        self.assertEqual(
            {row[0]: int(row[1]) for row in rows},
            {kind.name.lower(): kind.value for kind in FrameType},
        )
        opcodes = {row[0]: dict(_pairs(row[3])) for row in rows}
        self.assertEqual(opcodes["command"], {each.value: each.title for each in Command})
        self.assertEqual(opcodes["stream"], {each.value: each.name.lower() for each in Stream})
        self.assertEqual(opcodes["notification"], {Notification.PROCESS_EXITED: "ProcessExited"})

    def test_controlCodes(self) -> None:
        """Each dialect has the commands that the table says."""
        (rows,) = [rows for rows in self.tables if rows[0][1] == "``version``"]
        self.assertEqual({int(row[0]) for row in rows}, {code.value for code in ControlCode})
        for code, name, dialects, _ in rows:
            if not name.startswith("``"):
                continue
            having = dialects.split(", ")
            for dialect in (Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1):
                if having == ["all"] or dialect.value in having:
                    self.assertEqual(hyperCode(name.strip("`"), dialect), int(code))
                elif int(code) in (ControlCode.PSCONTAINER, 24, 25):
                    self.assertRaises(UnknownHyperName, hyperCode, name.strip("`"), dialect)


class MakeTests(SynchronousTestCase):
    """C{make} alone."""

    def test_help(self) -> None:
        """It shows every target, but those that others are made of, and does nothing else."""
        source = os.environ.get("CCPROXY_SOURCE")
        if source is None:
            raise SkipTest("the Makefile is not here")
        shown = subprocess.run(
            ["make", "-s"], cwd=source, capture_output=True, text=True, timeout=30, check=True
        ).stdout
        text = (Path(source) / "Makefile").read_text()
        [phony] = re.findall(r"^\.PHONY: (.*)", text, re.MULTILINE)
        self.assertEqual(
            sorted(re.findall(r"^make ([a-z-]+) ", shown, re.MULTILINE)),
            sorted({*phony.split()} - {"help", "command", "unit", "check-run"}),
        )


def _sizes(struct: Struct) -> list[int]:
    return [{"I": 4, "Q": 8}[kind] for kind in struct.format.lstrip(">")]


def _pairs(text: str) -> list[tuple[int, str]]:
    return [(int(number), name) for number, name in re.findall(r"(\d) (\w+)", text)]

"""
C{ccproxyctl events}: what happens in the daemon, as it happens.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from ..core.limits import MAX_COUNT
from .adminclient import AdminClient, AdminError
from .arguments import whole
from .asking import ask, askingParser, show
from .tables import plain

#: The longest event that is taken, in bytes.
LONGEST_EVENT = 1 << 20


class Enough(Exception):
    """As many events have come as were wanted."""


class EventParser:
    """
    Server-sent events, out of bytes in any pieces.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> Iterator[tuple[str, str]]:
        """
        The events that are complete now: name and data.

        @raise AdminError: one is too long.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) + sum(map(len, self._data)) > LONGEST_EVENT:
            raise AdminError(f"an event has more than {LONGEST_EVENT} bytes")
        for line in lines:
            field, _, value = line.removesuffix(b"\r").decode(errors="replace").partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                self._name = value
            elif field == "data":
                self._data.append(value)
            elif not field and not value and not line.startswith(b":"):
                if self._data:
                    yield self._name or "message", "\n".join(self._data)
                self._name, self._data = "", []


def line(name: str, data: str) -> str:
    """An event on one line: when and what, in words and in fields."""
    members = members if isinstance(members := parsed(data), dict) else {"data": members}
    time, level, text = (plain(members.pop(key, None)) for key in ("time", "level", "msg"))
    members.pop("event", None)
    said = [f"{plain(key)}={quoted(value)}" for key, value in members.items() if value is not None]
    return f"{time} {level:<5} {plain(name):<18} {text}  {' '.join(said)}".rstrip()


def parsed(data: str) -> Any:
    """The data out of JSON, or as it stands."""
    try:
        return json.loads(data)
    except ValueError:
        return data


def quoted(value: object) -> str:
    """A value that is unmistakable among others."""
    text = plain(value)
    return json.dumps(text, ensure_ascii=False) if " " in text or '"' in text else text


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    parser = askingParser(
        "events",
        "Show what happens in the daemon as it happens: VMs registered and lost, shims, processes "
        "started and exited, backpressure on and off. Ends with the daemon.",
        json=True,
    )
    parser.add_argument(
        "-f", "--follow", action="store_true", help="follow them, which it does anyway"
    )
    parser.add_argument("--vm", metavar="VM", help="only those of VMs of this name")
    parser.add_argument(
        "--event",
        metavar="NAME[,NAME...]",
        help="only those of these names, which are those of the log",
    )
    parser.add_argument(
        "-n",
        "--count",
        type=whole(0, MAX_COUNT),
        default=0,
        metavar="COUNT",
        help="end after so many events (default: never)",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{events}.
    @return: the exit status.
    """
    parser = makeParser()
    options = parser.parse_args(arguments)
    events = EventParser()
    shown = 0

    def receive(data: bytes) -> None:
        nonlocal shown
        for name, value in events.feed(data):
            if options.json:
                show([json.dumps({"event": name, "data": parsed(value)})])
            else:
                show([line(name, value)])
            if name == "cut-off":
                raise AdminError("what reads this is too slow: the daemon has cut it off")
            shown += 1
            if shown == options.count:
                raise Enough

    async def work(client: AdminClient) -> None:
        wanted = {"vm": options.vm, "event": options.event}
        query = {name: value for name, value in wanted.items() if value}
        with suppress(Enough):
            await client.stream("/v1/events", receive, **query)

    return ask(parser, options, work)

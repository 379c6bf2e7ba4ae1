"""
What clients and guests have chosen, made harmless for a terminal.

A terminal obeys control characters: they move its cursor, change its title, type into its shell.
And characters that steer the direction of writing make a text look like another.
"""

from __future__ import annotations

import codecs
import unicodedata


def printable(text: str) -> str:
    """A text on one line, with what is not printable in it escaped as Python does."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def width(text: str) -> int:
    """How many columns of a terminal a printable text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def cut(text: str, columns: int) -> str:
    """A printable text in no more than so many columns; an ellipsis says that there was more."""
    if width(text) <= columns:
        return text
    taken, left = "", columns - 1
    for character in text:
        left -= width(character)
        if left < 0:
            break
        taken += character
    return f"{taken}…" if columns > 0 else ""


class ConsoleText:
    """
    A guest's console as text of many lines: bytes in, in any pieces, printable text out.

    Line ends and tabs are what they are; all else that is not printable is escaped.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._held = ""

    def feed(self, data: bytes, final: bool = False) -> str:
        """
        What can be shown now.

        @param data: the next bytes.
        @param final: whether they are the last.
        """
        text = self._held + self._decoder.decode(data, final)
        # Whether a carriage return belongs to a line end is known with what follows it.
        self._held = "\r" if text.endswith("\r") and not final else ""
        text = text.removesuffix("\r") if self._held else text
        lines = text.replace("\r\n", "\n").split("\n")
        return "\n".join("\t".join(map(printable, line.split("\t"))) for line in lines)

"""
The syntax of Go's C{flag} package, in which the historic command line is written.

One dash or two, C{-flag value} or C{-flag=value}; a boolean flag takes a value only behind an
equals sign; the flags end at C{--}, at C{-} and at the first argument without a dash.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs

_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")


class HelpWanted(Exception):
    """C{-h} or C{-help} was given."""


class FlagError(Exception):
    """The command line is wrong. C{str()} of it says how."""


def _parseString(text: str) -> str:
    return text


def parseBool(text: str) -> bool:
    """
    A boolean as Go spells it.

    @raise ValueError: it is none.
    """
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("parse error")


@attrs.frozen
class Flag:
    """
    A flag that can be given.

    @ivar name: without its dash.
    @ivar help: a sentence for the usage.
    @ivar default: its value where it is not given; L{False} makes it a boolean flag.
    @ivar kind: what its value is called in the usage.
    @ivar parse: makes the value of a text, or raises L{ValueError}.
    """

    name: str
    help: str
    default: Any = ""
    kind: str = "string"
    parse: Callable[[str], Any] = _parseString

    @property
    def isBool(self) -> bool:
        """Whether the flag can stand without a value."""
        return self.default is False


def boolFlag(name: str, help: str) -> Flag:
    """A flag that is off unless given."""
    return Flag(name, help, default=False, kind="", parse=parseBool)


def parseFlags(
    flags: Iterable[Flag], arguments: Sequence[str]
) -> tuple[ChainMap[str, Any], list[str]]:
    """
    Read a command line.

    @param flags: those that can be given.
    @param arguments: without the name of the command.
    @return: the value of every flag, the last one given or the default, and the arguments behind
        the flags. The first map of the values has those that were given.
    @raise FlagError: the command line is wrong.
    @raise HelpWanted: help was asked for.
    """
    known = {flag.name: flag for flag in flags}
    values = ChainMap({}, {flag.name: flag.default for flag in known.values()})
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        argument = rest.pop(0)
        if argument == "--":
            break
        name, equals, text = argument.removeprefix("-").removeprefix("-").partition("=")
        if not name or name.startswith("-"):
            raise FlagError(f"bad flag syntax: {argument}")
        flag = known.get(name)
        if flag is None:
            if name in ("h", "help"):
                raise HelpWanted
            raise FlagError(f"flag provided but not defined: -{name}")
        if not equals:
            if flag.isBool:
                text = "true"
            elif rest:
                text = rest.pop(0)
            else:
                raise FlagError(f"flag needs an argument: -{name}")
        try:
            values[name] = flag.parse(text)
        except ValueError as problem:
            what = f'boolean value "{text}" for' if flag.isBool else f'value "{text}" for flag'
            raise FlagError(f"invalid {what} -{name}: {problem}") from None
    return values, rest


def usage(command: str, flags: Iterable[Flag]) -> str:
    """
    What to print for help, and after an error.

    @param command: the name of the command.
    @param flags: those that can be given.
    """
    lines = [f"Usage of {command}:"]
    for flag in sorted(flags, key=lambda flag: flag.name):
        lines.append(f"  -{flag.name} {flag.kind}".rstrip())
        shown = f'"{flag.default}"' if flag.kind == "string" else flag.default
        default = f" (default {shown})" if flag.default else ""
        lines.append(f"    \t{flag.help}{default}")
    return "\n".join(lines) + "\n"

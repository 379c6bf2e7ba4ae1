"""
Words of the command line that several commands have in common.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from math import nan

from ..errors import CCProxyError
from ..net.address import DEFAULT_ADMIN_SOCKET, DEFAULT_SOCKET, adminPath, socketPath
from ..wire.text import checkUTF8


def address(text: str) -> str:
    """The path of the proxy's socket, for argparse."""
    try:
        return socketPath(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class BadWord(CCProxyError):
    """A word of the command line that the protocol cannot carry."""


def text(word: str) -> str:
    """
    A word that the protocol has to carry, for argparse.

    @raise BadWord: it is not UTF-8. C{ccproxyctl} says so in one line, without the usage.
    """
    try:
        checkUTF8(word)
    except ValueError as error:
        raise BadWord(str(error)) from None
    return word


def variable(word: str) -> tuple[str, str]:
    """A variable of the environment, for argparse: C{NAME=VALUE}, or C{NAME} for our own."""
    name, equals, value = word.partition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"{word!r} names no variable: give NAME=VALUE")
    if not equals and name not in os.environ:
        raise argparse.ArgumentTypeError(f"{name} is not set here: give {name}=VALUE")
    value = value if equals else os.environ[name]
    text(f"{name}={value}")
    return name, value


def seconds(least: float, most: float = 86400.0) -> Callable[[str], float]:
    """What makes a number of seconds of a text, for argparse."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not from {least:g} to {most:g} seconds")
        return value

    return convert


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return a converter from a text to a whole number, for argparse."""

    def convert(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or len(text) > len(str(most)):
            value = -1
        else:
            value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} to {most}")
        return value

    return convert


def addAddress(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the proxy is."""
    parser.add_argument(
        "-u",
        "--url",
        "--socket-path",
        "--socket",
        dest="path",
        type=address,
        default=os.environ.get("CCPROXY_SOCKET") or DEFAULT_SOCKET,
        metavar="unix://PATH",
        help="the proxy's socket, or just its path (default: $CCPROXY_SOCKET, or "
        f"{DEFAULT_SOCKET})",
    )


def addAdmin(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the daemon is asked."""
    client = os.environ.get("CCPROXY_SOCKET")
    default = adminPath(client.removeprefix("unix://")) if client else DEFAULT_ADMIN_SOCKET
    parser.add_argument(
        "--admin-socket",
        dest="adminSocket",
        type=address,
        default=os.environ.get("CCPROXY_ADMIN_SOCKET") or default,
        metavar="PATH",
        help="the daemon's admin socket (default: $CCPROXY_ADMIN_SOCKET, or what belongs to "
        f"$CCPROXY_SOCKET, or {DEFAULT_ADMIN_SOCKET})",
    )


def addProcess(parser: argparse.ArgumentParser) -> None:
    """Add what says which process to start where."""
    addAddress(parser)
    parser.add_argument(
        "--vm",
        type=text,
        default="demo",
        metavar="VM",
        help="the VM's containerId (default: %(default)s)",
    )
    parser.add_argument(
        "-t", "--tty", action="store_true", help="give the process a terminal, of the size of ours"
    )
    parser.add_argument(
        "-e",
        "--env",
        action="append",
        type=variable,
        default=[],
        metavar="NAME[=VALUE]",
        help="set a variable of its environment, or pass on ours; can be repeated",
    )
    parser.add_argument(
        "-w", "--workdir", type=text, metavar="DIR", help="the folder that it starts in"
    )


def addCommand(parser: argparse.ArgumentParser) -> None:
    """Add the words of the process, which must come last."""
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        type=text,
        metavar="COMMAND",
        help="the program in the VM and its arguments",
    )

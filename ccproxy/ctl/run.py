"""
C{ccproxyctl run}: start a container in a VM, connected to this terminal; then remove it.
"""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Sequence

from ..wire.starts import NewContainer
from .arguments import addCommand, addProcess, text
from .starting import describeProcess, runProcess

#: How long to wait for the removal of a container that has ended, in seconds.
REMOVE_TIMEOUT = 10.0


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    parser = argparse.ArgumentParser(
        prog="ccproxyctl run",
        usage="%(prog)s [OPTION...] [--] COMMAND [ARGUMENT...]",
        description="Start a container in a VM, connect its first process to this terminal or "
        "these pipes, and exit with its status; then remove the container. "
        "Signals go to the process; a second Ctrl-C within 3 seconds ends ccproxyctl alone.",
        epilog="Exit status: the process's; 125 if ccproxyctl itself fails; 2 for a bad option.",
    )
    addProcess(parser)
    parser.add_argument(
        "--id",
        type=text,
        metavar="CONTAINER",
        help="the container's name (default: run- and random digits)",
    )
    parser.add_argument(
        "--image",
        type=text,
        metavar="DIR",
        help="its folder in what the VM shares with its host (default: its name)",
    )
    parser.add_argument(
        "--rootfs",
        type=text,
        default="rootfs",
        metavar="DIR",
        help="its root in there (default: %(default)s)",
    )
    addCommand(parser)
    return parser


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{run}.
    @return: the exit status.
    """
    parser = makeParser()
    options = parser.parse_args(arguments)
    options.process = describeProcess(options, parser)
    name = options.id or f"run-{secrets.token_hex(4)}"

    def advice(reason: str) -> str:
        if options.image is None and f"{name}/" in reason:
            return "; name the image in the VM that it runs in, such as: --image busybox"
        return ""

    data = NewContainer(name, options.rootfs, options.image or name, options.process)
    return runProcess(
        "run",
        options,
        "newcontainer",
        data,
        lambda client: client.hyper("removecontainer", {"container": name}, (), REMOVE_TIMEOUT),
        advice,
    )

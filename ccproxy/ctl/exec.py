"""
C{ccproxyctl exec}: start one more process in a running container, connected to this terminal.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..wire.starts import ExecCommand
from .arguments import addCommand, addProcess, text
from .starting import describeProcess, runProcess


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    parser = argparse.ArgumentParser(
        prog="ccproxyctl exec",
        usage="%(prog)s [OPTION...] CONTAINER [--] COMMAND [ARGUMENT...]",
        description="Start one more process in a running container, connect it to this terminal "
        "or these pipes, and exit with its status. Signals go to the process, if the VM's agent "
        "can do that: the cc agent and hyperstart 0.x can't. A second Ctrl-C within 3 seconds "
        "ends ccproxyctl alone.",
        epilog="Exit status: the process's; 125 if ccproxyctl itself fails; 2 for a bad option.",
    )
    addProcess(parser)
    parser.add_argument("container", type=text, metavar="CONTAINER", help="the container's name")
    addCommand(parser)
    return parser


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{exec}.
    @return: the exit status.
    """
    parser = makeParser()
    options = parser.parse_args(arguments)
    options.process = describeProcess(options, parser)
    return runProcess("exec", options, "execcmd", ExecCommand(options.container, options.process))

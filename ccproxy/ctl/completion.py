"""
C{ccproxyctl completion}: what a shell needs to complete the commands, made of their own parsers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import ccproxyctl
from .commandline import withSubcommands
from .output import write
from .shells import SHELLS, Line

_EPILOG = """\
bash:  ccproxyctl completion bash > ~/.local/share/bash-completion/completions/ccproxyctl
zsh:   ccproxyctl completion zsh > "${fpath[1]}/_ccproxyctl"
fish:  ccproxyctl completion fish > ~/.config/fish/completions/ccproxyctl.fish

Exit status: 0; 2 for a bad option.
"""


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    parser = argparse.ArgumentParser(
        prog="ccproxyctl completion",
        description="Print the script with which a shell completes commands, options and the names "
        "of VMs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=tuple(SHELLS), help="the shell")
    return parser


def lines() -> list[Line]:
    """All commands."""
    return [
        Line(*found)
        for command, parser in ccproxyctl.commandParsers().items()
        for found in withSubcommands(command, ccproxyctl.COMMANDS[command][1], parser)
    ]


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{completion}.
    @return: the exit status.
    """
    shell = makeParser().parse_args(arguments).shell
    write(SHELLS[shell](ccproxyctl.makeParser(), lines()))
    return 0
